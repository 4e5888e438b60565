"""Check docs/metrics.md, docs/alerts.yml and docs/dashboard.json: their metrics, labels and links exist.

tests/integration/test_metrics.py compares docs/metrics.md with a running posd. tests/system/ tests when
alerts fire.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import yaml
from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from tests import documents, promql
from tests.documents import ROOT

PAGE: Final = "docs/metrics.md"
_OTHERS: Final = {
    "up": {"job"},
    "process_open_fds": {"job"},
    "process_max_fds": {"job"},
    "process_cpu_seconds_total": {"job"},
    "process_resident_memory_bytes": {"job"},
}
"""Metrics of Prometheus and of prometheus_client."""
_SCRAPED: Final = {"instance", "job"}
"""Labels that Prometheus adds."""
_VARIABLES: Final = {"$__rate_interval": "5m", "$instance": ".*", "$tenant": ".*"}
"""Example values for the variables of Grafana."""


@frozen
class Described:
    """The type and the labels of a metric on the page."""

    type: str
    labels: frozenset[str]


def metric_rows() -> list[Sequence[str]]:
    """Return the rows of the page's tables of metrics."""
    tables = (table for table in documents.tables(PAGE) if table.section != "Log lines")
    return [row for table in tables for row in table.rows]


def described() -> dict[str, Described]:
    """Return the metrics of the page by their names in PromQL."""
    found = {}
    for names, kind, _ in metric_rows():
        for word in documents.words_in_code(names):
            name, _, labels = word.partition("{")
            for part in ("_bucket", "_count", "_sum") if kind == "histogram" else ("",):
                has = {*filter(None, labels.strip("}").split(","))}
                has |= {"le"} if part == "_bucket" else set()
                found[name + part] = Described(kind, frozenset(has))
    return found


def rules() -> list[dict[str, Any]]:
    """Return all alert rules."""
    groups = yaml.safe_load(documents.text("docs/alerts.yml"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found = json.loads((ROOT / "docs/dashboard.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each PromQL expression after the name of its alert, panel or annotation."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    board = dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], _filled(target["expr"])
    for note in board["annotations"]["list"]:
        yield note["name"], _filled(note["expr"])


def _filled(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


class PageTests(SynchronousTestCase):
    """Tests for the tables of docs/metrics.md."""

    def test_names_follow_the_conventions_of_prometheus(self) -> None:
        for name, each in described().items():
            with self.subTest(name=name):
                self.assertRegex(name, r"^posd_[a-z_]+$")
                self.assertIn(each.type, ("counter", "gauge", "histogram"))
                self.assertEqual(name.endswith("_total"), each.type == "counter")

    def test_no_label_identifies_a_key_terminal_or_order(self) -> None:
        labels = {label for each in described().values() for label in each.labels}
        words = {"road", "way", "stage", "state", "by", "reason", "code", "operation", "status"}
        self.assertEqual(labels, {"tenant", "version", "le"} | words)


class ExpressionTests(SynchronousTestCase):
    """Tests for the expressions of the alerts and the dashboard."""

    def test_alerts_and_dashboard_use_existing_metrics_and_labels(self) -> None:
        known, asked = described(), 0
        for where, expression in expressions():
            for each in promql.selected(expression):
                asked += 1
                with self.subTest(where=where, name=each.name):
                    self.assertIn(each.name, known.keys() | _OTHERS.keys())
                    has = known[each.name].labels if each.name in known else _OTHERS[each.name]
                    self.assertLessEqual(each.labels, {*has} | _SCRAPED)
        self.assertGreater(asked, 60)

    def test_they_group_by_existing_labels(self) -> None:
        known = described()
        for where, expression in expressions():
            names = [each.name for each in promql.selected(expression)]
            labels = {label for name in names if name in known for label in known[name].labels}
            with self.subTest(where=where):
                self.assertLessEqual({*promql.grouped(expression)}, labels | _SCRAPED)

    def test_counters_and_histograms_are_used_with_rate_or_increase(self) -> None:
        known = described()
        for where, expression in expressions():
            for each in promql.selected(expression):
                if each.name in known and known[each.name].type != "gauge":
                    with self.subTest(where=where, name=each.name):
                        grows = rf"(rate|increase)\({each.name}(\{{[^}}]*\}}[^}}\]]*\}}|\{{[^}}]*\}})?\["
                        self.assertRegex(expression, grows)


class AlertTests(SynchronousTestCase):
    """Tests for docs/alerts.yml."""

    def test_every_alert_has_a_severity_a_text_and_a_section_of_the_runbook(self) -> None:
        found = rules()
        self.assertEqual(len({rule["alert"] for rule in found}), len(found))
        for rule in found:
            with self.subTest(alert=rule["alert"]):
                self.assertRegex(rule["alert"], "^Posd[A-Z][A-Za-z]+$")
                self.assertIn(rule["labels"]["severity"], ("page", "ticket"))
                self.assertEqual(
                    rule["annotations"].keys(), {"summary", "description", "runbook_url"}
                )
                anchor = rule["alert"].lower()
                self.assertEqual(rule["annotations"]["runbook_url"], f"docs/runbook.md#{anchor}")

    def test_the_texts_use_labels_that_the_expression_keeps(self) -> None:
        for rule in rules():
            text = " ".join(rule["annotations"].values())
            for label in re.findall(r"\$labels\.(\w+)", text):
                with self.subTest(alert=rule["alert"], label=label):
                    aggregated = [*promql.grouped(rule["expr"])]
                    summed = re.search(r"\b(sum|max|min)\b", rule["expr"]) is not None
                    self.assertTrue(label in aggregated or (label == "instance" and not summed))


class DashboardTests(SynchronousTestCase):
    """Tests for docs/dashboard.json."""

    def test_panels_do_not_overlap_and_have_descriptions(self) -> None:
        panels = dashboard()["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            cells = {
                (place["x"] + dx, place["y"] + dy)
                for dx in range(place["w"])
                for dy in range(place["h"])
            }
            with self.subTest(panel=panel["title"]):
                self.assertLessEqual(place["x"] + place["w"], 24)
                self.assertFalse(cells & taken)
                if panel["type"] != "row":
                    self.assertTrue(panel["description"].endswith("."))
                    self.assertTrue(panel["targets"])
            taken |= cells

    def test_panels_use_the_selected_data_source(self) -> None:
        board = dashboard()
        variables = {each["name"]: each for each in board["templating"]["list"]}
        self.assertEqual(variables["source"]["type"], "datasource")
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                with self.subTest(panel=panel["title"]):
                    self.assertEqual(target["datasource"]["uid"], "${source}")

    def test_variables_use_existing_labels(self) -> None:
        for each in dashboard()["templating"]["list"]:
            if each["type"] == "query":
                asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", each["definition"])
                assert asked is not None
                self.assertIn(asked[2], described()[asked[1]].labels | _SCRAPED)
