"""The sequencer reads the outbox and orders, and takes rows: pos_look(), pos_take()."""

from __future__ import annotations

import psycopg2

from posd.store import stream
from tests.schema_case import (
    GRILL_SHOP,
    KITCHEN_SHOP,
    NODE,
    Client,
    Entry,
    SchemaCase,
    at_once,
    until_blocked,
)

PUBLISH = """
    SELECT dinedesk_main.pos_publish(%s, 'n', to_jsonb(n)) FROM generate_series(1, %s) AS n
"""
STATES = "SELECT * FROM dinedesk_main.pos_order_states(%s::integer[], %s::text[])"
# pg_stat_xact_user_tables counts returned rows, but not skipped ones.
VISITED = """
    SELECT sum(pg_stat_get_xact_tuples_returned(c.oid))::integer
      FROM pg_class AS c LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
     WHERE coalesce(i.indrelid, c.oid) IN ('dinedesk_main.pos_outbox'::regclass,
                                           'dinedesk_main.pos_outbox_transactions'::regclass)
"""
ORDER = "INSERT INTO dinedesk_{}.orders (id, total_amount) VALUES (%s, 10)"


class TakeTests(SchemaCase):
    """The outbox has rows of two tenants."""

    def setUp(self) -> None:
        super().setUp()
        self.sequencer = self.connect("posd")

    def publish(self, slug: str, count: int) -> None:
        self.admin.run(PUBLISH, slug, count)

    def take(self, at_most: int = 500, aside: tuple[int, ...] = ()) -> list[tuple[int, str | None]]:
        return [(row.tenant_id, row.data) for row in self.sequencer.take(at_most, aside)]

    def test_what_is_taken_is_gone_with_the_commit(self) -> None:
        self.publish("kitchen", 2)
        self.sequencer.run("BEGIN")
        self.assertEqual(self.take(), [(1, "1"), (1, "2")])
        self.assertEqual(self.take(), [])
        self.sequencer.run("ROLLBACK")
        self.assertEqual(self.take(), [(1, "1"), (1, "2")])
        self.assertEqual(self.take(), [])

    def test_rows_come_oldest_first_and_up_to_a_limit(self) -> None:
        self.publish("kitchen", 5)
        self.assertEqual([data for _, data in self.take(3)], ["1", "2", "3"])
        self.assertEqual(self.take(0), [])
        self.assertEqual([data for _, data in self.take(3)], ["4", "5"])

    def test_tenants_that_are_set_aside_keep_their_rows(self) -> None:
        self.publish("kitchen", 2)
        self.publish("grill", 2)
        self.assertEqual(self.take(aside=(1,)), [(2, "1"), (2, "2")])
        self.assertEqual(self.take(aside=(1,)), [])
        self.assertEqual(self.take(), [(1, "1"), (1, "2")])

    def test_tenants_share_a_batch(self) -> None:
        self.publish("kitchen", 100)
        self.publish("grill", 3)
        taken = self.take(4)
        self.assertEqual(taken, [(1, "1"), (1, "2"), (2, "1"), (2, "2")])
        # The rows that one leaves are for the other.
        taken = self.take(10)
        self.assertEqual([tenant for tenant, _ in taken], [1] * 9 + [2])
        self.assertEqual([data for _, data in taken], [*map(str, range(3, 12)), "3"])

    def test_more_tenants_than_fit_into_a_batch_come_oldest_first(self) -> None:
        self.admin.run(
            "WITH noted AS (INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, data)"
            " SELECT 100 - n, 'n', to_jsonb(n) FROM generate_series(1, 20) AS n RETURNING tenant_id, id)"
            " INSERT INTO dinedesk_main.pos_outbox_transactions (tenant_id, kind, first_id)"
            " SELECT tenant_id, 'plain', id FROM noted"
        )
        self.assertEqual([data for _, data in self.take(4)], ["1", "2", "3", "4"])
        self.assertEqual([data for _, data in self.take(4)], ["5", "6", "7", "8"])

    def test_a_backlog_is_taken_whole_and_each_row_once(self) -> None:
        self.publish("kitchen", 3000)
        self.publish("grill", 700)
        taken: list[tuple[int, str | None]] = []
        while batch := self.take(500):
            taken += batch
        self.assertEqual(
            sorted(taken, key=str),
            sorted(
                [(1, str(n)) for n in range(1, 3001)] + [(2, str(n)) for n in range(1, 701)],
                key=str,
            ),
        )

    def test_data_is_text_and_keys_have_none(self) -> None:
        self.admin.run("""SELECT dinedesk_main.pos_publish('kitchen', 'a', '{"b":[1,2.50,"é"]}')""")
        self.admin.run(ORDER.format("kitchen"), 7)
        rows = self.sequencer.take()
        self.assertEqual(
            [(row.type, row.key, row.data) for row in rows],
            [("a", None, '{"b": [1, 2.50, "é"]}'), ("placed", "7", None)],
        )

    def test_data_longer_than_any_event_may_be_is_never_read(self) -> None:
        """Some bytes of jsonb can be a hundred megabytes of text. The row says whose it was and what."""
        numbers = "[" + ", ".join(["1e131071"] * 20) + "]"
        self.admin.run("SELECT dinedesk_main.pos_publish('kitchen', 'bomb', %s)", numbers)
        self.publish("kitchen", 1)
        rows = self.sequencer.take()
        self.assertEqual(
            [(row.type, row.key, row.data) for row in rows],
            [("bomb", None, None), ("n", None, "1")],
        )

    def test_one_mebibyte_is_enough_at_once(self) -> None:
        text = "x" * (1 << 17)
        for slug in ("kitchen", "grill"):
            self.admin.run(
                "SELECT dinedesk_main.pos_publish(%s, 'n', to_jsonb(%s::text || n))"
                " FROM generate_series(1, 10) AS n",
                slug,
                text,
            )
        taken = [len(self.take()) for _ in range(4)]
        self.assertEqual(taken, [8, 8, 4, 0])

    def test_a_backlog_is_not_read_whole_for_each_batch(self) -> None:
        # What the statistics usually know of it.
        self.admin.run("ANALYZE dinedesk_main.pos_outbox")
        self.publish("kitchen", 2000)
        read = (
            "SELECT seq_scan, seq_tup_read + idx_tup_fetch < 500 FROM pg_stat_xact_user_tables"
            " WHERE relid = 'dinedesk_main.pos_outbox'::regclass"
        )
        with self.sequencer.transaction():
            self.assertEqual(len(self.take(50)), 50)
            self.assertEqual(self.sequencer.rows(read), [(0, True)])


