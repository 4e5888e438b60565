"""Print states of orders: bulk updates, and positions confirmed by tills' reports."""

from __future__ import annotations

import re

from posd.database.reconnecting import Executor
from posd.events.orders import FINAL_STATUSES
from posd.events.print_status import PrintReport, ReportedStatus
from posd.store import orders
from posd.store.orders import PendingPage, PendingQuery
from posd.values import PrintStatus
from tests.schema_case import Entry
from tests.store_case import GRILL, KITCHEN, StoreCase

MARKS = """
    SELECT order_id, print_status, pushed_at IS NOT NULL, received_at IS NOT NULL
      FROM dinedesk_kitchen.pos_orders ORDER BY order_id
"""
PLACES = "SELECT order_id, first_seq, last_seq FROM dinedesk_kitchen.pos_orders ORDER BY order_id"


def entry(order_id: str, tenant_id: int = 1, **more: object) -> Entry:
    values = {"order_id": order_id, "snapshot": "{}", "status": "confirmed", "version": 1}
    return Entry(tenant_id, **(values | more))  # type: ignore[arg-type]


class OrdersCase(StoreCase):
    def record(self, *order_ids: str) -> None:
        """Publish events about these orders, in this sequence."""
        self.admin.record(*map(entry, order_ids))

    def head(self, *, sent: int = 0, received: int = 0) -> None:
        self.admin.run(
            "UPDATE dinedesk_main.pos_heads SET sent_seq = %s, received_seq = %s WHERE tenant_id = 1",
            sent,
            received,
        )


class PlaceTests(OrdersCase):
    async def test_an_order_knows_its_first_and_its_last_event(self) -> None:
        self.record("a", "b", "a", "a")
        self.assertEqual(self.admin.rows(PLACES), [("a", 1, 4), ("b", 2, 2)])
        self.record("b")
        self.assertEqual(self.admin.rows(PLACES), [("a", 1, 4), ("b", 2, 5)])

    async def test_events_without_a_position_give_it_none(self) -> None:
        failed = entry("a", failure="too large")
        self.admin.record(failed)
        self.assertEqual(self.admin.rows(PLACES), [("a", None, None)])
        self.admin.record(entry("b"), entry("a"), failed)
        self.assertEqual(self.admin.rows(PLACES), [("a", 2, 2), ("b", 1, 1)])
        self.admin.record(failed)
        self.assertEqual(self.admin.rows(PLACES), [("a", 2, 2), ("b", 1, 1)])


class MarkTests(OrdersCase):
    async def test_what_was_sent_and_what_was_acknowledged_is_marked(self) -> None:
        executor = await self.executor()
        self.record("a", "b", "c")
        self.head(sent=2, received=1)
        await orders.update_print_status(executor, [1, 2])
        self.assertEqual(
            self.admin.rows(MARKS),
            [
                ("a", "sent_to_pos", True, True),
                ("b", "sent_to_pos", True, False),
                ("c", "pending", False, False),
            ],
        )

    async def test_what_was_acknowledged_without_a_socket_was_sent_all_the_same(self) -> None:
        executor = await self.executor()
        self.record("a")
        self.head(received=1)
        await orders.update_print_status(executor, [1])
        self.assertEqual(self.admin.rows(MARKS), [("a", "sent_to_pos", True, True)])

    async def test_a_mark_leads_nowhere_back(self) -> None:
        executor = await self.executor()
        self.record("a", "b")
        await orders.record_report(
            executor, KITCHEN, PrintReport("a", ReportedStatus.PRINTED), "front"
        )
        await orders.record_report(
            executor, KITCHEN, PrintReport("b", ReportedStatus.FAILED), "front"
        )
        times = "SELECT received_at, pushed_at FROM dinedesk_kitchen.pos_orders ORDER BY order_id"
        before = self.admin.rows(times)
        self.head(sent=2, received=2)
        await orders.update_print_status(executor, [1])
        self.assertEqual(self.admin.rows(times), before)
        self.assertEqual([row[1] for row in self.admin.rows(MARKS)], ["printed", "failed"])

    async def test_it_waits_for_no_row_and_finds_it_the_next_time(self) -> None:
        executor = await self.executor()
        self.record("a", "b")
        self.head(sent=2)
        other = self.client()
        with other.transaction():
            other.run("UPDATE dinedesk_kitchen.pos_orders SET version = 2 WHERE order_id = 'a'")
            await orders.update_print_status(executor, [1])
        self.assertEqual([row[1] for row in self.admin.rows(MARKS)], ["pending", "sent_to_pos"])
        await orders.update_print_status(executor, [1])
        self.assertEqual([row[1] for row in self.admin.rows(MARKS)], ["sent_to_pos"] * 2)


