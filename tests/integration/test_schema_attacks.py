"""A hostile shop, with all rights of the owner of some tables in PostgreSQL.

`tests.database.test_shop_readers` tests attacks during the reading of its tables.
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from unittest import SkipTest

import psycopg2
from psycopg2.extensions import make_dsn
from twisted.trial.unittest import SynchronousTestCase

from posd.database import migrations
from posd.database import provisioning as provision
from posd.testing.binaries import find_binaries
from posd.testing.server import PostgresServer
from tests.documents import ROOT
from tests.schema_case import GRILL_SHOP, KITCHEN_SHOP, Client, Entry, SchemaCase, two_shops

ORDER = "INSERT INTO dinedesk_kitchen.orders (id, total_amount) VALUES (%s, 10)"
STATES = "SELECT order_id FROM dinedesk_main.pos_order_states('{1,2}', '{1,1}')"
PUBLISH = "SELECT dinedesk_main.pos_publish('kitchen', 'x', '{}')"


class AttackCase(SchemaCase):
    """The role of `kitchen` owns its tables and may create objects in its schema."""

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
    """Objects of the shop in place of objects of posd."""

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

    def test_nothing_of_its_own_is_attached_to_what_is_posds(self) -> None:
        """Anything that would run, lock or be read with each user of the table."""
        # As the owner of a partitioned table may.
        self.admin.run(
            f"GRANT EXECUTE ON FUNCTION posd_hooks.note_orders$kitchen() TO {KITCHEN_SHOP}"
        )
        self.refused(
            *(
                statement.format("dinedesk_kitchen.gift_cards")
                for statement in (
                    "CREATE TRIGGER t BEFORE INSERT ON {} EXECUTE FUNCTION pg_catalog.x()",
                    "CREATE RULE r AS ON INSERT TO {} DO ALSO SELECT 1",
                    "CREATE POLICY p ON {}",
                    "CREATE INDEX ON {} (card_number)",
                    "CREATE STATISTICS dinedesk_kitchen.s ON card_number, is_blocked FROM {}",
                    "CREATE TABLE dinedesk_kitchen.t (c text REFERENCES {})",
                    "CREATE TABLE dinedesk_kitchen.t () INHERITS ({})",
                    "ALTER TABLE {} ENABLE ROW LEVEL SECURITY",
                    "COMMENT ON TABLE {} IS 'x'",
                    "TRUNCATE {}",
                )
            ),
            "ALTER TABLE dinedesk_kitchen.orders INHERIT dinedesk_grill.orders",
            "ALTER TABLE dinedesk_kitchen.orders SET SCHEMA dinedesk_grill",
            "ALTER TABLE dinedesk_kitchen.orders SET SCHEMA dinedesk_main",
            "ALTER TABLE dinedesk_kitchen.orders OWNER TO posd_owner",
            # The hooks' own function: with other transition tables it would read tables of the shop's
            # choice.
            "CREATE TRIGGER t AFTER INSERT ON dinedesk_kitchen.orders EXECUTE FUNCTION"
            " posd_hooks.note_orders$kitchen()",
            "CREATE CAST (bigint AS text) WITH INOUT",
            "ALTER DEFAULT PRIVILEGES FOR ROLE posd_owner GRANT ALL ON TABLES TO PUBLIC",
            "REASSIGN OWNED BY posd_owner TO posd_test_kitchen",
            "DROP OWNED BY posd_owner",
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


class SessionTests(AttackCase):
    """The effects of a session on itself and on others."""

    def test_no_other_role_can_be_taken_and_no_other_session_ended(self) -> None:
        grill = self.connect(GRILL_SHOP)
        self.refused(
            *(
                f"SET {what} {role}"
                for what in ("ROLE", "SESSION AUTHORIZATION")
                for role in ("posd", "posd_owner", "posd_reader", "posd_hook", "posd_hook_kitchen")
            ),
            "SET session_replication_role = replica",
            "ALTER ROLE posd_test_kitchen CREATEROLE",
            "GRANT posd_publisher TO posd_hook_kitchen",
            "SELECT pg_read_file('postgresql.conf')",
            "SELECT lo_import('/etc/hostname')",
            "COPY dinedesk_kitchen.orders TO PROGRAM 'true'",
            *(
                f"SELECT pg_{end}_backend({session.pid})"
                for end in ("terminate", "cancel")
                for session in (self.daemon, grill, self.admin)
            ),
        )

    def test_the_statements_of_others_cannot_be_seen(self) -> None:
        others = "SELECT query FROM pg_stat_activity WHERE pid = ANY (%s)"
        seen = self.shop.rows(others, [self.daemon.pid, self.admin.pid])
        self.assertEqual({text for (text,) in seen}, {"<insufficient privilege>"})

    def test_how_many_rows_another_shop_has_written_can_be_seen(self) -> None:
        """As docs/security.md says: PostgreSQL shows its statistics to every role."""
        counted = "SELECT count(*) FROM pg_stat_all_tables WHERE schemaname = 'dinedesk_grill'"
        self.assertGreater(self.shop.value(counted), 0)


class SearchPathTests(AttackCase):
    """Functions, operators and tables with the names of system objects in a schema that is searched first."""

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


class KeyTests(AttackCase):
    """The ids that a shop gives to its orders."""

    def test_the_sequencer_is_not_given_more_of_a_long_id_than_is_needed_to_refuse_it(self) -> None:
        self.shop.run(
            "ALTER TABLE dinedesk_kitchen.order_items DROP CONSTRAINT order_items_order_id_fkey;"
            "ALTER TABLE dinedesk_kitchen.orders ALTER id DROP IDENTITY;"
            "ALTER TABLE dinedesk_kitchen.orders DROP CONSTRAINT orders_pkey, ALTER id TYPE text;"
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount) VALUES (repeat('x', 200000), 1)"
        )
        for status in "abcde":
            self.shop.run("UPDATE dinedesk_kitchen.orders SET status = %s", status)
        keys = self.daemon.rows(
            "SELECT key FROM dinedesk_main.pos_look(1, '{}', '{}', '{}', '{}', NULL) WHERE key <> '1'"
        )
        self.assertEqual({len(key) for (key,) in keys}, {256})


class LockTests(AttackCase):
    """A shop that holds locks that others need."""

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


class NotificationTests(SynchronousTestCase):
    """The queue of notifications, which any role that can connect can fill."""

    def test_a_full_queue_fails_no_order_and_no_numbering(self) -> None:
        fitting = [each for each in find_binaries(os.environ) if each.version >= 17]
        if not fitting:
            raise SkipTest("the size of the queue can be set from PostgreSQL 17 on")
        with PostgresServer.start(fitting[0], settings={"max_notify_queue_pages": "64"}) as server:
            dsn = server.dsn("posd")
            two_shops(dsn)
            listener, kitchen, grill = (
                self.connect(dsn, role) for role in (KITCHEN_SHOP, KITCHEN_SHOP, GRILL_SHOP)
            )
            listener.run("LISTEN x")
            listener.run("BEGIN")
            listener.run("SELECT 1")
            with self.assertRaisesRegex(psycopg2.Error, "too many notifications"):
                for _ in range(1000):
                    kitchen.run("SELECT pg_notify('x', repeat('y', 7900))")
            grill.run("INSERT INTO dinedesk_grill.orders (total_amount) VALUES (1)")
            grill.run("SELECT dinedesk_main.pos_publish('grill', 'x', '{}')")
            self.connect(dsn).run("UPDATE dinedesk_main.tenants SET is_active = false WHERE id = 1")
            posd = self.connect(dsn, "posd")
            posd.run("INSERT INTO dinedesk_main.pos_nodes VALUES (gen_random_uuid(), 'infinity')")
            with posd.transaction():
                self.assertEqual(posd.record(Entry(2)), [(1, 0)])

    def test_nothing_else_of_posds_sql_notifies(self) -> None:
        found = [
            (path.name, line.strip())
            for path in [*ROOT.glob("sql/**/*.sql"), *ROOT.glob("posd/**/*.py")]
            for line in path.read_text("utf-8").splitlines()
            if re.search(r"\bpg_notify\(", line)
        ]
        self.assertEqual(
            sorted(found),
            [
                ("001_tenants.sql", "PERFORM pg_notify(channel, payload);"),
                # To the node itself, to check whether notifications arrive.
                ("feed.py", "_CANARY: Final = \"SELECT pg_notify(%s, ''), clock_timestamp()\""),
            ],
        )

    def connect(self, dsn: str, role: str | None = None) -> Client:
        connection = psycopg2.connect(make_dsn(dsn, **({} if role is None else {"user": role})))
        connection.autocommit = True
        self.addCleanup(connection.close)
        return Client(connection)
