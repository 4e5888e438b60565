"""A shop that means harm, with all that PostgreSQL lets the owner of some tables do.

What it can do while its tables are read is tried in `tests.database.test_readers`.
"""

from __future__ import annotations

from contextlib import closing

import psycopg2

from posd.database import migrations
from posd.database import provisioning as provision
from tests.schema_case import GRILL_SHOP, KITCHEN_SHOP, SchemaCase

ORDER = "INSERT INTO dinedesk_kitchen.orders (id, total_amount) VALUES (%s, 10)"
STATES = "SELECT order_id FROM dinedesk_main.pos_order_states('{1,2}', '{1,1}')"
PUBLISH = "SELECT dinedesk_main.pos_publish('kitchen', 'x', '{}')"


class AttackCase(SchemaCase):
    """The kitchen's role owns its tables and may make what it likes in its schema."""

    def setUp(self) -> None:
        super().setUp()
        self.admin.run(f"GRANT CREATE ON SCHEMA dinedesk_kitchen TO {KITCHEN_SHOP}")
        for table in ("orders", "order_items"):
            self.admin.run(f"ALTER TABLE dinedesk_kitchen.{table} OWNER TO {KITCHEN_SHOP}")
        self.shop = self.connect(KITCHEN_SHOP)
        self.daemon = self.connect("posd")
        self.connect(GRILL_SHOP).run(
            "INSERT INTO dinedesk_grill.orders (id, total_amount) VALUES (1, 99)"
        )
        self.shop.run(ORDER, 1)
        self.daemon.run("DELETE FROM dinedesk_main.pos_outbox")

    def refused(self, *statements: str) -> None:
        for statement in statements:
            with (
                self.subTest(statement=statement),
                self.assertRaises(psycopg2.errors.InsufficientPrivilege),
            ):
                self.shop.run(statement)


class ReplacementTests(AttackCase):
    """Something of the shop's in the place of something of posd's."""

    def test_posds_objects_in_its_schema_are_not_its_to_change(self) -> None:
        self.refused(
            "DROP FUNCTION posd_hooks.read_orders$kitchen(text[])",
            "CREATE OR REPLACE FUNCTION posd_hooks.enqueue$kitchen(kind text, keys text[])"
            " RETURNS void LANGUAGE sql AS ''",
            "CREATE FUNCTION posd_hooks.enqueue$kitchen(kind varchar, keys text[])"
            " RETURNS void LANGUAGE sql AS ''",
            "ALTER FUNCTION posd_hooks.enqueue_event$kitchen(text, jsonb) OWNER TO posd_test_kitchen",
            "ALTER FUNCTION posd_hooks.read_orders$kitchen(text[]) SECURITY INVOKER",
            "DROP VIEW dinedesk_kitchen.pos_events",
            "ALTER VIEW dinedesk_kitchen.pos_events RENAME TO gone",
            "CREATE RULE r AS ON INSERT TO dinedesk_kitchen.pos_events DO ALSO SELECT 1",
            "CREATE OR REPLACE VIEW dinedesk_kitchen.pos_sync_logs AS SELECT 1",
            "ALTER SCHEMA dinedesk_kitchen RENAME TO dinedesk_gone",
            "DROP SCHEMA dinedesk_kitchen CASCADE",
        )

    def test_functions_with_the_names_of_posds_are_not_called_instead(self) -> None:
        for signature in (
            "pos_enqueue_event(text, jsonb)",
            '"read_orders$kitchen"(varchar[])',
            '"enqueue$kitchen"(varchar, text[])',
            '"card_move$kitchen"(anyelement)',
        ):
            self.shop.run(
                f"CREATE FUNCTION dinedesk_kitchen.{signature} RETURNS bigint LANGUAGE plpgsql"
                " AS 'BEGIN RAISE ''captured''; END'"
            )
        self.shop.run(ORDER, 2)
        self.shop.run(PUBLISH)
        self.assertEqual([row.key for row in self.admin.take() or ()], ["2", None])
        self.assertEqual(self.daemon.rows(STATES), [("1",), ("1",)])

    def test_a_schema_that_looks_like_a_tenants_is_none(self) -> None:
        name = self.admin.value("SELECT current_database()")
        self.admin.run(f'GRANT CREATE ON DATABASE "{name}" TO {KITCHEN_SHOP}')
        self.shop.run("CREATE SCHEMA dinedesk_evil")
        self.shop.run(
            "CREATE FUNCTION dinedesk_evil.enqueue_event$evil(type text, data jsonb) RETURNS bigint"
            " LANGUAGE sql AS $$ INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, data)"
            " VALUES (2, 'new_order', '{}') RETURNING id $$"
        )
        self.refused("SELECT dinedesk_main.pos_publish('evil', 'x', '{}')")
        self.admin.run("ALTER SCHEMA dinedesk_evil OWNER TO posd_owner")
        self.admin.run("GRANT USAGE ON SCHEMA dinedesk_evil TO PUBLIC")
        self.refused("SELECT dinedesk_main.pos_publish('evil', 'x', '{}')")
        self.assertEqual(self.admin.take(), [])

    def test_a_schema_that_was_given_away_is_trusted_no_more(self) -> None:
        self.admin.run(f"ALTER SCHEMA dinedesk_kitchen OWNER TO {KITCHEN_SHOP}")
        self.refused(PUBLISH)