class ConfirmedTests(OrdersCase):
    async def begin(self) -> None:
        self.books = await self.executor()
        self.record("a", "b", "c")
        self.admin.record(Entry(1, "notice"))
        self.record("d")

    async def received(self, *order_ids: str) -> None:
        for order_id in order_ids:
            await orders.record_report(
                self.books, KITCHEN, PrintReport(order_id, ReportedStatus.RECEIVED), None
            )

    async def confirmed(self) -> dict[int, int]:
        found = await orders.confirmed_positions(self.books, [1, 2], FINAL_STATUSES)
        return {tenant_id: seq for (tenant_id, _), seq in found.items()}

    async def test_a_report_confirms_what_came_before_it(self) -> None:
        await self.begin()
        self.assertEqual(await self.confirmed(), {})
        await self.received("a", "b")
        self.assertEqual(await self.confirmed(), {1: 2})
        await self.received("c", "d")
        self.assertEqual(await self.confirmed(), {1: 5})

    async def test_but_not_an_order_that_nobody_has(self) -> None:
        await self.begin()
        await self.received("a", "c", "d")
        self.assertEqual(await self.confirmed(), {1: 1})
        await self.received("b")
        self.assertEqual(await self.confirmed(), {1: 5})

    async def test_nobody_waits_for_an_order_that_is_over(self) -> None:
        await self.begin()
        self.admin.run(
            "UPDATE dinedesk_kitchen.pos_orders SET status = 'completed' WHERE order_id = 'b'"
        )
        await self.received("a", "c")
        self.assertEqual(await self.confirmed(), {1: 3})

    async def test_what_was_acknowledged_further_is_no_news(self) -> None:
        await self.begin()
        self.head(received=3)
        await self.received("a", "b")
        self.assertEqual(await self.confirmed(), {})

    async def test_nobody_waits_for_an_order_whose_event_was_pruned(self) -> None:
        await self.begin()
        await self.received("a", "c")
        self.admin.run("UPDATE dinedesk_main.pos_heads SET pruned_seq = 2 WHERE tenant_id = 1")
        self.assertEqual(await self.confirmed(), {1: 3})