class TransactionTests(SchemaCase):
    """Transactions of a shop that are open, rolled back, or overlap."""

    def setUp(self) -> None:
        super().setUp()
        self.sequencer = self.connect("posd")
        self.shop = self.connect(KITCHEN_SHOP)

    def publish(self, number: int, client: Client | None = None) -> None:
        (client or self.admin).run(
            "SELECT dinedesk_main.pos_publish('kitchen', 'n', to_jsonb(%s::integer))", number
        )

    def visited(self, statement: str, *parameters: object) -> int:
        """Return how many index entries and rows of the outbox tables a statement visits."""
        with self.sequencer.transaction():
            before = self.sequencer.value(VISITED)
            self.sequencer.run(statement, *parameters)
            after = self.sequencer.value(VISITED)
            self.sequencer.run("ROLLBACK; BEGIN")
        return int(after - before)

    def test_rows_that_are_not_committed_cost_nothing(self) -> None:
        self.admin.run(
            "UPDATE dinedesk_main.pos_doorman SET node_id = %s; ANALYZE dinedesk_main.pos_outbox",
            str(NODE),
        )
        # Before the others and after them.
        self.publish(1)
        self.admin.run(ORDER.format("kitchen"), 30001)
        self.shop.run("BEGIN")
        self.shop.run(
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount)"
            " SELECT n, 5 FROM generate_series(1, 20000) AS n"
        )
        self.shop.run(PUBLISH, "kitchen", 2000)
        for slug in ("kitchen", "grill"):
            self.admin.run(ORDER.format(slug), 30000)
            self.admin.run(PUBLISH, slug, 12)
        self.check_costs("open")
        self.shop.run("ROLLBACK")
        self.check_costs("rolled back")

    def check_costs(self, state: str) -> None:
        statements: dict[str, tuple[object, ...]] = {
            "SELECT FROM dinedesk_main.pos_look(200, '{}', '{}', '{}', '{}', NULL)": (),
            "SELECT FROM dinedesk_main.pos_look(200, '{}', '{1}', '{}', '{}', NULL)": (),
            "SELECT FROM dinedesk_main.pos_look(200, '{}', '{}', '{}', '{}', 1)": (),
            "SELECT FROM dinedesk_main.pos_look_again('{1}', '{\"\"}', '{}', '{}')": (),
            "SELECT FROM dinedesk_main.pos_take('{1}', '{1}', '{1}', '{NULL}', '{}', '{}', %s, 0)": (
                str(NODE),
            ),
            "SELECT FROM dinedesk_main.pos_survey(0, 100, '{}')": (),
            stream._POLL: ("{}",),
        }
        for statement, parameters in statements.items():
            with self.subTest(state=state, statement=statement):
                self.assertLess(self.visited(statement, *parameters), 1000)

    def test_of_a_large_transaction_few_rows_are_read_whatever_the_statistics_say(self) -> None:
        for number in range(30):
            self.admin.run(ORDER.format("kitchen"), 30000 + number)
        self.shop.run("BEGIN")
        self.shop.run(
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount)"
            " SELECT n, 5 FROM generate_series(1, 10000) AS n"
        )
        # A large table with 30 rows.
        self.admin.run(
            "VACUUM ANALYZE dinedesk_main.pos_outbox, dinedesk_main.pos_outbox_transactions"
        )
        self.shop.run("COMMIT")
        for look in (
            "SELECT FROM dinedesk_main.pos_look(200, '{}', '{}', '{}', '{}', NULL)",
            "SELECT FROM dinedesk_main.pos_look_again('{1}', '{\"\"}', '{}', '{}')",
        ):
            with self.subTest(look=look):
                self.assertLess(self.visited(look), 3000)

    def test_rows_of_transactions_that_overlap_come_in_their_order(self) -> None:
        """Also one by one, although a transaction has further rows."""
        self.shop.run("BEGIN")
        self.publish(1, self.shop)
        self.publish(2)
        self.publish(3, self.shop)
        self.assertEqual([row.data for row in self.sequencer.take(1)], ["2"])
        self.publish(4)
        self.shop.run("COMMIT")
        found = [[row.data for row in self.sequencer.take(1)] for _ in range(4)]
        self.assertEqual(found, [["1"], ["3"], ["4"], []])
        self.assertEqual(self.left(), [])

    def test_what_a_savepoint_takes_back_is_not_missed(self) -> None:
        self.shop.run("BEGIN; SAVEPOINT before")
        self.publish(1, self.shop)
        self.shop.run("ROLLBACK TO before")
        self.publish(2, self.shop)
        self.shop.run("SAVEPOINT between")
        self.publish(3, self.shop)
        self.shop.run("ROLLBACK TO between; COMMIT")
        self.assertEqual([row.data for row in self.sequencer.take()], ["2"])
        self.assertEqual(self.left(), [])

    def test_of_a_transaction_only_some_rows_may_be_taken(self) -> None:
        self.admin.run(PUBLISH, "kitchen", 3)
        rows = self.sequencer.look()
        self.assertEqual([row.data for row in self.sequencer.take(seen=rows[1:2])], ["2"])
        self.assertEqual([row.data for row in self.sequencer.take()], ["1", "3"])
        self.assertEqual(self.left(), [])

    def test_a_transaction_finds_the_row_that_a_dump_brought_under_its_number(self) -> None:
        """Rows of another cluster have its transaction numbers, which may also occur here."""
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, data, xact)"
            " SELECT 1, 'n', '1', (pg_current_xact_id()::text::bigint + 1)::text::xid8;"
            "INSERT INTO dinedesk_main.pos_outbox_transactions (tenant_id, kind, first_id, xact)"
            " SELECT tenant_id, kind, id, xact FROM dinedesk_main.pos_outbox"
        )
        self.shop.run("BEGIN")
        self.publish(2, self.shop)
        with self.sequencer.transaction():
            # A transaction gets a number when it writes.
            self.assertEqual([row.data for row in self.sequencer.take()], ["1"])
        self.shop.run("COMMIT")
        self.assertEqual([row.data for row in self.sequencer.take()], ["2"])

    def left(self) -> list[tuple[object, ...]]:
        return self.admin.rows("SELECT * FROM dinedesk_main.pos_outbox_transactions")


