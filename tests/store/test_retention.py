"""Pruning: the statements, on a real database, with the daemon's privileges."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

from attrs import evolve

from posd.database.reconnecting import ReconnectingConnection
from posd.errors import Busy, EventsPruned, StatementFailed, StreamRenamed
from posd.events.orders import FINAL_STATUSES
from posd.protocol import json_literals as literals
from posd.protocol import jsontext
from posd.store import presence, retention, stream
from posd.store.retention import PrunedCounts
from tests.schema_case import Entry
from tests.store_case import GRILL, KITCHEN, StoreCase

HEAD = "SELECT pruned_seq, acknowledged, expired FROM dinedesk_main.pos_heads WHERE tenant_id = 1"
WAITING = """
    SELECT count(*) FROM dinedesk_kitchen.pos_events AS e
     WHERE e.seq > (SELECT received_seq FROM dinedesk_main.pos_heads WHERE tenant_id = 1)
"""
SEQS = "SELECT array_agg(seq ORDER BY seq) FROM dinedesk_kitchen.pos_events WHERE seq IS NOT NULL"
ORDERS = "SELECT array_agg(order_id ORDER BY order_id) FROM dinedesk_kitchen.pos_orders"


class RetentionCase(StoreCase):
    def age(self, table: str, days: float, condition: str = "true") -> None:
        """Set the times of rows to so long ago."""
        columns = ("created_at", "updated_at") if table.endswith("orders") else ("created_at",)
        then = ", ".join(f"{each} = now() - %(days)s * interval '1 day'" for each in columns)
        with self.admin.connection.cursor() as cursor:
            cursor.execute(f"UPDATE {table} SET {then} WHERE {condition}", {"days": days})

    def events(self, count: int) -> None:
        self.admin.record(*[Entry(1, "notice", f'{{"n":{n}}}') for n in range(count)])

    def order(self, name: str, status: str, **more: object) -> None:
        """Insert an order, its event and a terminal's report, all 40 days old."""
        snapshot = jsontext.encode({"orderId": name, **more}).decode()
        entry = Entry(order_id=name, snapshot=snapshot, status=status, version=1)
        self.admin.record(entry)
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_order_terminals VALUES (1, %s, 'front', now())", name
        )
        self.age("dinedesk_kitchen.pos_events", 40)
        self.age("dinedesk_kitchen.pos_orders", 40)

    async def all(self, executor: ReconnectingConnection, days: float = 30) -> PrunedCounts:
        """Prune until no row is due."""
        before = await retention.cutoff_time(executor, days * 86400)
        expected = await retention.count_prunable(executor, KITCHEN, before, FINAL_STATUSES)
        total, done = PrunedCounts(), False
        while not done:
            gone, done = await retention.prune(executor, 1, before, FINAL_STATUSES)
            total += gone
        self.assertEqual(total, expected, "what a dry run has said")
        return total


