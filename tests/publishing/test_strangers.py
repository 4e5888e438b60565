"""Tests of a shop's own tables with an unreadable row, a condition, and a dropped column."""

from __future__ import annotations

from twisted.logger import LogLevel

from tests.publishing.test_publishing_log import JournalCase

MOODY = (
    "CREATE TYPE dinedesk_kitchen.mood AS ENUM ('good', 'bad')",
    (
        "CREATE FUNCTION dinedesk_kitchen.told(dinedesk_kitchen.mood) RETURNS json LANGUAGE plpgsql AS"
        " $$ BEGIN IF $1 = 'bad' THEN RAISE 'Anna is in a bad mood'; END IF; RETURN '\"good\"'; END $$"
    ),
    (
        "CREATE CAST (dinedesk_kitchen.mood AS json)"
        " WITH FUNCTION dinedesk_kitchen.told(dinedesk_kitchen.mood)"
    ),
    "ALTER TABLE dinedesk_kitchen.orders ALTER voucher_code TYPE dinedesk_kitchen.mood USING NULL",
)
ADOPT = "INSERT INTO dinedesk_main.pos_adoptions (tenant_id, condition, tables) VALUES (1, %s, %s)"


class StrangerCase(JournalCase):
    def run_all(self, *statements: str) -> None:
        for statement in statements:
            self.admin.run(statement)

    def change(self, order_id: str, column: str, value: str) -> None:
        self.admin.run(
            f"UPDATE dinedesk_kitchen.orders SET {column} = %s WHERE id = %s", value, order_id
        )


class OddRowTests(StrangerCase):
    async def test_an_unreadable_row_fails_with_its_order_id_and_the_others_are_published(
        self,
    ) -> None:
        self.run_all(*MOODY)
        sequencer = await self.watched()
        ids = [self.place_order(name=name) for name in ("Ann", "Bob", "Cid")]
        self.change(ids[1], "voucher_code", "bad")
        await self.emptied(sequencer)
        log = self.log_of()
        published = {each.data["orderId"] for each in log if each.failure is None}
        self.assertEqual(published, {ids[0], ids[2]})
        (failed,) = (each for each in log if each.failure is not None)
        self.assertEqual((failed.seq, failed.data), (None, {"orderId": ids[1]}))
        self.assertIn(f"The row of order {ids[1]} cannot be read: SQLSTATE P0001", failed.failure)
        self.assertNotIn("Anna", f"{failed.failure} {self.lines(LogLevel.error)}")
        self.assertTrue(sequencer.serves_all)
        self.change(ids[1], "voucher_code", "good")
        await self.emptied(sequencer)
        self.assertEqual(self.log_of()[-1].data["orderId"], ids[1])

    async def test_addons_with_half_a_surrogate_pair_are_repaired_and_published(self) -> None:
        self.admin.run("ALTER TABLE dinedesk_kitchen.order_items ALTER selected_addons TYPE json")
        sequencer = await self.watched()
        with self.admin.transaction():
            order = self.place_order()
            self.admin.run(
                "INSERT INTO dinedesk_kitchen.order_items (order_id, name, price, selected_addons)"
                """ VALUES (%s, 'Soup', 5, '[{"name": "No nuts \\ud83d"}]')""",
                order,
            )
        await self.emptied(sequencer)
        (event,) = self.log_of()
        self.assertEqual(event.data["items"][0]["selectedAddons"][0]["name"], "No nuts \ufffd")


class ConditionTests(StrangerCase):
    async def test_a_cart_is_published_when_the_condition_is_true_and_later_changes_too(
        self,
    ) -> None:
        self.admin.run(ADOPT, "status NOT IN ('cart', 'cancelled')", "{}")
        sequencer = await self.watched()
        with self.admin.transaction():
            order = self.place_order()
            self.change(order, "status", "cart")
        await self.emptied(sequencer)
        self.assertEqual(self.log_of(), [])
        self.assertEqual(self.counted("orders_left_out"), {"condition": 1})
        for status in ("confirmed", "cancelled"):
            self.change(order, "status", status)
            await self.emptied(sequencer)
        self.assertEqual(
            [(each.type, each.data["status"]) for each in self.log_of()],
            [("new_order", "confirmed"), ("order_updated", "cancelled")],
        )


class ColumnTests(StrangerCase):
    async def test_a_dropped_column_is_logged_once_with_the_remedy(self) -> None:
        self.admin.run(ADOPT, None, '{"orders": {"customer_email": "text"}}')
        self.admin.run("ALTER TABLE dinedesk_kitchen.orders RENAME customer_email TO mail")
        sequencer = await self.watched()
        for _ in range(2):
            self.place_order()
            await self.emptied(sequencer)
        self.assertEqual(len(self.log_of()), 2)
        (line,) = self.lines(LogLevel.error)
        self.assertIn("tenant kitchen were dropped or renamed: orders.customer_email", line)
        self.assertIn("posctl adopt kitchen", line)

    async def test_orders_wait_while_a_required_column_is_missing(self) -> None:
        self.admin.run("ALTER TABLE dinedesk_kitchen.orders RENAME status TO state")
        sequencer = await self.watched()
        self.place_order()
        await self.rested(sequencer)
        self.assertEqual((self.log_of(), self.waiting), ([], 1))
        (line,) = self.lines(LogLevel.error)
        self.assertIn("there is no column orders.status", line)
        self.assertIn("posctl doctor", line)
        self.admin.run("ALTER TABLE dinedesk_kitchen.orders RENAME state TO status")
        self.clock.advance(2)
        await self.emptied(sequencer)
        self.assertEqual(len(self.log_of()), 1)
