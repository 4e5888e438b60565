"""docs/performance.md shows what was measured: its tables are those of bench/results.json."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from bench import page
from tests import documents


class TableTests(SynchronousTestCase):
    def test_the_tables_are_those_of_the_stored_results(self) -> None:
        text = documents.text("docs/performance.md")
        for name, lines in page.tables(json.loads(page.RESULTS.read_text("utf-8"))).items():
            with self.subTest(table=name):
                self.assertIn("\n".join(lines) + "\n", text)

    def test_every_row_was_measured(self) -> None:
        stored = json.loads(page.RESULTS.read_text("utf-8"))
        self.assertEqual(set(stored["rows"]), {row.name for row in page.ROWS})
        for name, row in stored["rows"].items():
            self.assertEqual(row["failed"], {}, name)
