"""The rows that a shop's SQL writes to the outbox: by pos_publish() and by the hooks."""

from __future__ import annotations

import io
import json
from typing import Any

import psycopg2

from posd.database import migrations
from posd.testing.postgres import test_server
from tests.schema_case import CASHIER, GRILL_SHOP, KITCHEN_SHOP, SchemaCase, add, two_shops

PUBLISH = "SELECT dinedesk_main.pos_publish(%s, %s, %s::jsonb)"
ORDER = "INSERT INTO dinedesk_kitchen.orders (id, total_amount) VALUES (%s, 10)"
ITEM = """
    INSERT INTO dinedesk_kitchen.order_items (id, order_id, name, price) VALUES (%s, %s, 'Soup', 5)
"""

FALL_ASLEEP = "SELECT pg_try_advisory_lock(7097, 10)"
"""What a doorman does before it must be notified. Returns whether it may sleep."""


class PublishTests(SchemaCase):
    """The shop `kitchen` publishes by SQL."""

    def setUp(self) -> None:
        super().setUp()
        self.shop = self.connect(KITCHEN_SHOP)

    def published(self) -> list[tuple[int, str, str | None]]:
        return [(row.tenant_id, row.type, row.data) for row in self.admin.take() or ()]

    def refused(self, slug: str | None, role: str = KITCHEN_SHOP) -> str:
        """Return PostgreSQL's message to a role that may not publish for that tenant."""
        with self.assertRaises(psycopg2.errors.InsufficientPrivilege) as raised:
            self.connect(role).run(PUBLISH, slug, "new_order", "{}")
        self.assertEqual(self.published(), [])
        return str(raised.exception)

    def test_it_returns_the_id_that_the_row_has_in_the_outbox(self) -> None:
        ids = [self.shop.value(PUBLISH, "kitchen", "new_order", '{"orderId": "1"}') for _ in "ab"]
        self.assertEqual([row.id for row in self.admin.take() or ()], ids)

    def test_it_becomes_visible_with_the_callers_transaction(self) -> None:
        with self.shop.transaction():
            self.shop.run(PUBLISH, "kitchen", "new_order", '{"orderId": "1"}')
            self.assertEqual(self.published(), [])
        self.assertEqual(self.published(), [(1, "new_order", '{"orderId": "1"}')])

    def test_it_is_rolled_back_with_the_callers_transaction(self) -> None:
        self.shop.run("BEGIN")
        self.shop.run(PUBLISH, "kitchen", "new_order", "{}")
        self.shop.run("ROLLBACK")
        self.assertEqual(self.published(), [])

    def test_it_is_rolled_back_to_a_savepoint(self) -> None:
        with self.shop.transaction():
            self.shop.run(PUBLISH, "kitchen", "kept", "{}")
            self.shop.run("SAVEPOINT s")
            self.shop.run(PUBLISH, "kitchen", "gone", "{}")
            self.shop.run("ROLLBACK TO s")
        self.assertEqual(self.published(), [(1, "kept", "{}")])

    def test_content_that_is_no_event_costs_the_caller_nothing(self) -> None:
        for kind, data in ((None, None), ("", "[]"), ("No Such", '"text"'), ("x" * 300, "{}")):
            self.shop.run(PUBLISH, "kitchen", kind, data)
        self.assertEqual(
            self.published(),
            [(1, "", "null"), (1, "", "[]"), (1, "No Such", '"text"'), (1, "x" * 100, "{}")],
        )

    def test_many_in_one_statement_keep_their_order(self) -> None:
        self.shop.run(
            "SELECT dinedesk_main.pos_publish('kitchen', 'n', to_jsonb(n))"
            "  FROM generate_series(1, 100) AS n"
        )
        self.assertEqual([data for _, _, data in self.published()], [str(n) for n in range(1, 101)])

    def test_a_tenant_that_is_not_there_and_one_of_somebody_else_get_one_answer(self) -> None:
        said = self.refused("grill")
        self.assertIn("no tenant grill that posd_test_kitchen may publish for", said)
        self.assertEqual(self.refused("nobody").replace("nobody", "grill"), said)

    def test_what_only_looks_like_a_tenant_gets_that_answer_too(self) -> None:
        self.admin.run("CREATE SCHEMA dinedesk_bistro AUTHORIZATION posd_test_kitchen")
        self.admin.run(
            "INSERT INTO dinedesk_main.tenants (slug, name, schema_name)"
            " VALUES ('not-ready', 'N', 'dinedesk_not_ready')"
        )
        for slug in ("bistro", "main", "not-ready", "Kitchen", "", "kitchen'--", None):
            with self.subTest(slug=slug):
                self.assertIn("may publish for", self.refused(slug))

    def test_a_hyphen_and_an_underscore_are_not_the_same_shop(self) -> None:
        connection = migrations.connect(self.dsn)
        self.addCleanup(connection.close)
        add(connection, "le-bistro")
        self.admin.run("SELECT dinedesk_main.pos_publish('le-bistro', 'x', '{}')")
        self.assertEqual(self.published(), [(3, "x", "{}")])
        with self.assertRaises(psycopg2.errors.InsufficientPrivilege):
            self.admin.run("SELECT dinedesk_main.pos_publish('le_bistro', 'x', '{}')")

    def test_a_role_that_has_the_schema_but_is_no_publisher_is_refused(self) -> None:
        self.assertIn(
            "permission denied for schema dinedesk_main", self.refused("kitchen", CASHIER)
        )

    def test_a_doorman_that_sleeps_is_rung_once_for_each_transaction(self) -> None:
        self.admin.run("LISTEN posd_outbox")
        self.shop.run(PUBLISH, "kitchen", "a", "{}")
        self.assertEqual(self.admin.notifications(), [], "nobody sleeps")
        self.admin.run(FALL_ASLEEP)
        with self.shop.transaction():
            self.shop.run(PUBLISH, "kitchen", "a", "{}")
            self.shop.run(PUBLISH, "kitchen", "b", "{}")
        self.assertEqual(self.admin.notifications(), [("posd_outbox", "")])


