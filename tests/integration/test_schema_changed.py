"""Changes of a shop's own tables after their adoption: the shop's statements still work."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psycopg2

from posd.cli.database import BlockingExecutor, run_to_completion
from posd.database.adoption_rules import AdoptionOptions
from posd.maintenance import audit, shop_changes
from posd.values import Tenant
from tests.integration.test_schema_adopt import SHOP, PartsCase
from tests.integration.test_schema_strangers import ForeignTablesCase
from tests.integration.wire_case import until
from tests.schema_case import DEADLINE

BISTRO: Final = Tenant(3, "bistro", "Bistro", "dinedesk_bistro")


class ChangedTests(ForeignTablesCase):
    """A session of the shop that has used the tables before, and one that begins after the change."""

    def after(self, *changes: tuple[str, str]) -> None:
        self.ready()
        self.order(1)
        self.admin.touched()
        for table, change in changes:
            self.alter(change, table)

    def sold(self, number: int, *, key: str = "id", order_id: str = "order_id") -> list[str]:
        """Sell something in both sessions, change it, and delete the items. Return what was noted."""
        for shop, order in ((self.shop, number), (self.connect(SHOP), number + 1)):
            for statement in (
                f"INSERT INTO dinedesk_bistro.orders ({key}, status) VALUES ({order}, 'new')",
                (
                    f"INSERT INTO dinedesk_bistro.order_items ({order_id}, name, price, quantity)"
                    f" VALUES ({order}, 'Soup', 12.30, 1)"
                ),
                f"UPDATE dinedesk_bistro.orders SET status = 'ready' WHERE {key}::text = '{order}'",
                "UPDATE dinedesk_bistro.order_items SET quantity = 2",
                "DELETE FROM dinedesk_bistro.order_items",
            ):
                shop.run(statement)
        return sorted({str(each) for each in self.admin.touched()} - {"1"})

    def told(self) -> list[str]:
        """Return the changes that `posctl doctor` reports."""
        executor = BlockingExecutor(self.connection)
        return [
            str(each) for each in run_to_completion(shop_changes.table_changes(executor, BISTRO))
        ]

    def test_a_key_that_was_renamed_is_still_noted(self) -> None:
        self.after(("orders", "RENAME id TO reference"), ("order_items", "RENAME order_id TO sale"))
        self.assertEqual(self.sold(7, key="reference", order_id="sale"), ["7", "8"])
        told = "\n".join(self.told())
        self.assertIn("orders.id was dropped or renamed, so no order is read", told)
        self.assertIn("order_items.order_id was dropped or renamed, so no order is read", told)
        for statement, name in zip(
            re.findall("ALTER .*", told), ("reference", "sale"), strict=True
        ):
            self.shop.run(statement.replace("…", name))
        self.assertEqual(self.told(), [])

    def test_a_key_of_another_type_is_still_noted(self) -> None:
        self.after(
            ("order_items", "DROP CONSTRAINT order_items_order_id_fkey"),
            ("orders", "ALTER id TYPE text"),
            ("order_items", "ALTER order_id TYPE character(9)"),
        )
        self.assertEqual(self.sold(7), ["7", "8"])

    def test_without_a_key_nothing_is_noted_and_nothing_fails(self) -> None:
        self.after(
            ("orders", "DROP id CASCADE"),
            ("orders", "ADD reference bigint"),
            ("order_items", "RENAME order_id TO sale"),
        )
        self.assertEqual(self.sold(7, key="reference", order_id="sale"), [])
        self.assertIn("orders.id was dropped or renamed", "\n".join(self.told()))

    def test_a_table_in_the_place_of_one_that_was_hooked_is_told_of(self) -> None:
        self.after(
            ("order_items", "DROP CONSTRAINT order_items_order_id_fkey"),
            ("orders", "RENAME TO old_orders"),
        )
        self.shop.run("CREATE TABLE dinedesk_bistro.orders (LIKE dinedesk_bistro.old_orders)")
        self.shop.run("GRANT SELECT ON dinedesk_bistro.orders TO posd_hook_bistro")
        # The noted changes are those of the items.
        self.assertEqual(self.sold(7), ["7", "8"])
        schema = run_to_completion(audit.load_schema(BlockingExecutor(self.connection), BISTRO))
        wrong = [each.wrong for each in schema.differences()]
        self.assertEqual(
            sorted(each.row for each in wrong),
            ["trigger orders.pos_orders_inserted", "trigger orders.pos_orders_updated"],
        )

    def test_orders_read_while_their_table_is_written_anew_are_there(self) -> None:
        self.ready()
        self.order(7)
        reader = self.connect("posd_reader")
        reader.run("BEGIN READ ONLY")
        with ThreadPoolExecutor(1) as beside:
            with self.shop.transaction():
                self.alter("DROP CONSTRAINT order_items_order_id_fkey", "order_items")
                self.alter("ALTER id TYPE text")
                self.alter("ALTER order_id TYPE text", "order_items")
                read = beside.submit(
                    reader.value, "SELECT content FROM posd_hooks.read_orders$bistro('{7}')"
                )
                until(
                    lambda: self.admin.value(
                        "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s",
                        reader.pid,
                    ),
                    "the reader waits for the shop",
                )
            content = json.loads(read.result(DEADLINE))
        self.assertEqual((content["id"], len(content["items"])), ("7", 1))

    def test_a_condition_that_fits_no_order_any_more_fails_none(self) -> None:
        self.tables()
        self.adopt(AdoptionOptions("status <> 'cart'"))
        self.order(7)
        self.alter("ALTER status TYPE integer USING 1")
        with self.assertRaisesRegex(psycopg2.errors.InvalidTextRepresentation, "cart"):
            self.contents("7")
        self.assertIn('type integer: "cart"', self.refusal())
        self.adopt(AdoptionOptions(""))
        self.assertEqual(self.contents("7")["7"]["status"], 1)


class ChangedPartsTests(PartsCase):
    def changed(self, *changes: str) -> None:
        self.partitioned()
        self.touch("orders_2026", 1)
        self.shop.run("INSERT INTO dinedesk_bistro.items_0 VALUES (1, 7, 'Soup', 4, 1)")
        self.admin.touched()
        for change in changes:
            self.shop.run(f"ALTER TABLE dinedesk_bistro.{change}")

    def sold(self) -> list[str]:
        for shop, number in ((self.shop, 2), (self.connect(SHOP), 3)):
            shop.run(
                f"INSERT INTO dinedesk_bistro.orders VALUES ({number}, 'new', 1, '2026-05-01')"
            )
            shop.run(f"INSERT INTO dinedesk_bistro.items_0 VALUES (1, {number}, 'Soup', 4, 1)")
            shop.run("UPDATE dinedesk_bistro.items_0 SET quantity = 2")
            shop.run("DELETE FROM dinedesk_bistro.items_0")
        return sorted({str(each) for each in self.admin.touched()} - {"7"})

    def test_a_key_of_another_type_is_still_noted_in_each_partition(self) -> None:
        self.changed("orders ALTER id TYPE numeric")
        self.assertEqual(self.sold(), ["2", "3"])

    def test_a_partition_whose_key_was_renamed_does_not_fail(self) -> None:
        self.changed("orders RENAME id TO reference")
        self.assertEqual(self.sold(), ["2", "3"])

    def test_a_new_owner_makes_partitions_too(self) -> None:
        self.changed()
        self.admin.run("DROP ROLE IF EXISTS posd_test_heir; CREATE ROLE posd_test_heir LOGIN")
        self.addCleanup(self.admin.run, "DROP OWNED BY posd_test_heir; DROP ROLE posd_test_heir")
        self.admin.run("GRANT USAGE, CREATE ON SCHEMA dinedesk_bistro TO posd_test_heir")
        self.admin.run("ALTER TABLE dinedesk_bistro.orders OWNER TO posd_test_heir")
        heir = self.connect("posd_test_heir")
        heir.run(self.partition(2027))
        heir.run("INSERT INTO dinedesk_bistro.orders VALUES (9, 'new', 1, '2027-05-01')")
        self.assertEqual(self.admin.touched(), ["9"])
