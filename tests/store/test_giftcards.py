"""Gift cards: movements, refusals, and answers to repeated calls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from attrs import evolve

from posd.database.reconnecting import Executor
from posd.errors import BadRequest, Conflict, Forbidden, NotFound, Unprocessable
from posd.store import giftcards
from posd.store.card_movements import CardMovement
from posd.store.giftcards import CardDetails
from posd.store.ledgers import MovementCause
from tests.database_case import begin
from tests.store_case import GRILL, KITCHEN, StoreCase

CARD = "GC-1"
SHOP = MovementCause("platform")
TILL = MovementCause("device POS_1", device_id="POS_1")
NOW = datetime(2026, 11, 22, tzinfo=UTC)


class GiftCardCase(StoreCase):
    async def sold(self, amount: object = 50, number: str = CARD) -> Executor:
        """Open a session, and sell a card with this balance."""
        executor = await self.executor()
        await giftcards.purchase(executor, KITCHEN, number, amount, SHOP)
        return executor

    async def on_it(self, executor: Executor, number: str = CARD) -> Decimal:
        card = await giftcards.balance(executor, KITCHEN, number)
        assert card is not None
        return card.balance

    def history(self, number: str = CARD) -> list[tuple[str, Decimal]]:
        return [
            (kind, amount)
            for kind, amount in self.admin.rows(
                "SELECT transaction_type, amount FROM dinedesk_kitchen.pos_gift_card_transactions"
                " WHERE card_number = %s ORDER BY seq",
                number,
            )
        ]


class SaleTests(GiftCardCase):
    async def test_a_card_that_was_sold_is_worth_what_was_paid(self) -> None:
        executor = await self.executor()
        until = datetime(2027, 11, 22, 23, 59, 59, tzinfo=UTC)
        details = CardDetails("Ann", "Bob", "bob@example.com", until)
        cause = evolve(SHOP, order_id="17")
        sale = await giftcards.purchase(
            executor, KITCHEN, " gc-1 ", Decimal("25.5"), cause, details
        )
        self.assertEqual((sale.card_number, sale.seq, sale.type), (CARD, 1, "purchase"))
        self.assertEqual(
            (sale.before, sale.amount, sale.after), (0, Decimal("25.50"), Decimal("25.50"))
        )
        card = await giftcards.balance(executor, KITCHEN, "gc-1")
        assert card is not None
        self.assertEqual((card.number, str(card.balance)), (CARD, "25.50"))
        self.assertEqual(str(card.initial_balance), "25.50")
        self.assertEqual((card.status, card.expiry_date), ("active", until))
        self.assertEqual((card.purchased_by, card.recipient_name), ("Ann", "Bob"))
        self.assertEqual((card.recipient_email, card.order_id), ("bob@example.com", "17"))

    async def test_a_number_is_sold_once(self) -> None:
        executor = await self.sold()
        await self.refused(
            "card_exists", giftcards.purchase(executor, KITCHEN, CARD, 5, SHOP), Conflict
        )
        await self.refused("card_exists", giftcards.activate(executor, KITCHEN, CARD, 5, TILL))
        self.assertEqual(await self.on_it(executor), 50)

    async def test_a_number_that_posd_chooses_is_new_each_time(self) -> None:
        executor = await self.executor()
        sales = [await giftcards.purchase(executor, KITCHEN, None, 5, SHOP) for _ in range(3)]
        self.assertEqual(len({sale.card_number for sale in sales}), 3)
        for sale in sales:
            self.assertRegex(sale.card_number, "^[2-9A-Z]{16}$")

    async def test_a_retry_of_a_sale_is_for_the_card_of_the_first_call(self) -> None:
        executor = await self.executor()
        cause = evolve(SHOP, key="k")
        first = await giftcards.purchase(executor, KITCHEN, None, 5, cause)
        again = await giftcards.purchase(executor, KITCHEN, None, Decimal("5.00"), cause)
        self.assertEqual(again, evolve(first, replayed=True))
        await self.refused(
            "idempotency_mismatch", giftcards.purchase(executor, KITCHEN, "OTHER", 5, cause)
        )
        await self.refused(
            "idempotency_mismatch", giftcards.purchase(executor, KITCHEN, None, 6, cause)
        )
        self.assertEqual(
            len(self.admin.rows("SELECT card_number FROM dinedesk_kitchen.gift_cards")), 1
        )

    async def test_two_sales_at_once_with_one_key_are_one(self) -> None:
        one, other = await self.executor(), await self.executor()
        cause = evolve(SHOP, key="k")
        calls = [begin(giftcards.purchase(s, KITCHEN, None, 5, cause)) for s in (one, other)]
        first, second = [await call for call in calls]
        self.assertEqual(first.card_number, second.card_number)
        self.assertEqual({first.replayed, second.replayed}, {False, True})
        self.assertEqual(
            len(self.admin.rows("SELECT card_number FROM dinedesk_kitchen.gift_cards")), 1
        )

    async def test_a_card_that_lies_in_the_shop_is_activated_once(self) -> None:
        executor = await self.executor()
        self.admin.run("INSERT INTO dinedesk_kitchen.gift_cards (card_number) VALUES ('BLANK')")
        await self.refused("card_exists", giftcards.purchase(executor, KITCHEN, "BLANK", 5, SHOP))
        for number in ("BLANK", "NEVER ENTERED"):
            sale = await giftcards.activate(executor, KITCHEN, number, 20, TILL)
            self.assertEqual((sale.type, sale.after), ("activate", 20))
            await self.refused(
                "card_exists", giftcards.activate(executor, KITCHEN, number, 5, TILL)
            )

    async def test_a_number_whose_sale_was_reversed_can_be_sold_again(self) -> None:
        executor = await self.sold()
        sale = await giftcards.balance(executor, KITCHEN, CARD)
        assert sale is not None
        (row,) = self.admin.rows("SELECT id FROM dinedesk_kitchen.pos_gift_card_transactions")
        await giftcards.reverse(executor, KITCHEN, CARD, SHOP, transaction_id=row[0])
        self.assertEqual(await self.on_it(executor), 0)
        await giftcards.purchase(executor, KITCHEN, CARD, 30, SHOP)
        card = await giftcards.balance(executor, KITCHEN, CARD)
        assert card is not None
        self.assertEqual((card.balance, card.initial_balance), (30, 30))

    async def test_a_number_that_is_sold_again_has_the_expiry_of_the_new_sale(self) -> None:
        executor = await self.executor()
        until = datetime(2027, 11, 22, tzinfo=UTC)
        sold = CardDetails(expiry_date=until)
        cause = evolve(SHOP, key="sale")
        await giftcards.purchase(executor, KITCHEN, CARD, 30, cause, sold)
        await giftcards.reverse(executor, KITCHEN, CARD, SHOP, key="sale")
        await giftcards.purchase(executor, KITCHEN, CARD, 30, SHOP)
        card = await giftcards.balance(executor, KITCHEN, CARD)
        assert card is not None
        self.assertIsNone(card.expiry_date)

    async def test_a_card_that_is_activated_keeps_the_expiry_that_it_was_entered_with(self) -> None:
        executor = await self.executor()
        until = datetime(2027, 11, 22, tzinfo=UTC)
        self.admin.run(
            "INSERT INTO dinedesk_kitchen.gift_cards (card_number, expiry_date) VALUES (%s, %s)",
            CARD,
            until,
        )
        await giftcards.activate(executor, KITCHEN, CARD, 20, TILL)
        card = await giftcards.balance(executor, KITCHEN, CARD)
        assert card is not None
        self.assertEqual(card.expiry_date, until)

    async def test_what_can_be_no_number_is_refused(self) -> None:
        executor = await self.executor()
        for number in ("", " ", "ÄÖ", "1\n2", "x" * 65):
            with self.subTest(number=number):
                await self.refused(
                    "invalid_card", giftcards.purchase(executor, KITCHEN, number, 5, SHOP)
                )
                await self.refused(
                    "unknown_card", giftcards.deduct(executor, KITCHEN, number, 5, SHOP)
                )
                self.assertIsNone(await giftcards.balance(executor, KITCHEN, number))

    async def test_an_amount_is_positive_and_in_the_currencys_decimals(self) -> None:
        executor = await self.sold()
        for amount in (0, -1, Decimal("0.001"), True, "5", None, Decimal("NaN"), 10**11):
            for move in (giftcards.deduct, giftcards.top_up, giftcards.activate):
                with self.subTest(amount=amount, move=move.__name__):
                    error = await self.refused(
                        "invalid_amount", move(executor, KITCHEN, CARD, amount, TILL)
                    )
                    self.assertEqual(error.details, {"field": "amount"})
        dinars = evolve(KITCHEN, currency="KWD")
        moved = await giftcards.deduct(executor, dinars, CARD, Decimal("0.0010"), TILL)
        self.assertEqual(str(moved.after), "49.999")


class SpendingTests(GiftCardCase):
    async def test_what_is_spent_is_gone(self) -> None:
        executor = await self.sold()
        cause = evolve(TILL, order_id="17", note="lunch")
        moved = await giftcards.deduct(executor, KITCHEN, "gc-1", Decimal("12.34"), cause)
        self.assertEqual((moved.seq, moved.type, moved.replayed), (2, "deduct", False))
        self.assertEqual((moved.before, moved.amount), (50, Decimal("-12.34")))
        self.assertEqual(await self.on_it(executor), Decimal("37.66"))
        self.assertEqual(
            self.admin.rows(
                "SELECT principal, device_id, order_id, reference, idempotency_key"
                " FROM dinedesk_kitchen.pos_gift_card_transactions WHERE seq = 2"
            ),
            [("device POS_1", "POS_1", "17", "lunch", None)],
        )

    async def test_nothing_is_spent_that_is_not_there(self) -> None:
        executor = await self.sold()
        error = await self.refused(
            "insufficient_balance",
            giftcards.deduct(executor, KITCHEN, CARD, Decimal("50.01"), TILL),
            BadRequest,
        )
        self.assertEqual({k: str(v) for k, v in error.details.items()}, {"currentBalance": "50.00"})
        self.assertEqual(self.history(), [("purchase", 50)])

    async def test_the_last_penny_depletes_a_card(self) -> None:
        executor = await self.sold()
        await giftcards.deduct(executor, KITCHEN, CARD, 50, TILL)
        card = await giftcards.balance(executor, KITCHEN, CARD)
        assert card is not None
        self.assertEqual((card.status, card.balance), ("depleted", 0))
        moved = await giftcards.top_up(executor, KITCHEN, CARD, 5, TILL)
        self.assertEqual((moved.type, moved.after), ("top_up", 5))

    async def test_a_card_holds_no_more_than_the_ledger_can(self) -> None:
        executor = await self.sold(99_999_999_999)
        await self.refused("invalid_amount", giftcards.top_up(executor, KITCHEN, CARD, 1, TILL))

    async def test_an_unknown_card_is_refused(self) -> None:
        executor = await self.sold()
        self.assertIsNone(await giftcards.balance(executor, KITCHEN, "OTHER"))
        for call in (
            giftcards.deduct(executor, KITCHEN, "OTHER", 5, TILL),
            giftcards.top_up(executor, KITCHEN, "OTHER", 5, TILL),
            giftcards.block(executor, KITCHEN, "OTHER"),
            giftcards.deduct(executor, GRILL, CARD, 5, TILL),
        ):
            await self.refused("unknown_card", call, NotFound)

    async def test_a_blocked_card_is_as_it_was_when_it_is_unblocked(self) -> None:
        executor = await self.sold()
        self.assertEqual((await giftcards.block(executor, KITCHEN, CARD)).status, "blocked")
        self.assertEqual((await giftcards.block(executor, KITCHEN, CARD)).status, "blocked")
        await self.refused(
            "card_blocked", giftcards.deduct(executor, KITCHEN, CARD, 5, TILL), BadRequest
        )
        await self.refused("card_blocked", giftcards.top_up(executor, KITCHEN, CARD, 5, TILL))
        self.assertEqual((await giftcards.unblock(executor, KITCHEN, CARD)).status, "active")
        await giftcards.deduct(executor, KITCHEN, CARD, 5, TILL)

    async def test_a_card_is_valid_to_its_last_instant(self) -> None:
        executor = await self.executor()
        now = self.admin.value("SELECT clock_timestamp()")
        for number, seconds in (("LATER", 60), ("EARLIER", -60)):
            details = CardDetails(expiry_date=now + timedelta(seconds=seconds))
            await giftcards.purchase(executor, KITCHEN, number, 5, SHOP, details)
        await giftcards.deduct(executor, KITCHEN, "LATER", 1, TILL)
        await self.refused(
            "card_expired", giftcards.deduct(executor, KITCHEN, "EARLIER", 1, TILL), BadRequest
        )
        card = await giftcards.balance(executor, KITCHEN, "EARLIER")
        assert card is not None
        self.assertEqual(card.status, "expired")

    async def test_a_shop_with_gift_cards_of_its_own_has_none_here(self) -> None:
        executor = await self.executor()
        self.admin.run("DROP TABLE dinedesk_kitchen.pos_gift_card_transactions CASCADE")
        self.admin.run("DROP TABLE dinedesk_kitchen.gift_cards CASCADE")
        await self.refused("no_ledger", giftcards.balance(executor, KITCHEN, CARD), NotFound)
        await self.refused("no_ledger", giftcards.deduct(executor, KITCHEN, CARD, 5, TILL))


class RetryTests(GiftCardCase):
    async def test_the_same_call_is_answered_with_the_same_movement(self) -> None:
        executor = await self.sold()
        cause = evolve(TILL, key="k", note="first")
        first = await giftcards.deduct(executor, KITCHEN, CARD, 20, cause)
        again = await giftcards.deduct(
            executor, KITCHEN, CARD, Decimal("20.000"), evolve(cause, note="x")
        )
        self.assertEqual(again, evolve(first, replayed=True))
        self.assertEqual(await self.on_it(executor), 30)

    async def test_a_retry_is_answered_whatever_became_of_the_card(self) -> None:
        executor = await self.sold()
        first = await giftcards.deduct(executor, KITCHEN, CARD, 40, evolve(TILL, key="k"))
        await giftcards.deduct(executor, KITCHEN, CARD, 10, TILL)
        await giftcards.block(executor, KITCHEN, CARD)
        self.admin.run("UPDATE dinedesk_kitchen.gift_cards SET expiry_date = 'epoch'")
        again = await giftcards.deduct(executor, KITCHEN, CARD, 40, evolve(TILL, key="k"))
        self.assertEqual(again, evolve(first, replayed=True))

    async def test_a_key_names_one_movement(self) -> None:
        executor = await self.sold()
        cause = evolve(TILL, key="k")
        await giftcards.deduct(executor, KITCHEN, CARD, 20, cause)
        for call in (
            giftcards.deduct(executor, KITCHEN, CARD, 21, cause),
            giftcards.top_up(executor, KITCHEN, CARD, 20, cause),
        ):
            await self.refused("idempotency_mismatch", call, Unprocessable)
        self.assertEqual(await self.on_it(executor), 30)

    async def test_a_key_of_a_sale_does_not_name_a_top_up_of_the_same_amount(self) -> None:
        executor = await self.executor()
        cause = evolve(SHOP, key="k")
        await giftcards.purchase(executor, KITCHEN, CARD, 20, cause)
        call = giftcards.top_up(executor, KITCHEN, CARD, 20, cause)
        await self.refused("idempotency_mismatch", call, Unprocessable)
        self.assertEqual(await self.on_it(executor), 20)

    async def test_a_retry_finds_its_own_movement_before_a_tombstone_of_the_platform(self) -> None:
        executor = await self.sold()
        cause = evolve(TILL, key="k")
        await giftcards.deduct(executor, KITCHEN, CARD, 20, cause)
        # posd would reverse the movement. A shop can insert the row by itself.
        self.admin.run(
            "INSERT INTO dinedesk_kitchen.pos_gift_card_transactions (card_number, seq, prev_seq,"
            " balance_before, amount, balance_after, transaction_type, principal, idempotency_key)"
            " VALUES (%s, 3, 2, 30, 0, 30, 'tombstone', 'platform', 'k')",
            CARD,
        )
        again = await giftcards.deduct(executor, KITCHEN, CARD, 20, cause)
        self.assertTrue(again.replayed)

    async def test_keys_belong_to_who_uses_them(self) -> None:
        executor = await self.sold()
        for principal in ("platform", "tenant", "device A", "device B"):
            moved = await giftcards.deduct(
                executor, KITCHEN, CARD, 5, MovementCause(principal, "k")
            )
            self.assertFalse(moved.replayed)
        self.assertEqual(await self.on_it(executor), 30)


class ReversalTests(GiftCardCase):
    async def spent(
        self, executor: Executor, key: str = "k", cause: MovementCause = TILL
    ) -> CardMovement:
        return await giftcards.deduct(executor, KITCHEN, CARD, 20, evolve(cause, key=key))

    async def test_a_reversal_by_key_gives_everything_back_once(self) -> None:
        executor = await self.sold()
        await self.spent(executor)
        undone = await giftcards.reverse(executor, KITCHEN, CARD, TILL, key="k")
        self.assertEqual((undone.type, undone.amount, undone.after), ("reverse", 20, 50))
        again = await giftcards.reverse(executor, KITCHEN, CARD, TILL, key="k")
        self.assertEqual(again, evolve(undone, replayed=True))
        self.assertEqual(self.history(), [("purchase", 50), ("deduct", -20), ("reverse", 20)])

    async def test_a_reversal_by_transaction_is_the_same_as_by_key(self) -> None:
        executor = await self.sold()
        moved = await self.spent(executor)
        undone = await giftcards.reverse(
            executor, KITCHEN, CARD, TILL, transaction_id=moved.transaction_id
        )
        self.assertEqual(undone.after, 50)
        again = await giftcards.reverse(executor, KITCHEN, CARD, TILL, key="k")
        self.assertEqual(again, evolve(undone, replayed=True))

    async def test_a_movement_that_was_reversed_is_not_made_again_by_a_late_retry(self) -> None:
        executor = await self.sold()
        await self.spent(executor)
        await giftcards.reverse(executor, KITCHEN, CARD, TILL, key="k")
        await self.refused("reversed", self.spent(executor), Conflict)
        self.assertEqual(await self.on_it(executor), 50)

    async def test_a_reversal_that_comes_first_keeps_its_original_from_coming(self) -> None:
        executor = await self.sold()
        stone = await giftcards.reverse(executor, KITCHEN, CARD, TILL, key="k")
        self.assertTrue(stone.tombstoned)
        self.assertEqual((stone.amount, stone.after, stone.replayed), (0, 50, False))
        again = await giftcards.reverse(executor, KITCHEN, CARD, TILL, key="k")
        self.assertEqual(again, evolve(stone, replayed=True))
        await self.refused("reversed", self.spent(executor), Conflict)
        self.assertFalse((await self.spent(executor, "other")).replayed)

    async def test_a_sale_comes_too_late_after_its_reversal(self) -> None:
        executor = await self.executor()
        await giftcards.reverse(executor, KITCHEN, CARD, SHOP, key="k")
        self.assertIsNone(await giftcards.balance(executor, KITCHEN, CARD))
        await self.refused("unknown_card", giftcards.deduct(executor, KITCHEN, CARD, 1, TILL))
        await self.refused("unknown_card", giftcards.block(executor, KITCHEN, CARD))
        for sell in (giftcards.purchase, giftcards.activate):
            await self.refused("reversed", sell(executor, KITCHEN, CARD, 5, evolve(SHOP, key="k")))
        sale = await giftcards.purchase(executor, KITCHEN, CARD, 5, evolve(SHOP, key="k2"))
        self.assertEqual((sale.seq, sale.after), (2, 5))

    async def test_the_platform_reverses_everybodys_movements(self) -> None:
        executor = await self.sold()
        one = await self.spent(executor)
        undone = await giftcards.reverse(executor, KITCHEN, CARD, SHOP, key="k")
        self.assertEqual(undone.after, 50)
        other = await self.spent(executor, "k2")
        await giftcards.reverse(executor, KITCHEN, CARD, SHOP, transaction_id=other.transaction_id)
        self.assertEqual(await self.on_it(executor), 50)
        self.assertNotEqual(one.transaction_id, other.transaction_id)

    async def test_the_platforms_own_key_comes_first(self) -> None:
        executor = await self.sold()
        await self.spent(executor)
        await giftcards.deduct(executor, KITCHEN, CARD, 7, evolve(SHOP, key="k"))
        undone = await giftcards.reverse(executor, KITCHEN, CARD, SHOP, key="k")
        self.assertEqual(undone.amount, 7)

    async def test_of_several_with_the_key_the_platform_has_to_say_which(self) -> None:
        executor = await self.sold()
        await self.spent(executor)
        await self.spent(executor, cause=MovementCause("device B"))
        call = giftcards.reverse(executor, KITCHEN, CARD, SHOP, key="k")
        await self.refused("ambiguous_key", call, Conflict)
        self.assertEqual(await self.on_it(executor), 10)

    async def test_the_platforms_tombstone_stops_everybody(self) -> None:
        executor = await self.sold()
        await giftcards.reverse(executor, KITCHEN, CARD, SHOP, key="k")
        await self.refused("reversed", self.spent(executor), Conflict)

    async def test_others_reverse_only_their_own(self) -> None:
        executor = await self.sold()
        moved = await self.spent(executor)
        other = MovementCause("device B")
        call = giftcards.reverse(
            executor, KITCHEN, CARD, other, transaction_id=moved.transaction_id
        )
        await self.refused("forbidden", call, Forbidden)
        # The caller's own key of this name has no movement.
        self.assertTrue(
            (await giftcards.reverse(executor, KITCHEN, CARD, other, key="k")).tombstoned
        )
        self.assertEqual(await self.on_it(executor), 30)
        self.assertTrue((await self.spent(executor)).replayed)

    async def test_what_a_sale_put_on_a_card_cannot_be_taken_back_when_it_is_spent(self) -> None:
        executor = await self.executor()
        await giftcards.purchase(executor, KITCHEN, CARD, 50, evolve(SHOP, key="sale"))
        await self.spent(executor)
        error = await self.refused(
            "insufficient_balance",
            giftcards.reverse(executor, KITCHEN, CARD, SHOP, key="sale"),
            BadRequest,
        )
        self.assertEqual(error.details, {"currentBalance": 30})

    async def test_money_goes_back_on_a_card_that_can_no_longer_be_used(self) -> None:
        executor = await self.sold()
        await self.spent(executor)
        await giftcards.block(executor, KITCHEN, CARD)
        self.assertEqual(
            (await giftcards.reverse(executor, KITCHEN, CARD, TILL, key="k")).after, 50
        )

    async def test_a_reversal_is_final(self) -> None:
        executor = await self.sold()
        await self.spent(executor)
        undone = await giftcards.reverse(executor, KITCHEN, CARD, TILL, key="k")
        stone = await giftcards.reverse(executor, KITCHEN, CARD, TILL, key="unknown")
        for each in (undone, stone):
            call = giftcards.reverse(
                executor, KITCHEN, CARD, TILL, transaction_id=each.transaction_id
            )
            await self.refused("not_reversible", call, Unprocessable)

    async def test_a_transaction_of_another_card_is_unknown_here(self) -> None:
        executor = await self.sold()
        moved = await self.spent(executor)
        await giftcards.purchase(executor, KITCHEN, "OTHER", 5, SHOP)
        for number, transaction_id in (
            ("OTHER", moved.transaction_id),
            ("NONE", moved.transaction_id),
            (CARD, moved.transaction_id + 1000),
            (CARD, 2**63),
            (CARD, 0),
        ):
            with self.subTest(number=number, transaction=transaction_id):
                call = giftcards.reverse(
                    executor, KITCHEN, number, SHOP, transaction_id=transaction_id
                )
                await self.refused("unknown_transaction", call, NotFound)
