"""docs/alerts.yml, judged by Prometheus' own tool: no objection, and alarms go off when they should."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from unittest import SkipTest

import yaml
from twisted.trial.unittest import SynchronousTestCase

from tests import documents
from tests.documents import ROOT

CASES = Path(__file__).with_name("alert_rules.yml")


@cache
def promtool() -> Path:
    """Prometheus' tool; where it is not installed and Debian's package can be had, out of that."""
    found = shutil.which("promtool")
    if found is not None:
        return Path(found)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SkipTest(
            "not run: there is no promtool, nor apt-get to fetch it (Debian: prometheus)"
        )
    folder = Path(tempfile.mkdtemp(prefix="posd-promtool-"))
    atexit.register(shutil.rmtree, folder)
    # Lists of its own, since a machine may have none, and those that it has are not ours to change.
    (folder / "lists/partial").mkdir(parents=True)
    for task in (("update",), ("download", "prometheus")):
        apt = ("apt-get", "--quiet", "--option", f"Dir::State::Lists={folder}/lists", *task)
        done = subprocess.run(apt, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SkipTest(f"not run: there is no promtool, and {done.stderr.strip()}")
    (package,) = folder.glob("prometheus_*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
    return folder / "usr/bin/promtool"


class Alarms(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        self.tool = promtool()

    def run_tool(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.tool), *arguments], cwd=self.folder, capture_output=True, text=True
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_prometheus_has_no_objection_to_them(self) -> None:
        said = self.run_tool("check", "rules", "--lint-fatal", str(ROOT / "docs/alerts.yml"))
        self.assertIn(f"{len(self.alarms())} rules found", said)

    def test_prometheus_can_be_configured_as_it_is_shown(self) -> None:
        (block,) = (each for each in documents.blocks("docs/metrics.md") if each.of("yaml"))
        (self.folder / "prometheus.yml").write_text(block.text, "utf-8")
        said = self.run_tool("check", "config", "--syntax-only", "prometheus.yml")
        self.assertIn("SUCCESS", said)

    def test_each_goes_off_when_it_should_and_not_before(self) -> None:
        rules = yaml.safe_load((ROOT / "docs/alerts.yml").read_text("utf-8"))
        for group in rules["groups"]:
            for rule in group["rules"]:
                # What is said is for people, and would have to be said here once more.
                del rule["annotations"]
        (self.folder / "alerts.yml").write_text(yaml.safe_dump(rules), "utf-8")
        shutil.copy(CASES, self.folder)
        self.assertIn("SUCCESS", self.run_tool("test", "rules", CASES.name))

    def test_every_alarm_has_a_case_in_which_it_goes_off(self) -> None:
        cases = yaml.safe_load(CASES.read_text("utf-8"))["tests"]
        tried = {
            each["alertname"]
            for case in cases
            for each in case["alert_rule_test"]
            if each.get("exp_alerts")
        }
        self.assertEqual(tried, self.alarms())

    def alarms(self) -> set[str]:
        rules = yaml.safe_load((ROOT / "docs/alerts.yml").read_text("utf-8"))
        return {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
