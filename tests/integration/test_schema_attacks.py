"""A shop that means harm, with all that PostgreSQL lets the owner of some tables do."""

from __future__ import annotations

import json
from collections import Counter
from typing import cast

import psycopg2

from tests.schema_case import GRILL_SHOP, KITCHEN_SHOP, Client, SchemaCase

ORDER = "INSERT INTO dinedesk_kitchen.orders (id, total_amount) VALUES (%s, 10)"
STATES = "SELECT * FROM dinedesk_main.pos_order_states('{1,2}', '{1,1}', '{true,true}')"
PUBLISH = "SELECT dinedesk_main.pos_publish('kitchen', 'x', '{}')"


def _failure(content: str) -> str | None:
    """Why an order could not be read, if it is the only one that cannot."""
    return cast("str | None", json.loads(content).get("failure"))


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


class ViewTests(AttackCase):
    """In the place of `order_items` there is a view, and it is read in posd's session."""

    def replace_items(self, query: str) -> None:
        self.shop.run("DROP TABLE dinedesk_kitchen.order_items")
        self.shop.run(f"CREATE VIEW dinedesk_kitchen.order_items AS {query}")
        self.shop.run("GRANT SELECT ON dinedesk_kitchen.order_items TO posd_hook_kitchen")

    def run_when_read(self, body: str, *, definer: bool = False) -> None:
        """Have the view run some PL/pgSQL, as the tenant's role or as the shop's."""
        rights = "SECURITY DEFINER" if definer else ""
        self.shop.run(
            "CREATE FUNCTION dinedesk_kitchen.evil() RETURNS bigint LANGUAGE plpgsql"
            f" {rights} AS $$ BEGIN {body}; RETURN 1; END $$"
        )
        self.replace_items(
            "SELECT 1::bigint AS id, dinedesk_kitchen.evil() AS order_id, 'Soup' AS name, 1 AS price,"
            " 1 AS quantity"
        )

    def states(self, reader: Client) -> dict[int, str | None]:
        """By tenant what posd gets to read of order 1: items as text, or why there are none."""
        return {
            row[0]: row[6] or _failure(row[2]) or row[2].partition('"items":')[2].partition("]")[0]
            for row in reader.rows(STATES)
        }

    def test_another_tenants_rows_are_out_of_reach(self) -> None:
        self.admin.run(f"GRANT USAGE ON SCHEMA dinedesk_grill TO {KITCHEN_SHOP}")
        self.replace_items(
            "SELECT o.id, 1::bigint AS order_id, o.total_amount AS price, 'Soup' AS name, 1 AS quantity"
            " FROM dinedesk_grill.orders AS o"
        )
        states = self.states(self.daemon)
        self.assertIn("42501 permission denied", states[1] or "")
        self.assertEqual(states[2], "[", "the other shop is read all the same")

    def test_posds_own_rows_are_out_of_reach_for_its_code(self) -> None:
        for table in (
            "dinedesk_grill.pos_events",
            "dinedesk_main.pos_events",
            "dinedesk_main.pos_api_keys",
        ):
            with self.subTest(table=table):
                self.run_when_read(f"PERFORM FROM {table}")
                self.assertIn("42501 permission denied", self.states(self.daemon)[1] or "")
                self.shop.run("DROP FUNCTION dinedesk_kitchen.evil() CASCADE")
                self.shop.run("CREATE TABLE dinedesk_kitchen.order_items ()")

    def test_the_role_of_the_daemon_is_out_of_reach_for_its_code(self) -> None:
        self.run_when_read("PERFORM set_config('role', 'posd', false)")
        self.assertIn("within security-definer function", self.states(self.daemon)[1] or "")

    def test_settings_that_its_code_makes_do_not_outlive_the_reading(self) -> None:
        self.run_when_read(
            "PERFORM set_config('search_path', 'dinedesk_kitchen, pg_catalog', false);"
            "PERFORM set_config('statement_timeout', '0', false);"
            "PERFORM set_config('posd.hooks', 'off', false)"
        )
        settings = (
            "SELECT current_setting('search_path'), current_setting('statement_timeout'),"
            " current_setting('posd.hooks', true)"
        )
        self.daemon.run("SET search_path = pg_catalog")
        self.daemon.run("SET statement_timeout = '5s'")
        with self.daemon.transaction():
            self.assertIn('"name":"Soup"', self.states(self.daemon)[1] or "")
        self.assertEqual(self.daemon.rows(settings)[0][:2], ("pg_catalog", "5s"))
        self.assertNotEqual(self.daemon.rows(settings)[0][2], "off")

    def test_publishing_for_others_in_the_name_of_the_daemons_session_is_undone(self) -> None:
        self.run_when_read(
            "PERFORM dinedesk_main.pos_publish('grill', 'new_order', '{\"orderId\": \"forged\"}')",
            definer=True,
        )
        with self.daemon.transaction():
            self.states(self.daemon)
        self.assertEqual(self.admin.take(), [])

    def test_the_daemons_session_is_not_its_to_end(self) -> None:
        self.run_when_read("PERFORM pg_terminate_backend(pg_backend_pid())", definer=True)
        self.assertIn("42501", self.states(self.daemon)[1] or "")

    def test_code_that_takes_for_ever_is_ended_and_the_others_are_served(self) -> None:
        self.run_when_read("PERFORM set_config('statement_timeout', '0', false), pg_sleep(1000)")
        self.daemon.run("SET statement_timeout = '50ms'")
        states = self.states(self.daemon)
        self.assertIn("57014", states[1] or "")
        self.assertEqual(states[2], "[")

    def test_code_that_takes_long_has_the_rest_of_its_orders_put_off(self) -> None:
        self.run_when_read("PERFORM pg_sleep(0.011)")
        wanted = [str(number) for number in range(2, 41)]
        self.shop.run(
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount)"
            " SELECT n, 1 FROM generate_series(2, 40) AS n"
        )
        self.admin.take()
        rows = self.daemon.rows(
            "SELECT tenant_id, row_now IS NOT NULL, seconds > 0.1 FROM"
            " dinedesk_main.pos_order_states(%s::integer[], %s::text[], %s::boolean[])",
            [1] * 39 + [2],
            [*wanted, "1"],
            [True] * 40,
        )
        counted = Counter(rows)
        read, left = counted.pop((1, True, True)), counted.pop((1, False, True))
        self.assertEqual(counted, {(2, True, False): 1})
        # A tenth of a second is over with the tenth; on a busy machine with one before it.
        self.assertEqual(read + left, 39)
        self.assertTrue(1 <= read <= 10, read)
        self.assertEqual(len(self.admin.take() or ()), left)

    def test_several_whose_code_takes_long_take_no_longer_than_one(self) -> None:
        """statement_timeout acts once in a statement; whoever comes after it is not read at all."""
        self.run_when_read("PERFORM pg_sleep(1000)")
        self.admin.run("DROP TABLE dinedesk_grill.order_items")
        self.admin.run(
            "CREATE VIEW dinedesk_grill.order_items AS SELECT * FROM dinedesk_kitchen.order_items"
        )
        self.admin.run("GRANT SELECT ON dinedesk_grill.order_items TO posd_hook_grill")
        self.admin.take()
        self.daemon.run("SET statement_timeout = '600ms'")
        states = self.daemon.rows(STATES)
        self.assertEqual([(row[0], row[2]) for row in states], [(1, None), (2, None)])
        self.assertIn("57014", states[0][6])
        self.assertEqual([row.key for row in self.admin.take() or ()], ["1"])

    def test_what_its_code_leaves_in_its_own_tables_is_undone(self) -> None:
        self.shop.run("CREATE TABLE dinedesk_kitchen.marks (n integer)")
        self.run_when_read("INSERT INTO dinedesk_kitchen.marks VALUES (1)", definer=True)
        self.states(self.daemon)
        self.assertEqual(self.shop.value("SELECT count(*) FROM dinedesk_kitchen.marks"), 0)

    def test_an_error_of_its_code_is_that_shops_alone_whatever_it_is(self) -> None:
        for sqlstate in ("PD001", "57014", "40001", "P0004", "XX000", "22012"):
            with self.subTest(sqlstate=sqlstate):
                self.run_when_read(f"RAISE SQLSTATE '{sqlstate}'")
                states = self.states(self.daemon)
                self.assertRegex(states[1] or "", r"^\w{5} ")
                self.assertEqual(states[2], "[")
                self.shop.run("DROP FUNCTION dinedesk_kitchen.evil() CASCADE")
                self.shop.run("CREATE TABLE dinedesk_kitchen.order_items ()")