class EventTests(RetentionCase):
    async def test_events_go_in_batches_from_the_oldest_on_and_the_floor_with_them(self) -> None:
        executor = await self.executor()
        self.patch(retention, "BATCH", 4)
        self.events(10)
        self.age("dinedesk_kitchen.pos_events", 31, "seq <= 7")
        before = await retention.cutoff_time(executor, 30 * 86400)
        for seqs, floor in (([5, 6, 7, 8, 9, 10], 4), ([8, 9, 10], 7), ([8, 9, 10], 7)):
            await retention.prune(executor, 1, before, FINAL_STATUSES)
            self.assertEqual(self.admin.value(SEQS), seqs)
            self.assertEqual(self.admin.rows(HEAD)[0][0], floor)

    async def test_one_that_is_young_keeps_all_that_come_after_it(self) -> None:
        executor = await self.executor()
        self.events(6)
        self.age("dinedesk_kitchen.pos_events", 31, "seq <> 3")
        self.assertEqual(await self.all(executor), PrunedCounts(events=2, expired=2))
        self.assertEqual(self.admin.value(SEQS), [3, 4, 5, 6])

    async def test_every_event_is_acknowledged_expired_or_there(self) -> None:
        executor = await self.executor()
        self.events(10)
        for received, old in ((3, 0), (3, 2), (3, 5), (4, 6), (8, 7), (9, 9), (10, 10)):
            await presence.update_progress(executor, [(*self.stream(), 10, received)])
            self.age("dinedesk_kitchen.pos_events", 31, f"seq <= {old}")
            await self.all(executor)
            ((_, acknowledged, expired),) = self.admin.rows(HEAD)
            waiting = self.admin.value(WAITING)
            self.assertEqual((acknowledged + expired + waiting, received), (10, received))
        self.assertEqual(self.admin.rows(HEAD), [(10, 7, 3)])

    async def test_who_reads_on_below_the_floor_is_told_so_and_nobody_else(self) -> None:
        executor = await self.executor()
        self.events(6)
        history = (await stream.load_heads(executor, [1]))[1].stream_id
        self.age("dinedesk_kitchen.pos_events", 31, "seq <= 4")
        await self.all(executor)
        with self.assertRaises(EventsPruned):
            await stream.events_after(executor, KITCHEN, history, 3, 10)
        self.assertEqual(
            [each.seq for each in await stream.events_after(executor, KITCHEN, history, 4, 10)],
            [5, 6],
        )
        self.assertEqual(await stream.events_after(executor, KITCHEN, history, 6, 10), [])
        with self.assertRaises(StreamRenamed):
            await stream.events_after(executor, KITCHEN, uuid4(), 3, 10)
        self.age("dinedesk_kitchen.pos_events", 31)
        await self.all(executor)
        with self.assertRaises(EventsPruned):
            await stream.events_after(executor, KITCHEN, history, 4, 10)

    async def test_nothing_waits_for_a_head_that_is_locked(self) -> None:
        executor = await self.executor()
        self.events(2)
        self.age("dinedesk_kitchen.pos_events", 31)
        before = await retention.cutoff_time(executor, 30 * 86400)
        other = self.client()
        with other.transaction():
            other.run("SELECT FROM dinedesk_main.pos_heads WHERE tenant_id = 1 FOR UPDATE")
            with self.assertRaises(Busy):
                await retention.prune(executor, 1, before, FINAL_STATUSES)
        self.assertEqual(self.admin.value(SEQS), [1, 2], "rows and floor go together")

    async def test_nothing_of_the_last_hour_can_be_pruned_by_anybody(self) -> None:
        executor = await self.executor()
        before = await retention.cutoff_time(executor, 3500)
        with self.assertRaises(StatementFailed):
            await retention.prune(executor, 1, before, FINAL_STATUSES)

    async def test_a_tenant_that_is_gone_has_nothing_left_to_do(self) -> None:
        executor = await self.executor()
        before = await retention.cutoff_time(executor, 7200)
        self.assertEqual(await retention.prune(executor, 99, before, ()), (PrunedCounts(), True))
        gone = evolve(KITCHEN, id=99)
        self.assertEqual(await retention.count_prunable(executor, gone, before, ()), PrunedCounts())


class BesideTests(RetentionCase):
    """Rows that are pruned after events."""

    async def test_what_tills_said_and_what_failed_goes(self) -> None:
        executor = await self.executor()
        self.admin.record(Entry(1, failure="bad"), Entry(1, failure="young"), Entry(1))
        stream_id = (await stream.load_heads(executor, [1]))[1].stream_id
        await presence.insert_messages(executor, [(1, "pos_hello", "{}", "front")])
        await presence.insert_nacks(executor, [(1, 1, "front", "no paper", stream_id)])
        for table in ("pos_events", "pos_unsequenced", "pos_nacks"):
            young = " AND failure IS DISTINCT FROM 'young'" if table == "pos_unsequenced" else ""
            self.age(f"dinedesk_main.{table}", 31, f"tenant_id = 1{young}")
        self.assertEqual(
            await self.all(executor),
            PrunedCounts(events=1, expired=1, messages=2, nacks=1, orders=0),
        )
        self.assertEqual(
            self.admin.rows("SELECT failure FROM dinedesk_kitchen.pos_sync_logs"), [("young",)]
        )

    async def test_an_order_that_is_over_goes_with_its_last_event(self) -> None:
        executor = await self.executor()
        self.order("a", "completed")
        self.order("b", "completed")
        self.age("dinedesk_kitchen.pos_events", 1, "seq = 2")
        self.assertEqual((await self.all(executor)).orders, 1)
        self.assertEqual(self.admin.value(ORDERS), ["b"])
        said = "SELECT array_agg(order_id) FROM dinedesk_kitchen.pos_order_terminals"
        self.assertEqual(self.admin.value(said), ["b"])

    async def test_one_that_may_still_be_made_is_kept(self) -> None:
        executor = await self.executor()
        next_week = datetime.now().astimezone() + timedelta(days=7)
        self.order("soon", "accepted", scheduledFor=literals.timestamp(next_week))
        self.order("never", "accepted", scheduledFor=None)
        self.order("lately", "accepted")
        self.age("dinedesk_kitchen.pos_orders", 20, "order_id = 'lately'")
        self.assertEqual((await self.all(executor, 10)).orders, 1)
        self.assertEqual(self.admin.value(ORDERS), ["lately", "soon"])

    async def test_answers_are_kept_for_a_day_at_least(self) -> None:
        executor = await self.executor()
        self.patch(retention, "BATCH", 2)
        for key, days in (("a", 40), ("b", 35), ("c", 31), ("d", 1.5), ("e", 0.5)):
            self.admin.run(
                "INSERT INTO dinedesk_main.idempotency_keys VALUES (1, 'platform', 'POST /', %s,"
                " sha256(''), 200, '{}', now() - %s * interval '1 day')",
                *(key, days),
            )
        before = await retention.cutoff_time(executor, 30 * 86400)
        self.assertEqual(await retention.count_prunable_answers(executor, before), 3)
        self.assertEqual(
            [await retention.prune_answers(executor, before) for _ in "xxx"], [2, 1, 0]
        )
        lately = await retention.cutoff_time(executor, 3600)
        self.assertEqual(await retention.prune_answers(executor, lately), 1)
        left = "SELECT array_agg(key) FROM dinedesk_main.idempotency_keys"
        self.assertEqual(self.admin.value(left), ["e"])


