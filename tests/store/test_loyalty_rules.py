"""A shop's rules for points: read with each movement, and checked after it."""

from __future__ import annotations

from decimal import Decimal

from posd.database.reconnecting import ReconnectingConnection
from posd.errors import NotFound, Unprocessable
from posd.store import loyalty_accounts, loyalty_rules
from posd.store.ledgers import MovementCause
from posd.store.loyalty import LoyaltyRules, PointsMovement
from posd.store.loyalty_rules import Moving
from tests.store_case import GRILL, KITCHEN, StoreCase

ANN = "+447700900123"
TILL = MovementCause("device POS_1", device_id="POS_1")


class RulesCase(StoreCase):
    async def move(
        self,
        connection: ReconnectingConnection,
        move: Moving,
        points: object,
        cause: MovementCause = TILL,
    ) -> PointsMovement:
        """Make a movement in a transaction, as the HTTP API does."""
        return await connection.transaction(
            lambda executor: move(executor, KITCHEN, ANN, points, cause)
        )

    def set(self, assignment: str) -> None:
        self.admin.run(f"UPDATE dinedesk_main.tenants SET {assignment} WHERE slug = 'kitchen'")

    def rows(self) -> list[tuple[object, ...]]:
        return self.admin.rows(
            "SELECT transaction_type, points, discount"
            " FROM dinedesk_kitchen.pos_loyalty_transactions ORDER BY id"
        )


class ReadingTests(RulesCase):
    async def test_a_shop_that_has_said_nothing_gives_a_penny_for_each_point(self) -> None:
        rules = await loyalty_rules.load_rules(await self.executor(), KITCHEN)
        self.assertEqual(rules, LoyaltyRules(True, True, Decimal(1), Decimal("0.01"), 1, 1))

    async def test_rules_are_a_tenants_own_and_count_at_once(self) -> None:
        executor = await self.executor()
        self.set("loyalty_minimum_redeem = 100, loyalty_opens_accounts = false")
        self.assertEqual((await loyalty_rules.load_rules(executor, KITCHEN)).minimum_redeem, 100)
        self.assertEqual((await loyalty_rules.load_rules(executor, GRILL)).minimum_redeem, 1)

    async def test_what_can_be_no_rule_cannot_be_written(self) -> None:
        for assignment in (
            "loyalty_redemption_rate = -0.01",
            "loyalty_redemption_rate = 'NaN'",
            "loyalty_points_per_pound = 'NaN'",
            "loyalty_minimum_redeem = 0",
            "loyalty_increment = 0",
        ):
            with self.subTest(assignment), self.assertRaisesRegex(Exception, "violates check"):
                self.set(assignment)


class JudgementTests(RulesCase):
    async def test_what_may_not_be_is_not_there(self) -> None:
        connection = await self.executor()
        await self.move(connection, loyalty_rules.add_points, 500)
        self.set("loyalty_minimum_redeem = 100, loyalty_increment = 50")
        for points in (99, 120):
            await self.refused(
                "invalid_amount",
                self.move(connection, loyalty_rules.redeem_points, points),
                Unprocessable,
            )
        self.set("loyalty_enabled = false")
        for move in (loyalty_rules.add_points, loyalty_rules.redeem_points):
            await self.refused("loyalty_disabled", self.move(connection, move, 100), Unprocessable)
        self.assertEqual(len(self.rows()), 1)

    async def test_nobody_is_made_a_customer_by_points_that_are_refused(self) -> None:
        connection = await self.executor()
        self.set("loyalty_opens_accounts = false")
        await self.refused(
            "unknown_customer", self.move(connection, loyalty_rules.add_points, 5), NotFound
        )
        self.set("loyalty_opens_accounts = true, loyalty_enabled = false")
        await self.refused(
            "unknown_customer", self.move(connection, loyalty_rules.add_points, 5), NotFound
        )
        self.assertIsNone(await loyalty_accounts.find_account(connection, KITCHEN, ANN))

    async def test_a_call_that_is_made_again_is_answered_as_before(self) -> None:
        connection = await self.executor()
        cause = MovementCause("device POS_1", "k", "POS_1")
        await self.move(connection, loyalty_rules.add_points, 500)
        first = await self.move(connection, loyalty_rules.redeem_points, 30, cause)
        self.set(
            "loyalty_enabled = false, loyalty_minimum_redeem = 100, loyalty_redemption_rate = 2"
        )
        again = await self.move(connection, loyalty_rules.redeem_points, 30, cause)
        self.assertTrue(again.replayed)
        self.assertEqual((first.discount, again.discount), (Decimal("0.30"), Decimal("0.30")))


class DiscountTests(RulesCase):
    async def test_it_is_written_down_in_the_decimals_of_the_rate_and_rounded_once(self) -> None:
        connection = await self.executor()
        await self.move(connection, loyalty_rules.add_points, 500)
        self.set("loyalty_redemption_rate = 0.0045")
        movement = await self.move(connection, loyalty_rules.redeem_points, 1)
        # Rounding to three decimals first would give a penny.
        self.assertEqual(movement.discount, Decimal("0.00"))
        self.assertEqual(self.rows(), [("add", 500, None), ("redeem", -1, Decimal("0.0045"))])

    async def test_a_shop_that_writes_sql_has_it_too_and_cannot_choose_it(self) -> None:
        connection = await self.executor()
        added = await self.move(connection, loyalty_rules.add_points, 500)
        for kind, seq, points, before in (("redeem", 2, -100, 500), ("adjust", 3, 5, 400)):
            self.admin.run(
                "INSERT INTO dinedesk_kitchen.pos_loyalty_transactions"
                " (account_id, seq, prev_seq, balance_before, points, balance_after,"
                "  transaction_type, discount) VALUES (%s, %s, %s, %s, %s, %s, %s, 99)",
                *(added.account_id, seq, seq - 1, before, points, before + points, kind),
            )
        self.assertEqual(
            self.rows()[1:], [("redeem", -100, Decimal("1.0000")), ("adjust", 5, None)]
        )
