"""docs/metrics.md, docs/alerts.yml and docs/dashboard.json: they ask for what there is, and lead somewhere.

That a running posd serves exactly what docs/metrics.md describes is in tests/integration/test_metrics.py;
that alarms go off when they should, in tests/system/.
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
"""What is not posd's own: Prometheus has it, or prometheus_client."""
_SCRAPED: Final = {"instance", "job"}
"""Labels that Prometheus adds."""
_VARIABLES: Final = {"$__rate_interval": "5m", "$instance": ".*", "$tenant": ".*"}
"""What Grafana puts in place of them, for instance."""


@frozen
class Described:
    """A metric of the page, and the labels that it has there."""

    type: str
    labels: frozenset[str]


def metric_rows() -> list[Sequence[str]]:
    """The rows of the page's tables of metrics."""
    tables = (table for table in documents.tables(PAGE) if table.section != "Log lines")
    return [row for table in tables for row in table.rows]


def described() -> dict[str, Described]:
    """The metrics of the page, by the names that PromQL asks for."""
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
    """All alarms."""
    groups = yaml.safe_load(documents.text("docs/alerts.yml"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found = json.loads((ROOT / "docs/dashboard.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Everything that is asked of Prometheus, and where."""
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
    def test_names_are_as_prometheus_wants_them(self) -> None:
        for name, each in described().items():
            with self.subTest(name=name):
                self.assertRegex(name, r"^posd_[a-z_]+$")
                self.assertIn(each.type, ("counter", "gauge", "histogram"))
                self.assertEqual(name.endswith("_total"), each.type == "counter")

    def test_no_label_can_tell_who_or_which(self) -> None:
        labels = {label for each in described().values() for label in each.labels}
        words = {"road", "way", "stage", "state", "by", "reason", "code", "operation", "status"}
        self.assertEqual(labels, {"tenant", "version", "le"} | words)


class ExpressionTests(SynchronousTestCase):
    def test_alarms_and_dashboard_ask_for_metrics_that_there_are(self) -> None:
        known, asked = described(), 0
        for where, expression in expressions():
            for each in promql.selected(expression):
                asked += 1
                with self.subTest(where=where, name=each.name):
                    self.assertIn(each.name, known.keys() | _OTHERS.keys())
                    has = known[each.name].labels if each.name in known else _OTHERS[each.name]
                    self.assertLessEqual(each.labels, {*has} | _SCRAPED)
        self.assertGreater(asked, 60)

    def test_they_group_by_labels_that_one_of_these_metrics_has(self) -> None:
        known = described()
        for where, expression in expressions():
            names = [each.name for each in promql.selected(expression)]
            labels = {label for name in names if name in known for label in known[name].labels}
            with self.subTest(where=where):
                self.assertLessEqual({*promql.grouped(expression)}, labels | _SCRAPED)

    def test_what_only_grows_is_asked_for_its_growth(self) -> None:
        known = described()
        for where, expression in expressions():
            for each in promql.selected(expression):
                if each.name in known and known[each.name].type != "gauge":
                    with self.subTest(where=where, name=each.name):
                        grows = rf"(rate|increase)\({each.name}(\{{[^}}]*\}}[^}}\]]*\}}|\{{[^}}]*\}})?\["
                        self.assertRegex(expression, grows)


class AlarmTests(SynchronousTestCase):
    def test_every_alarm_says_how_urgent_it_is_what_is_so_and_where_to_read_on(self) -> None:
        found = rules()
        self.assertEqual(len({rule["alert"] for rule in found}), len(found))
        for rule in found:
            with self.subTest(alarm=rule["alert"]):
                self.assertRegex(rule["alert"], "^Posd[A-Z][A-Za-z]+$")
                self.assertIn(rule["labels"]["severity"], ("page", "ticket"))
                self.assertEqual(
                    rule["annotations"].keys(), {"summary", "description", "runbook_url"}
                )
                anchor = rule["alert"].lower()
                self.assertEqual(rule["annotations"]["runbook_url"], f"docs/runbook.md#{anchor}")

    def test_what_an_alarm_tells_of_a_series_is_left_of_it(self) -> None:
        for rule in rules():
            text = " ".join(rule["annotations"].values())
            for label in re.findall(r"\$labels\.(\w+)", text):
                with self.subTest(alarm=rule["alert"], label=label):
                    aggregated = [*promql.grouped(rule["expr"])]
                    summed = re.search(r"\b(sum|max|min)\b", rule["expr"]) is not None
                    self.assertTrue(label in aggregated or (label == "instance" and not summed))


class DashboardTests(SynchronousTestCase):
    def test_every_panel_is_in_its_place_and_says_what_it_shows(self) -> None:
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

    def test_it_asks_whichever_prometheus_is_chosen(self) -> None:
        board = dashboard()
        variables = {each["name"]: each for each in board["templating"]["list"]}
        self.assertEqual(variables["source"]["type"], "datasource")
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                with self.subTest(panel=panel["title"]):
                    self.assertEqual(target["datasource"]["uid"], "${source}")

    def test_a_variable_chooses_among_labels_that_there_are(self) -> None:
        for each in dashboard()["templating"]["list"]:
            if each["type"] == "query":
                asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", each["definition"])
                assert asked is not None
                self.assertIn(asked[2], described()[asked[1]].labels | _SCRAPED)