class HookTests(SchemaCase):
    """The shop `kitchen` writes its own rows, and the hooks note them."""

    def setUp(self) -> None:
        super().setUp()
        self.shop = self.connect(KITCHEN_SHOP)

    def existing(self, orders: int = 2, items_each: int = 1) -> None:
        """Insert orders 1, 2, … with items, and empty the outbox."""
        self.shop.run(
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount)"
            " SELECT n, 10 FROM generate_series(1, %s) AS n",
            orders,
        )
        self.shop.run(
            "INSERT INTO dinedesk_kitchen.order_items (id, order_id, name, price)"
            " SELECT 10 * o + i, o, 'Soup', 5"
            "   FROM generate_series(1, %s) AS o, generate_series(1, %s) AS i",
            orders,
            items_each,
        )
        self.admin.run("DELETE FROM dinedesk_main.pos_outbox")

    def read(self, *keys: str) -> dict[str, Any]:
        rows = self.connect("posd_reader").rows(
            "SELECT * FROM posd_hooks.read_orders$kitchen(%s)", [*keys]
        )
        return {key: json.loads(text) for key, text in rows}

    def test_an_order_is_noted_by_its_key_alone(self) -> None:
        self.shop.run(ORDER, 7)
        (row,) = self.admin.take() or []
        self.assertEqual((row.tenant_id, row.type, row.key, row.data), (1, "placed", "7", None))

    def test_an_order_and_its_items_in_one_transaction_are_read_whole(self) -> None:
        with self.shop.transaction():
            self.shop.run(ORDER, 7)
            for item in (3, 1, 2):
                self.shop.run(ITEM, item, 7)
                self.assertEqual(self.admin.touched(), [], "nothing before the commit")
            self.shop.run("UPDATE dinedesk_kitchen.order_items SET name = id::text")
        self.assertEqual(set(self.admin.touched()), {"7"})
        order = self.read("7")["7"]
        self.assertEqual(order["total_amount"], 10)
        self.assertEqual([item["name"] for item in order["items"]], ["1", "2", "3"])

    def test_a_rolled_back_order_is_not_noted(self) -> None:
        self.shop.run("BEGIN")
        self.shop.run(ORDER, 7)
        self.shop.run("ROLLBACK")
        self.assertEqual(self.admin.touched(), [])

    def test_one_statement_notes_each_order_once(self) -> None:
        self.existing(orders=3, items_each=4)
        self.shop.run("UPDATE dinedesk_kitchen.orders SET status = 'confirmed' WHERE id < 3")
        self.assertEqual(sorted(self.admin.touched(), key=str), ["1", "2"])
        self.shop.run("UPDATE dinedesk_kitchen.order_items SET price = 6 WHERE order_id > 1")
        self.assertEqual(sorted(self.admin.touched(), key=str), ["2", "3"])

    def test_several_statements_of_a_transaction_note_the_order_each(self) -> None:
        self.existing()
        with self.shop.transaction():
            self.shop.run("UPDATE dinedesk_kitchen.orders SET status = 'confirmed' WHERE id = 1")
            self.shop.run("UPDATE dinedesk_kitchen.orders SET status = 'cooking' WHERE id = 1")
        self.assertEqual(self.admin.touched(), ["1", "1"])
        self.assertEqual(self.read("1")["1"]["status"], "cooking")

    def test_an_item_that_moves_touches_the_order_it_leaves_and_the_one_it_joins(self) -> None:
        self.existing()
        self.shop.run("UPDATE dinedesk_kitchen.order_items SET order_id = 2 WHERE id = 11")
        self.assertEqual(sorted(self.admin.touched(), key=str), ["1", "2"])

    def test_a_deleted_item_touches_its_order(self) -> None:
        self.existing()
        self.shop.run("DELETE FROM dinedesk_kitchen.order_items WHERE id = 21")
        self.assertEqual(self.admin.touched(), ["2"])
        self.assertEqual(self.read("2")["2"]["items"], [])

    def test_a_deleted_order_is_gone_when_it_is_read(self) -> None:
        self.existing()
        self.shop.run("DELETE FROM dinedesk_kitchen.orders WHERE id = 1")
        # Its items were deleted too (ON DELETE CASCADE), and the hooks noted it.
        self.assertEqual(self.admin.touched(), ["1"])
        self.assertEqual(self.read("1"), {})

    def test_statements_that_touch_nothing_note_nothing_and_wake_nobody(self) -> None:
        self.existing()
        self.admin.run("LISTEN posd_outbox")
        self.admin.run(FALL_ASLEEP)
        for statement in (
            "UPDATE dinedesk_kitchen.orders SET status = 'x' WHERE id = 99",
            "UPDATE dinedesk_kitchen.order_items SET price = 1 WHERE id = 99",
            "DELETE FROM dinedesk_kitchen.order_items WHERE id = 99",
            "INSERT INTO dinedesk_kitchen.orders (total_amount) SELECT 1 WHERE false",
        ):
            self.shop.run(statement)
        self.assertEqual(self.admin.touched(), [])
        self.assertEqual(self.admin.notifications(), [])

    def test_insert_select_notes_every_order(self) -> None:
        self.shop.run(
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount)"
            " SELECT n, n FROM generate_series(1, 1000) AS n"
        )
        taken = self.admin.take(2000) or ()
        self.assertEqual({row.key for row in taken}, {str(n) for n in range(1, 1001)})
        self.assertEqual(len(taken), 1000)

    def test_copy_notes_every_order(self) -> None:
        with self.shop.connection.cursor() as cursor:
            cursor.copy_expert(
                "COPY dinedesk_kitchen.orders (id, total_amount) FROM STDIN",
                io.StringIO("5\t10.00\n6\t11.50\n"),
            )
        self.assertEqual(sorted(self.admin.touched(), key=str), ["5", "6"])

    def test_an_upsert_notes_what_it_inserts_and_what_it_updates(self) -> None:
        self.existing()
        self.shop.run(
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount) VALUES (2, 20), (3, 30)"
            " ON CONFLICT (id) DO UPDATE SET total_amount = excluded.total_amount"
        )
        self.assertEqual(set(self.admin.touched()), {"2", "3"})

    def test_merge_notes_what_it_inserts_updates_and_takes_away(self) -> None:
        if self.admin.connection.server_version < 150000:
            self.skipTest("MERGE came with PostgreSQL 15")
        self.existing()
        self.shop.run(
            "MERGE INTO dinedesk_kitchen.orders AS o USING (VALUES (2), (3)) AS v(id) ON o.id = v.id"
            "  WHEN MATCHED THEN UPDATE SET status = 'merged'"
            "  WHEN NOT MATCHED THEN INSERT (id, total_amount) VALUES (v.id, 1)"
        )
        self.assertEqual(set(self.admin.touched()), {"2", "3"})
        self.shop.run(
            "MERGE INTO dinedesk_kitchen.order_items AS i USING (VALUES (11)) AS v(id) ON i.id = v.id"
            "  WHEN MATCHED THEN DELETE"
        )
        self.assertEqual(self.admin.touched(), ["1"])

    def test_a_session_that_loads_in_bulk_may_switch_the_hooks_off(self) -> None:
        self.shop.run("SET posd.hooks = 'off'")
        self.shop.run(ORDER, 1)
        self.shop.run(ITEM, 1, 1)
        self.shop.run("UPDATE dinedesk_kitchen.order_items SET price = 6")
        self.shop.run("DELETE FROM dinedesk_kitchen.order_items")
        self.assertEqual(self.admin.touched(), [])
        self.shop.run("RESET posd.hooks")
        self.shop.run(ORDER, 2)
        self.assertEqual(self.admin.touched(), ["2"])

    def test_a_transaction_may_switch_the_hooks_off_for_itself(self) -> None:
        with self.shop.transaction():
            self.shop.run("SET LOCAL posd.hooks = 'off'")
            self.shop.run(ORDER, 1)
        self.shop.run(ORDER, 2)
        self.assertEqual(self.admin.touched(), ["2"])

    def test_a_role_that_may_only_insert_can_use_a_hooked_table(self) -> None:
        cashier = self.connect(CASHIER)
        with cashier.transaction():
            cashier.run(ORDER, 1)
            cashier.run(ITEM, 1, 1)
        self.assertEqual(self.admin.touched(), ["1", "1"])

    def test_each_shop_speaks_for_itself(self) -> None:
        self.connect(GRILL_SHOP).run(
            "INSERT INTO dinedesk_grill.orders (id, total_amount) VALUES (1, 1)"
        )
        self.shop.run(ORDER, 1)
        taken = [(row.tenant_id, row.key) for row in self.admin.take() or ()]
        self.assertEqual(taken, [(2, "1"), (1, "1")])