class OpenTests(OrdersCase):
    async def test_the_index_and_the_function_have_the_statuses_of_the_rules(self) -> None:
        places = (
            (
                "SELECT indexdef FROM pg_indexes"
                " WHERE schemaname = 'dinedesk_main' AND indexname = 'pos_orders_open'"
            ),
            "SELECT prosrc FROM pg_proc WHERE proname = 'pos_open_orders'",
        )
        for place in places:
            words = str(self.admin.value(place)).partition("'{")[2].partition("}")[0]
            self.assertEqual({*words.split(",")}, FINAL_STATUSES)

    async def test_open_orders_are_found_by_the_index(self) -> None:
        executor = await self.executor()
        page = await orders.pending_orders(executor, GRILL, PendingQuery(50, 2**20))
        self.assertEqual((page.orders, page.next, page.last_seq), ([], None, 0))
        body = str(self.admin.value("SELECT prosrc FROM pg_proc WHERE proname = 'pos_open_orders'"))
        statement = body.rpartition("RETURN QUERY")[2].partition(";")[0]
        names = ["tenant", "since", "after_time", "after_order", "at_most", "most_bytes"]
        for number, name in enumerate(names, 1):
            statement = re.sub(rf"(?<![\w.]){name}\b", f"${number}", statement)
        types = "integer, timestamptz, timestamptz, text, integer, bigint"
        self.admin.run("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan")
        self.admin.run(f"PREPARE open_orders({types}) AS {statement}")
        with self.admin.connection.cursor() as cursor:
            cursor.execute("EXPLAIN EXECUTE open_orders(1, NULL, 'yesterday', 'a', 50, 1048576)")
            plan = str(cursor.fetchall())
        self.assertIn("pos_orders_open", plan)
        self.assertIn("created_at >=", plan)

    def ids(self, page: PendingPage) -> list[str]:
        return [each.order_id for each in page.orders]

    async def pages(
        self, executor: Executor, limit: int, most_bytes: int = 2**20
    ) -> list[list[str]]:
        """Return the order ids of all pages, requested as a client does."""
        found: list[list[str]] = []
        after = None
        while True:
            wanted = PendingQuery(limit, most_bytes, after=after)
            page = await orders.pending_orders(executor, KITCHEN, wanted)
            found.append(self.ids(page))
            if page.next is None:
                return found
            after = page.next

    async def test_pages_have_each_order_once_the_oldest_first(self) -> None:
        executor = await self.executor()
        names = [f"{number:02}" for number in range(25)]
        self.record(*names)  # in one transaction, so all at the same time
        for limit in (1, 7, 24, 25, 26):
            pages = await self.pages(executor, limit)
            self.assertEqual([name for page in pages for name in page], names)
            self.assertEqual({len(page) for page in pages[:-1]} - {limit}, set())
            self.assertEqual(len(pages), -(-25 // limit))

    async def test_a_page_has_so_many_bytes_and_one_order_at_least(self) -> None:
        executor = await self.executor()
        big = '{"a":"%s"}' % ("x" * 5000)
        self.admin.record(
            *(entry(name, snapshot=big if name in "bd" else "{}") for name in "abcde")
        )
        self.assertEqual(await self.pages(executor, 50, 5000), [["a"], ["b"], ["c"], ["d"], ["e"]])
        self.assertEqual(await self.pages(executor, 50, 5600), [["a", "b", "c"], ["d", "e"]])

    async def test_what_changes_between_two_pages_hides_nothing_else(self) -> None:
        executor = await self.executor()
        self.record(*"abcdef")
        first = await orders.pending_orders(executor, KITCHEN, PendingQuery(3, 2**20))
        self.admin.run(
            "UPDATE dinedesk_kitchen.pos_orders SET print_status = 'printed' WHERE order_id IN ('c', 'd')"
        )
        self.record("new")
        rest = PendingQuery(50, 2**20, after=first.next)
        page = await orders.pending_orders(executor, KITCHEN, rest)
        self.assertEqual(self.ids(page), ["e", "f", "new"])
        self.assertEqual((first.last_seq, page.last_seq), (6, 7))

    async def test_a_place_far_back_in_time_is_exact(self) -> None:
        executor = await self.executor()
        self.record(*"abc")
        self.admin.run(
            "UPDATE dinedesk_kitchen.pos_orders SET created_at ="
            " '0001-01-01 00:00:00.000001Z'::timestamptz"
            " + CASE order_id WHEN 'a' THEN interval '0' ELSE interval '1 microsecond' END"
        )
        self.assertEqual(await self.pages(executor, 1), [["a"], ["b"], ["c"]])


class NoteTests(OrdersCase):
    async def test_every_terminal_has_its_own_first_times(self) -> None:
        executor = await self.executor()
        self.record("a")
        for device, said in (
            ("front", ReportedStatus.RECEIVED),
            ("bar", ReportedStatus.FAILED),
            ("front", ReportedStatus.PRINTED),
            ("bar", ReportedStatus.PRINTED),
        ):
            await orders.record_report(
                executor, KITCHEN, PrintReport("a", said, reason="why"), device
            )
        kept = await orders.find_order(executor, KITCHEN, "a")
        assert kept is not None
        self.assertEqual(kept.print_status, PrintStatus.PRINTED)
        self.assertEqual([each.device_id for each in kept.terminals], ["front", "bar"])
        self.assertEqual([each.failed_at is None for each in kept.terminals], [True, False])
        self.assertNotIn(None, [each.printed_at for each in kept.terminals])
        self.assertIsNone(await orders.find_order(executor, GRILL, "a"))

    async def test_a_repetition_writes_nothing(self) -> None:
        executor = await self.executor()
        self.record("a")
        row = (
            "SELECT o.xmin, t.xmin FROM dinedesk_main.pos_orders AS o"
            " JOIN dinedesk_main.pos_order_terminals AS t USING (tenant_id, order_id)"
        )
        await orders.record_report(
            executor, KITCHEN, PrintReport("a", ReportedStatus.PRINTED), "front"
        )
        before = self.admin.rows(row)
        for said in (
            ReportedStatus.PRINTED,
            ReportedStatus.RECEIVED,
            ReportedStatus.FAILED,
            ReportedStatus.OTHER,
        ):
            now = await orders.record_report(executor, KITCHEN, PrintReport("a", said), None)
            self.assertEqual(now, PrintStatus.PRINTED)
        await orders.record_report(
            executor, KITCHEN, PrintReport("a", ReportedStatus.PRINTED), "front"
        )
        self.assertEqual(self.admin.rows(row), before)
