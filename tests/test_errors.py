"""Tests of the messages of PostgreSQL that posd logs."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from posd.errors import StatementFailed, loggable_message, returned
from tests.documents import ROOT


class LoggableMessageTests(SynchronousTestCase):
    """Tests of `loggable_message`, by SQLSTATE."""

    def test_a_message_that_names_objects_is_logged(self) -> None:
        for sqlstate, message in (
            ("42501", "permission denied for table orders"),
            ("42P01", 'relation "orders" does not exist'),
            ("23505", 'duplicate key value violates unique constraint "gift_cards_pkey"'),
            ("22023", 'role "posd" does not exist'),
            ("53100", "could not extend file"),
            ("PD002", "the orders could not be read"),
        ):
            self.assertEqual(loggable_message(sqlstate, message), message)
            self.assertEqual(str(StatementFailed(message, sqlstate)), message)

    def test_a_message_that_quotes_data_is_not_logged(self) -> None:
        for sqlstate, message in (
            ("22007", 'invalid input syntax for type date: "Ann"'),
            ("22P02", 'invalid input syntax for type json: "Ann"'),
            ("22003", 'value "447700900123" is out of range for type integer'),
            ("42601", 'syntax error at or near "Ann"'),
            ("P0001", "nobody wants (Ann,+447700900123)"),
            ("ZZ123", "Ann"),
            ("", "Ann"),
        ):
            said = loggable_message(sqlstate, message)
            self.assertNotIn("Ann", said)
            self.assertNotIn("4477", said)
            self.assertIn(sqlstate or "unknown", said)
            self.assertEqual(str(StatementFailed(message, sqlstate)), said)

    def test_the_error_that_a_function_returns_is_treated_the_same(self) -> None:
        self.assertEqual(returned("42501 permission denied"), "42501 permission denied")
        self.assertNotIn("Ann", returned("P0001 nobody wants (Ann)"))

    def test_callers_of_functions_that_return_errors_use_returned(self) -> None:
        returning = {
            re.findall(r"CREATE (?:OR REPLACE )?FUNCTION (?:dinedesk_main\.)?(\w+)", before)[-1]
            for path in (ROOT / "sql").rglob("*.sql")
            for before in path.read_text("utf-8").split("SQLERRM")[:-1]
        }
        calling = {
            path.name: text
            for path in (*(ROOT / "posd/store").glob("*.py"), ROOT / "posd/publishing/batch.py")
            if any(f"{name}(" in (text := path.read_text("utf-8")) for name in returning)
        }
        self.assertEqual(calling.keys(), {"ledger_rows.py", "batch.py"})
        for name, text in calling.items():
            with self.subTest(module=name):
                self.assertIn("returned(", text)
