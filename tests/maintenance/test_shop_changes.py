"""Tests of the checks of adopted tables: changes since the adoption, and the option `--timestamps`."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg2
from twisted.trial.unittest import SynchronousTestCase

from posd.cli.database import SnapshotQuerier, run_to_completion
from posd.maintenance import shop_changes
from posd.maintenance.doctor import CheckState
from tests.cli_runner import execute, posctl
from tests.maintenance.doctor.test_database import DatabaseCase
from tests.store_case import KITCHEN

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


class ClockTests(SynchronousTestCase):
    def judged(self, minutes: float, timezone: str, timestamps: str, count: int = 3) -> str | None:
        """Judge orders that were published this long after they were created."""
        orders = [(NOON - timedelta(minutes=minutes), NOON)] * count
        return shop_changes.judge_timestamps(orders, timezone, timestamps)

    def test_orders_that_differ_by_the_utc_offset_have_the_wrong_timestamps_option(self) -> None:
        self.assertEqual(self.judged(120, "Europe/Paris", "local"), "utc")
        self.assertEqual(self.judged(-120, "Europe/Paris", "utc"), "local")
        self.assertEqual(self.judged(-239, "America/New_York", "local"), "utc")

    def test_other_differences_are_no_reason_for_another_option(self) -> None:
        self.assertIsNone(self.judged(0, "Europe/Paris", "local"))
        self.assertIsNone(self.judged(45, "Europe/Paris", "local"))
        self.assertIsNone(self.judged(0, "Atlantic/Reykjavik", "local"))
        self.assertIsNone(self.judged(120, "Europe/Paris", "local", count=2))


class ChangeCase(DatabaseCase):
    def setUp(self) -> None:
        super().setUp()
        adopted = posctl("adopt", "kitchen", dsn=self.dsn)
        self.assertEqual(adopted.code, 0, adopted.err)
        for table in ("orders", "order_items"):
            execute(self.dsn, f"ALTER TABLE dinedesk_kitchen.{table} OWNER TO pg_monitor")

    def changes(self, *statements: str) -> list[str]:
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            found = run_to_completion(
                shop_changes.table_changes(SnapshotQuerier(connection), KITCHEN)
            )
        return [str(each) for each in found]


class ChangeTests(ChangeCase):
    ORDERS = "ALTER TABLE dinedesk_kitchen.orders"

    def test_unchanged_tables_have_no_findings(self) -> None:
        self.assertEqual(self.changes(), [])

    def test_each_change_is_reported(self) -> None:
        for statement, said in (
            (
                f"{self.ORDERS} RENAME special_instructions TO remarks",
                "orders.special_instructions was",
            ),
            (f"{self.ORDERS} DROP tax", "orders.tax was dropped or renamed"),
            (
                f"{self.ORDERS} ALTER tax TYPE money USING tax::money",
                "orders.tax was numeric and is money",
            ),
            (f"{self.ORDERS} ADD extra bytea", None),
            (f"{self.ORDERS} ENABLE ROW LEVEL SECURITY", "CREATE POLICY"),
            ("DROP TABLE dinedesk_kitchen.order_items", "has no table order_items any more"),
            (
                "REVOKE SELECT ON dinedesk_kitchen.orders FROM posd_hook_kitchen",
                'GRANT SELECT ON "dinedesk_kitchen".orders TO "posd_hook_kitchen";',
            ),
            (
                "CREATE TABLE dinedesk_kitchen.late () INHERITS (dinedesk_kitchen.orders)",
                '"dinedesk_kitchen".late has no hooks',
            ),
        ):
            with self.subTest(statement=statement):
                found = "\n".join(self.changes(statement))
                if said is None:
                    self.assertEqual(found, "")
                else:
                    self.assertIn(said, found)

    def test_the_doctor_reports_a_change_with_a_remedy(self) -> None:
        line = self.only("tables", CheckState.FAULT, f"{self.ORDERS} ALTER tax TYPE text")
        self.assertEqual(line.what, "dinedesk_kitchen: orders.tax was numeric and is text")
        self.assertIn("posctl adopt kitchen", str(line.remedy))

    def test_the_audit_reports_a_change_and_unreachable_accounts(self) -> None:
        execute(self.dsn, f"{self.ORDERS} RENAME special_instructions TO remarks")
        execute(
            self.dsn,
            "INSERT INTO dinedesk_kitchen.loyalty_accounts (phone) VALUES ('+4407700900123')",
        )
        ran = posctl("audit", "--tenant", "kitchen", "--json", dsn=self.dsn)
        told = cast("dict[str, list[dict[str, Any]]]", ran.json)
        self.assertEqual([each["check"] for each in told["warnings"]], ["account numbers"])
        (fault,) = told["faults"]
        self.assertEqual((ran.code, fault["check"]), (os.EX_DATAERR, "shop tables"))
        self.assertIn("orders.special_instructions was dropped or renamed", str(fault["rows"]))

    def test_the_doctor_compares_the_times_of_orders_with_the_clock(self) -> None:
        line = self.only(
            "tables",
            CheckState.WARNING,
            "UPDATE dinedesk_main.tenants SET timezone = 'Asia/Tokyo', default_region = 'JP' WHERE id = 1",
            f"{self.ORDERS} ALTER created_at TYPE timestamp",
            "UPDATE dinedesk_main.pos_adoptions SET timestamps = 'local',"
            """ tables = '{"orders": {"created_at": "timestamp without time zone"}}'""",
            "INSERT INTO dinedesk_main.pos_events (tenant_id, seq, event_type, event_data, created_at)"
            " SELECT 1, n, 'new_order', '{}', now() FROM generate_series(1, 3) AS n",
            "INSERT INTO dinedesk_main.pos_orders"
            " (tenant_id, order_id, snapshot, status, version, created_at, first_seq)"
            " SELECT 1, n, '{}', 'new', 1, now() - interval '9 hours', n FROM generate_series(1, 3) AS n",
        )
        self.assertIn("wrong by the UTC offset of Asia/Tokyo", line.what)
        self.assertEqual(line.remedy, "posctl adopt kitchen --timestamps utc")
