"""Combines concurrent movements of gift cards of one tenant in a transaction.

Movements that are requested during one transaction are made together by the next transaction, with one write
to disk. A call gets the result of its own card. If the transaction fails or takes too long, its movements are
made one by one, with a deadline for each. The same happens if another session has locked a card. No movement
is made twice, because a movement is repeated only after a rollback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from posd.database.keyed_coalescing import KeyedCoalescer
from posd.database.pool import Pool
from posd.errors import Busy, OutcomeUnknown, StatementFailed, Unavailable
from posd.store import card_movements
from posd.store.card_movements import CardMovement, CardMoveRequest, Outcome
from posd.values import Tenant

_TOGETHER_SECONDS: Final = 2.0
"""The time limit for all statements of a combined transaction, so that a slow movement delays others less."""


@define(eq=False)
class _CardMoveCall:
    """A movement that must be committed by the `deadline`, on the reactor's clock."""

    move: CardMoveRequest
    deadline: float
    has_begun: bool = False
    """Whether a transaction with this movement has begun."""


@define(eq=False)
class CardMoves:
    """Makes movements of gift cards."""

    database: Pool
    _coalescer: KeyedCoalescer[Tenant, _CardMoveCall, Outcome] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._coalescer = KeyedCoalescer(self.database.clock, self._move_together)

    async def make(self, tenant: Tenant, move: CardMoveRequest, deadline: float) -> CardMovement:
        """Make a movement. Raises the refusals of the card, and the errors of the database pool."""
        calls = _CardMoveCall(move, deadline)
        outcome = await self._in_time(self._coalescer.ask(tenant, calls), calls)
        if outcome is None:
            return await card_movements.move_one(
                self.database.by(tenant.id, deadline), tenant, move
            )
        return card_movements.movement_or_raise(outcome)

    def _in_time(self, waiting: Deferred[Outcome], calls: _CardMoveCall) -> Deferred[Outcome]:
        """Fail with `Busy` at the deadline if the movement still waits for a transaction.

        Earlier transactions have deadlines of their own, which may be half a second later.
        """
        if calls.has_begun:
            return waiting

        def give_up() -> None:
            if not calls.has_begun:
                waiting.cancel()

        def finished(result: Outcome | Failure) -> Outcome | Failure:
            if timer.active():
                timer.cancel()
            if isinstance(result, Failure) and result.check(CancelledError):
                raise Busy("The call could not be completed in time. Try again.", retry_after=1)
            return result

        clock = self.database.clock
        timer = clock.callLater(max(0.0, calls.deadline - clock.seconds()), give_up)
        return waiting.addBoth(finished)

    async def _move_together(
        self, tenant: Tenant, calls: Sequence[_CardMoveCall]
    ) -> Mapping[_CardMoveCall, Outcome]:
        """Return the result of each movement; None if it was rolled back, and can be made alone."""
        now = self.database.clock.seconds()
        in_time = [each for each in calls if each.deadline > now]
        outcomes: dict[_CardMoveCall, Outcome] = dict.fromkeys(calls)
        if in_time:
            try:
                outcomes |= await self._make_all(tenant, in_time)
            except Busy:
                # Each movement has more time alone.
                pass
            except (Unavailable, StatementFailed) as error:
                if len(calls) == 1 or isinstance(error, OutcomeUnknown):
                    raise
        return outcomes

    async def _make_all(
        self, tenant: Tenant, calls: Sequence[_CardMoveCall]
    ) -> dict[_CardMoveCall, Outcome]:
        moves = [each.move for each in calls]
        for each in calls:
            each.has_begun = True
        deadline = min(each.deadline for each in calls)
        if card_movements.has_distinct_cards(moves):
            executor = self.database.by(tenant.id, deadline, _TOGETHER_SECONDS)
            outcomes = await card_movements.move_many(executor, tenant, moves, patient=False)
        else:
            outcomes = await self.database.transaction(
                lambda executor: card_movements.move_sequentially(executor, tenant, moves),
                tenant=tenant.id,
                deadline=deadline,
                work_seconds=_TOGETHER_SECONDS,
            )
        return dict(zip(calls, outcomes, strict=True))
