"""A transaction of a shop never waits for posd and never fails because of it."""

from __future__ import annotations

from threading import Event

import psycopg2

from tests.schema_case import GRILL_SHOP, KITCHEN_SHOP, Client, Entry, SchemaCase, at_once

WRITERS, ORDERS_EACH = 8, 40

ORDER = "INSERT INTO dinedesk_kitchen.orders (id, total_amount) VALUES (%s, 10)"
ITEM = "INSERT INTO dinedesk_kitchen.order_items (order_id, name, price) VALUES (%s, 'Soup', 5)"
PUBLISH = "SELECT dinedesk_main.pos_publish(%s, 'news', '{}')"


class ShopCase(SchemaCase):
    """Shops whose statements fail at once if they would have to wait for a lock."""

    def shop(self, role: str = KITCHEN_SHOP) -> Client:
        client = self.connect(role)
        client.run("SET lock_timeout = '1ms'")
        return client

    def sequencer(self) -> Client:
        return self.connect("posd")


class ConcurrentWritersTests(ShopCase):
    """Eight busy tills of a shop write concurrently while the sequencer works."""

    def check(self, isolation: str, *statements: str) -> None:
        # A foreign key is checked by a read, which is another reason for SERIALIZABLE to fail.
        self.admin.run(
            "ALTER TABLE dinedesk_kitchen.order_items DROP CONSTRAINT order_items_order_id_fkey"
        )
        over = Event()

        def write(first: int) -> int:
            shop = self.connect(KITCHEN_SHOP)
            failed = 0
            for order in range(first, first + ORDERS_EACH):
                try:
                    with shop.transaction(isolation):
                        for statement in statements:
                            shop.run(statement, order)
                        shop.run(PUBLISH, "kitchen")
                except psycopg2.errors.SerializationFailure:
                    failed += 1
            return failed

        def work() -> int:
            sequencer = self.sequencer()
            done = 0
            while not over.is_set():
                done += sequencer.sequence()
            while rows := sequencer.sequence():
                done += rows
            return done

        def everybody() -> int:
            try:
                return sum(at_once(*[lambda n=n: write(n * ORDERS_EACH) for n in range(WRITERS)]))
            finally:
                over.set()

        failed, sequenced = at_once(everybody, work)
        self.assertEqual(failed, 0)
        self.assertEqual(sequenced, WRITERS * ORDERS_EACH * (len(statements) + 1))
        self.assertEqual(
            self.admin.rows(
                "SELECT count(DISTINCT seq), min(seq), max(seq) FROM dinedesk_kitchen.pos_events"
            ),
            [(sequenced, 1, sequenced)],
        )

    def test_repeatable_read(self) -> None:
        changed = "UPDATE dinedesk_kitchen.orders SET status = 'confirmed' WHERE id = %s"
        self.check("REPEATABLE READ", ORDER, ITEM, ITEM, changed)

    def test_serializable(self) -> None:
        self.check("SERIALIZABLE", ORDER, ITEM, ITEM)


class SerializableTests(ShopCase):
    """A SERIALIZABLE transaction can conflict only with what it has read."""

    def read_by(self, client: Client) -> set[str]:
        """Return the relations on which a transaction holds predicate locks."""
        return {
            name
            for (name,) in client.rows(
                "SELECT DISTINCT relation::regclass::text FROM pg_locks"
                " WHERE mode = 'SIReadLock' AND pid = pg_backend_pid()"
            )
        }

    def test_the_hooks_read_nothing_at_all(self) -> None:
        shop = self.shop()
        with shop.transaction("SERIALIZABLE"):
            shop.run(ORDER, 1)
            self.assertEqual(self.read_by(shop), set())

    def test_publishing_reads_nothing_at_all(self) -> None:
        shop = self.shop()
        with shop.transaction("SERIALIZABLE"):
            shop.run(PUBLISH, "kitchen")
            self.assertEqual(self.read_by(shop), set())

    def test_whoever_changes_a_tenant_meanwhile_fails_no_shop(self) -> None:
        shop = self.shop()
        shop.run("BEGIN ISOLATION LEVEL SERIALIZABLE")
        shop.run(PUBLISH, "kitchen")
        with self.admin.transaction("SERIALIZABLE"):
            self.admin.run("SELECT count(*) FROM dinedesk_kitchen.orders")
            self.admin.run("UPDATE dinedesk_main.tenants SET name = 'The Old Kitchen' WHERE id = 1")
            shop.run(ORDER, 1)
        shop.run("COMMIT")
        self.assertEqual(len(self.admin.take() or ()), 2)


