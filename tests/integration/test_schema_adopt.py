"""A shop with `orders` and `order_items` from before posd."""

from __future__ import annotations

import json
import re
from typing import Any

from posd.database import adopting, migrations
from posd.database import provisioning as provision
from posd.database.adoption_rules import NOTHING_CHOSEN, AdoptionOptions
from posd.errors import SchemaError
from tests.schema_case import KITCHEN_SHOP, Client, SchemaCase, add

SHOP = KITCHEN_SHOP


class AdoptCase(SchemaCase):
    """The shop `bistro`. The platform has made and filled its schema."""

    def setUp(self) -> None:
        super().setUp()
        self.connection = migrations.connect(self.dsn)
        self.addCleanup(self.connection.close)
        self.admin.run("CREATE SCHEMA dinedesk_bistro AUTHORIZATION posd_owner")
        self.admin.run(f"GRANT USAGE, CREATE ON SCHEMA dinedesk_bistro TO {SHOP}")
        self.shop = self.connect(SHOP)

    def tables(self, kind: str = "bigint", *, owner: Client | None = None) -> None:
        """Create the shop's tables as the shop, and grant posd its rights."""
        owner = owner or self.shop
        owner.run(
            f"CREATE TABLE dinedesk_bistro.orders (id {kind} PRIMARY KEY, status text,"
            " total_amount numeric, created_at timestamptz DEFAULT now(), waiter text)"
        )
        owner.run(
            f"CREATE TABLE dinedesk_bistro.order_items (id serial, order_id {kind}"
            " REFERENCES dinedesk_bistro.orders, name text, price numeric, quantity integer)"
        )
        add(self.connection, "bistro")
        for statement in (
            "GRANT TRIGGER ON dinedesk_bistro.orders, dinedesk_bistro.order_items TO posd_owner",
            "GRANT SELECT ON dinedesk_bistro.orders, dinedesk_bistro.order_items TO posd_hook_bistro",
        ):
            owner.run(statement)

    def adopt(self, choices: AdoptionOptions = NOTHING_CHOSEN) -> None:
        adopting.adopt(self.connection, "bistro", choices)

    def refusal(self, choices: AdoptionOptions = NOTHING_CHOSEN) -> str:
        """Return the message to an operator who tries to adopt the shop."""
        with self.assertRaises(SchemaError) as raised:
            self.adopt(choices)
        return str(raised.exception).removeprefix("the tables of bistro are not hooked:").lstrip()

    def order(self, key: object) -> None:
        """Sell something, as the shop, in one transaction."""
        with self.shop.transaction():
            self.shop.run("INSERT INTO dinedesk_bistro.orders VALUES (%s, 'new', 12.30)", key)
            self.shop.run(
                "INSERT INTO dinedesk_bistro.order_items (order_id, name, price, quantity)"
                " VALUES (%s, 'Soup', 12.30, 1)",
                key,
            )

    def contents(self, *keys: str) -> dict[str, Any]:
        """Return what the sequencer reads of orders, by id."""
        rows = self.connect("posd_reader").rows(
            "SELECT * FROM posd_hooks.read_orders$bistro(%s)", [*keys]
        )
        return {key: json.loads(text) for key, text in rows}

    def read(self, *keys: str) -> list[tuple[str, str, int]]:
        """Return of that: id, status, number of items."""
        return [
            (key, row["status"], len(row["items"])) for key, row in self.contents(*keys).items()
        ]


