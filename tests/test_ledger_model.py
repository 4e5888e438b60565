"""A card and an account, compared with a simple model, for all sequences of steps.

The model is a list of movements and the rules of the protocol, without SQL. After each step, balance,
answer and refusal must equal those of the model.
"""

from __future__ import annotations

from collections.abc import Coroutine
from decimal import Decimal
from itertools import count
from typing import Any, ClassVar, Final, TypeVar

import psycopg2
from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from posd.database.connection import Parameters, Row
from posd.database.reconnecting import Executor
from posd.errors import Refusal
from posd.store import giftcards, loyalty, loyalty_accounts
from posd.store.ledgers import PLATFORM, MovementCause
from posd.testing.postgres import test_server
from tests.schema_case import two_shops
from tests.store_case import KITCHEN

T = TypeVar("T")

PRINCIPALS: Final = st.sampled_from(["platform", "device A", "device B"])
KEYS: Final = st.sampled_from([None, None, "k1", "k2", "k3"])
AMOUNTS: Final = st.sampled_from([1, 5, 20, 30])


@define(eq=False)
class Blocking:
    """A session on psycopg2, for coroutines that never wait."""

    connection: Any

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall())

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        await self.query(sql, parameters)


def at_once(call: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits."""
    try:
        call.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waits")


@define
class Entry:
    """A movement in the model. `undone` is the number of its reversal."""

    kind: str
    amount: int
    principal: str
    key: str | None
    order: str | None = None
    undone: int | None = None


@define
class Model:
    """The expected chain. A step returns a code, or `made`/`replayed` and a number."""

    entries: list[Entry] = field(factory=list)
    blocked: bool = False

    @property
    def balance(self) -> int:
        return sum(entry.amount for entry in self.entries)

    def move(self, entry: Entry, *, lacking: str) -> tuple[str, int | None]:
        """Append a movement, unless it exists or is not allowed."""
        if entry.key is not None and (earlier := self._known(entry)) is not None:
            found = self.entries[earlier]
            if found.kind == "tombstone":
                return "reversed", None
            if (found.kind, found.amount) != (entry.kind, entry.amount):
                return "idempotency_mismatch", None
            return ("reversed", None) if found.undone is not None else ("replayed", earlier)
        if self.blocked:
            return "card_blocked", None
        if self.balance + entry.amount < 0:
            return lacking, None
        earned = {each.order for each in self.entries if each.kind == "add" and each.order}
        if entry.kind == "add" and entry.order in earned:
            return "already_earned", None
        return self._append(entry)

    def undo(
        self, principal: str, key: str | None, number: int | None, *, lacking: str
    ) -> tuple[str, int | None]:
        """Reverse the movement of this key or number."""
        if number is None:
            found = self._mine(principal, key)
            if not found and principal == PLATFORM:
                found = [
                    n
                    for n, each in enumerate(self.entries)
                    if each.key == key and each.kind != "tombstone"
                ]
            if len(found) > 1:
                return "ambiguous_key", None
            if not found:
                return self._append(Entry("tombstone", 0, principal, key))
            if self.entries[found[0]].kind == "tombstone":
                return "replayed", found[0]
            number = found[0]
        original = self.entries[number]
        if principal not in (PLATFORM, original.principal):
            return "forbidden", None
        if original.kind in ("tombstone", "reverse"):
            return "not_reversible", None
        if original.undone is not None:
            return "replayed", original.undone
        if self.balance < original.amount:
            return lacking, None
        original.undone = len(self.entries)
        return self._append(Entry("reverse", -original.amount, principal, None))

    def _known(self, entry: Entry) -> int | None:
        mine = self._mine(entry.principal, entry.key)
        others = [n for n in self._mine(PLATFORM, entry.key) if self.entries[n].kind == "tombstone"]
        return next(iter(mine + others), None)

    def _mine(self, principal: str, key: str | None) -> list[int]:
        return [
            n
            for n, each in enumerate(self.entries)
            if (each.principal, each.key) == (principal, key)
        ]

    def _append(self, entry: Entry) -> tuple[str, int | None]:
        self.entries.append(entry)
        return "made", len(self.entries) - 1


class LedgerMachine(RuleBasedStateMachine):
    """Steps on a chain. The subclasses define which chain."""

    executor: ClassVar[Executor]
    numbers: ClassVar[count[int]] = count(1)

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.ids: list[int] = []

    def same(self, expected: tuple[str, int | None], call: Coroutine[Any, Any, Any]) -> None:
        """Assert that the ledger answers as the model does."""
        outcome, number = expected
        try:
            moved = at_once(call)
        except Refusal as refusal:
            assert refusal.code == outcome, (refusal.code, expected)
            return
        assert outcome == ("replayed" if moved.replayed else "made"), (moved, expected)
        assert number is not None
        entry = self.model.entries[number]
        assert (moved.seq, moved.type) == (number + 1, entry.kind), (moved, entry)
        if outcome == "made":
            self.ids.append(moved.transaction_id)
            assert moved.after == self.model.balance
        assert self.ids[number] == moved.transaction_id


class CardMachine(LedgerMachine):
    def __init__(self) -> None:
        super().__init__()
        self.card = f"GC-{next(self.numbers)}"
        sale = giftcards.purchase(self.executor, KITCHEN, self.card, 50, MovementCause(PLATFORM))
        self.same(self.model.move(Entry("purchase", 50, PLATFORM, None), lacking=""), sale)

    @rule(amount=AMOUNTS, principal=PRINCIPALS, key=KEYS)
    def deduct(self, amount: int, principal: str, key: str | None) -> None:
        expected = self.model.move(
            Entry("deduct", -amount, principal, key), lacking="insufficient_balance"
        )
        cause = MovementCause(principal, key)
        self.same(expected, giftcards.deduct(self.executor, KITCHEN, self.card, amount, cause))

    @rule(amount=AMOUNTS, principal=PRINCIPALS, key=KEYS)
    def top_up(self, amount: int, principal: str, key: str | None) -> None:
        expected = self.model.move(Entry("top_up", amount, principal, key), lacking="")
        cause = MovementCause(principal, key)
        self.same(expected, giftcards.top_up(self.executor, KITCHEN, self.card, amount, cause))

    @rule(principal=PRINCIPALS, key=KEYS, data=st.data())
    def reverse(self, principal: str, key: str | None, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(range(len(self.ids)))) if key is None else None
        expected = self.model.undo(principal, key, number, lacking="insufficient_balance")
        original = None if number is None else self.ids[number]
        self.same(
            expected,
            giftcards.reverse(
                self.executor,
                KITCHEN,
                self.card,
                MovementCause(principal),
                key=key,
                transaction_id=original,
            ),
        )

    @rule(blocked=st.booleans())
    def block(self, blocked: bool) -> None:
        change = giftcards.block if blocked else giftcards.unblock
        at_once(change(self.executor, KITCHEN, self.card))
        self.model.blocked = blocked

    @invariant()
    def what_is_on_the_card_is_what_the_model_has(self) -> None:
        card = at_once(giftcards.balance(self.executor, KITCHEN, self.card))
        assert card is not None
        assert card.balance == Decimal(self.model.balance) >= 0
        assert card.is_blocked == self.model.blocked


class AccountMachine(LedgerMachine):
    def __init__(self) -> None:
        super().__init__()
        self.phone = f"+44{next(self.numbers):010}"
        at_once(
            self.executor.query(
                "INSERT INTO dinedesk_kitchen.loyalty_accounts (phone) VALUES (%s) RETURNING id",
                (self.phone,),
            )
        )

    @rule(points=AMOUNTS, principal=PRINCIPALS, key=KEYS, order=st.sampled_from([None, "17", "18"]))
    def add(self, points: int, principal: str, key: str | None, order: str | None) -> None:
        expected = self.model.move(Entry("add", points, principal, key, order), lacking="")
        cause = MovementCause(principal, key, order_id=order)
        self.same(expected, loyalty.add(self.executor, KITCHEN, self.phone, points, cause))

    @rule(points=AMOUNTS, principal=PRINCIPALS, key=KEYS)
    def redeem(self, points: int, principal: str, key: str | None) -> None:
        expected = self.model.move(
            Entry("redeem", -points, principal, key), lacking="insufficient_points"
        )
        cause = MovementCause(principal, key)
        self.same(expected, loyalty.redeem(self.executor, KITCHEN, self.phone, points, cause))

    @rule(points=AMOUNTS, sign=st.sampled_from([1, -1]), principal=PRINCIPALS, key=KEYS)
    def adjust(self, points: int, sign: int, principal: str, key: str | None) -> None:
        expected = self.model.move(
            Entry("adjust", sign * points, principal, key), lacking="insufficient_points"
        )
        cause = MovementCause(principal, key)
        self.same(
            expected, loyalty.adjust(self.executor, KITCHEN, self.phone, sign * points, cause)
        )

    @rule(principal=PRINCIPALS, key=KEYS, data=st.data())
    def reverse(self, principal: str, key: str | None, data: st.DataObject) -> None:
        if key is None and not self.ids:
            return
        number = data.draw(st.sampled_from(range(len(self.ids)))) if key is None else None
        expected = self.model.undo(principal, key, number, lacking="insufficient_points")
        original = None if number is None else self.ids[number]
        self.same(
            expected,
            loyalty.reverse(
                self.executor,
                KITCHEN,
                self.phone,
                MovementCause(principal),
                key=key,
                transaction_id=original,
            ),
        )

    @invariant()
    def the_account_has_what_the_model_has(self) -> None:
        account = at_once(loyalty_accounts.find_account(self.executor, KITCHEN, self.phone))
        assert account is not None
        assert account.points == self.model.balance >= 0
        told = [entry for entry in self.model.entries if entry.kind != "tombstone"][:-11:-1]
        assert [(t.type, t.points) for t in account.recent] == [(e.kind, e.amount) for e in told]


class ModelTests(SynchronousTestCase):
    def run_machine(self, machine: type[LedgerMachine]) -> None:
        server = test_server()
        dsn = server.fresh_database(server.template(two_shops))
        self.addCleanup(server.drop_database, dsn)
        connection = psycopg2.connect(dsn)
        self.addCleanup(connection.close)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE posd")
        machine.executor = Blocking(connection)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=40,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )

    def test_a_card_does_what_the_model_does(self) -> None:
        self.run_machine(CardMachine)

    def test_an_account_does_what_the_model_does(self) -> None:
        self.run_machine(AccountMachine)