class TwoPhaseTests(SchemaCase):
    """A shop whose application server uses two-phase commit."""

    def test_it_may_do_without_the_notification(self) -> None:
        """Prepared, its transaction keeps its share of the lock, so the doorman does not fall asleep."""
        server = test_server().another(settings={"max_prepared_transactions": "2"})
        self.addCleanup(server.stop)
        dsn = server.dsn("shops")
        two_shops(dsn)
        shop, admin = self.connect(KITCHEN_SHOP, dsn), self.connect(dsn=dsn)
        admin.run(FALL_ASLEEP)
        shop.run("BEGIN")
        shop.run(ORDER, 1)
        with self.assertRaises(psycopg2.errors.FeatureNotSupported):
            shop.run("PREPARE TRANSACTION 'one'")

        shop.run("SET posd.notify = 'off'")
        for awake in (False, True):
            if awake:
                admin.run("SELECT pg_advisory_unlock_all()")
            shop.run("BEGIN")
            shop.run(ORDER, 3 - awake)
            shop.run(PUBLISH, "kitchen", "x", "{}")
            shop.run("PREPARE TRANSACTION 'two'")
            self.assertEqual(admin.take(), [])
            self.assertEqual(admin.value(FALL_ASLEEP), not awake)
            if not awake:
                shop.run("ROLLBACK PREPARED 'two'")
        shop.run("COMMIT PREPARED 'two'")
        self.assertEqual(
            [(row.type, row.key) for row in admin.take() or ()], [("placed", "2"), ("x", None)]
        )