class WaitingTests(ShopCase):
    """Another session holds a lock for long."""

    def test_two_tenants_published_in_opposite_order(self) -> None:
        self.admin.run(f"GRANT USAGE ON SCHEMA dinedesk_grill TO {KITCHEN_SHOP}")
        one, other = self.shop(), self.shop()
        with one.transaction(), other.transaction():
            one.run(PUBLISH, "kitchen")
            other.run(PUBLISH, "grill")
            one.run(PUBLISH, "grill")
            other.run(PUBLISH, "kitchen")
        self.assertEqual(len(self.admin.take() or ()), 4)

    def test_an_idle_transaction_delays_nothing_but_its_own_order(self) -> None:
        idle, busy, grill = self.shop(), self.shop(), self.shop(GRILL_SHOP)
        sequencer = self.sequencer()
        idle.run("BEGIN")
        idle.run(ORDER, 1)
        idle.run(PUBLISH, "kitchen")
        busy.run(ORDER, 2)
        grill.run(PUBLISH, "grill")
        self.assertEqual(sequencer.sequence(), 2)
        busy.run("UPDATE dinedesk_kitchen.orders SET status = 'confirmed' WHERE id = 2")
        self.assertEqual(sequencer.sequence(), 1)
        idle.run("COMMIT")
        self.assertEqual(sequencer.sequence(), 2)
        self.assertEqual(
            self.admin.rows("SELECT tenant_id, last_seq FROM dinedesk_main.pos_heads ORDER BY 1"),
            [(1, 4), (2, 1)],
        )

    def test_posd_is_down(self) -> None:
        shop = self.shop()
        for order in range(50):
            shop.run(ORDER, order)
            shop.run(PUBLISH, "kitchen")
        # The queue belongs to the cluster: sessions of other databases may listen at the moment.
        self.assertLess(self.admin.value("SELECT pg_notification_queue_usage()"), 0.01)
        self.assertEqual(self.sequencer().sequence(), 100)

    def test_a_sequencer_transaction_is_held_open(self) -> None:
        shop, sequencer = self.shop(), self.sequencer()
        shop.run(ORDER, 1)
        shop.run(PUBLISH, "kitchen")
        with sequencer.transaction():
            self.assertEqual(len(sequencer.take() or ()), 2)
            sequencer.rows("SELECT * FROM dinedesk_main.pos_order_states('{1}', '{1}')")
            sequencer.record(Entry(order_id="1", snapshot="{}", status="new", version=1))
            shop.run("UPDATE dinedesk_kitchen.orders SET status = 'confirmed' WHERE id = 1")
            shop.run("DELETE FROM dinedesk_kitchen.orders WHERE id = 1")
            shop.run(ORDER, 2)
            shop.run(PUBLISH, "kitchen")
        self.assertEqual([row.key for row in self.admin.take() or ()], ["1", "2", None])

    def test_everything_of_posds_but_the_outbox_is_locked(self) -> None:
        tables = self.admin.value(
            "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class WHERE relkind IN ('r', 'p')"
            " AND relowner = 'posd_owner'::regrole AND relname ~ '^(pos_|tenants|schema_versions)'"
            " AND relname NOT IN ('pos_outbox', 'pos_outbox_transactions')"
        )
        shop = self.shop()
        with self.admin.transaction():
            self.admin.run(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
            shop.run(ORDER, 1)
            shop.run(ITEM, 1)
            shop.run(PUBLISH, "kitchen")
        self.assertEqual(len(self.admin.take() or ()), 3)

    def test_the_outbox_is_vacuumed(self) -> None:
        shop = self.shop()
        shop.run(ORDER, 1)
        with shop.transaction():
            shop.run(PUBLISH, "kitchen")
            # This takes a lock that does not conflict with an INSERT, and no stronger lock to truncate.
            self.admin.run("VACUUM dinedesk_main.pos_outbox, dinedesk_main.pos_outbox_transactions")
        for table in ("pos_outbox", "pos_outbox_transactions"):
            options = (
                f"SELECT reloptions FROM pg_class WHERE oid = 'dinedesk_main.{table}'::regclass"
            )
            self.assertIn("vacuum_truncate=false", self.admin.value(options))


class SettingsTests(ShopCase):
    """A shop's session has settings of its own."""

    def test_no_setting_that_a_shop_may_make_fails_its_orders(self) -> None:
        shop = self.shop()
        for setting in (
            "search_path = ''",
            "standard_conforming_strings = off",
            "plpgsql.extra_errors = 'all'",
            "quote_all_identifiers = on",
            "transform_null_equals = on",
            "row_security = off",
            "default_transaction_isolation = 'serializable'",
            "datestyle = 'German'",
            "xmloption = document",
            "enable_indexscan = off",
            "client_encoding = 'LATIN1'",
            "check_function_bodies = off",
            "plan_cache_mode = force_generic_plan",
        ):
            shop.run(f"SET {setting}")
        with shop.transaction():
            shop.run(ORDER, 1)
            shop.run(ITEM, 1)
            shop.run("UPDATE dinedesk_kitchen.order_items SET price = 6")
            shop.run(PUBLISH, "kitchen")
        self.assertEqual(self.admin.touched(), ["1", "1", "1", None])
