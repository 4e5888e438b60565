"""The sequencer numbers and stores: pos_record(), and the rows afterwards."""

from __future__ import annotations

from uuid import UUID

import psycopg2

from posd.testing.postgres import test_server
from tests.schema_case import NODE, Entry, SchemaCase, at_once, two_shops, until_blocked

OTHER_NODE = UUID("1c2a5b0e-0f4e-4d6d-9c39-3f3a7b2b8e11")
DEAD_NODE = UUID("2f9d7c44-7a0b-4b8e-8a57-90c1d2e3f405")
EVENTS = """
    SELECT l.seq, l.event_type, l.event_data::text, e.beside::text, l.failure
      FROM dinedesk_kitchen.pos_sync_logs AS l LEFT JOIN dinedesk_kitchen.pos_events AS e ON e.seq = l.seq
     ORDER BY l.id
"""
ORDERS = """
    SELECT order_id, snapshot::text, status, version, payment_status, created_at::text
      FROM dinedesk_kitchen.pos_orders ORDER BY order_id
"""


def order(key: str, version: int = 1, tenant_id: int = 1, **more: str | None) -> Entry:
    """Return an event about an order, with a snapshot that has its version."""
    snapshot = f'{{"orderId":"{key}","v":{version}}}'
    return Entry(
        tenant_id,
        order_id=key,
        snapshot=more.get("snapshot", snapshot),
        status=more.get("status", "new"),
        version=version,
        failure=more.get("failure"),
        payment_status=more.get("payment_status"),
        created_at=more.get("created_at"),
    )


class RecordCase(SchemaCase):
    """A sequencer that works in UTC, like the daemon."""

    def setUp(self) -> None:
        super().setUp()
        self.daemon = self.connect("posd")
        self.daemon.run("SET timezone = 'UTC'")

    def seqs(self, *entries: Entry) -> list[int | None]:
        return [seq for seq, _ in self.daemon.record(*entries)]


