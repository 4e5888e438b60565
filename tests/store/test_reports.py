"""Daily reports: one per day, and replaced reports are kept."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import psycopg2
from twisted.internet.defer import Deferred, gatherResults

from posd.events.daily_reports import DailyReport, ReportFigures, assess
from posd.store import reports
from tests.database_case import begin
from tests.store_case import GRILL, KITCHEN, StoreCase

DAY = date(2026, 11, 22)


def report(total: str = "100.00", day: date = DAY, **details: object) -> DailyReport:
    return assess(day, ReportFigures({"total_sales": Decimal(total)}, details, 7, "a note"), "GBP")


class ReportTests(StoreCase):
    def kept(self, table: str = "pos_daily_reports") -> list[tuple[Any, ...]]:
        """Return the total and the revision of the stored report."""
        return self.admin.rows(
            f"SELECT total_sales, revision FROM dinedesk_kitchen.{table} ORDER BY report_date, revision"
        )

    async def test_the_first_report_of_a_day_is_stored_whole(self) -> None:
        executor = await self.executor()
        details: dict[str, Any] = {
            "top_items": [{"name": "Naan", "price": Decimal("3.50")}],
            "busy_hours": {"18": 12},
        }
        self.assertEqual(
            await reports.store_report(executor, KITCHEN, report("100.125", **details), "BAR"), 1
        )
        self.assertEqual(
            self.admin.rows(
                "SELECT report_date, device_id, total_sales, total_orders, cash_sales, notes, balanced,"
                "       top_items::text, busy_hours, labour, issues -> 0 ->> 'kind'"
                "  FROM dinedesk_kitchen.pos_daily_reports"
            ),
            [
                (
                    *(DAY, "BAR", Decimal("100.130"), 7, None, "a note", True),
                    *('[{"name": "Naan", "price": 3.50}]', {"18": 12}, None, "rounded"),
                )
            ],
        )

    async def test_another_one_replaces_it_and_the_old_one_is_kept(self) -> None:
        executor = await self.executor()
        for revision, total in enumerate(("100", "110", "90"), 1):
            kept = await reports.store_report(executor, KITCHEN, report(total), "BAR")
            self.assertEqual(kept, revision)
        self.assertEqual(self.kept(), [(90, 3)])
        self.assertEqual(self.kept("pos_daily_report_amendments"), [(100, 1), (110, 2)])

    async def test_the_same_again_changes_nothing_whoever_sends_it(self) -> None:
        executor = await self.executor()
        await reports.store_report(
            executor, KITCHEN, report(data={"a": 1, "b": Decimal("2.0")}), "BAR"
        )
        again = report("100.0", data={"b": Decimal("2.00"), "a": 1})
        self.assertIsNone(await reports.store_report(executor, KITCHEN, again, "DOOR"))
        self.assertEqual((self.kept(), self.kept("pos_daily_report_amendments")), ([(100, 1)], []))

    async def test_what_is_no_longer_sent_is_news_too(self) -> None:
        executor = await self.executor()
        await reports.store_report(executor, KITCHEN, report(labour={"hours": 8}), None)
        self.assertEqual(await reports.store_report(executor, KITCHEN, report(), None), 2)

    async def test_each_day_and_each_shop_has_its_own(self) -> None:
        executor = await self.executor()
        for tenant, day in ((KITCHEN, DAY), (KITCHEN, date(2026, 11, 23)), (GRILL, DAY)):
            self.assertEqual(await reports.store_report(executor, tenant, report(day=day), None), 1)

    async def test_of_many_at_once_each_is_kept(self) -> None:
        links = [await self.executor() for _ in range(4)]
        work: list[Deferred[int | None]] = [
            begin(reports.store_report(connection, KITCHEN, report(str(number)), None))
            for number, connection in enumerate(links)
        ]
        revisions = await gatherResults(work)
        self.assertEqual({*revisions}, {1, 2, 3, 4})
        totals = [total for total, _ in self.kept() + self.kept("pos_daily_report_amendments")]
        self.assertEqual(sorted(totals), [0, 1, 2, 3])


class HistoryTests(StoreCase):
    """Changes that a role with the daemon's privileges cannot make."""

    def setUp(self) -> None:
        super().setUp()
        self.daemon = self.client()
        self.daemon.run("SET ROLE posd")
        self.daemon.run(
            "INSERT INTO dinedesk_kitchen.pos_daily_reports (report_date, total_sales, balanced, issues)"
            " VALUES ('2026-11-22', 100, true, '[]')"
        )

    def test_a_report_cannot_be_changed_without_being_kept(self) -> None:
        self.daemon.run(
            "UPDATE dinedesk_kitchen.pos_daily_reports"
            "   SET total_sales = 1, revision = 1, report_date = '2026-01-01'"
        )
        self.assertEqual(
            self.admin.rows(
                "SELECT a.total_sales, a.revision, r.total_sales, r.revision"
                "  FROM dinedesk_kitchen.pos_daily_reports AS r"
                "  JOIN dinedesk_kitchen.pos_daily_report_amendments AS a USING (report_date)"
                " WHERE report_date = '2026-11-22' AND a.replaced_at >= a.received_at"
            ),
            [(100, 1, 1, 2)],
        )

    def test_history_can_neither_be_written_nor_forgotten(self) -> None:
        for statement in (
            "INSERT INTO dinedesk_kitchen.pos_daily_report_amendments DEFAULT VALUES",
            "UPDATE dinedesk_kitchen.pos_daily_report_amendments SET total_sales = 0",
            "DELETE FROM dinedesk_kitchen.pos_daily_report_amendments",
            "DELETE FROM dinedesk_kitchen.pos_daily_reports",
            "ALTER TABLE dinedesk_kitchen.pos_daily_reports DISABLE TRIGGER ALL",
            "SELECT posd_hooks.keep_report$kitchen()",
        ):
            with (
                self.subTest(statement=statement),
                self.assertRaises(psycopg2.errors.InsufficientPrivilege),
            ):
                self.daemon.run(statement)
