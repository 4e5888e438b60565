"""Tests of presence on PostgreSQL: writes are bulk statements, and are kept while it cannot be reached."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from twisted.internet.defer import gatherResults
from twisted.logger import LogLevel, capturedLogs

from posd.database.pool import Pool
from posd.delivery import bulk_writer
from posd.delivery.pending_writes import subscription
from posd.delivery.presence import Presence
from posd.errors import Busy, Unavailable
from posd.store import epochs, orders
from posd.store import presence as presence_store
from posd.testing.postgres import test_server
from posd.values import KeyKind, Principal, PrintStatus, StreamName, Tenant, Terminal
from tests.database_case import REACTOR, DatabaseCase, begin, until
from tests.schema_case import two_shops
from tests.shifted_clock import shift

KITCHEN = Tenant(1, "kitchen", "The kitchen", "dinedesk_kitchen")
GRILL = Tenant(2, "grill", "The grill", "dinedesk_grill")
NO_STREAM = UUID(int=1)
BEGINNING = datetime(2026, 11, 22, 10, tzinfo=UTC)


class PresenceTests(DatabaseCase):
    def template(self) -> str:
        return test_server().template(two_shops)

    def setUp(self) -> None:
        super().setUp()
        self.admin.run("UPDATE dinedesk_main.pos_heads SET last_seq = 100")

    async def database(self) -> Pool:
        database = Pool(REACTOR, self.dsn, size=2, statement_timeout=5.0)
        database.startService()
        self.addCleanup(database.stopService)
        await database.when_up()
        return database

    async def presence(self) -> Presence:
        """Return a presence whose timers do not run. The test flushes it."""
        self.pool = await self.database()
        return Presence(REACTOR, self.pool, uuid4())

    def connected(self) -> list[str | None]:
        rows = self.admin.rows("SELECT device_id FROM dinedesk_main.pos_connected ORDER BY 1")
        return [device for (device,) in rows]

    def cursor(self, device: str = "front") -> int:
        return int(
            self.admin.value(
                "SELECT acked_seq FROM dinedesk_main.pos_cursors WHERE device_id = %s", device
            )
        )

    def stream(self) -> StreamName:
        name = "SELECT stream_id::text FROM dinedesk_main.pos_heads WHERE tenant_id = 1"
        return KITCHEN.id, UUID(self.admin.value(name))

    async def opened(self, presence: Presence, device: str | None = "front") -> Terminal:
        """Register a terminal with its cursor at 100, and add it as connected."""
        found = await presence_store.load_session_starts(self.pool, [(KITCHEN.id, device)], 10)
        terminal = terminal_of(device, stream_id=found[KITCHEN.id, device].head.stream_id)
        presence.connected(terminal)
        return terminal

    async def test_connections_are_stored_until_they_end(self) -> None:
        presence = await self.presence()
        front, nameless = await self.opened(presence), await self.opened(presence, None)
        await presence.flush()
        self.assertEqual(self.connected(), ["front", None])
        presence.disconnected(front)
        await presence.flush()
        self.assertEqual(self.connected(), [None])
        presence.disconnected(nameless)
        await presence.flush()
        self.assertEqual(self.connected(), [])

    async def test_a_connection_that_ends_before_the_flush_is_not_stored(self) -> None:
        presence = await self.presence()
        presence.disconnected(await self.opened(presence))
        self.assertFalse(presence._pending_writes)

    async def test_a_connection_that_ends_during_the_flush_is_deleted(self) -> None:
        presence = await self.presence()
        front = await self.opened(presence)

        running = begin(presence.flush())
        await until(lambda: not presence._pending_writes.connected, "the write is running")
        presence.disconnected(front)
        await running
        await presence.flush()
        self.assertEqual(self.connected(), [])
        self.lose_presence_tables()
        await presence._renew()
        await presence.flush()
        self.assertEqual(self.connected(), [])

    async def test_connections_are_stored_again_after_postgresql_has_lost_them(self) -> None:
        presence = await self.presence()
        await self.opened(presence)
        await presence.flush()
        self.lose_presence_tables()
        await presence._renew()
        await presence.flush()
        self.assertEqual(self.connected(), ["front"])

    async def test_a_node_that_was_deleted_during_a_flush_registers_again_silently(self) -> None:
        presence = await self.presence()
        await self.opened(presence, "back")
        await presence.flush()
        self.lose_presence_tables()
        await self.opened(presence)
        with capturedLogs() as logged:
            await presence.flush()
            await presence.flush()
        self.assertEqual(self.connected(), ["back", "front"])
        self.assertEqual([each for each in logged if each["log_level"] is LogLevel.error], [])

    async def test_an_acknowledgement_never_moves_the_cursor_back(self) -> None:
        presence = await self.presence()
        front = await self.opened(presence)
        self.admin.run("UPDATE dinedesk_main.pos_cursors SET acked_seq = 5")
        for seq in (8, 7):
            presence.acknowledged(front, seq)
        await presence.flush()
        self.assertEqual(self.cursor(), 8)
        presence.acknowledged(front, 6)
        await presence.flush()
        self.assertEqual(self.cursor(), 8)
        known = "SELECT first_acked_at IS NOT NULL FROM dinedesk_main.pos_devices"
        self.assertTrue(self.admin.value(known))
        self.assertEqual(self.head(), (0, 8))

    async def test_an_acknowledgement_of_a_lost_stream_moves_no_cursor(self) -> None:
        presence = await self.presence()
        front = await self.opened(presence)
        self.admin.run("UPDATE dinedesk_main.pos_cursors SET acked_seq = 5")
        presence.acknowledged(front, 8)
        presence.sent_to_legacy(front, 9)
        self.admin.run("UPDATE dinedesk_main.pos_heads SET stream_id = gen_random_uuid()")
        await presence.flush()
        self.assertEqual(self.cursor(), 5)
        known = "SELECT first_acked_at IS NULL FROM dinedesk_main.pos_devices"
        self.assertTrue(self.admin.value(known))
        self.assertEqual(self.head(), (0, 0))

    async def test_an_acknowledgement_of_an_earlier_stream_id_counts_if_nothing_was_lost(
        self,
    ) -> None:
        presence = await self.presence()
        front, back = await self.opened(presence), await self.opened(presence, "back")
        self.admin.run("UPDATE dinedesk_main.pos_cursors SET acked_seq = 5")
        presence.acknowledged(front, 8)
        presence.acknowledged(back, 9)
        await epochs.reset_streams(self.pool, [KITCHEN.id], 8)
        await presence.flush()
        self.assertEqual((self.cursor(), self.cursor("back"), self.head()), (8, 5, (0, 8)))

    async def test_devices_that_were_sent_lost_events_are_marked_astray(self) -> None:
        presence = await self.presence()
        self.patch(bulk_writer, "_PART_ROWS", 2)
        terminals = [await self.opened(presence, f"till-{n}") for n in range(5)]
        await epochs.reset_streams(self.pool, [KITCHEN.id], 98)
        self.admin.run("UPDATE dinedesk_main.pos_cursors SET acked_seq = 90")
        for number, each in enumerate(terminals):
            presence.sent(subscription(each), 96 + number, uses_positions=True)
            presence.sent(subscription(each), 1, uses_positions=True)
        await presence.flush()
        places = [(KITCHEN.id, each.device_id) for each in terminals]
        found = await presence_store.load_session_starts(self.pool, places, 10)
        self.assertEqual(
            [found[place].astray for place in places], [False, False, False, True, True]
        )
        self.assertFalse(presence._pending_writes.acknowledging)

    async def test_the_cursor_of_a_legacy_terminal_moves_without_counting_as_received(self) -> None:
        presence = await self.presence()
        front = await self.opened(presence)
        self.admin.run("UPDATE dinedesk_main.pos_cursors SET acked_seq = 5")
        presence.sent_to_legacy(front, 9)
        presence.delivered(self.stream(), 9)
        await presence.flush()
        self.assertEqual((self.cursor(), self.head()), (9, (9, 0)))
        known = "SELECT first_acked_at IS NULL FROM dinedesk_main.pos_devices"
        self.assertTrue(self.admin.value(known))

    async def test_messages_and_refusals_of_tills_are_stored(self) -> None:
        presence = await self.presence()
        front = await self.opened(presence)
        presence.said(front, "status", b'{"type":"status","ok":true}')
        presence.refused(front, 7, "no paper")
        presence.refused(front, 8, "no paper")
        presence.refused(front, 8, "still none")
        await presence.flush()
        said = (
            "SELECT event_type, event_data ->> 'ok', device_id FROM dinedesk_kitchen.pos_sync_logs"
        )
        self.assertEqual(self.admin.rows(said), [("pos_status", "true", "front")])
        nacks = "SELECT seq, device_id, reason FROM dinedesk_kitchen.pos_nacks ORDER BY seq"
        self.assertEqual(
            self.admin.rows(nacks), [(7, "front", "no paper"), (8, "front", "no paper")]
        )

    async def test_messages_of_tills_take_a_limited_amount_of_memory(self) -> None:
        presence = await self.presence()
        front = terminal_of("front")
        grill = self.admin.value(
            "SELECT stream_id FROM dinedesk_main.pos_heads WHERE tenant_id = 2"
        )
        other = terminal_of("front", tenant=GRILL, stream_id=UUID(grill))
        for _ in range(10_000):
            presence.said(front, "status", b"{}")
            presence.said(front, "status", b'"%b"' % (b"x" * 60_000))
            presence.refused(front, 1, "no paper")
        self.assertEqual(presence._messages._pending.sizes[KITCHEN.id] >> 20, 1)
        presence.refused(other, 1, "no paper")
        await presence.flush()
        self.assertEqual(self.admin.value("SELECT count(*) FROM dinedesk_grill.pos_nacks"), 1)

    async def test_written_messages_free_memory_even_if_others_fail(self) -> None:
        presence = await self.presence()
        front = terminal_of("front")
        presence.said(front, "status", b"{}")
        said = presence._messages._pending.sizes[KITCHEN.id]
        for number in range(3):
            presence.refused(front, number, "x" * 60_000)
        self.patch(presence_store, "insert_messages", _away)
        await presence.flush()
        self.assertEqual(presence._messages._pending.sizes[KITCHEN.id], said)
        self.assertEqual(presence._messages._pending.nacks, {})
        self.assertEqual(len(presence._messages._pending.messages[KITCHEN.id]), 1)

    async def test_pending_writes_are_kept_without_a_database_and_written_once(self) -> None:
        presence = await self.presence()
        front = await self.opened(presence)
        presence.said(front, "status", b"{}")
        presence.acknowledged(front, 50)
        await self.pool.stopService()
        with self.assertRaises(Unavailable):
            await presence.flush()
        presence.said(front, "status", b"{}")
        self.pool.startService()
        await self.pool.when_up()
        await presence.flush()
        await presence.flush()
        self.assertEqual(self.connected(), ["front"])
        count = "SELECT count(*) FROM dinedesk_kitchen.pos_sync_logs"
        self.assertEqual(self.admin.value(count), 2)
        self.assertEqual(self.cursor(), 50)

    async def test_a_refused_row_stops_no_other(self) -> None:
        presence = await self.presence()
        front = await self.opened(presence)
        presence.said(front, "status", b"this is no JSON")
        presence.refused(front, 7, "no paper")
        await presence.flush()
        self.assertEqual(self.admin.value("SELECT count(*) FROM dinedesk_kitchen.pos_nacks"), 1)

    async def test_a_print_status_is_stored_at_once_and_an_unknown_order_is_reported(self) -> None:
        presence = await self.presence()
        front = await self.opened(presence)
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_orders (tenant_id, order_id, snapshot, status, version)"
            " VALUES (1, '7', '{}', 'confirmed', 1)"
        )
        self.assertTrue(await presence.printed(front, "7", PrintStatus.PRINTED, ""))
        self.assertTrue(await presence.printed(front, "7", PrintStatus.FAILED, "late"))
        self.assertFalse(await presence.printed(front, "8", PrintStatus.PRINTED, ""))
        status = "SELECT print_status FROM dinedesk_kitchen.pos_orders"
        self.assertEqual(self.admin.value(status), "printed")

    async def test_orders_that_were_sent_are_updated_together(self) -> None:
        presence = await self.presence()
        self.place("a", 7)
        self.place("b", 9)
        presence.delivered(self.stream(), 8)
        await presence.flush()
        self.assertEqual(self.printing(), [("a", "pending"), ("b", "pending")])
        await presence.mark()
        self.assertEqual(self.printing(), [("a", "sent_to_pos"), ("b", "pending")])
        self.assertEqual(presence._marks._unmarked, set())

    async def test_an_update_of_orders_that_times_out_is_repeated(self) -> None:
        presence = await self.presence()
        self.place("a", 7)
        presence.delivered(self.stream(), 8)
        await presence.flush()
        other = self.client()
        with other.transaction():
            other.run("LOCK TABLE dinedesk_main.pos_orders")
            with self.assertRaises(Busy):
                await presence.mark()
        self.patch(orders, "update_print_status", _away)
        with self.assertRaises(Unavailable):
            await presence.mark()
        self.assertEqual(presence._marks._unmarked, {1})

    async def test_a_report_about_an_order_moves_the_head(self) -> None:
        presence = await self.presence()
        self.place("a", 7)
        self.place("b", 9)
        front = await self.opened(presence)
        await presence.printed(front, "a", PrintStatus.PRINTED, "")
        await presence.mark()
        await presence.flush()
        self.assertEqual(self.head(), (0, 7))
        await presence.printed(front, "b", PrintStatus.FAILED, "no paper")
        await presence.mark()
        await presence.flush()
        self.assertEqual(self.head(), (0, 9))

    async def test_a_report_about_an_order_before_the_stop_moves_the_head_too(self) -> None:
        presence = await self.presence()
        presence.startService()
        self.place("a", 7)
        front = await self.opened(presence)
        await presence.printed(front, "a", PrintStatus.PRINTED, "")
        await presence.stopService()
        self.assertEqual(self.head(), (0, 7))

    async def test_print_reports_of_one_shop_leave_database_connections_for_others(self) -> None:
        presence = await self.presence()
        self.place("a", 7)
        front = await self.opened(presence)
        other = self.client()
        with other.transaction():
            other.run("SELECT FROM dinedesk_main.pos_orders WHERE tenant_id = 1 FOR UPDATE")
            prints = [
                begin(presence.printed(front, "a", PrintStatus.PRINTED, "")) for _ in range(3)
            ]
            await until(lambda: self.pool.usage.held_back == 1, "one statement waits for its shop")
        self.assertEqual(await gatherResults(prints), [True] * 3)

    def place(self, order_id: str, seq: int) -> None:
        """Insert an order whose event has this position."""
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_orders"
            " (tenant_id, order_id, snapshot, status, version, first_seq, last_seq)"
            " VALUES (1, %s, '{}', 'confirmed', 1, %s, %s)",
            *(order_id, seq, seq),
        )

    def printing(self) -> list[tuple[str, str]]:
        rows = self.admin.rows(
            "SELECT order_id, print_status FROM dinedesk_kitchen.pos_orders ORDER BY order_id"
        )
        return [(order_id, status) for order_id, status in rows]

    async def test_the_newest_connection_of_a_device_claims_it(self) -> None:
        presence = await self.presence()
        old = await self.opened(presence)
        new = terminal_of("front", BEGINNING + timedelta(seconds=1))
        presence.connected(new)
        self.admin.told()
        self.assertTrue(await presence.claim(new))
        self.assertEqual(self.admin.told(), [f"superseded {old.connection_id}"])
        self.assertFalse(await presence.claim(old))

    async def test_timers_flush_and_renew_and_a_stop_deletes_the_node(self) -> None:
        presence = await self.presence()
        presence.startService()
        await self.opened(presence)
        await until(lambda: self.connected() == ["front"], "the row is stored")
        await presence.stopService()
        self.assertEqual(self.admin.value("SELECT count(*) FROM dinedesk_main.pos_nodes"), 0)

    async def test_without_a_database_it_stops_without_an_error(self) -> None:
        database = Pool(REACTOR, self.dsn, size=1, statement_timeout=5.0)
        presence = Presence(REACTOR, database, uuid4())
        presence.startService()
        presence.connected(terminal_of("front"))
        await presence.stopService()

    async def test_heartbeats_of_a_connection_are_stored(self) -> None:
        presence = await self.presence()
        front = await self.opened(presence)
        await presence.flush()
        presence.heartbeats = sighted(front.connection_id, 300.0, 77)
        shift(self, timedelta(days=1))
        await presence._renew()
        await presence.flush()
        row = "SELECT clock_timestamp() - last_seen_at, sent_seq FROM dinedesk_main.pos_connections"
        ((ago, sent),) = self.admin.rows(row)
        self.assertEqual(sent, 77)
        self.assertLess(abs(ago - timedelta(seconds=300)), timedelta(seconds=60))

    def head(self) -> tuple[int, int]:
        ((sent, received),) = self.admin.rows(
            "SELECT sent_seq, received_seq FROM dinedesk_main.pos_heads WHERE tenant_id = 1"
        )
        return sent, received

    def lose_presence_tables(self) -> None:
        """Delete the node's row, as a crash of PostgreSQL does: the tables are unlogged."""
        self.admin.run("DELETE FROM dinedesk_main.pos_nodes")


def sighted(
    connection_id: UUID, ago: float, seq: int
) -> Callable[[], list[tuple[UUID, float, int]]]:
    return lambda: [(connection_id, ago, seq)]


async def _away(*_: object) -> None:
    raise Unavailable("The database cannot be reached.")


def terminal_of(
    device: str | None,
    since: datetime = BEGINNING,
    tenant: Tenant = KITCHEN,
    stream_id: UUID = NO_STREAM,
) -> Terminal:
    principal = Principal(1, KeyKind.TENANT, tenant)
    return Terminal(uuid4(), tenant, principal, device, None, since, stream_id)
