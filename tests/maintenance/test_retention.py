"""Tests of the retention service: it prunes on one node, and a failing tenant does not stop other tenants."""

from __future__ import annotations

from uuid import uuid4

from twisted.logger import capturedLogs

from posd.database.pool import Pool
from posd.errors import Unavailable
from posd.maintenance import retention as module
from posd.maintenance.retention import Retention
from posd.store import retention as store
from posd.store.export import TABLES
from tests.database_case import REACTOR, until
from tests.schema_case import Entry
from tests.store_case import StoreCase

MONTH = 30 * 86400.0
LOGS = """
    SELECT (SELECT count(*) FROM dinedesk_kitchen.pos_events),
           (SELECT count(*) FROM dinedesk_grill.pos_events)
"""


class RetentionTests(StoreCase):
    async def retention(self, seconds: float = MONTH, *, runs: bool = True) -> Retention:
        """Return a service that runs only on request, with short pauses between batches."""
        self.patch(module, "_PAUSE_SECONDS", 0.001)
        self.database = Pool(REACTOR, self.dsn, size=2, statement_timeout=5.0)
        self.database.startService()
        self.addCleanup(self.database.stopService)
        await self.database.when_up()
        retention = Retention(REACTOR, self.database, uuid4(), seconds)
        if runs:
            retention.startService()
            self.addCleanup(retention.stopService)
        return retention

    def overdue(self, days: float = 40) -> None:
        """Insert five events of this age for each shop, and mark the shops as not pruned since."""
        self.admin.record(*[Entry(shop) for shop in (1, 2) for _ in range(5)])
        for slug in ("kitchen", "grill"):
            self.admin.run(
                f"UPDATE dinedesk_{slug}.pos_events SET created_at = now() - %s * interval '1 day'",
                days,
            )
        self.admin.run(
            "UPDATE dinedesk_main.pos_heads SET pruned_before = now() - interval '60 days'"
        )

    async def test_expired_rows_are_deleted_in_batches_and_counted_in_the_log(self) -> None:
        self.overdue()
        self.patch(store, "BATCH", 2)
        retention = await self.retention()
        with capturedLogs() as logged:
            await retention.look()
        self.assertEqual(self.admin.rows(LOGS), [(0, 0)])
        counts = {each["tenant_id"]: each["events"] for each in logged if "events" in each}
        self.assertEqual(counts, {1: 5, 2: 5})

    async def test_rows_within_the_retention_time_stay(self) -> None:
        self.overdue(29)
        await (await self.retention()).look()
        self.assertEqual(self.admin.rows(LOGS), [(5, 5)])

    async def test_a_short_retention_time_prunes_on_the_same_day(self) -> None:
        self.overdue(0.1)
        retention = await self.retention()
        await retention.look()
        self.admin.run(
            "UPDATE dinedesk_main.pos_heads SET pruned_before = now() - interval '2 hours'"
        )
        retention.seconds = 3600.0
        await retention.look()
        self.assertEqual(self.admin.rows(LOGS), [(0, 0)])

    async def test_a_tenant_is_pruned_once_a_night(self) -> None:
        self.overdue()
        retention = await self.retention()
        await retention.look()
        with capturedLogs() as logged:
            await retention.look()
        self.assertEqual(logged, [])

    async def test_while_another_node_prunes_this_one_does_not(self) -> None:
        self.overdue()
        retention, other = await self.retention(), uuid4()
        await store.renew_lease(self.database, other, 60)
        await retention.look()
        self.assertEqual(self.admin.rows(LOGS), [(5, 5)])
        await store.release_lease(self.database, other)
        await retention.look()
        self.assertEqual(self.admin.rows(LOGS), [(0, 0)])
        self.assertTrue(await store.renew_lease(self.database, other, 60), "it lets others")

    async def test_a_failing_tenant_is_logged_once_and_does_not_stop_others(self) -> None:
        self.overdue()
        self.admin.run(
            "CREATE FUNCTION dinedesk_kitchen.refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE EXCEPTION ''no''; END';"
            "CREATE TRIGGER refuse BEFORE DELETE ON dinedesk_main.pos_events"
            " FOR EACH ROW WHEN (OLD.tenant_id = 1) EXECUTE FUNCTION dinedesk_kitchen.refuse()"
        )
        retention = await self.retention()
        with capturedLogs() as logged:
            await retention.look()
            await retention.look()
        told = [each["log_format"] for each in logged if each["log_level"].name == "error"]
        self.assertEqual(
            told, ["tenant {tenant_id} cannot be pruned: {error}; posd tries again in some minutes"]
        )
        self.assertEqual(self.admin.rows(LOGS), [(5, 0)])

    async def test_a_locked_tenant_is_pruned_later(self) -> None:
        self.overdue()
        retention, other = await self.retention(), self.client()
        with other.transaction():
            other.run("SELECT FROM dinedesk_main.pos_heads WHERE tenant_id = 1 FOR UPDATE")
            await retention.look()
            self.assertEqual(self.admin.rows(LOGS), [(5, 0)])
        await retention.look()
        self.assertEqual(self.admin.rows(LOGS), [(0, 0)])

    async def test_rows_of_a_deleted_tenant_are_deleted_in_batches_and_no_others(self) -> None:
        bodies = [
            Entry(shop, order_id=str(n), status="new", version=1)
            for shop in (1, 2)
            for n in range(5)
        ]
        self.admin.record(*bodies, Entry(1, failure="bad"), Entry(2, failure="bad"))
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_nacks (tenant_id, seq, device_id)"
            " SELECT t, 1, 'front' FROM unnest('{1,2}'::integer[]) AS t"
        )
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_order_terminals (tenant_id, order_id, device_id, received_at)"
            " SELECT t, '1', 'front', now() FROM unnest('{1,2}'::integer[]) AS t"
        )
        self.admin.run("DELETE FROM dinedesk_main.tenants WHERE id = 1")
        self.patch(store, "BATCH", 2)
        retention = await self.retention()
        with capturedLogs() as logged:
            await retention.look()
        # Two epochs, because the streams of a copied database get new names.
        self.assertEqual([each["rows"] for each in logged if "rows" in each], [14])
        left = {
            table: self.admin.rows(
                f"SELECT tenant_id, count(*) FROM dinedesk_main.{table} GROUP BY 1"
            )
            for table in (*TABLES, "pos_stream_epochs")
        }
        self.assertEqual(
            left,
            {
                "pos_events": [(2, 5)],
                "pos_unsequenced": [(2, 1)],
                "pos_nacks": [(2, 1)],
                "pos_orders": [(2, 5)],
                "pos_order_terminals": [(2, 1)],
                "pos_stream_epochs": [(2, 2)],
            },
        )

    async def test_stored_answers_are_deleted_too(self) -> None:
        self.overdue()
        self.admin.run(
            "INSERT INTO dinedesk_main.idempotency_keys VALUES (NULL, 'platform', 'POST /', 'k',"
            " sha256(''), 200, '{}', now() - interval '31 days')"
        )
        await (await self.retention()).look()
        count = "SELECT count(*) FROM dinedesk_main.idempotency_keys"
        self.assertEqual(self.admin.value(count), 0)

    async def test_the_service_prunes_by_itself_and_continues_after_a_failure(self) -> None:
        self.overdue()
        self.patch(module, "_LOOK_SECONDS", 0.01)
        retention = await self.retention(runs=False)
        looked: list[int] = []
        look = retention.look

        async def troubled() -> None:
            looked.append(1)
            if len(looked) == 1:
                raise Unavailable("The database is away.")
            if len(looked) == 2:
                raise ZeroDivisionError
            await look()

        retention.look = troubled  # type: ignore[method-assign]
        retention.startService()
        self.addCleanup(retention.stopService)
        await until(lambda: self.admin.rows(LOGS) == [(0, 0)], "the logs are empty")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_the_service_stops_at_once(self) -> None:
        self.overdue()
        self.patch(store, "BATCH", 1)
        retention = await self.retention(runs=False)
        await retention.look()
        self.assertEqual(sum(self.admin.rows(LOGS)[0]), 9, "the batch that was begun, and no other")
        self.assertTrue(
            await store.renew_lease(self.database, uuid4(), 60), "another node may go on"
        )
        retention.startService()
        await retention.stopService()
