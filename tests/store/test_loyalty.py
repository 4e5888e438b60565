"""Loyalty points: movements, refusals, and answers to repeated calls."""

from __future__ import annotations

from decimal import Decimal

import psycopg2
from attrs import evolve

from posd.database.reconnecting import Executor
from posd.errors import BadRequest, Busy, Conflict, Forbidden, NotFound, Unprocessable
from posd.store import loyalty, loyalty_accounts
from posd.store.ledgers import MovementCause
from posd.store.loyalty_accounts import LoyaltyAccount
from tests.database_case import begin, until
from tests.store_case import GRILL, KITCHEN, StoreCase

ANN = "+447700900123"
BOB = "+447700900124"
SHOP = MovementCause("platform")
TILL = MovementCause("device POS_1", device_id="POS_1")


class LoyaltyCase(StoreCase):
    async def joined(self, points: int = 100) -> Executor:
        """Open a session, and create Ann's account with this balance."""
        executor = await self.executor()
        await loyalty.add(executor, KITCHEN, ANN, points, SHOP, joining=True)
        return executor

    async def account(self, executor: Executor, phone: str = ANN) -> LoyaltyAccount:
        account = await loyalty_accounts.find_account(executor, KITCHEN, phone)
        assert account is not None
        return account


class AccountTests(LoyaltyCase):
    async def test_an_account_has_what_is_known_of_a_customer(self) -> None:
        executor = await self.executor()
        ((number,),) = await executor.query(
            "INSERT INTO dinedesk_kitchen.loyalty_accounts (phone, customer_name, email)"
            " VALUES (%s, %s, %s) RETURNING id",
            (ANN, "Ann", "ann@example.com"),
        )
        account = await self.account(executor)
        self.assertEqual((account.id, account.phone, account.points), (number, ANN, 0))
        self.assertEqual((account.name, account.email), ("Ann", "ann@example.com"))
        self.assertEqual((str(account.total_spent), account.recent), ("0.00", ()))

    async def test_the_last_ten_movements_are_shown_newest_first(self) -> None:
        executor = await self.joined()
        for number in range(1, 12):
            cause = evolve(TILL, order_id=str(number), note="lunch")
            await loyalty.redeem(executor, KITCHEN, ANN, number, cause)
        account = await self.account(executor)
        self.assertEqual([each.points for each in account.recent], [-n for n in range(11, 1, -1)])
        newest = account.recent[0]
        self.assertEqual((newest.type, newest.after, newest.order_id), ("redeem", 34, "11"))
        self.assertEqual((newest.reason, account.points), ("lunch", 34))

    async def test_what_was_reversed_counts_neither_as_earned_nor_as_redeemed(self) -> None:
        executor = await self.joined()
        await loyalty.redeem(executor, KITCHEN, ANN, 30, TILL)
        await loyalty.redeem(executor, KITCHEN, ANN, 20, evolve(TILL, key="k"))
        await loyalty.adjust(executor, KITCHEN, ANN, -5, TILL)
        await loyalty.reverse(executor, KITCHEN, ANN, TILL, key="k")
        account = await self.account(executor)
        self.assertEqual((account.total_earned, account.total_redeemed), (100, 30))
        self.assertEqual(account.points, 65)

    async def test_who_never_joined_has_no_account(self) -> None:
        executor = await self.joined()
        self.assertIsNone(await loyalty_accounts.find_account(executor, KITCHEN, BOB))
        for call in (
            loyalty.add(executor, KITCHEN, BOB, 5, TILL),
            loyalty.redeem(executor, KITCHEN, BOB, 5, TILL),
            loyalty.adjust(executor, KITCHEN, BOB, 5, TILL),
            loyalty.redeem(executor, GRILL, ANN, 5, TILL),
        ):
            await self.refused("unknown_customer", call, NotFound)

    async def test_a_shop_with_points_of_its_own_has_none_here(self) -> None:
        executor = await self.executor()
        self.admin.run("DROP TABLE dinedesk_kitchen.pos_loyalty_transactions CASCADE")
        self.admin.run("DROP TABLE dinedesk_kitchen.loyalty_accounts CASCADE")
        await self.refused(
            "no_ledger", loyalty_accounts.find_account(executor, KITCHEN, ANN), NotFound
        )
        await self.refused("no_ledger", loyalty.redeem(executor, KITCHEN, ANN, 5, TILL))


