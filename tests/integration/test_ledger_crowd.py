"""Forty tills with one card and one account, which retry with their keys while connections are cut."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from attrs import define, field, frozen
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from posd.database.reconnecting import ReconnectingConnection
from posd.errors import BadRequest, Unavailable
from posd.store import giftcards, loyalty
from posd.store.ledgers import MovementCause
from tests.database_case import REACTOR, begin, until
from tests.store_case import KITCHEN, StoreCase

TILLS: Final = 40
CALLS: Final = 6
CARD: Final = "GC-1"
ANN: Final = "+447700900123"
MONEY: Final = 1000
NAME: Final = "posd till"


class Moved(Protocol):
    @property
    def transaction_id(self) -> int: ...


@frozen
class Call:
    """An amount to spend, and its key."""

    cause: MovementCause
    amount: int


Spend = Callable[[ReconnectingConnection, Call], Awaitable[Moved]]


async def spend_money(connection: ReconnectingConnection, call: Call) -> Moved:
    return await giftcards.deduct(connection, KITCHEN, CARD, call.amount, call.cause)


async def spend_points(connection: ReconnectingConnection, call: Call) -> Moved:
    return await loyalty.redeem(connection, KITCHEN, ANN, call.amount, call.cause)


@define(eq=False)
class Till:
    """A till that repeats a call with the same key until it has an answer."""

    connection: ReconnectingConnection
    calls: list[Call]
    answers: dict[Call, int | None] = field(factory=dict)
    """The transaction of each call, or None if there was not enough."""
    retries: int = 0

    async def trade(self, spend: Spend, answered: Callable[[], None]) -> None:
        for call in self.calls:
            # Repeat, as if the answer had been lost.
            await self._insist(spend, call)
            await self._insist(spend, call)
            answered()

    async def _insist(self, spend: Spend, call: Call) -> None:
        while True:
            try:
                number: int | None = (await spend(self.connection, call)).transaction_id
            except BadRequest:
                number = None
            except Unavailable:
                self.retries += 1
                # The link is notified of its end after its users.
                await deferLater(REACTOR, 0)
                await until(lambda: self.connection.up, "the till is connected")
                continue
            first = self.answers.setdefault(call, number)
            assert first == number, (first, number)
            return


class CrowdTests(StoreCase):
    timeout = 600

    async def crowd(self, dice: random.Random) -> list[Till]:
        tills = []
        for number in range(TILLS):
            connection = ReconnectingConnection(
                REACTOR, self.dsn, name=NAME, statement_timeout=5.0, quiet=True
            )
            connection.startService()
            self.addCleanup(connection.stopService)
            calls = [
                Call(MovementCause(f"device {number}", f"k{each}"), dice.randint(1, 9))
                for each in range(CALLS)
            ]
            tills.append(Till(connection, calls))
        await until(lambda: all(till.connection.up for till in tills), "all tills are connected")
        return tills

    async def trade(self, spend: Spend) -> list[Till]:
        """Let all tills spend, and cut a connection after every ten answers."""
        dice = random.Random(7)
        tills = await self.crowd(dice)
        answered = 0

        def cut() -> None:
            nonlocal answered
            answered += 1
            if answered % 10 == 0:
                # A connection in the middle of a call, if there is one.
                self.admin.run(
                    "SELECT pg_terminate_backend(pid) FROM ("
                    "  SELECT pid FROM pg_stat_activity WHERE application_name = %s"
                    "     AND datname = current_database() ORDER BY state = 'active' DESC, pid LIMIT 1"
                    ") AS victim",
                    NAME,
                )
                dice.choice(tills).connection.drop()

        await gatherResults([begin(till.trade(spend, cut)) for till in tills])
        return tills

    def check(self, tills: list[Till], rows: list[tuple[str, str, int, int]]) -> None:
        """Assert that every answer has a row and every row an answer, each key once, and no gap."""
        answers = {
            (call.cause.principal, call.cause.key): (number, -call.amount)
            for till in tills
            for call, number in till.answers.items()
            if number is not None
        }
        written = {(who, key): (number, amount) for who, key, number, amount in rows}
        self.assertEqual(len(written), len(rows))
        self.assertEqual(written, answers)
        self.assertEqual(len([a for till in tills for a in till.answers]), TILLS * CALLS)
        self.assertGreater(sum(till.retries for till in tills), 0)
        # The amount was less than all wanted. The rest was too little for some call.
        left = MONEY + sum(amount for *_, amount in rows)
        wanted = [call.amount for till in tills for call, n in till.answers.items() if n is None]
        self.assertGreaterEqual(left, 0)
        self.assertLess(left, min(wanted))

    async def test_of_a_card_exactly_what_was_on_it_is_spent(self) -> None:
        await giftcards.purchase(
            await self.executor(), KITCHEN, CARD, MONEY, MovementCause("platform")
        )
        tills = await self.trade(spend_money)
        spent = self.admin.rows(
            "SELECT principal, idempotency_key, id, amount::integer"
            "  FROM dinedesk_kitchen.pos_gift_card_transactions WHERE transaction_type = 'deduct'"
        )
        self.check(tills, spent)

    async def test_of_an_account_exactly_what_was_on_it_is_redeemed(self) -> None:
        await loyalty.add(
            await self.executor(), KITCHEN, ANN, MONEY, MovementCause("platform"), joining=True
        )
        tills = await self.trade(spend_points)
        spent = self.admin.rows(
            "SELECT principal, idempotency_key, id, points"
            "  FROM dinedesk_kitchen.pos_loyalty_transactions WHERE transaction_type = 'redeem'"
        )
        self.check(tills, spent)