class OneSequencerTests(SchemaCase):
    """Two nodes, of which one is active."""

    def setUp(self) -> None:
        super().setUp()
        self.first, self.second = self.connect("posd"), self.connect("posd")
        self.admin.run(PUBLISH, "kitchen", 10)

    def test_an_empty_outbox_is_locked_too(self) -> None:
        self.first.take()
        self.second.run("SET lock_timeout = '20ms'")
        with self.first.transaction():
            self.assertEqual(self.first.take(), [])
            with self.assertRaises(psycopg2.errors.LockNotAvailable):
                self.second.take()

    def test_the_second_waits_and_sees_what_was_committed_meanwhile(self) -> None:
        self.first.run("BEGIN")
        self.first.take(5)
        self.second.run("BEGIN")

        def end_the_first() -> list[str | None]:
            until_blocked(self.admin, self.second.pid)
            self.admin.run(PUBLISH, "grill", 1)
            self.first.run("COMMIT")
            return []

        def wait() -> list[str | None]:
            return [row.data for row in self.second.take()]

        taken, _ = at_once(wait, end_the_first)
        self.assertEqual(taken, ["6", "7", "8", "9", "10"], "what came after the look is left")
        self.assertEqual([row.data for row in self.second.take()], ["1"])

    def test_the_second_waits_no_longer_than_lock_timeout(self) -> None:
        self.second.run("SET lock_timeout = '20ms'")
        with self.first.transaction():
            self.first.take()
            with self.assertRaises(psycopg2.errors.LockNotAvailable):
                self.second.take()

    def test_a_sequencer_that_dies_leaves_its_rows_and_its_place(self) -> None:
        self.first.run("BEGIN")
        self.first.take()
        self.first.connection.close()
        self.assertEqual(len(self.second.take()), 10)

    def test_numbers_are_without_a_gap_whoever_takes(self) -> None:
        self.admin.run("DELETE FROM dinedesk_main.pos_outbox")

        def publish(slug: str) -> int:
            client = self.connect(KITCHEN_SHOP if slug == "kitchen" else GRILL_SHOP)
            for number in range(60):
                client.run("BEGIN")
                client.run(PUBLISH, slug, 2)
                client.run("ROLLBACK" if number % 3 == 0 else "COMMIT")
            return 0

        at_once(
            lambda: publish("kitchen"),
            lambda: publish("grill"),
            lambda: self.some_batches(self.first),
            lambda: self.some_batches(self.second),
        )
        while self.first.sequence():
            pass
        for schema in ("dinedesk_kitchen", "dinedesk_grill"):
            seqs = self.admin.rows(f"SELECT seq FROM {schema}.pos_events ORDER BY id")
            self.assertEqual([seq for (seq,) in seqs], list(range(1, 81)))

    def some_batches(self, client: Client) -> int:
        """Sequence for some time, a few rows at a time. Every third batch is rolled back."""
        for number in range(60):
            client.run("BEGIN")
            rows = client.take(3)
            if rows:
                client.record(*[Entry(row.tenant_id) for row in rows])
            client.run("ROLLBACK" if number % 3 == 0 else "COMMIT")
        return 0