class IdTypesTests(AdoptCase):
    """All types of order ids."""

    def check(self, kind: str, key: str) -> None:
        self.tables(kind)
        self.adopt()
        self.order(key)
        touched = [(row.tenant_id, row.type, row.key) for row in self.admin.take() or ()]
        self.assertEqual(touched, [(3, "placed", key), (3, "order", key)])
        self.assertEqual(self.read(key), [(key, "new", 1)])

    def test_bigint(self) -> None:
        self.check("bigint", "9007199254740993")

    def test_uuid(self) -> None:
        self.check("uuid", "0b0c3c5e-7f0c-4a53-9d35-5b0d0e1c9b7a")

    def test_text(self) -> None:
        self.check("text", "Tisch 7/Größe \"L\", 'x'")

    def test_varchar_with_a_length(self) -> None:
        self.check("varchar(12)", "ORD-2026-001")

    def test_a_length_that_has_grown_since(self) -> None:
        self.tables("varchar(4)")
        self.adopt()
        self.shop.run("ALTER TABLE dinedesk_bistro.orders ALTER id TYPE varchar(40)")
        self.shop.run("ALTER TABLE dinedesk_bistro.order_items ALTER order_id TYPE varchar(40)")
        self.order("longer than four")
        self.assertEqual([row[0] for row in self.read("longer than four")], ["longer than four"])

    def test_numeric(self) -> None:
        self.check("numeric(12, 0)", "20261122001")

    def test_a_type_of_the_shops_own(self) -> None:
        self.shop.run("CREATE DOMAIN dinedesk_bistro.number AS text CHECK (VALUE ~ '^B-')")
        self.check("dinedesk_bistro.number", "B-17")

    def test_a_domain_of_a_domain(self) -> None:
        for domain, kind in (("amount", "money"), ("number", "bigint")):
            self.shop.run(f"CREATE DOMAIN dinedesk_bistro.any_{domain} AS {kind}")
            self.shop.run(
                f"CREATE DOMAIN dinedesk_bistro.{domain} AS dinedesk_bistro.any_{domain}"
                f" CHECK (VALUE > 0::{kind})"
            )
        self.tables("dinedesk_bistro.number")
        self.shop.run(
            "ALTER TABLE dinedesk_bistro.orders ALTER total_amount TYPE dinedesk_bistro.amount"
        )
        found = adopting.survey(self.connection, "bistro", NOTHING_CHOSEN)
        self.assertEqual(found.refusals, ())
        self.assertEqual(found.tables["orders"].columns["total_amount"], "money")
        self.adopt()
        self.order("17")
        self.assertEqual(self.contents("17")["17"]["total_amount"], 12.30)

    def test_a_type_of_an_extension_in_another_schema(self) -> None:
        self.admin.run("CREATE EXTENSION citext SCHEMA public")
        self.check("public.citext", "Order-A")

    def test_a_type_that_the_shop_has_made_is_refused_with_the_statements_that_help(self) -> None:
        self.shop.run("CREATE TYPE dinedesk_bistro.code AS ENUM ('A-1', 'A-2')")
        self.tables("dinedesk_bistro.code")
        for statement in re.findall("ALTER .*", self.refusal()):
            self.shop.run(statement)
        self.adopt()
        self.order("A-1")
        self.assertEqual(self.read("A-1"), [("A-1", "new", 1)])


