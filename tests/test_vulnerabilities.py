"""`make vulnerabilities`: findings fail, and packages that were not checked are reported."""

from __future__ import annotations

import json
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.documents import ROOT


def judge(out: object, err: str = "") -> tuple[int, list[str]]:
    """Load the script by its path, because its name has no suffix."""
    loader = SourceFileLoader("vulnerabilities", str(ROOT / ".ci" / "vulnerabilities"))
    spec = spec_from_loader("vulnerabilities", loader)
    assert spec is not None
    script: Any = module_from_spec(spec)
    loader.exec_module(script)
    judged: tuple[int, list[str]] = script.judge(
        out if isinstance(out, str) else json.dumps(out), err
    )
    return judged


def package(name: str, *ids: str) -> dict[str, object]:
    vulnerabilities = [{"id": each, "fix_versions": ["2.1"]} for each in ids]
    return {"name": name, "version": "2.0", "vulns": vulnerabilities}


UNKNOWN = {"name": "other", "skip_reason": "Dependency not found on PyPI"}


class JudgementTests(SynchronousTestCase):
    def test_nothing_found(self) -> None:
        status, lines = judge({"dependencies": [package("attrs"), package("click")]})
        self.assertEqual((status, lines), (0, ["pip-audit: 2 packages, 0 known vulnerabilities"]))

    def test_findings_fail_and_are_named(self) -> None:
        status, lines = judge({"dependencies": [package("attrs"), package("click", "PYSEC-1")]})
        self.assertEqual(status, 1)
        self.assertIn("click 2.0: PYSEC-1, fixed in 2.1", lines)

    def test_a_skipped_package_is_named(self) -> None:
        status, lines = judge({"dependencies": [package("attrs"), UNKNOWN]})
        self.assertEqual(status, 0)
        self.assertTrue(lines[0].startswith("not run: pip-audit for other: "))

    def test_an_index_without_vulnerability_data_is_not_an_audit(self) -> None:
        status, lines = judge({"dependencies": [UNKNOWN]})
        self.assertEqual(status, 0)
        (line,) = lines
        self.assertTrue(line.startswith("not run: "))

    def test_without_the_network_the_audit_is_not_run(self) -> None:
        for last in (
            "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='pypi.org', port=443)",
            "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed",
        ):
            status, lines = judge("", f"Traceback:\n{last}\n")
            self.assertEqual(status, 0)
            self.assertTrue(lines[0].startswith("not run: "))

    def test_any_other_error_fails(self) -> None:
        for err in ("ERROR:pip_audit._cli:requirement foo does not contain a hash", ""):
            self.assertEqual(judge("", err)[0], 1)
