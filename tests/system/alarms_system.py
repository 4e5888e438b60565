"""docs/alerts.yml, checked by promtool: the rules are valid, and the alerts fire when they should."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from unittest import SkipTest

import yaml
from twisted.trial.unittest import SynchronousTestCase

from tests import debian, documents
from tests.documents import ROOT

CASES = Path(__file__).with_name("alert_rules.yml")


class Alarms(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        try:
            self.tool = debian.program("promtool", "prometheus")
        except debian.Missing as error:
            raise SkipTest(f"not run: {error}") from error

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
                # The test cases do not repeat the annotations, which are texts for people.
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
