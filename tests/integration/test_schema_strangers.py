"""Shops' own tables with columns, types and rows that posd did not choose."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import psycopg2

from posd.database import adopting
from posd.database import provisioning as provision
from posd.database.adoption_rules import AdoptionOptions, StatusSample
from posd.database.shop_tables import REQUIRED_COLUMNS, USED_COLUMNS
from tests.documents import ROOT
from tests.integration.test_schema_adopt import AdoptCase
from tests.integration.wire_case import until
from tests.schema_case import KITCHEN_SHOP, SchemaCase, add

TABLES = ("orders", "order_items")
MOODY = (
    "CREATE TYPE dinedesk_bistro.mood AS ENUM ('good', 'bad')",
    (
        "CREATE FUNCTION dinedesk_bistro.told(dinedesk_bistro.mood) RETURNS json LANGUAGE plpgsql AS"
        " $$ BEGIN IF $1 = 'bad' THEN RAISE 'Anna is in a bad mood'; END IF; RETURN '\"good\"'; END $$"
    ),
    "GRANT USAGE ON TYPE dinedesk_bistro.mood TO PUBLIC",
    "CREATE CAST (dinedesk_bistro.mood AS json) WITH FUNCTION dinedesk_bistro.told(dinedesk_bistro.mood)",
)
"""A type whose value 'bad' cannot be converted to JSON."""


class ForeignTablesCase(AdoptCase):
    def alter(self, change: str, table: str = "orders") -> None:
        self.shop.run(f"ALTER TABLE dinedesk_bistro.{table} {change}")

    def write(self, statement: str, *values: object) -> None:
        self.shop.run(statement.replace("orders", "dinedesk_bistro.orders"), *values)

    def ready(self, *changes: str) -> None:
        """Create the tables, change them, and adopt them."""
        self.tables()
        for change in changes:
            self.alter(change)
        self.adopt()


class OddRowTests(ForeignTablesCase):
    def test_a_row_that_cannot_be_converted_fails_alone_and_by_name(self) -> None:
        for statement in MOODY:
            self.shop.run(statement)
        self.ready("ADD voucher_code dinedesk_bistro.mood DEFAULT 'good'")
        for key in (1, 2, 3):
            self.order(key)
        self.write("UPDATE orders SET voucher_code = 'bad' WHERE id = 2")
        found = self.contents("1", "2", "3", "4")
        self.assertEqual(found.keys(), {"1", "2", "3"})
        self.assertEqual(found["2"], {"failure": "P0001 Anna is in a bad mood"})
        self.assertEqual([len(found[key]["items"]) for key in ("1", "3")], [1, 1])

    def test_a_key_that_orders_cannot_have_fails_alone(self) -> None:
        self.ready()
        self.order(1)
        found = self.contents("1", "W-7", "99999999999999999999")
        self.assertEqual(found["1"]["status"], "new")
        self.assertRegex(found["W-7"]["failure"], "^22P02 ")
        nothing = (
            "SELECT * FROM dinedesk_main.pos_read_shop('dinedesk_bistro', NULL, NULL, NULL, NULL)"
        )
        self.assertEqual(self.admin.rows(nothing), [])
        self.assertRegex(found["99999999999999999999"]["failure"], "^22003 ")

    def test_half_a_surrogate_pair_in_json_is_read(self) -> None:
        self.tables()
        self.alter("ADD selected_addons json, ADD meta json", "order_items")
        self.adopt()
        self.order(1)
        self.shop.run(
            """UPDATE dinedesk_bistro.order_items SET meta = '{"a": "\\ud83d"}',"""
            """ selected_addons = '[{"name": "Anna \\ud83d"}]'"""
        )
        text = self.connect("posd_reader").value(
            "SELECT content FROM posd_hooks.read_orders$bistro('{1}')"
        )
        self.assertIn("Anna \\ud83d", text)
        self.assertNotIn("meta", text)

    def test_what_concerns_all_orders_is_no_fault_of_one(self) -> None:
        self.ready()
        self.order(1)
        self.shop.run("REVOKE ALL ON dinedesk_bistro.order_items FROM posd_hook_bistro")
        with self.assertRaises(psycopg2.errors.InsufficientPrivilege):
            self.contents("1")


class ColumnTests(ForeignTablesCase):
    def test_only_the_columns_that_an_event_uses_are_read(self) -> None:
        for statement in MOODY:
            self.shop.run(statement)
        self.ready(
            "ADD scan bytea",
            "ADD tree jsonb",
            "ADD feeling dinedesk_bistro.mood DEFAULT 'bad'",
            "ADD customer_name text",
        )
        self.order(1)
        self.write("UPDATE orders SET scan = decode(repeat('00', 5000000), 'hex'), waiter = 'T.'")
        self.write("UPDATE orders SET tree = (repeat('[', 90) || repeat(']', 90))::jsonb")
        (content,) = self.contents("1").values()
        self.assertEqual(
            content.keys(),
            {"id", "status", "total_amount", "created_at", "customer_name", "items"},
        )

    def test_rights_on_these_columns_are_enough(self) -> None:
        self.tables()
        for table in TABLES:
            self.shop.run(f"REVOKE SELECT ON dinedesk_bistro.{table} FROM posd_hook_bistro")
            columns = ", ".join(REQUIRED_COLUMNS[table])
            self.shop.run(
                f"GRANT SELECT ({columns}) ON dinedesk_bistro.{table} TO posd_hook_bistro"
            )
        self.adopt()
        self.order(1)
        self.assertEqual(self.read("1"), [("1", "new", 1)])

    def test_the_list_of_columns_is_that_of_the_events(self) -> None:
        text = (ROOT / "sql/main/013_adoptions.sql").read_text("utf-8")
        for name, table, besides in (
            ("of_order", "orders", set()),
            ("of_item", "order_items", {"id", "order_id"}),
        ):
            (columns,) = re.findall(rf"{name} CONSTANT text\[\] := '{{(.*)}}'", text)
            self.assertEqual({*columns.split(",")} | besides, USED_COLUMNS[table])
        (needed,) = re.findall(r"needed CONSTANT text\[\] := '{(.*)}'", text)
        self.assertEqual(
            {*needed.split(",")},
            {f"{table}.{name}" for table, names in REQUIRED_COLUMNS.items() for name in names},
        )

    def test_money_is_a_number(self) -> None:
        self.tables()
        self.alter("ALTER total_amount TYPE money, ADD tax money")
        self.alter("ALTER price TYPE money", "order_items")
        self.adopt()
        self.order(1)
        self.write("UPDATE orders SET total_amount = '1234.50'::numeric::money")
        (content,) = self.contents("1").values()
        self.assertEqual(Decimal(str(content["total_amount"])), Decimal("1234.50"))
        self.assertIsNone(content["tax"])
        self.assertEqual(Decimal(str(content["items"][0]["price"])), Decimal("12.30"))

    def test_a_key_may_change_its_type(self) -> None:
        self.tables("integer")
        self.adopt()
        self.alter("ALTER id TYPE bigint")
        self.alter("ALTER order_id TYPE bigint", "order_items")
        self.order(3_000_000_000)
        self.assertEqual(self.read("3000000000"), [("3000000000", "new", 1)])
        self.alter("DROP CONSTRAINT order_items_order_id_fkey", "order_items")
        self.alter("ALTER id TYPE text")
        self.alter("ALTER order_id TYPE text", "order_items")
        self.order("W-1")
        self.assertEqual(self.read("W-1"), [("W-1", "new", 1)])

    def test_a_column_that_has_gone_is_named_with_each_order(self) -> None:
        self.ready("ADD customer_name text", "ADD special_instructions text")
        self.order(1)
        self.assertNotIn("lacks", self.contents("1")["1"])
        self.alter("RENAME special_instructions TO remarks")
        self.assertEqual(self.contents("1")["1"]["lacks"], ["orders.special_instructions"])
        self.adopt()
        self.assertNotIn("lacks", self.contents("1")["1"])

    def test_without_a_column_that_is_needed_nothing_is_read(self) -> None:
        self.ready()
        self.order(1)
        self.alter("RENAME name TO dish", "order_items")
        with self.assertRaisesRegex(
            psycopg2.errors.UndefinedColumn, "there is no column order_items.name"
        ):
            self.contents("1")


class TimeTests(ForeignTablesCase):
    def zoneless(self, timestamps: str) -> Any:
        """Return what is read of a time without a zone."""
        self.tables()
        self.alter("ALTER created_at TYPE timestamp")
        self.adopt(AdoptionOptions(timestamps=timestamps))
        self.order(1)
        self.write("UPDATE orders SET created_at = '2026-07-01 12:00:00'")
        return self.contents("1")["1"]["created_at"]

    def test_a_time_without_a_zone_is_left_to_the_shops_zone(self) -> None:
        self.assertEqual(self.zoneless("local"), "2026-07-01T12:00:00")

    def test_or_is_of_utc_if_the_operator_says_so(self) -> None:
        self.assertEqual(self.zoneless("utc"), "2026-07-01T12:00:00+00:00")

    def test_an_operator_who_says_nothing_is_asked(self) -> None:
        self.tables()
        self.alter("ALTER created_at TYPE timestamp, ADD scheduled_for timestamp")
        said = self.refusal().splitlines()
        self.assertEqual(
            said,
            [
                (
                    "orders.created_at and orders.scheduled_for have no time zone. Say whether the values are"
                    " in the shop's time zone (Europe/London) or in UTC:"
                ),
                "posctl adopt bistro --timestamps local",
                "posctl adopt bistro --timestamps utc",
            ],
        )

    def test_what_was_said_once_counts_again(self) -> None:
        self.assertEqual(self.zoneless("utc"), "2026-07-01T12:00:00+00:00")
        self.adopt()
        self.assertEqual(self.contents("1")["1"]["created_at"], "2026-07-01T12:00:00+00:00")


class ConditionTests(ForeignTablesCase):
    def test_an_order_for_which_it_is_not_true_is_marked(self) -> None:
        self.tables()
        self.adopt(AdoptionOptions("status <> 'cart' AND waiter LIKE 'T%' -- no carts"))
        for key, status, waiter in ((1, "new", "Tom"), (2, "cart", "Tom"), (3, "new", None)):
            self.order(key)
            self.write(
                "UPDATE orders SET status = %s, waiter = %s WHERE id = %s", status, waiter, key
            )
        found = self.contents("1", "2", "3")
        self.assertEqual(
            {key: content["passed_over"] for key, content in found.items()},
            {"1": False, "2": True, "3": True},
        )
        self.adopt(AdoptionOptions(""))
        self.assertNotIn("passed_over", self.contents("2")["2"])

    def test_one_that_fails_for_an_order_fails_that_order(self) -> None:
        self.tables()
        self.adopt(AdoptionOptions("1 / total_amount > 0"))
        self.order(1)
        self.order(2)
        self.write("UPDATE orders SET total_amount = 0 WHERE id = 1")
        found = self.contents("1", "2")
        self.assertEqual(found["1"], {"failure": "22012 division by zero"})
        self.assertIs(found["2"]["passed_over"], False)

    def test_one_that_is_none_is_refused_and_nothing_is_hooked(self) -> None:
        self.tables()
        for condition in ("state = 'x'", "status", "status =", "status = 5", "total_amount > 'x'"):
            with self.subTest(condition=condition):
                self.assertIn("cannot be evaluated", self.refusal(AdoptionOptions(condition)))
        self.order(1)
        self.assertEqual(self.admin.touched(), [])
        found = adopting.survey(self.connection, "bistro", AdoptionOptions("state = 'x'"))
        assert found.sample is not None
        self.assertEqual((found.sample.orders, found.sample.met), (1, None))

    def test_a_right_on_its_columns_is_asked_for(self) -> None:
        self.tables()
        self.shop.run("REVOKE SELECT ON dinedesk_bistro.orders FROM posd_hook_bistro")
        columns = ", ".join(REQUIRED_COLUMNS["orders"])
        self.shop.run(f"GRANT SELECT ({columns}) ON dinedesk_bistro.orders TO posd_hook_bistro")
        self.assertIn("permission denied", self.refusal(AdoptionOptions("waiter IS NULL")))
        self.adopt(AdoptionOptions("status IS NOT NULL"))

    def test_it_is_looked_at_though_counting_the_orders_takes_too_long(self) -> None:
        self.tables()
        self.patch(adopting, "_LOOK", adopting._LOOK.replace("5s", "200ms"))
        self.shop.run(
            "CREATE FUNCTION dinedesk_bistro.slow(numeric) RETURNS boolean LANGUAGE sql AS"
            " 'SELECT pg_sleep(1) IS NOT NULL'"
        )
        self.order(1)
        slow = "dinedesk_bistro.slow(total_amount)"
        self.assertIn("cannot be evaluated", self.refusal(AdoptionOptions(f"{slow} AND nothing")))
        self.adopt(AdoptionOptions(slow))

    def test_the_hook_does_not_evaluate_it(self) -> None:
        self.tables()
        self.adopt(AdoptionOptions("1 / total_amount > 0"))
        self.shop.run("INSERT INTO dinedesk_bistro.orders VALUES (1, 'cart', 0)")
        self.assertEqual(self.admin.touched(), ["1"])


class RefusalTests(ForeignTablesCase):
    """Problems that would appear later, and the statements that help."""

    def settle(self, *, superuser: bool = False) -> None:
        """Run the statements of a refusal, and adopt the tables."""
        statements = [line for line in self.refusal().splitlines() if line.endswith(";")]
        self.assertTrue(statements)
        for statement in statements:
            (self.admin if superuser else self.shop).run(statement)
        self.adopt()
        self.order(1)
        self.assertEqual(self.read("1"), [("1", "new", 1)])

    def composite(self) -> None:
        self.tables()
        self.alter("DROP CONSTRAINT order_items_order_id_fkey", "order_items")
        self.alter("DROP CONSTRAINT orders_pkey")
        self.alter("ADD business_date date NOT NULL DEFAULT current_date")
        self.alter("ADD PRIMARY KEY (business_date, id)")

    def test_an_id_that_is_unique_only_with_a_day(self) -> None:
        self.composite()
        self.assertIn("its primary key is (business_date, id)", self.refusal())
        self.settle()

    def test_an_index_over_a_part_of_the_orders_makes_no_id_unique(self) -> None:
        self.composite()
        self.shop.run("CREATE UNIQUE INDEX ON dinedesk_bistro.orders (id) WHERE status = 'new'")
        self.assertIn("no constraint makes orders.id unique", self.refusal())

    def test_an_operator_may_vouch_for_the_ids(self) -> None:
        self.composite()
        self.adopt(AdoptionOptions(unique_ids=True))
        self.adopt()

    def test_row_security_that_may_hide_orders(self) -> None:
        self.tables()
        for table in TABLES:
            self.alter("ENABLE ROW LEVEL SECURITY", table)
            self.shop.run(
                f"CREATE POLICY own ON dinedesk_bistro.{table} USING (current_user = 'someone')"
            )
        self.assertIn("row security on orders can hide rows", self.refusal())
        self.settle()

    def test_a_restrictive_policy_is_no_better_for_a_permissive_one(self) -> None:
        self.tables()
        self.alter("ENABLE ROW LEVEL SECURITY")
        self.shop.run("CREATE POLICY every ON dinedesk_bistro.orders USING (true)")
        self.adopt()
        self.shop.run(
            "CREATE POLICY less ON dinedesk_bistro.orders AS RESTRICTIVE USING (status <> 'new')"
        )
        self.assertIn("row security on orders", self.refusal())

    def test_all_that_is_in_the_way_is_said_at_once(self) -> None:
        self.composite()
        self.alter("ENABLE ROW LEVEL SECURITY")
        self.shop.run("REVOKE ALL ON dinedesk_bistro.orders FROM posd_owner, posd_hook_bistro")
        self.settle()


class SurveyTests(ForeignTablesCase):
    """The findings that an operator sees before the adoption."""

    def survey(self, choices: AdoptionOptions = AdoptionOptions()) -> adopting.ShopTablesSurvey:  # noqa: B008
        return adopting.survey(self.connection, "bistro", choices)

    def test_statuses_and_the_newest_order_are_read_before_the_hooks_are_there(self) -> None:
        self.tables()
        for key, status in ((1, "new"), (2, "cart"), (3, "new"), (4, None)):
            self.order(key)
            self.write("UPDATE orders SET status = %s WHERE id = %s", status, key)
        sample = self.survey().sample
        assert sample is not None
        self.assertEqual(sample.statuses, {"new": 2, "cart": 1, None: 1})
        self.assertIsNotNone(sample.newest)
        self.order(5)
        self.assertEqual(self.admin.touched(), [], "nothing was hooked")

    def test_tables_that_cannot_be_read_yet_are_described_all_the_same(self) -> None:
        self.tables()
        self.shop.run("REVOKE ALL ON dinedesk_bistro.orders FROM posd_owner, posd_hook_bistro")
        found = self.survey()
        self.assertIsNone(found.sample)
        self.assertEqual(found.tables["orders"].key, ("id",))
        self.assertTrue(found.refusals)

    def test_odd_types_and_a_missing_index_are_doubts(self) -> None:
        self.tables()
        self.alter("ALTER status TYPE integer USING 1, ADD tax point")
        doubts = "\n".join(map(str, self.survey().doubts))
        self.assertIn("orders.status has the type integer", doubts)
        self.assertIn("orders.tax has the type point", doubts)
        (statement,) = re.findall("CREATE INDEX .*", doubts)
        self.shop.run(statement)
        self.assertNotIn("CREATE INDEX", "\n".join(map(str, self.survey().doubts)))

    def test_carts_are_a_doubt_until_a_condition_is_given(self) -> None:
        self.tables()
        self.order(1)
        self.write("UPDATE orders SET status = 'Cart'")
        doubts = "\n".join(map(str, self.survey().doubts))
        self.assertIn("""posctl adopt bistro --where "status NOT IN ('Cart')\"""", doubts)
        chosen = AdoptionOptions("status NOT IN ('Cart')")
        self.assertNotIn("--where", "\n".join(map(str, self.survey(chosen).doubts)))

    def test_partitions_and_row_security_are_seen(self) -> None:
        self.shop.run(
            "CREATE TABLE dinedesk_bistro.orders (id bigint, status text, total_amount numeric,"
            " created_at timestamptz) PARTITION BY RANGE (created_at)"
        )
        self.shop.run(
            "CREATE TABLE dinedesk_bistro.order_items (id int, order_id bigint, name text,"
            " price numeric, quantity int)"
        )
        self.alter("ENABLE ROW LEVEL SECURITY")
        add(self.connection, "bistro")
        orders = self.survey().tables["orders"]
        self.assertEqual((orders.partition_key, orders.parts), ("RANGE (created_at)", 0))
        self.assertTrue(orders.has_row_security and orders.hides_rows)
        self.assertIn("--unique-ids", "\n".join(map(str, self.survey().refusals)))

    def look(self, body: str) -> StatusSample | None:
        """Survey orders whose status is computed by the shop's code."""
        self.tables()
        for statement in (
            "CREATE TABLE dinedesk_bistro.marks (n int)",
            (
                "CREATE FUNCTION dinedesk_bistro.evil() RETURNS text LANGUAGE plpgsql AS"
                f" $$ BEGIN {body}; RETURN 'x'; END $$"
            ),
            "ALTER TABLE dinedesk_bistro.orders RENAME TO sales",
            (
                "CREATE VIEW dinedesk_bistro.orders AS SELECT id, dinedesk_bistro.evil() AS status,"
                " total_amount, created_at FROM dinedesk_bistro.sales"
            ),
            "GRANT SELECT ON dinedesk_bistro.orders TO posd_hook_bistro",
            "GRANT INSERT ON dinedesk_bistro.marks TO posd_hook_bistro",
            "INSERT INTO dinedesk_bistro.sales VALUES (1, 'new', 1)",
        ):
            self.shop.run(statement)
        sample, self.unread = adopting._sample_orders(
            self.connection, provision.find_tenant(self.connection, "bistro"), {}, None
        )
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('search_path'), current_user = session_user")
            self.assertEqual(cursor.fetchone(), ("pg_catalog, pg_temp", True))
        self.assertEqual(self.shop.value("SELECT count(*) FROM dinedesk_bistro.marks"), 0)
        return sample

    def test_settings_of_the_shops_code_do_not_outlive_the_look(self) -> None:
        sample = self.look("PERFORM set_config('search_path', 'dinedesk_bistro', false)")
        self.assertEqual(sample and sample.statuses, {"x": 1})

    def test_the_shops_code_writes_nothing(self) -> None:
        self.assertIsNone(self.look("INSERT INTO dinedesk_bistro.marks VALUES (1)"))

    def test_the_shops_code_becomes_nobody_else(self) -> None:
        self.assertIsNone(self.look("PERFORM set_config('role', 'postgres', false)"))

    def test_the_shops_code_begins_no_other_session(self) -> None:
        self.assertIsNone(
            self.look("PERFORM set_config('session_authorization', 'postgres', false)")
        )

    def test_it_runs_in_a_session_of_its_own_that_has_the_readers_rights(self) -> None:
        own = "pg_backend_pid() = {} OR session_user <> 'posd_hook_bistro'"
        pid = self.connection.info.backend_pid
        body = f"IF {own.format(pid)} THEN RAISE 'in the wrong session'; END IF"
        self.assertIsNotNone(self.look(f"{body}; PERFORM pg_advisory_lock(1)"))
        held = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        until(lambda: self.shop.value(held) == 0, "the session has ended")

    def test_code_that_does_not_end_is_ended(self) -> None:
        self.patch(adopting, "_LOOK", adopting._LOOK.replace("5s", "100ms"))
        self.patch(adopting, "_OVERTIME_SECONDS", 0.5)
        loop = (
            "LOOP BEGIN PERFORM pg_sleep(9); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP"
        )
        self.assertIsNone(self.look(loop))
        ((finding),) = self.unread
        self.assertIn("does not end", finding.what)


class SharedFunctionTests(SchemaCase):
    def test_the_function_of_all_tenants_has_no_more_rights_than_its_caller(self) -> None:
        self.admin.run(f"GRANT USAGE ON SCHEMA dinedesk_main, dinedesk_grill TO {KITCHEN_SHOP}")
        shop = self.connect(KITCHEN_SHOP)
        read = "SELECT * FROM dinedesk_main.pos_read_shop(%s, '{1}', NULL, NULL, NULL)"
        with self.assertRaises(psycopg2.errors.InsufficientPrivilege):
            shop.run(read, "dinedesk_grill")
        shop.run("INSERT INTO dinedesk_kitchen.orders (id, total_amount) VALUES (1, 5)")
        self.assertEqual([row[0] for row in shop.rows(read, "dinedesk_kitchen")], ["1"])
