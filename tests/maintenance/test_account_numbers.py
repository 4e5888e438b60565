"""Tests of the check for loyalty accounts whose number, written by a shop's SQL, no till can find."""

from __future__ import annotations

from contextlib import closing

import psycopg2

from posd.cli.database import SnapshotQuerier, run_to_completion
from posd.maintenance import account_numbers
from posd.store.audit import CheckOutcome
from tests.maintenance.doctor.test_database import DatabaseCase
from tests.store_case import KITCHEN

INSERT = "INSERT INTO dinedesk_kitchen.loyalty_accounts (phone) VALUES ('{}')"


class AccountNumberTests(DatabaseCase):
    def unfound(self, *statements: str, most: int = 10) -> CheckOutcome:
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return run_to_completion(
                account_numbers.unreachable_accounts(SnapshotQuerier(connection), KITCHEN, most)
            )

    def test_numbers_as_posd_writes_them_are_found(self) -> None:
        numbers = ("+447700900123", "+33612345678")
        self.assertEqual(self.unfound(*map(INSERT.format, numbers)), CheckOutcome(0, []))

    def test_a_number_that_is_not_in_e164_form_is_reported_by_account_id(self) -> None:
        found = self.unfound(INSERT.format("+447700900123"), INSERT.format("+4407700900123"))
        self.assertEqual(found.total, 1)
        self.assertRegex(found.rows[0].row, r"^loyalty_accounts id \d+$")
        self.assertIn("not in E.164 form", found.rows[0].what)

    def test_texts_that_are_not_telephone_numbers_are_reported(self) -> None:
        found = self.unfound(INSERT.format("+44"), INSERT.format("+999999999999999"), most=1)
        self.assertEqual((found.total, len(found.rows)), (2, 1))
        self.assertIn("not a valid telephone number", found.rows[0].what)

    def test_all_pages_are_read(self) -> None:
        self.patch(account_numbers, "_PAGE", 2)
        numbers = [f"+44770090012{digit}" for digit in range(5)]
        found = self.unfound(*map(INSERT.format, numbers), INSERT.format("+4407700900123"))
        self.assertEqual(found.total, 1)

    def test_a_shops_own_table_of_this_name_is_not_read(self) -> None:
        found = self.unfound(
            INSERT.format("+4407700900123"),
            "ALTER TABLE dinedesk_kitchen.loyalty_accounts OWNER TO pg_monitor",
        )
        self.assertEqual(found.total, 0)