class MovementTests(LoyaltyCase):
    async def test_points_are_earned_redeemed_and_corrected(self) -> None:
        executor = await self.executor()
        earned = await loyalty.add(executor, KITCHEN, ANN, 100, TILL, joining=True)
        self.assertEqual((earned.type, earned.before, earned.points), ("add", 0, 100))
        spent = await loyalty.redeem(executor, KITCHEN, ANN, Decimal("30.00"), TILL)
        self.assertEqual((spent.type, spent.points, spent.after), ("redeem", -30, 70))
        corrected = await loyalty.adjust(executor, KITCHEN, ANN, -70, TILL)
        self.assertEqual((corrected.type, corrected.after, corrected.seq), ("adjust", 0, 3))
        self.assertEqual(corrected.account_id, (await self.account(executor)).id)

    async def test_no_points_are_spent_that_are_not_there(self) -> None:
        executor = await self.joined()
        for move, points in ((loyalty.redeem, 101), (loyalty.adjust, -101)):
            error = await self.refused(
                "insufficient_points", move(executor, KITCHEN, ANN, points, TILL), BadRequest
            )
            self.assertEqual(error.details, {"currentPoints": 100})
        self.assertEqual((await self.account(executor)).points, 100)

    async def test_an_order_earns_once(self) -> None:
        executor = await self.joined()
        cause = evolve(TILL, order_id="17")
        await loyalty.add(executor, KITCHEN, ANN, 10, evolve(cause, key="one"))
        for other in (cause, evolve(SHOP, order_id="17", key="two")):
            await self.refused(
                "already_earned", loyalty.add(executor, KITCHEN, ANN, 10, other), Conflict
            )
        again = await loyalty.add(executor, KITCHEN, ANN, 10, evolve(cause, key="one"))
        self.assertTrue(again.replayed)
        await loyalty.add(executor, KITCHEN, BOB, 10, cause, joining=True)
        self.assertEqual((await self.account(executor)).points, 110)

    async def test_an_account_holds_no_more_than_every_reader_of_json_can(self) -> None:
        executor = await self.joined()
        spent = await loyalty.redeem(executor, KITCHEN, ANN, 1, TILL)
        move = "SELECT m.outcome FROM posd_hooks.points_move$kitchen("
        sent = f"'{ANN}', 'add', {{}}, 'shop', NULL, NULL, NULL, NULL, false) AS m"
        self.assertEqual(self.admin.value(move + sent.format(2**53 - 1)), "too_much")
        self.assertEqual(self.admin.value(move + sent.format(2**53 - 1 - 99)), "made")
        for call in (
            loyalty.add(executor, KITCHEN, ANN, 1, TILL),
            loyalty.adjust(executor, KITCHEN, ANN, 1, TILL),
            loyalty.reverse(executor, KITCHEN, ANN, SHOP, transaction_id=spent.transaction_id),
        ):
            error = await self.refused("invalid_amount", call, Unprocessable)
            self.assertEqual(error.details, {"field": "points"})
        self.assertEqual((await self.account(executor)).points, 2**53 - 1)
        more = (
            "INSERT INTO dinedesk_kitchen.pos_loyalty_transactions (account_id, seq, prev_seq,"
            " balance_before, points, balance_after, transaction_type)"
            " SELECT account_id, seq + 1, seq, balance_after, 1, balance_after + 1, 'add'"
            " FROM dinedesk_kitchen.pos_loyalty_transactions ORDER BY seq DESC LIMIT 1"
        )
        refused = self.assertRaises(psycopg2.errors.CheckViolation, self.admin.run, more)
        self.assertEqual(refused.diag.constraint_name, "loyalty_readable")

    async def test_points_are_whole_and_more_than_none(self) -> None:
        executor = await self.joined()
        for points in (0, -1, Decimal("1.5"), True, "5", None, Decimal("Infinity"), 10**9 + 1):
            for move in (loyalty.add, loyalty.redeem):
                with self.subTest(points=points, move=move.__name__):
                    error = await self.refused(
                        "invalid_amount", move(executor, KITCHEN, ANN, points, TILL), Unprocessable
                    )
                    self.assertEqual(error.details, {"field": "points"})
        await self.refused("invalid_amount", loyalty.adjust(executor, KITCHEN, ANN, 0, TILL))


class RetryTests(LoyaltyCase):
    async def test_the_same_call_is_answered_with_the_same_movement(self) -> None:
        executor = await self.joined()
        first = await loyalty.redeem(executor, KITCHEN, ANN, 90, evolve(TILL, key="k"))
        again = await loyalty.redeem(executor, KITCHEN, ANN, 90, evolve(TILL, key="k", note="x"))
        self.assertEqual(again, evolve(first, replayed=True))
        self.assertEqual((await self.account(executor)).points, 10)

    async def test_a_key_names_one_movement_of_one_principal(self) -> None:
        executor = await self.joined()
        await loyalty.redeem(executor, KITCHEN, ANN, 9, evolve(TILL, key="k"))
        for call in (
            loyalty.redeem(executor, KITCHEN, ANN, 8, evolve(TILL, key="k")),
            loyalty.adjust(executor, KITCHEN, ANN, -9, evolve(TILL, key="k")),
        ):
            await self.refused("idempotency_mismatch", call, Unprocessable)
        other = await loyalty.redeem(executor, KITCHEN, ANN, 9, evolve(SHOP, key="k"))
        self.assertFalse(other.replayed)

    async def test_two_first_earnings_at_once_make_one_account(self) -> None:
        sessions = [await self.executor() for _ in range(3)]
        calls = [begin(loyalty.add(s, KITCHEN, BOB, 5, TILL, joining=True)) for s in sessions]
        afters = [(await call).after for call in calls]
        self.assertEqual(sorted(afters), [5, 10, 15])

    async def test_one_that_meets_the_shops_own_movement_is_to_be_made_again(self) -> None:
        executor = await self.joined()
        with self.admin.transaction():
            # Without the lock of the account, which posd's own movements take.
            self.admin.run(
                "INSERT INTO dinedesk_kitchen.pos_loyalty_transactions"
                " (account_id, seq, prev_seq, balance_before, points, balance_after, transaction_type)"
                " SELECT id, 2, 1, 100, -10, 90, 'redeem' FROM dinedesk_kitchen.loyalty_accounts"
            )
            meeting = begin(loyalty.redeem(executor, KITCHEN, ANN, 20, evolve(TILL, key="k")))
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND transactionid IS NOT NULL"
            await until(lambda: bool(self.admin.rows(waits)), "it waits for the shop")
        with self.assertRaises(Busy):
            await meeting
        again = await loyalty.redeem(executor, KITCHEN, ANN, 20, evolve(TILL, key="k"))
        self.assertEqual((again.after, again.replayed), (70, False))