class RightsTests(AdoptCase):
    """Tables that belong to the shop's own role."""

    def test_the_grants_that_are_printed_are_the_ones_that_are_needed(self) -> None:
        self.tables()
        self.shop.run("REVOKE ALL ON dinedesk_bistro.orders FROM posd_owner, posd_hook_bistro")
        self.shop.run("REVOKE ALL ON dinedesk_bistro.order_items FROM posd_hook_bistro")
        said = self.refusal()
        grants = said.splitlines()[1:]
        self.assertEqual(
            grants,
            [
                'GRANT TRIGGER ON "dinedesk_bistro".orders TO posd_owner;',
                'GRANT SELECT ON "dinedesk_bistro".orders TO "posd_hook_bistro";',
                'GRANT SELECT ON "dinedesk_bistro".order_items TO "posd_hook_bistro";',
            ],
        )
        self.assertRegex(said, r"\Aposd lacks rights on the tables\. As their owner:\n")
        for grant in grants:
            self.shop.run(grant)
        self.adopt()
        self.order(1)
        self.assertEqual(self.admin.touched(), ["1", "1"])

    def test_a_missing_right_to_read_is_found_before_the_first_order_is(self) -> None:
        self.tables()
        self.shop.run("REVOKE ALL ON dinedesk_bistro.order_items FROM posd_hook_bistro")
        self.assertIn("GRANT SELECT", self.refusal())
        self.order(1)
        self.assertEqual(self.admin.touched(), [], "nothing is hooked halfway")

    def test_columns_are_seen_without_any_right_to_them(self) -> None:
        self.tables()
        self.shop.run("REVOKE ALL ON dinedesk_bistro.orders FROM posd_owner, posd_hook_bistro")
        self.assertNotIn("lacks the columns", self.refusal())

    def test_a_schema_of_the_shops_own_is_handed_over_by_the_statements_that_are_printed(
        self,
    ) -> None:
        self.admin.run(f"ALTER SCHEMA dinedesk_bistro OWNER TO {SHOP}")
        with self.assertRaises(SchemaError) as raised:
            add(self.connection, "bistro")
        for statement in str(raised.exception).splitlines()[1:]:
            self.admin.run(statement)
        self.tables()
        self.adopt()
        self.order(1)
        self.assertEqual(self.admin.touched(), ["1", "1"])

    def test_tables_of_the_superuser_can_be_adopted_too(self) -> None:
        self.tables(owner=self.admin)
        self.adopt()
        self.admin.run("INSERT INTO dinedesk_bistro.orders VALUES (1, 'new', 1)")
        self.assertEqual(self.admin.touched(), ["1"])


class RefusalTests(AdoptCase):
    """Tables that cannot be hooked, and the messages."""

    def test_an_unknown_tenant(self) -> None:
        self.assertEqual(self.refusal(), "there is no tenant 'bistro'")

    def test_columns_that_are_missing_are_all_listed(self) -> None:
        self.tables()
        self.shop.run("ALTER TABLE dinedesk_bistro.orders DROP status, DROP created_at")
        self.shop.run("ALTER TABLE dinedesk_bistro.order_items RENAME name TO dish")
        said, *statements = self.refusal().splitlines()
        self.assertIn(
            "dinedesk_bistro lacks the columns orders.status, orders.created_at, order_items.name",
            said,
        )
        self.assertEqual(
            statements,
            [
                'ALTER TABLE "dinedesk_bistro".orders RENAME COLUMN … TO status;',
                'ALTER TABLE "dinedesk_bistro".orders RENAME COLUMN … TO created_at;',
                'ALTER TABLE "dinedesk_bistro".order_items RENAME COLUMN … TO name;',
            ],
        )

    def test_a_table_that_is_missing(self) -> None:
        self.tables()
        self.shop.run("DROP TABLE dinedesk_bistro.order_items")
        said = self.refusal()
        self.assertIn("dinedesk_bistro has no table order_items: the shop may publish by ", said)

    def test_a_view(self) -> None:
        self.tables()
        self.shop.run("ALTER TABLE dinedesk_bistro.orders RENAME TO sales")
        self.shop.run("CREATE VIEW dinedesk_bistro.orders AS SELECT * FROM dinedesk_bistro.sales")
        self.assertIn(
            "dinedesk_bistro.orders is not a table, so it cannot be hooked: the shop may publish by ",
            self.refusal(),
        )

    def test_ids_that_cannot_be_compared(self) -> None:
        self.tables("uuid")
        self.shop.run(
            "ALTER TABLE dinedesk_bistro.order_items DROP CONSTRAINT order_items_order_id_fkey,"
            " ALTER order_id TYPE text"
        )
        said, *statements = self.refusal().splitlines()
        self.assertIn("orders.id is uuid and order_items.order_id is text", said)
        for statement in statements:
            self.shop.run(statement)
        self.adopt()

    def test_tables_in_use_are_not_waited_for(self) -> None:
        self.tables()
        self.patch(migrations, "_LOCK_SECONDS", 0.05)
        self.connection = migrations.connect(self.dsn)
        self.addCleanup(self.connection.close)
        with self.shop.transaction():
            self.shop.run("INSERT INTO dinedesk_bistro.orders VALUES (1, 'new', 1)")
            self.assertRegex(
                self.refusal(), "the tables of dinedesk_bistro are in use .*; try again"
            )
        self.adopt()

    def test_an_older_main_schema(self) -> None:
        self.admin.run("DELETE FROM dinedesk_main.schema_versions WHERE file LIKE 'main/004%'")
        self.assertIn("it lacks main/004", self.refusal())


