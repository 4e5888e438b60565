"""Compare the tables of docs/performance.md with the measurements in bench/results.json."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from bench import page
from tests import documents


class TableTests(SynchronousTestCase):
    """Tests for the generated tables."""

    def test_the_tables_are_those_of_the_stored_results(self) -> None:
        text = documents.text("docs/performance.md")
        for name, lines in page.tables(json.loads(page.RESULTS.read_text("utf-8"))).items():
            with self.subTest(table=name):
                self.assertIn("\n".join(lines) + "\n", text)

    def test_every_row_of_the_benchmark_was_measured_without_failures(self) -> None:
        stored = json.loads(page.RESULTS.read_text("utf-8"))
        self.assertEqual(set(stored["rows"]), {row.name for row in page.ROWS})
        for name, row in stored["rows"].items():
            self.assertEqual(row["failed"], {}, name)