class ReplacementTests(AttackCase):
    """Something of the shop's in the place of something of posd's."""

    def test_posds_objects_in_its_schema_are_not_its_to_change(self) -> None:
        self.refused(
            "DROP FUNCTION dinedesk_kitchen.pos_read_orders(text[])",
            "CREATE OR REPLACE FUNCTION dinedesk_kitchen.pos_enqueue(kind text, keys text[])"
            " RETURNS void LANGUAGE sql AS ''",
            "ALTER FUNCTION dinedesk_kitchen.pos_enqueue_event(text, jsonb) OWNER TO posd_test_kitchen",
            "DROP VIEW dinedesk_kitchen.pos_events",
            "ALTER VIEW dinedesk_kitchen.pos_events RENAME TO gone",
            "CREATE RULE r AS ON INSERT TO dinedesk_kitchen.pos_events DO ALSO SELECT 1",
            "CREATE OR REPLACE VIEW dinedesk_kitchen.pos_sync_logs AS SELECT 1",
            "ALTER SCHEMA dinedesk_kitchen RENAME TO dinedesk_gone",
            "DROP SCHEMA dinedesk_kitchen CASCADE",
        )

    def test_functions_of_the_same_names_and_other_types_are_not_called_instead(self) -> None:
        for signature in (
            "pos_read_orders(varchar[])",
            "pos_read_orders(anyarray)",
            "pos_enqueue(varchar, text[])",
            "pos_enqueue(name, varchar[])",
            'pos_enqueue("char", anyarray)',
            "pos_enqueue_event(varchar, jsonb)",
            "pos_enqueue_event(text, json)",
        ):
            self.shop.run(
                f"CREATE FUNCTION dinedesk_kitchen.{signature} RETURNS bigint LANGUAGE plpgsql"
                " AS 'BEGIN RAISE ''captured''; END'"
            )
        self.shop.run(ORDER, 2)
        self.shop.run(PUBLISH)
        self.assertEqual([row.key for row in self.admin.take() or ()], ["2", None])
        self.assertEqual([row[6] for row in self.daemon.rows(STATES)], [None, None])

    def test_a_schema_that_looks_like_a_tenants_is_none(self) -> None:
        name = self.admin.value("SELECT current_database()")
        self.admin.run(f'GRANT CREATE ON DATABASE "{name}" TO {KITCHEN_SHOP}')
        self.shop.run("CREATE SCHEMA dinedesk_evil")
        self.shop.run(
            "CREATE FUNCTION dinedesk_evil.pos_enqueue_event(type text, data jsonb) RETURNS bigint"
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

    def test_its_own_orders_locked_delay_nobody_elses(self) -> None:
        with self.shop.transaction():
            self.shop.run("LOCK TABLE dinedesk_kitchen.orders")
            states = {row[0]: row[6] for row in self.daemon.rows(STATES)}
        self.assertIn("55P03", states[1])
        self.assertIsNone(states[2])

    def test_all_of_its_orders_touched_at_once_leave_room_for_others(self) -> None:
        self.shop.run(
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount)"
            " SELECT n, 1 FROM generate_series(2, 5000) AS n"
        )
        self.connect(GRILL_SHOP).run("UPDATE dinedesk_grill.orders SET status = 'confirmed'")
        taken = self.daemon.take(100) or []
        self.assertEqual(len([row for row in taken if row.tenant_id == 2]), 1)
