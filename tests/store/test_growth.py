"""With thousands of tenants, a statement about some of them reads no more than those.

PostgreSQL prefers to read all of a table of some thousand short rows to looking for thirty of them. So what
each statement costs would grow with the number of tenants (`random_page_cost` in
`posd.database.session_settings`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

from posd.database.reconnecting import Executor
from posd.events.orders import FINAL_STATUSES
from posd.store import (
    audit,
    audit_orders,
    audit_stream,
    cursors,
    epochs,
    erasure,
    export,
    orders,
    presence,
    replay,
    retention,
    stream,
)
from posd.store import (
    sequencing as numbering,
)
from posd.store.audit import AuditCheck
from posd.store.orders import PendingQuery
from tests.store_case import KITCHEN, StoreCase

_TENANTS = 2000
_SOME = range(3, 33)
# Rows without schemas are enough, because these statements do not read a tenant's schema.
_FILL = f"""
    INSERT INTO dinedesk_main.tenants (slug, name, schema_name)
    SELECT 'shop-' || n, 'Shop', 'dinedesk_shop_' || n FROM generate_series(3, {_TENANTS}) AS n;
    UPDATE dinedesk_main.pos_heads SET last_seq = 10;
    INSERT INTO dinedesk_main.pos_devices (tenant_id, device_id)
    SELECT id, 'front' FROM dinedesk_main.tenants;
    INSERT INTO dinedesk_main.pos_cursors (tenant_id, device_id, acked_seq, stream_id)
    SELECT tenant_id, 'front', 5, stream_id FROM dinedesk_main.pos_heads;
    INSERT INTO dinedesk_main.pos_events (tenant_id, seq, event_type, event_data, created_at)
    SELECT tenant_id, seq, 'notice', '{{}}', timestamptz 'epoch' + seq * interval '1 hour'
      FROM dinedesk_main.pos_heads CROSS JOIN generate_series(1, 10) AS seq;
    INSERT INTO dinedesk_main.pos_orders (tenant_id, order_id, snapshot, status, version, first_seq, last_seq)
    SELECT tenant_id, '7', '{{}}', 'new', 1, 10, 10 FROM dinedesk_main.pos_heads;
    INSERT INTO dinedesk_main.pos_nacks (tenant_id, seq, device_id)
    SELECT tenant_id, 9, 'front' FROM dinedesk_main.pos_heads;
    ANALYZE
"""
# How many rows of each table the session has read from the table's beginning on, as far as it has not
# reported that yet. It reports between transactions.
_READ_WHOLE = """
    SELECT relname::text, seq_tup_read FROM pg_stat_xact_all_tables
     WHERE schemaname = 'dinedesk_main' ORDER BY 1
"""
# A long log of one tenant, an event each minute, and many stored answers.
_LONG = """
    UPDATE dinedesk_main.pos_heads SET last_seq = 20000 WHERE tenant_id = 1;
    INSERT INTO dinedesk_main.pos_events (tenant_id, seq, event_type, event_data, created_at)
    SELECT 1, n, 'notice', '{}', timestamptz '2026-11-01 00:00Z' + n * interval '1 minute'
      FROM generate_series(1, 20000) AS n;
    INSERT INTO dinedesk_main.idempotency_keys
        (tenant_id, principal, operation, key, fingerprint, status, answer)
    SELECT 1, 'device ' || n % 3, 'POST /' || n % 7, 'key-' || n, sha256('x'), 201, '{}'
      FROM generate_series(1, 4000) AS n;
    ANALYZE
"""
_ROWS_READ = """
    SELECT sum(idx_tup_fetch + seq_tup_read)::integer FROM pg_stat_xact_all_tables
     WHERE schemaname = 'dinedesk_main' AND relname IN ('pos_events', 'idempotency_keys')