class OrderStatesTests(SchemaCase):
    """Orders that the shops have and that posd has published before."""

    def setUp(self) -> None:
        super().setUp()
        self.admin.run(ORDER.format("kitchen"), 1)
        self.admin.run(ORDER.format("grill"), 1)
        self.admin.record(
            Entry(1, order_id="1", snapshot='{"a":1.50}', status="new", version=1),
            Entry(1, order_id="rest", snapshot="{}", status="cooking", version=4),
        )
        self.daemon = self.connect("posd")

    def states(
        self, *wanted: tuple[int, str | None]
    ) -> dict[tuple[int, str | None], tuple[object, ...]]:
        """Return snapshot, status and version by tenant and order."""
        rows = self.daemon.rows(STATES, *[list(column) for column in zip(*wanted, strict=True)])
        self.assertEqual(len({row[:2] for row in rows}), len(rows))
        return {(row[0], row[1]): tuple(row[2:]) for row in rows}

    def test_what_was_published_before(self) -> None:
        self.assertEqual(
            self.states((1, "1"), (1, "rest"), (1, "new"), (2, "1")),
            {
                (1, "1"): ('{"a":1.50}', "new", 1),
                (1, "rest"): ("{}", "cooking", 4),
                (1, "new"): (None, None, None),
                (2, "1"): (None, None, None),
            },
        )

    def test_nothing_of_the_shops_own_is_read(self) -> None:
        with self.admin.transaction():
            self.admin.run("LOCK TABLE dinedesk_kitchen.orders")
            self.assertEqual(self.states((1, "new")), {(1, "new"): (None, None, None)})