class AdoptionTests(AdoptCase):
    """A shop with hooks."""

    def test_twice_is_as_good_as_once(self) -> None:
        self.tables()
        self.adopt()
        self.adopt()
        self.shop.run("INSERT INTO dinedesk_bistro.orders VALUES (1, 'new', 1)")
        self.assertEqual(self.admin.touched(), ["1"])
        self.assertEqual(provision.migrate(self.connection).updated, ())

    def test_no_column_is_added(self) -> None:
        self.tables()
        before = self.columns()
        self.adopt()
        self.assertEqual(self.columns(), before)

    def columns(self) -> list[tuple[str]]:
        return self.admin.rows(
            "SELECT attrelid::regclass || '.' || attname FROM pg_attribute"
            " WHERE attrelid::regclass::text ~ '^dinedesk_bistro.order' AND attnum > 0"
        )

    def test_dropping_the_shops_tables_is_the_shops_right_still(self) -> None:
        self.tables()
        self.adopt()
        self.shop.run("DROP TABLE dinedesk_bistro.order_items, dinedesk_bistro.orders")


class PartsCase(AdoptCase):
    """A shop whose orders are in several tables, which it also writes directly."""

    def ready(self, *statements: str) -> None:
        """Let the shop create its tables, and grant posd the rights that it asks for."""
        for statement in statements:
            self.shop.run(statement)
        add(self.connection, "bistro")
        chosen = AdoptionOptions(unique_ids=True)
        for grant in re.findall("GRANT .*", self.refusal(chosen)):
            self.shop.run(grant)
        self.adopt(chosen)

    def partitioned(self) -> None:
        self.ready(
            "CREATE TABLE dinedesk_bistro.orders (id bigint, status text, total_amount numeric,"
            " created_at timestamptz NOT NULL) PARTITION BY RANGE (created_at)",
            self.partition(2026),
            "CREATE TABLE dinedesk_bistro.order_items (id bigint, order_id bigint, name text,"
            " price numeric, quantity integer) PARTITION BY HASH (order_id)",
            "CREATE TABLE dinedesk_bistro.items_0 PARTITION OF dinedesk_bistro.order_items"
            " FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        )

    def partition(self, year: int) -> str:
        return (
            f"CREATE TABLE dinedesk_bistro.orders_{year} PARTITION OF dinedesk_bistro.orders"
            f" FOR VALUES FROM ('{year}-01-01') TO ('{year + 1}-01-01')"
        )

    def touch(self, table: str, key: int, year: int = 2026) -> None:
        values = f"({key}, 'new', 1, '{year}-05-01')"
        self.shop.run(f"INSERT INTO dinedesk_bistro.{table} VALUES {values}")


class PartsTests(PartsCase):
    def test_what_is_written_to_a_partition_is_noted_as_what_is_written_to_the_whole(self) -> None:
        self.partitioned()
        self.touch("orders", 1)
        self.touch("orders_2026", 2)
        self.assertEqual(self.admin.touched(), ["1", "2"])
        self.shop.run("UPDATE dinedesk_bistro.orders SET status = 'ready' WHERE id = 1")
        self.shop.run("UPDATE dinedesk_bistro.orders_2026 SET status = 'ready' WHERE id = 2")
        self.assertEqual(self.admin.touched(), ["1", "2"])

    def test_items_in_partitions_are_noted_whatever_happens_to_them(self) -> None:
        self.partitioned()
        self.shop.run("INSERT INTO dinedesk_bistro.items_0 VALUES (1, 7, 'Soup', 4, 1)")
        self.assertEqual(self.admin.touched(), ["7"])
        self.shop.run("UPDATE dinedesk_bistro.items_0 SET order_id = 8")
        self.assertEqual(sorted(self.admin.touched()), ["7", "8"])
        self.shop.run("DELETE FROM dinedesk_bistro.items_0")
        self.assertEqual(self.admin.touched(), ["8"])

    def test_partitions_that_come_later_are_hooked_too(self) -> None:
        self.partitioned()
        self.shop.run(self.partition(2027))
        self.touch("orders_2027", 3, 2027)
        self.shop.run("CREATE TABLE dinedesk_bistro.old (LIKE dinedesk_bistro.orders)")
        self.shop.run(
            "ALTER TABLE dinedesk_bistro.orders ATTACH PARTITION dinedesk_bistro.old"
            " FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')"
        )
        self.touch("old", 4, 2025)
        self.assertEqual(self.admin.touched(), ["3", "4"])

    def test_an_order_that_moves_to_another_partition_is_noted(self) -> None:
        self.partitioned()
        self.shop.run(self.partition(2027))
        self.touch("orders", 1)
        self.assertEqual(self.admin.touched(), ["1"])
        self.shop.run("UPDATE dinedesk_bistro.orders SET created_at = '2027-02-01'")
        self.assertEqual(self.admin.touched(), ["1"])

    def test_hooks_can_be_switched_off_for_partitions_too(self) -> None:
        self.partitioned()
        self.shop.run("SET posd.hooks = 'off'")
        self.touch("orders_2026", 1)
        self.shop.run("INSERT INTO dinedesk_bistro.items_0 VALUES (1, 7, 'Soup', 4, 1)")
        self.assertEqual(self.admin.touched(), [])

    def test_partitions_are_adopted_again_without_a_change(self) -> None:
        self.partitioned()
        self.adopt()
        self.assertEqual(provision.migrate(self.connection).updated, ())
        self.touch("orders_2026", 1)
        self.assertEqual(self.admin.touched(), ["1"])

    def test_orders_that_are_a_partition_of_the_platforms_are_noted_when_it_writes_them(
        self,
    ) -> None:
        self.admin.run(
            "CREATE TABLE public.orders (id bigint, status text, total_amount numeric,"
            " created_at timestamptz, shop text) PARTITION BY LIST (shop)"
        )
        self.admin.run(
            "CREATE TABLE dinedesk_bistro.orders PARTITION OF public.orders FOR VALUES IN ('bistro')"
        )
        self.admin.run(f"ALTER TABLE dinedesk_bistro.orders OWNER TO {SHOP}")
        self.ready(
            "CREATE TABLE dinedesk_bistro.order_items (id bigint, order_id bigint, name text,"
            " price numeric, quantity integer)"
        )
        self.admin.run("INSERT INTO public.orders VALUES (1, 'new', 1, now(), 'bistro')")
        self.assertEqual(self.admin.touched(), ["1"])

    def test_tables_that_inherit_are_hooked_as_they_are_found(self) -> None:
        self.tables()
        self.shop.run("CREATE TABLE dinedesk_bistro.late () INHERITS (dinedesk_bistro.orders)")
        for grant in re.findall("GRANT .*", self.refusal()):
            self.shop.run(grant)
        self.adopt()
        self.touch("late", 1)
        self.shop.run("UPDATE dinedesk_bistro.orders SET status = 'ready'")
        self.touch("orders", 2)
        self.assertEqual(self.admin.touched(), ["1", "1", "2"])

    def test_a_table_that_inherits_later_is_hooked_by_the_next_migration(self) -> None:
        self.tables()
        self.adopt()
        self.shop.run("CREATE TABLE dinedesk_bistro.late () INHERITS (dinedesk_bistro.orders)")
        self.shop.run("GRANT TRIGGER ON dinedesk_bistro.late TO posd_owner")
        self.assertEqual(provision.migrate(self.connection).updated, ("dinedesk_bistro",))
        self.touch("late", 1)
        self.touch("orders", 2)
        self.assertEqual(self.admin.touched(), ["1", "2"])
        self.assertEqual(provision.migrate(self.connection).updated, ())
