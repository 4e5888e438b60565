"""Tests of combined movements of gift cards: each call gets the result of its own card."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from posd.database.pool import Pool
from posd.errors import BadRequest, Busy, PosdError, Refusal, StatementFailed, Unavailable
from posd.store import card_movements, giftcards
from posd.store.card_movements import CardMovement
from posd.store.ledgers import MovementCause
from posd.web.api import card_moves
from posd.web.api.card_moves import CardMoves
from tests.database_case import REACTOR, begin, until
from tests.store_case import KITCHEN, StoreCase

NAME = "posd moves"
ROWS = "dinedesk_kitchen.pos_gift_card_transactions"


class CardMovesTests(StoreCase):
    timeout = 300

    async def ready(self, cards: int = 0, amount: object = 50) -> CardMoves:
        """Create cards GC-0, GC-1, … with an amount on each."""
        self.database = Pool(REACTOR, self.dsn, size=4, statement_timeout=5.0, name=NAME)
        self.database.startService()
        self.addCleanup(self.database.stopService)
        await until(lambda: self.database.usage.idle == 4, "all links are up")
        for number in range(cards):
            await giftcards.purchase(
                self.database.of(1), KITCHEN, f"GC-{number}", amount, MovementCause("platform")
            )
        return CardMoves(self.database)

    def spend(
        self, moves: CardMoves, card: object, amount: object = 1, seconds: float = 7.5, **about: str
    ) -> Deferred[CardMovement]:
        cause = MovementCause("device POS_1", **about)
        move = giftcards.deduction_request(KITCHEN, f"GC-{card}", amount, cause)
        return begin(moves.make(KITCHEN, move, REACTOR.seconds() + seconds))

    async def outcomes(self, spending: Sequence[Deferred[CardMovement]]) -> list[Decimal | str]:
        """Return the balance after each movement, or the code of its refusal."""

        async def outcome(each: Deferred[CardMovement]) -> Decimal | str:
            try:
                return (await each).after
            except Refusal as refusal:
                return refusal.code

        return await gatherResults([begin(outcome(each)) for each in spending])

    def commits(self) -> list[int]:
        """Return the number of movements of each transaction, in order."""
        found = self.admin.rows(
            f"SELECT count(*) FROM {ROWS} WHERE transaction_type = 'deduct'"
            " GROUP BY xmin ORDER BY min(id)"
        )
        return [count for (count,) in found]

    async def test_what_comes_at_once_is_one_transaction_and_one_answer_each(self) -> None:
        moves = await self.ready(6)
        self.admin.run(
            "UPDATE dinedesk_kitchen.gift_cards SET is_blocked = true WHERE card_number = 'GC-5'"
        )
        spending = [
            self.spend(moves, card, 10 + number) for number, card in enumerate((0, 1, 2, 3))
        ]
        spending += [self.spend(moves, 4, 51), self.spend(moves, 5), self.spend(moves, "none")]
        self.assertEqual(
            await self.outcomes(spending),
            [40, 39, 38, 37, "insufficient_balance", "card_blocked", "unknown_card"],
        )
        self.assertEqual(self.commits(), [1, 3])

    async def test_several_movements_of_a_card_follow_each_other_in_their_order(self) -> None:
        moves = await self.ready(2, 5)
        asked = (0, 0, 1, 0, 0, 1, 0, 0)
        found = await self.outcomes([self.spend(moves, card) for card in asked])
        self.assertEqual(found, [4, 3, 4, 2, 1, 3, 0, "insufficient_balance"])
        self.assertEqual(self.commits(), [1, 6])

    async def test_a_key_is_used_once_by_all_who_call_with_it_at_once(self) -> None:
        moves = await self.ready(1)
        made = await gatherResults([self.spend(moves, 0, key="k") for _ in range(5)])
        self.assertEqual(len({each.transaction_id for each in made}), 1)
        self.assertEqual([each.replayed for each in made], [False, *[True] * 4])
        with self.assertRaises(Refusal) as caught:
            await self.spend(moves, 0, 2, key="k")
        self.assertEqual(caught.exception.code, "idempotency_mismatch")

    async def test_a_card_that_is_locked_is_waited_for_by_its_own_call_only(self) -> None:
        moves = await self.ready(3)
        with self.admin.transaction():
            self.admin.run(
                "SELECT FROM dinedesk_kitchen.gift_cards WHERE card_number = 'GC-1' FOR UPDATE"
            )
            first, locked, *others = [self.spend(moves, card) for card in (0, 1, 2, 0)]
            self.assertEqual(await self.outcomes([first, *others]), [49, 49, 48])
            # All three were asked for together, and nothing was done again.
            self.assertEqual(self.commits(), [1, 2])
            self.assertNoResult(locked)
        self.assertEqual((await locked).after, 49)

    async def test_a_card_that_is_sold_meanwhile_is_unknown_to_who_waited_for_another(self) -> None:
        await self.ready(1)
        asked = [
            giftcards.deduction_request(KITCHEN, f"GC-{card}", 1, MovementCause("device POS_1"))
            for card in (0, 1)
        ]
        with self.admin.transaction():
            self.admin.run("UPDATE dinedesk_kitchen.gift_cards SET order_id = 'A-1'")
            waiting = begin(card_movements.move_many(self.database.of(1), KITCHEN, asked))
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND transactionid IS NOT NULL"
            await until(lambda: bool(self.admin.rows(waits)), "it waits for the lock")
            await giftcards.purchase(
                self.database.of(1), KITCHEN, "GC-1", 50, MovementCause("platform")
            )
        first, second = await waiting
        self.assertEqual(getattr(first, "after", None), 49)
        self.assertEqual(getattr(second, "code", None), "unknown_card")

    async def test_one_that_cannot_be_written_fails_alone(self) -> None:
        moves = await self.ready(4)
        self.admin.run(
            "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN IF NEW.card_number = ''GC-2'' THEN RAISE ''no'' USING ERRCODE = NEW.reference; END IF;"
            " RETURN NEW; END';"
            f"CREATE TRIGGER fail BEFORE INSERT ON {ROWS} FOR EACH ROW EXECUTE FUNCTION public.fail()"
        )
        # As a function raises it, as a server whose disk is full does, and as a dblink does that finds none.
        for left, code, error in (
            (49, "P0001", StatementFailed),
            (48, "53100", Unavailable),
            (47, "08001", StatementFailed),
        ):
            spending = [self.spend(moves, card, note=code) for card in (0, 1, 2, 3)]
            with self.assertRaises(error):
                await spending.pop(2)
            self.assertEqual(await self.outcomes(spending), [left] * 3)
            with self.assertRaises(error):
                await self.spend(moves, 2, note=code)
        self.assertEqual(self.admin.value(f"SELECT count(*) FROM {ROWS} WHERE amount < 0"), 9)

    async def test_one_that_meets_the_shops_own_movement_is_made_after_it(self) -> None:
        moves = await self.ready(2)
        with self.admin.transaction():
            # Without the lock of the card that posd's own movements take.
            self.admin.run(
                f"INSERT INTO {ROWS} (card_number, seq, prev_seq, balance_before, amount, balance_after,"
                " transaction_type) VALUES ('GC-0', 2, 1, 50, -10, 40, 'deduct')"
            )
            meeting, other = self.spend(moves, 0, key="k"), self.spend(moves, 1)
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND transactionid IS NOT NULL"
            await until(lambda: bool(self.admin.rows(waits)), "it waits for the shop")
        self.assertEqual(await self.outcomes([meeting, other]), [39, 49])
        self.assertEqual((await self.spend(moves, 0, key="k")).replayed, True)

    async def test_one_that_a_trigger_swallows_was_not_made(self) -> None:
        moves = await self.ready(3)
        self.admin.run(
            "CREATE FUNCTION public.swallow() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RETURN CASE WHEN NEW.card_number <> ''GC-1'' THEN NEW END; END';"
            f"CREATE TRIGGER swallow BEFORE INSERT ON {ROWS}"
            " FOR EACH ROW EXECUTE FUNCTION public.swallow()"
        )
        first, swallowed, third = [self.spend(moves, card) for card in (0, 1, 2)]
        with self.assertRaises(PosdError):
            await swallowed
        self.assertEqual(await self.outcomes([first, third]), [49, 49])
        self.assertEqual(self.commits(), [1, 1])

    async def test_a_slow_one_is_waited_for_by_its_own_call_only(self) -> None:
        moves = await self.ready(4)
        self.patch(card_moves, "_TOGETHER_SECONDS", 0.2)
        self.admin.run(
            "CREATE FUNCTION public.doze() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN IF NEW.card_number = ''GC-2'' THEN PERFORM pg_sleep(9); END IF; RETURN NEW; END';"
            f"CREATE TRIGGER doze BEFORE INSERT ON {ROWS} FOR EACH ROW EXECUTE FUNCTION public.doze()"
        )
        slow = self.spend(moves, 2, seconds=1.5)
        self.assertEqual(
            await self.outcomes([self.spend(moves, card) for card in (0, 0, 1)]), [49, 48, 49]
        )
        slower = self.spend(moves, 2, seconds=1.5)
        self.assertEqual(
            await self.outcomes([self.spend(moves, card) for card in (0, 0, 1)]), [47, 46, 48]
        )
        self.assertNoResult(slow)
        self.assertNoResult(slower)
        self.assertEqual(await self.outcomes([slow, slower]), ["busy", "busy"])

    async def test_a_time_that_python_cannot_have_spoils_no_answer(self) -> None:
        moves = await self.ready(2)
        self.admin.run(
            "INSERT INTO dinedesk_kitchen.gift_cards (card_number, expiry_date)"
            " VALUES ('GC-9', '20000-01-01');"
            f"INSERT INTO {ROWS} (card_number, seq, balance_before, amount, balance_after, transaction_type,"
            " expiry_date, created_at)"
            " VALUES ('GC-9', 1, 0, 5, 5, 'purchase', '20000-01-01', '0044-03-15 BC')"
        )
        spending = [self.spend(moves, card, amount) for card, amount in ((0, 1), (1, 1), (9, 6))]
        self.assertEqual(await self.outcomes(spending), [49, 49, "insufficient_balance"])
        numbers = ["GC-0", "GC-9"]
        cards = await giftcards.balances(self.database.of(1), KITCHEN, numbers)
        self.assertEqual([cards[each].balance for each in numbers], [49, 5])
        self.assertEqual(cards["GC-9"].expiry_date, datetime.max.replace(tzinfo=UTC))

    async def test_what_may_have_been_made_is_not_made_again(self) -> None:
        moves = await self.ready(3)
        self.admin.run(
            "CREATE TABLE public.slow ();"
            "CREATE FUNCTION public.doze() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
            " 'BEGIN IF to_regclass(''public.slow'') IS NOT NULL THEN PERFORM pg_sleep(20); END IF;"
            " RETURN NULL; END';"
            f"CREATE CONSTRAINT TRIGGER doze AFTER INSERT ON {ROWS} DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION public.doze()"
        )
        spending = [self.spend(moves, card) for card in (0, 1, 2)]
        asleep = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event = 'PgSleep'"
        )
        for last in (False, True):
            await until(lambda: bool(self.admin.rows(asleep)), "it commits")
            if last:
                # It would be made now.
                self.admin.run("DROP TABLE public.slow")
            self.admin.run(f"SELECT pg_terminate_backend(pid, 5000) FROM ({asleep}) AS a")
        self.assertEqual(await self.outcomes(spending), ["outcome_unknown"] * 3)
        self.assertEqual(self.commits(), [])

    async def test_what_is_too_late_is_not_made_and_does_not_hold_others_up(self) -> None:
        moves = await self.ready(3)
        found = [self.spend(moves, 0), self.spend(moves, 1, seconds=-1), self.spend(moves, 2)]
        self.assertEqual(await self.outcomes(found), [49, "busy", 49])
        with self.assertRaises(Busy):
            await self.spend(moves, 0, seconds=-1)
        self.assertEqual(self.admin.value(f"SELECT count(*) FROM {ROWS} WHERE amount < 0"), 2)

    async def test_one_that_waits_too_long_is_told_so_in_time(self) -> None:
        moves = await self.ready(3)
        self.admin.run(
            "CREATE FUNCTION public.doze() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(1.5); RETURN NEW; END';"
            f"CREATE TRIGGER doze BEFORE INSERT ON {ROWS} FOR EACH ROW EXECUTE FUNCTION public.doze()"
        )
        under_way = self.spend(moves, 0)
        late, later = self.spend(moves, 1, seconds=0.1), self.spend(moves, 2, seconds=0.2)
        self.assertEqual(await self.outcomes([late, later]), ["busy", "busy"])
        self.assertNoResult(under_way)
        self.assertEqual(await self.outcomes([under_way]), [49])
        self.assertEqual(self.commits(), [1])

    async def test_a_crowd_whose_connections_are_cut_off_spends_each_penny_once(self) -> None:
        moves = await self.ready(4, 60)
        self.admin.run(
            "CREATE FUNCTION public.doze() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END';"
            f"CREATE TRIGGER doze AFTER INSERT ON {ROWS} FOR EACH STATEMENT EXECUTE FUNCTION public.doze()"
        )
        dice, answered, retries = random.Random(7), Counter[str](), 0
        made: dict[tuple[str, str], int | None] = {}

        async def insist(till: str, key: str, card: int, amount: int) -> None:
            nonlocal retries
            while True:
                try:
                    number: int | None = (
                        await self.spend(moves, card, amount, key=f"{till}-{key}")
                    ).transaction_id
                except BadRequest:
                    number = None
                except Unavailable:
                    retries += 1
                    await deferLater(REACTOR, 0)
                    await until(lambda: self.database.up, "the pool is up")
                    continue
                assert made.setdefault((till, key), number) == number
                return

        end = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
            " AND datname = current_database() AND state = 'active' LIMIT 1"
        )

        async def trade(till: str) -> None:
            for each in range(4):
                card, amount = dice.randrange(4), dice.randint(1, 9)
                for _ in range(2):
                    await insist(till, str(each), card, amount)
                answered[till] += 1
                if answered.total() % 10 == 0:
                    # One that is in the middle of something: an idle one costs no caller anything.
                    await until(
                        lambda: answered.total() > 90 or bool(self.admin.rows(end, NAME)),
                        "one was ended",
                    )

        await gatherResults([begin(trade(f"till{number}")) for number in range(25)])
        rows = self.admin.rows(
            f"SELECT idempotency_key, id FROM {ROWS} WHERE transaction_type = 'deduct'"
        )
        spent = {
            f"{till}-{key}": number for (till, key), number in made.items() if number is not None
        }
        self.assertEqual((dict(rows), len(rows)), (spent, len(spent)))
        self.assertEqual(len(made), 100)
        self.assertGreater(retries, 0)
        self.assertIn(None, made.values())
        self.assertLess(len(self.commits()), len(rows))