class NumberingTests(RecordCase):
    """Positions 1, 2, 3, … for each tenant."""

    def test_each_tenant_counts_for_itself_in_the_order_of_publishing(self) -> None:
        batch = [Entry(1), Entry(2), Entry(1), Entry(1), Entry(2)]
        self.assertEqual(self.seqs(*batch), [1, 1, 2, 3, 2])
        self.assertEqual(self.seqs(*batch), [4, 3, 5, 6, 4])

    def test_heads_are_locked_in_the_order_of_the_tenants(self) -> None:
        """Two transactions that lock several heads in different orders would deadlock."""
        lock = "SELECT FROM dinedesk_main.pos_heads WHERE tenant_id = %s FOR NO KEY UPDATE NOWAIT"
        # The first event of a database gives all streams new names, which locks heads too.
        self.seqs(Entry(1))
        first = self.connect()
        first.run("BEGIN")
        first.run(lock, 1)

        def end_the_first() -> list[int | None]:
            until_blocked(self.admin, self.daemon.pid)
            try:
                self.admin.run(lock, 2)
            finally:
                first.run("COMMIT")
            return []

        self.assertEqual(
            at_once(end_the_first, lambda: self.seqs(Entry(2), Entry(1))), [[], [1, 2]]
        )

    def test_a_rolled_back_batch_leaves_no_gap(self) -> None:
        self.seqs(Entry(1))
        self.daemon.run("BEGIN")
        self.assertEqual(self.seqs(Entry(1), Entry(1)), [2, 3])
        self.daemon.run("ROLLBACK")
        self.assertEqual(self.seqs(Entry(1)), [2])

    def test_a_failed_event_has_no_position(self) -> None:
        self.assertEqual(self.seqs(Entry(1), Entry(1, failure="too large"), Entry(1)), [1, None, 2])
        self.assertEqual(
            [(row[0], row[4]) for row in self.admin.rows(EVENTS)],
            [(1, None), (None, "too large"), (2, None)],
        )

    def test_events_of_a_tenant_that_is_gone_go_nowhere(self) -> None:
        self.assertEqual(
            self.daemon.record(Entry(1), order("9", tenant_id=77), Entry(2)),
            [(1, 0), (None, 0), (1, 0)],
        )

    def test_the_text_of_an_event_is_stored_as_it_is(self) -> None:
        data = '{"b":1.50,"a":"é \\"x\\"","b2":[ ]}'
        self.seqs(
            Entry(1, "gift_card_updated", data, '{"balance":1.50}'), Entry(1, "news", "{}", "{}")
        )
        self.assertEqual(
            self.admin.rows(EVENTS),
            [
                (1, "gift_card_updated", data, '{"balance":1.50}', None),
                (2, "news", "{}", None, None),
            ],
        )

    def test_nothing_is_no_error(self) -> None:
        self.assertEqual(self.daemon.record(), [])

    def test_a_large_batch_over_both_tenants(self) -> None:
        batch = [Entry(1 + number % 2) for number in range(1000)]
        self.assertEqual(self.seqs(*batch), [1 + number // 2 for number in range(1000)])


class NotifyTests(RecordCase):
    """Other nodes are notified of new events, without their content."""

    def setUp(self) -> None:
        super().setUp()
        self.admin.run("LISTEN posd_events")
        self.lease(NODE, "1 minute")

    def lease(self, node: UUID, lease: str) -> None:
        self.daemon.run(
            "INSERT INTO dinedesk_main.pos_nodes VALUES (%s, now() + %s::interval)",
            str(node),
            lease,
        )

    def test_once_for_a_batch_and_without_a_payload(self) -> None:
        self.lease(OTHER_NODE, "1 minute")
        self.seqs(Entry(1), Entry(1), Entry(2))
        self.assertEqual(self.admin.notifications(), [("posd_events", "")])

    def test_not_where_no_other_node_is_alive(self) -> None:
        self.lease(DEAD_NODE, "-1 second")
        self.seqs(Entry(1))
        self.assertEqual(self.admin.notifications(), [])

    def test_not_of_what_is_not_for_tills(self) -> None:
        self.lease(OTHER_NODE, "1 minute")
        self.seqs(Entry(1, failure="bad"))
        self.assertEqual(self.admin.notifications(), [])

    def test_not_before_the_commit(self) -> None:
        self.lease(OTHER_NODE, "1 minute")
        with self.daemon.transaction():
            self.seqs(Entry(1))
            self.assertEqual(self.admin.notifications(), [])
        self.assertEqual(self.admin.notifications(), [("posd_events", "")])


class ElsewhereTests(RecordCase):
    """The number of tills on other nodes."""

    def node(self, node: UUID, lease: str, *tenants: int) -> None:
        self.daemon.run(
            "INSERT INTO dinedesk_main.pos_nodes VALUES (%s, now() + %s::interval)",
            str(node),
            lease,
        )
        for tenant in tenants:
            self.daemon.run(
                "INSERT INTO dinedesk_main.pos_connections"
                " (connection_id, node_id, tenant_id, connected_at, last_seen_at)"
                " VALUES (gen_random_uuid(), %s, %s, now(), now())",
                str(node),
                tenant,
            )

    def test_live_connections_of_other_nodes_are_counted(self) -> None:
        self.node(NODE, "1 minute", 1, 1, 2)
        self.node(OTHER_NODE, "1 minute", 1, 1, 1)
        self.node(DEAD_NODE, "-1 second", 1, 2)
        self.assertEqual(self.daemon.record(Entry(1), Entry(2), node=NODE), [(1, 3), (1, 0)])
        self.assertEqual(self.daemon.record(Entry(1), Entry(2), node=OTHER_NODE), [(2, 2), (2, 1)])

    def test_with_a_node_its_connections_go(self) -> None:
        self.node(OTHER_NODE, "1 minute", 1, 2)
        self.daemon.run("DELETE FROM dinedesk_main.pos_nodes")
        self.assertEqual(self.daemon.value("SELECT count(*) FROM dinedesk_main.pos_connections"), 0)


class OrdersTests(RecordCase):
    """posd's own record of each order."""

    def test_a_new_order_is_entered_as_it_is_told(self) -> None:
        snapshot = '{"paymentStatus":"paid","createdAt":"2026-11-22T10:00:00.123Z","z":1.50}'
        self.seqs(
            order(
                "a",
                snapshot=snapshot,
                payment_status="paid",
                created_at="2026-11-22T10:00:00.123Z",
            )
        )
        self.assertEqual(
            self.daemon.rows(ORDERS),
            [("a", snapshot, "new", 1, "paid", "2026-11-22 10:00:00.123+00")],
        )

    def test_without_a_snapshot_the_data_of_the_event_is_it(self) -> None:
        first, last = '{"version":1,"z":1.50}', '{"version":2}'
        self.seqs(
            Entry(data=first, order_id="a", status="new", version=1),
            Entry(data=last, order_id="a", status="new", version=2),
        )
        self.assertEqual(self.daemon.rows(ORDERS)[0][:4], ("a", last, "new", 2))

    def test_a_snapshot_that_says_little_will_do(self) -> None:
        self.seqs(order("a", snapshot='{"createdAt":null}'))
        self.assertEqual(
            self.daemon.rows(ORDERS)[0][:5], ("a", '{"createdAt":null}', "new", 1, None)
        )

    def test_a_change_replaces_the_snapshot_and_keeps_the_beginning(self) -> None:
        self.seqs(order("a", snapshot="{}", created_at="2026-11-22T10:00:00Z"))
        self.daemon.run(
            "UPDATE dinedesk_main.pos_orders SET print_status = 'printed', device_id = 'POS_1'"
        )
        self.seqs(
            order(
                *("a", 2),
                status="cooking",
                snapshot='{"paymentStatus":"paid"}',
                payment_status="paid",
            )
        )
        self.assertEqual(
            self.daemon.rows(ORDERS),
            [("a", '{"paymentStatus":"paid"}', "cooking", 2, "paid", "2026-11-22 10:00:00+00")],
        )
        printing = "SELECT print_status, device_id FROM dinedesk_kitchen.pos_orders"
        self.assertEqual(self.daemon.rows(printing), [("printed", "POS_1")])

    def test_of_several_changes_in_a_batch_the_last_one_stays(self) -> None:
        self.seqs(order("a"), order("b"), order("a", 2), order("a", 3), order("b", 2))
        versions = [(row[0], row[3]) for row in self.daemon.rows(ORDERS)]
        self.assertEqual(versions, [("a", 3), ("b", 2)])

    def test_an_order_too_large_for_an_event_stays_whole(self) -> None:
        self.assertEqual(self.seqs(order("a", failure="the event is too large")), [None])
        self.assertEqual([row[0] for row in self.daemon.rows(ORDERS)], ["a"])

    def test_the_same_order_id_at_two_tenants_is_two_orders(self) -> None:
        self.seqs(order("a"), order("a", 7, tenant_id=2))
        self.assertEqual(self.daemon.rows("SELECT version FROM dinedesk_grill.pos_orders"), [(7,)])


class SyncLogsTests(RecordCase):
    """The older table `pos_sync_logs` is a view."""

    def statuses(self) -> list[str]:
        rows = self.daemon.rows("SELECT status FROM dinedesk_kitchen.pos_sync_logs ORDER BY id")
        return [status for (status,) in rows]

    def test_the_status_follows_from_how_far_the_best_till_is(self) -> None:
        self.seqs(*[Entry(1)] * 4)
        self.assertEqual(self.statuses(), ["pending"] * 4)
        self.daemon.run(
            "UPDATE dinedesk_main.pos_heads SET sent_seq = 3, received_seq = 1 WHERE tenant_id = 1"
        )
        self.assertEqual(self.statuses(), ["success", "broadcast", "broadcast", "pending"])

    def test_what_no_till_could_process_and_what_was_never_sent_has_failed(self) -> None:
        self.seqs(Entry(1), Entry(1, failure="bad"), Entry(1))
        self.daemon.run(
            "UPDATE dinedesk_main.pos_heads SET sent_seq = last_seq, received_seq = last_seq"
        )
        self.daemon.run(
            "INSERT INTO dinedesk_main.pos_nacks (tenant_id, seq, device_id, reason)"
            " VALUES (1, 1, 'POS_1', 'no paper')"
        )
        self.assertEqual(self.statuses(), ["failed", "failed", "success"])

    def test_what_a_till_said_is_received(self) -> None:
        self.daemon.run(
            "INSERT INTO dinedesk_main.pos_unsequenced (tenant_id, event_type, event_data, device_id)"
            " VALUES (1, 'pos_hello', '{}', 'POS_1')"
        )
        self.assertEqual(self.statuses(), ["received"])

    def test_no_text_of_a_till_makes_the_log_unreadable(self) -> None:
        self.daemon.run(
            "INSERT INTO dinedesk_main.pos_unsequenced (tenant_id, event_type, event_data, device_id)"
            r""" VALUES (1, 'pos_odd', '{"a":"\u0000","b":1e999999}', 'POS_1')"""
        )
        self.assertEqual(self.statuses(), ["received"])
        data = "SELECT event_data::text FROM dinedesk_kitchen.pos_sync_logs"
        self.assertEqual(self.daemon.value(data), r'{"a":"\u0000","b":1e999999}')

    def test_it_has_the_columns_of_the_deployed_table(self) -> None:
        self.seqs(Entry(1, "new_order", '{"a":1}'))
        ((number, kind, data, status, created),) = self.daemon.rows(
            "SELECT id, event_type, event_data, status, created_at FROM dinedesk_kitchen.pos_sync_logs"
        )
        self.assertEqual((number, kind, data, status), (1, "new_order", {"a": 1}, "pending"))
        self.assertIsNotNone(created.tzinfo)


class HeadsTests(RecordCase):
    """What the schema itself prevents for a stream."""

    def test_no_place_is_beyond_the_head(self) -> None:
        for column in ("sent_seq", "received_seq", "pruned_seq"):
            with self.subTest(column=column), self.assertRaises(psycopg2.errors.CheckViolation):
                self.admin.run(f"UPDATE dinedesk_main.pos_heads SET {column} = 1")

    def test_no_position_is_given_twice(self) -> None:
        self.seqs(Entry(1))
        self.daemon.run("UPDATE dinedesk_main.pos_heads SET last_seq = 0")
        with self.assertRaises(psycopg2.errors.UniqueViolation):
            self.seqs(Entry(1))


class FingerprintTests(SchemaCase):
    """The identity of the database, to distinguish a restored one."""

    FINGERPRINT = "SELECT dinedesk_main.pos_fingerprint()"

    def test_it_is_the_same_for_everybody_and_stays(self) -> None:
        first = self.connect("posd").value(self.FINGERPRINT)
        self.admin.run("CHECKPOINT")
        self.assertEqual(self.admin.value(self.FINGERPRINT), first)

    def test_a_copy_of_a_database_has_another(self) -> None:
        # Every database of these tests is a copy of a template.
        known = self.admin.value("SELECT fingerprint FROM dinedesk_main.pos_incarnation")
        self.assertNotEqual(self.admin.value(self.FINGERPRINT), known)

    def test_a_standby_that_was_promoted_has_another_at_once(self) -> None:
        server = test_server().another()
        self.addCleanup(server.stop)
        dsn = server.dsn("shops")
        two_shops(dsn)
        before = self.fingerprint(dsn)
        server.restart()
        self.assertEqual(self.fingerprint(dsn), before)

        # Enough dirty pages that the checkpoint after the promotion takes some time.
        self.connect(dsn=dsn).run(
            "CREATE TABLE pages AS SELECT repeat('x', 500) FROM generate_series(1, 20000)"
        )
        server.kill()
        (server.folder / "data" / "standby.signal").touch()
        server.restart()
        with self.assertRaisesRegex(psycopg2.Error, "recovery is in progress"):
            self.fingerprint(dsn)
        self.assertTrue(self.connect(dsn=dsn).value("SELECT pg_promote()"))
        self.assertNotEqual(self.fingerprint(dsn), before)

    def fingerprint(self, dsn: str) -> str:
        return str(self.connect(dsn=dsn).value(self.FINGERPRINT))