class ReversalTests(LoyaltyCase):
    async def test_a_reversal_gives_back_what_was_redeemed_once(self) -> None:
        executor = await self.joined()
        moved = await loyalty.redeem(executor, KITCHEN, ANN, 60, evolve(TILL, key="k"))
        undone = await loyalty.reverse(executor, KITCHEN, ANN, TILL, key="k")
        self.assertEqual((undone.type, undone.points, undone.after), ("reverse", 60, 100))
        again = await loyalty.reverse(
            executor, KITCHEN, ANN, SHOP, transaction_id=moved.transaction_id
        )
        self.assertEqual(again, evolve(undone, replayed=True))
        await self.refused(
            "reversed", loyalty.redeem(executor, KITCHEN, ANN, 60, evolve(TILL, key="k")), Conflict
        )

    async def test_points_that_were_spent_are_not_taken_back(self) -> None:
        executor = await self.executor()
        await loyalty.add(executor, KITCHEN, ANN, 100, evolve(TILL, key="k"), joining=True)
        await loyalty.redeem(executor, KITCHEN, ANN, 60, TILL)
        error = await self.refused(
            "insufficient_points",
            loyalty.reverse(executor, KITCHEN, ANN, TILL, key="k"),
            BadRequest,
        )
        self.assertEqual(error.details, {"currentPoints": 40})

    async def test_a_reversal_that_comes_first_keeps_its_original_from_coming(self) -> None:
        executor = await self.joined()
        stone = await loyalty.reverse(executor, KITCHEN, ANN, TILL, key="k")
        self.assertTrue(stone.tombstoned)
        again = await loyalty.reverse(executor, KITCHEN, ANN, TILL, key="k")
        self.assertEqual(again, evolve(stone, replayed=True))
        await self.refused(
            "reversed", loyalty.add(executor, KITCHEN, ANN, 5, evolve(TILL, key="k"))
        )
        self.assertEqual(len((await self.account(executor)).recent), 1)

    async def test_a_reversal_before_the_account_makes_no_member(self) -> None:
        executor = await self.executor()
        await loyalty.reverse(executor, KITCHEN, BOB, SHOP, key="k")
        self.assertIsNone(await loyalty_accounts.find_account(executor, KITCHEN, BOB))
        cause = evolve(TILL, key="k")
        await self.refused("reversed", loyalty.add(executor, KITCHEN, BOB, 5, cause, joining=True))
        await self.refused("unknown_customer", loyalty.add(executor, KITCHEN, BOB, 5, TILL))
        await loyalty.add(executor, KITCHEN, BOB, 5, TILL, joining=True)
        self.assertEqual((await self.account(executor, BOB)).points, 5)

    async def test_who_may_reverse_what_is_as_for_gift_cards(self) -> None:
        executor = await self.joined()
        moved = await loyalty.redeem(executor, KITCHEN, ANN, 5, evolve(TILL, key="k"))
        other = MovementCause("device B", key=None)
        call = loyalty.reverse(executor, KITCHEN, ANN, other, transaction_id=moved.transaction_id)
        await self.refused("forbidden", call, Forbidden)
        await loyalty.redeem(executor, KITCHEN, ANN, 5, evolve(other, key="k"))
        await self.refused("ambiguous_key", loyalty.reverse(executor, KITCHEN, ANN, SHOP, key="k"))
        undone = await loyalty.reverse(executor, KITCHEN, ANN, other, key="k")
        again = loyalty.reverse(executor, KITCHEN, ANN, SHOP, transaction_id=undone.transaction_id)
        await self.refused("not_reversible", again, Unprocessable)
        for phone, number in ((BOB, moved.transaction_id), (ANN, 10**6)):
            unknown = loyalty.reverse(executor, KITCHEN, phone, SHOP, transaction_id=number)
            await self.refused("unknown_transaction", unknown, NotFound)