class SearchPathTests(AttackCase):
    """Functions, operators and tables with the names of the system's, where a session looks first."""

    def setUp(self) -> None:
        super().setUp()
        for function in (
            "pg_notify(text, text) RETURNS void",
            "translate(text, text, text) RETURNS text",
            "format(text, text) RETURNS text",
            "current_setting(text, boolean) RETURNS text",
            "has_schema_privilege(name, oid, text) RETURNS boolean",
            "sha256(bytea) RETURNS bytea",
            "convert_to(text, name) RETURNS bytea",
            "unnest(text[]) RETURNS SETOF text",
        ):
            self.shop.run(
                f"CREATE FUNCTION dinedesk_kitchen.{function} LANGUAGE plpgsql"
                " AS 'BEGIN RAISE ''captured''; END'"
            )
        self.shop.run(
            "CREATE FUNCTION dinedesk_kitchen.capture(text, text) RETURNS boolean LANGUAGE plpgsql"
            " AS 'BEGIN RAISE ''captured''; END'"
        )
        self.shop.run(
            "CREATE OPERATOR dinedesk_kitchen.="
            " (LEFTARG = text, RIGHTARG = text, FUNCTION = dinedesk_kitchen.capture)"
        )
        for table in ("pg_namespace", "pg_proc", "tenants", "pos_outbox", "touched", "before"):
            self.shop.run(f"CREATE TEMP TABLE {table} (id bigint, order_id text, slug text)")
        self.shop.run("SET search_path = dinedesk_kitchen, pg_temp, pg_catalog")

    def test_the_trap_works(self) -> None:
        with self.assertRaisesRegex(psycopg2.errors.RaiseException, "captured"):
            self.shop.run("SELECT 'a'::text = 'b'::text")

    def test_hooks_and_publishing_do_not_fall_into_it(self) -> None:
        self.shop.run(ORDER, 2)
        self.shop.run(
            "INSERT INTO order_items (id, order_id, name, price) VALUES (1, 2, 'Soup', 1)"
        )
        self.shop.run("UPDATE order_items SET price = 2")
        self.shop.run("DELETE FROM order_items WHERE id OPERATOR(pg_catalog.=) 1")
        self.shop.run(PUBLISH)
        self.assertEqual(self.admin.touched(), ["2", "2", "2", "2", None])

    def test_a_key_is_checked_past_it(self) -> None:
        self.admin.run(
            "UPDATE dinedesk_main.tenants SET pos_api_key = 'correct-horse' WHERE slug = 'kitchen'"
        )
        ok = "SELECT dinedesk_main.pos_key_ok('kitchen', %s)"
        self.assertTrue(self.shop.value(ok, "correct-horse"))
        self.assertFalse(self.shop.value(ok, "battery-staple"))


class LockTests(AttackCase):
    """A shop that holds on to what others need."""

    def test_the_sequencers_lock_is_not_for_shops(self) -> None:
        self.shop.run("BEGIN")
        self.refused("LOCK TABLE dinedesk_main.pos_sequencing IN ACCESS SHARE MODE")
        self.shop.run("ROLLBACK")

    def test_no_advisory_lock_stops_the_sequencer(self) -> None:
        for number in range(4):
            self.shop.run("SELECT pg_advisory_lock(7097, %s)", number)
        self.shop.run(ORDER, 2)
        self.assertEqual(self.daemon.sequence(), 1)

    def test_no_lock_of_a_shop_stops_a_migration(self) -> None:
        for number in range(4):
            self.shop.run("SELECT pg_advisory_lock(7097, %s)", number)
        self.shop.run("BEGIN")
        self.refused("LOCK TABLE dinedesk_main.schema_changes IN ACCESS SHARE MODE")
        self.shop.run("ROLLBACK")
        migrations.bootstrap(self.dsn)
        with closing(migrations.connect(self.dsn)) as connection:
            provision.migrate(connection)

    def test_its_own_orders_locked_delay_nobody(self) -> None:
        with self.shop.transaction():
            self.shop.run("LOCK TABLE dinedesk_kitchen.orders")
            self.assertEqual(self.daemon.rows(STATES), [("1",), ("1",)])

    def test_all_of_its_orders_touched_at_once_leave_room_for_others(self) -> None:
        self.shop.run(
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount)"
            " SELECT n, 1 FROM generate_series(2, 5000) AS n"
        )
        self.connect(GRILL_SHOP).run("UPDATE dinedesk_grill.orders SET status = 'confirmed'")
        taken = self.daemon.take(100) or []
        self.assertEqual(len([row for row in taken if row.tenant_id == 2]), 1)
