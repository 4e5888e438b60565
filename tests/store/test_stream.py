"""Heads, the log, and the sequencer's three statements as the daemon calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

from posd.errors import Busy, StreamRenamed
from posd.store import sequencing as numbering
from posd.store import stream
from posd.store.sequencing import LogEntry
from tests.schema_case import NODE
from tests.store_case import GRILL, KITCHEN, StoreCase


def entry(number: int, tenant_id: int = 1, failure: str | None = None) -> LogEntry:
    return LogEntry(tenant_id, "notice", f'{{"n":{number}}}', failure=failure)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)


class StreamTests(StoreCase):
    async def test_entries_are_numbered_in_their_order_each_tenant_by_itself(self) -> None:
        executor = await self.executor()
        recorded = await numbering.record_entries(
            executor, uuid4(), [entry(1), entry(2, 2), entry(3, failure="bad"), entry(4)]
        )
        self.assertEqual([each.seq for each in recorded], [1, 1, None, 2])

    async def test_the_log_is_read_as_it_was_written(self) -> None:
        executor = await self.executor()
        odd = LogEntry(1, "notice", '{"b":1,"a":"é"}', '{"beside":true}')
        await numbering.record_entries(executor, uuid4(), [entry(1), odd, entry(3), entry(4)])
        history = (await stream.load_heads(executor, [1]))[1].stream_id
        events = await stream.events_after(executor, KITCHEN, history, 1, 2)
        self.assertEqual([event.seq for event in events], [2, 3])
        self.assertEqual(events[0].data, '{"b":1,"a":"é"}'.encode())
        self.assertEqual(
            (events[0].extra_members, events[1].extra_members), (b'{"beside":true}', b"{}")
        )
        self.assertIsNotNone(events[0].created_at.utcoffset())
        with self.assertRaises(StreamRenamed):
            await stream.events_after(executor, GRILL, history, 0, 10)

    async def test_a_page_has_no_more_bytes_than_a_terminal_is_sent_at_once(self) -> None:
        executor = await self.executor()
        large = LogEntry(1, "notice", '{"text":"%s"}' % ("x" * 100_000))
        await numbering.record_entries(executor, uuid4(), [large] * 5)
        history = (await stream.load_heads(executor, [1]))[1].stream_id
        pages = [
            await stream.events_after(executor, KITCHEN, history, seq, 100) for seq in (0, 3, 4, 5)
        ]
        seqs = [[event.seq for event in page] for page in pages]
        self.assertEqual(seqs, [[1, 2, 3], [4, 5], [5], []])

    async def test_a_page_reads_no_more_of_the_log_than_it_has_however_it_is_planned(self) -> None:
        executor = await self.executor()
        await numbering.record_entries(executor, uuid4(), [entry(number) for number in range(40)])
        history = (await stream.load_heads(executor, [1]))[1].stream_id
        # The plan that PostgreSQL chooses if it expects few events: read all of them, and sort.
        self.admin.run("SET enable_indexscan = off; SET enable_seqscan = off")
        with self.admin.connection.cursor() as cursor:
            values = ([1], [str(history)], [10], 5, 1_000_000)
            cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + stream._PAGES, values)
            ((plan,),) = cursor.fetchall()
        scans = [each for each in _nodes(plan[0]["Plan"]) if each.get("Alias") == "e"]
        self.assertEqual([each["Actual Rows"] for each in scans], [5])

    async def test_pages_of_several_streams_are_read_together(self) -> None:
        executor = await self.executor()
        await numbering.record_entries(
            executor, uuid4(), [entry(1), entry(2), entry(3, 2), entry(4)]
        )
        heads = await stream.load_heads(executor, [1, 2])
        kitchen, grill = heads[1].stream_id, heads[2].stream_id
        wanted = [(1, kitchen, 1), (2, grill, 0), (2, grill, 1), (1, grill, 0), (77, grill, 0)]
        pages = await stream.load_pages(executor, wanted, 100)
        self.assertEqual(
            [[event.seq for event in pages[each].events] for each in wanted],
            [[2, 3], [1], [], [], []],
        )
        # The last two requests have another stream_id than the tenant's stream.
        renamed = [pages[each].renamed for each in wanted]
        self.assertEqual(renamed, [False, False, False, True, True])
        self.admin.run("DELETE FROM dinedesk_main.pos_events WHERE tenant_id = 1 AND seq <= 2")
        self.admin.run("UPDATE dinedesk_main.pos_heads SET pruned_seq = 2 WHERE tenant_id = 1")
        pages = await stream.load_pages(
            executor, [(1, kitchen, 1), (1, kitchen, 2), (2, grill, 0)], 100
        )
        self.assertEqual([page.pruned for page in pages.values()], [True, False, False])
        self.assertEqual([page.renamed for page in pages.values()], [False] * 3)

    async def test_heads_that_have_moved_are_those_beyond_and_of_another_history(self) -> None:
        executor = await self.executor()
        await numbering.record_entries(executor, uuid4(), [entry(1), entry(2)])
        heads = await stream.load_heads(executor, [1, 2])
        kitchen, grill = heads[1].stream_id, heads[2].stream_id
        found = await stream.moved_heads(executor, [(1, kitchen, 1), (2, grill, 0)])
        self.assertEqual([(head.tenant_id, head.last_seq) for head in found], [(1, 2)])
        found = await stream.moved_heads(executor, [(1, kitchen, 2), (2, kitchen, 5)])
        self.assertEqual([head.tenant_id for head in found], [2])
        self.assertEqual(await stream.moved_heads(executor, []), [])

    async def test_what_was_recorded_is_told_as_it_is_read(self) -> None:
        executor = await self.executor()
        odd = LogEntry(1, "notice", '{"b":1,"a":"é"}', '{"beside":true}')
        recorded = await numbering.record_entries(executor, uuid4(), [entry(1), odd, entry(3, 77)])
        history = (await stream.load_heads(executor, [1]))[1].stream_id
        events = await stream.events_after(executor, KITCHEN, history, 0, 10)
        self.assertEqual([each.created_at for each in recorded[:2]], [e.created_at for e in events])
        self.assertEqual([each.stream_id for each in recorded], [history, history, None])

    async def test_heads_and_the_poll_tell_where_streams_are_and_what_waits(self) -> None:
        executor = await self.executor()
        await numbering.record_entries(executor, uuid4(), [entry(1), entry(2)])
        waiting, heads = await stream.poll_heads(executor, [1])
        self.assertEqual((waiting, [head.last_seq for head in heads]), (None, [2]))
        self.assertIsInstance(heads[0].stream_id, UUID)
        self.assertEqual((await stream.load_heads(executor, [1, 2]))[2].last_seq, 0)
        self.publish()
        self.admin.run(
            "UPDATE dinedesk_main.pos_outbox SET created_at = clock_timestamp() - interval '90 s'"
        )
        waiting, heads = await stream.poll_heads(executor, [])
        self.assertEqual(heads, [])
        assert waiting is not None
        self.assertLess(abs(waiting - 90), 60)

    async def test_rows_are_taken_once_and_those_of_tenants_aside_are_left(self) -> None:
        executor = await self.executor()
        self.publish()
        self.publish("grill")
        self.assertEqual(
            [row.tenant_id for row in await numbering.read_outbox(executor, 10, [], [], {})], [1, 2]
        )
        self.assertEqual(
            [row.tenant_id for row in await numbering.read_outbox(executor, 10, [], [], {}, 2)], [2]
        )
        seen = [
            (row.tenant_id, row.id)
            for row in await numbering.read_outbox(executor, 10, [2], [], {})
        ]
        taken = await numbering.take_rows(executor, seen, node_id=NODE, fence=0)
        self.assertEqual(
            [(row.tenant_id, row.type, row.key) for row in taken.rows], [(1, "notice", None)]
        )
        again = await numbering.take_rows(executor, seen, node_id=NODE, fence=0)
        self.assertEqual(again.rows, [])
        self.assertLess(taken.now, again.now)
        self.assertEqual(
            [row.tenant_id for row in await numbering.read_outbox(executor, 10, [], [], {})], [2]
        )

    async def test_rows_that_come_after_the_look_are_left(self) -> None:
        executor = await self.executor()
        order_id = self.admin.value(
            "INSERT INTO dinedesk_kitchen.orders (total_amount) VALUES (5) RETURNING id"
        )
        seen = await numbering.read_outbox(executor, 10, [], [], {})
        self.admin.run("UPDATE dinedesk_kitchen.orders SET total_amount = 6")
        taken = await numbering.take_rows(
            executor, [(row.tenant_id, row.id) for row in seen], node_id=NODE, fence=0
        )
        self.assertEqual([row.key for row in taken.rows], [str(order_id)])
        left = await numbering.read_outbox(executor, 10, [], [], {})
        self.assertEqual([row.key for row in left], [str(order_id)])

    async def test_all_rows_about_one_order_are_seen_together(self) -> None:
        executor = await self.executor()
        for _ in range(2):
            self.admin.run(
                "INSERT INTO dinedesk_kitchen.orders (id, total_amount)"
                " SELECT n, 5 FROM generate_series(1, 2) AS n ON CONFLICT (id) DO UPDATE SET total_amount = 6"
            )
        self.assertEqual(
            [row.key for row in await numbering.read_outbox(executor, 1, [], [], {})], ["1", "1"]
        )
        self.assertEqual(len(await numbering.read_outbox(executor, 10, [], [], {1: 1})), 2)
        self.assertEqual(len(await numbering.read_outbox(executor, 10, [], [], {})), 4)

    async def test_of_any_number_of_rows_about_one_order_the_oldest_are_seen(self) -> None:
        executor = await self.executor()
        self.admin.run(
            "SELECT posd_hooks.enqueue$kitchen('order', array_fill('1'::text, ARRAY[20000]))"
        )
        self.publish("grill")
        seen = [
            row.id
            for row in await numbering.read_outbox(executor, 2, [], [], {})
            if row.tenant_id == 1
        ]
        oldest = "SELECT id FROM dinedesk_main.pos_outbox ORDER BY id LIMIT 20"
        self.assertEqual(seen, [row_id for (row_id,) in self.admin.rows(oldest)])

    async def test_there_is_one_sequencer_at_a_time(self) -> None:
        executor = await self.executor()
        await executor.execute("SET lock_timeout = '50ms'")
        self.publish()
        with self.admin.transaction():
            self.assertEqual(len(self.admin.take()), 1)
            with self.assertRaises(Busy):
                await numbering.take_rows(executor, [], node_id=NODE, fence=0)

    async def test_orders_are_told_as_they_were_published(self) -> None:
        executor = await self.executor()
        stored = numbering.LogEntry(
            1, "new_order", '{"a":1.50}', order_id="7", status="new", version=3
        )
        await numbering.record_entries(executor, NODE, [stored])
        wanted = [(1, "7"), (2, "7"), (1, "no such")]
        expected = {
            (1, "7"): numbering.StoredText('{"a":1.50}', "new", 3),
            (2, "7"): None,
            (1, "no such"): None,
        }
        self.assertEqual(await numbering.stored_orders(executor, wanted), expected)
        taken = await numbering.take_rows(executor, [], [], wanted)
        self.assertEqual((taken.published, taken.rows, taken.behind), (expected, [], {}))

    def publish(self, slug: str = "kitchen") -> None:
        self.admin.run("SELECT dinedesk_main.pos_publish(%s, 'notice', '{}')", slug)