class DueTests(RetentionCase):
    """Due tenants with a retention of 30 days: a day later at night, and later than that by day."""

    async def due(self, night: tuple[int, ...]) -> list[int]:
        executor = await self.executor()
        found = await retention.due_tenants(
            executor, 30 * 86400, early=3600, late=7200, night=night
        )
        return [each.tenant_id for each in found]

    async def test_by_night_it_is_earlier_than_by_day(self) -> None:
        always, never = tuple(range(24)), ()
        self.assertEqual(await self.due(always), [])
        self.admin.run(
            "UPDATE dinedesk_main.pos_heads SET pruned_before = now() - interval '30 days 90 minutes'"
        )
        self.assertEqual(await self.due(never), [])
        self.assertEqual(await self.due(always), [1, 2])
        self.admin.run(
            "UPDATE dinedesk_main.pos_heads SET pruned_before = now() - interval '31 days'"
            " WHERE tenant_id = 2"
        )
        self.assertEqual(await self.due(never), [2])

    async def test_the_night_is_that_of_the_shop(self) -> None:
        self.admin.run(
            "UPDATE dinedesk_main.pos_heads SET pruned_before = now() - interval '30 days 90 minutes'"
        )
        self.admin.run(
            "UPDATE dinedesk_main.tenants SET timezone = CASE id WHEN 1 THEN 'Etc/GMT+6'"
            " ELSE 'Etc/GMT-6' END"
        )
        hour = self.admin.value("SELECT extract(hour FROM now() AT TIME ZONE 'Etc/GMT-6')::integer")
        self.assertEqual(await self.due((hour, (hour + 1) % 24)), [2])

    async def test_what_was_pruned_is_due_no_more(self) -> None:
        executor = await self.executor()
        self.admin.run("UPDATE dinedesk_main.pos_heads SET pruned_before = 'epoch'")
        await self.all(executor)
        self.assertEqual(await self.due(()), [2])

    async def test_one_node_prunes_at_a_time(self) -> None:
        executor, here, there = await self.executor(), uuid4(), uuid4()
        self.assertEqual(await self.leases(executor, here, there, here), [True, False, True])
        await retention.release_lease(executor, here)
        self.assertEqual(await self.leases(executor, there, here), [True, False])
        self.admin.run("UPDATE dinedesk_main.pos_pruning SET lease_until = now() - interval '1 s'")
        self.assertEqual(await self.leases(executor, here), [True])

    async def leases(self, executor: ReconnectingConnection, *nodes: UUID) -> list[bool]:
        return [await retention.renew_lease(executor, each, 60) for each in nodes]


class UntouchedTests(RetentionCase):
    async def test_another_shop_loses_nothing(self) -> None:
        executor = await self.executor()
        self.events(2)
        self.admin.record(Entry(2))
        for slug in ("kitchen", "grill"):
            self.age(f"dinedesk_{slug}.pos_events", 31)
        await self.all(executor)
        self.assertEqual(self.admin.value("SELECT count(*) FROM dinedesk_grill.pos_events"), 1)
        self.assertEqual((await stream.load_heads(executor, [GRILL.id]))[2].pruned_seq, 0)