"""
# The check compares a stream's name with the names of all other streams.
_OF_ALL = ("head",)


async def _export(table: str, executor: Executor) -> None:
    await export.next_rows(executor, KITCHEN, table)


async def _forget(place: erasure.DocumentPlace, executor: Executor) -> None:
    await erasure.next_documents(executor, KITCHEN, place)


async def _audit(check: AuditCheck, executor: Executor) -> None:
    await audit.run_check(executor, check, KITCHEN, 10)


class GrowthTests(StoreCase):
    async def read_whole(self, work: Callable[[Executor], Awaitable[object]]) -> list[str]:
        """Return the tables that a function reads by sequential scans."""

        async def transaction(executor: Executor) -> list[str]:
            before: dict[str, int] = dict(await executor.query(_READ_WHOLE))
            await work(executor)
            after = await executor.query(_READ_WHOLE)
            return [name for name, rows in after if rows >= before.get(name, 0) + _TENANTS]

        return await self.connection.transaction(transaction)

    async def test_no_statement_of_an_event_or_about_a_tenant_reads_a_table_whole(self) -> None:
        self.admin.run(_FILL)
        self.connection = await self.executor()
        # The test's database is a copy, so all streams get new names first.
        await epochs.is_same_history(self.connection)
        heads = await stream.load_heads(self.connection, _SOME)
        positions = [(each, heads[each].stream_id, 5) for each in _SOME]
        moves = [(each, "front", heads[each].stream_id, 8) for each in _SOME]
        lost = [(each, "front", uuid4(), 8) for each in _SOME]
        entries = [
            numbering.LogEntry(
                each, "new_order", "{}", order_id="8", snapshot="{}", status="new", version=1
            )
            for each in _SOME
        ]
        work: dict[str, Callable[[Executor], Awaitable[object]]] = {
            "take": lambda s: numbering.take_rows(s, [], [(each, None) for each in _SOME]),
            "states": lambda s: numbering.stored_orders(s, [(each, "8") for each in _SOME]),
            "record": lambda s: numbering.record_entries(s, UUID(int=1), entries),
            "heads": lambda s: stream.load_heads(s, _SOME),
            "pages": lambda s: stream.load_pages(s, positions, 100),
            "moved": lambda s: stream.moved_heads(s, positions),
            "ends": lambda s: epochs.stream_ends(
                s, [(each, heads[each].stream_id) for each in _SOME]
            ),
            "openings": lambda s: presence.load_session_starts(
                s, [(each, "front") for each in _SOME], 9
            ),
            "new devices": lambda s: presence.load_session_starts(
                s, [(each, "bar") for each in _SOME], 9
            ),
            "refused": lambda s: presence.load_refused_events(s, KITCHEN, [("front", 5)]),
            "acknowledged": lambda s: cursors.advance(s, moves),
            "acknowledged in a lost name": lambda s: cursors.advance(s, lost),
            "followed": lambda s: cursors.advance_legacy(s, moves),
            "sent astray": lambda s: cursors.mark_astray(s, [(*each, True) for each in lost]),
            "progress": lambda s: presence.update_progress(
                s, [(each, heads[each].stream_id, 9, 9) for each in _SOME]
            ),
            "confirmed": lambda s: orders.confirmed_positions(s, _SOME, FINAL_STATUSES),
            "mark": lambda s: orders.update_print_status(s, _SOME),
            "nacks": lambda s: presence.insert_nacks(
                s, [(each, 9, "bar", "", heads[each].stream_id) for each in _SOME]
            ),
            "wished": lambda s: replay.requested_replays(s, _SOME),
            "pending": lambda s: orders.pending_orders(s, KITCHEN, PendingQuery(20, 10**6)),
            "prune": lambda s: retention.prune(
                s, 3, datetime(2020, 1, 1, tzinfo=UTC), FINAL_STATUSES
            ),
        }
        before = datetime(2020, 1, 1, tzinfo=UTC)
        places: tuple[erasure.DocumentPlace, ...] = (
            *("event", "message", "order", "answer", "outbox", "refusal"),
        )
        work |= {
            "would go": lambda s: retention.count_prunable(s, KITCHEN, before, FINAL_STATUSES),
            "between": lambda s: replay.count_between(s, KITCHEN, 2, 8),
            **{f"export {each}": partial(_export, each) for each in export.TABLES},
            **{f"forget {each}": partial(_forget, each) for each in places},
            **{
                f"audit {check.name}": partial(_audit, check)
                for check in (*audit_stream.CHECKS, *audit_orders.CHECKS)
                if check.name not in _OF_ALL
            },
        }
        found = {name: await self.read_whole(each) for name, each in work.items()}
        self.assertEqual({name: tables for name, tables in found.items() if tables}, {})

    async def rows_read(self, work: Callable[[Executor], Awaitable[object]]) -> int:
        """Return the number of rows of the log and of stored answers that a function reads."""

        async def transaction(executor: Executor) -> int:
            ((before,),) = await executor.query(_ROWS_READ)
            await work(executor)
            ((after,),) = await executor.query(_ROWS_READ)
            return int(after - before)

        return await self.connection.transaction(transaction)

    async def test_of_a_long_log_only_what_is_asked_for_is_read(self) -> None:
        self.admin.run(_LONG)
        self.connection = await self.executor()

        async def since(executor: Executor) -> None:
            late = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=19_900)
            self.assertEqual(await replay.first_event_since(executor, KITCHEN, late), 19_900)

        self.assertLess(await self.rows_read(since), 1000)
        found: list[str] = []

        async def answers(executor: Executor) -> None:
            after: object = None
            while True:
                some, after = await erasure.next_documents(executor, KITCHEN, "answer", after)
                found.extend(each.key for each in some)
                if not some:
                    return

        self.assertLess(await self.rows_read(answers), 2 * 4000)
        self.assertEqual(len({*found}), 4000)
