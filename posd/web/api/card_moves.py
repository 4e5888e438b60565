"""Money on cards is moved together, where several calls of a shop come at once.

What is asked for while one transaction is under way is done by the next one, together: it is written to disk
once. Each call gets what came of its own card. Where the transaction fails or takes long, its calls are
made one by one, each by its own deadline, and so is a call whose card somebody else has locked. No movement
is made twice: this is done only where PostgreSQL has rolled back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from posd.database.gathering import Gathering
from posd.database.pool import Database
from posd.errors import Busy, OutcomeUnknown, StatementFailed, Unavailable
from posd.store import card_movements
from posd.store.card_movements import Move, Movement, Outcome
from posd.values import Tenant

_TOGETHER_SECONDS: Final = 2.0
"""What is made together is ready to be committed by then. A slow movement delays the others no longer."""


@define(eq=False)
class _Asked:
    """A movement that is to be committed by the `deadline`, of the reactor's clock."""

    move: Move
    deadline: float
    is_begun: bool = False
    """Whether a transaction is under way that may make it."""


@define(eq=False)
class CardMoves:
    """Makes movements of gift cards."""

    database: Database
    _gathering: Gathering[Tenant, _Asked, Outcome] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._gathering = Gathering(self.database.clock, self._together)

    async def make(self, tenant: Tenant, move: Move, deadline: float) -> Movement:
        """Make a movement. Raises what `giftcards.deduct` raises, and what `Link.query` does."""
        asked = _Asked(move, deadline)
        outcome = await self._in_time(self._gathering.ask(tenant, asked), asked)
        if outcome is None:
            return await card_movements.make(self.database.by(tenant.id, deadline), tenant, move)
        return card_movements.made(outcome)

    def _in_time(self, waiting: Deferred[Outcome], asked: _Asked) -> Deferred[Outcome]:
        """Have a movement fail with `Busy` at its deadline, if it still waits for a transaction then.

        The transactions before it end by their own deadlines, which may be half a second later.
        """
        if asked.is_begun:
            return waiting

        def give_up() -> None:
            if not asked.is_begun:
                waiting.cancel()

        def told(result: Outcome | Failure) -> Outcome | Failure:
            if timer.active():
                timer.cancel()
            if isinstance(result, Failure) and result.check(CancelledError):
                raise Busy("The call could not be completed in time. Try again.", retry_after=1)
            return result

        clock = self.database.clock
        timer = clock.callLater(max(0.0, asked.deadline - clock.seconds()), give_up)
        return waiting.addBoth(told)

    async def _together(self, tenant: Tenant, asked: Sequence[_Asked]) -> Mapping[_Asked, Outcome]:
        """What came of each movement; None where it was not made, and can be made alone."""
        now = self.database.clock.seconds()
        in_time = [each for each in asked if each.deadline > now]
        outcomes: dict[_Asked, Outcome] = dict.fromkeys(asked)
        if in_time:
            try:
                outcomes |= await self._made(tenant, in_time)
            except Busy:
                # Alone it has more time.
                pass
            except (Unavailable, StatementFailed) as error:
                if len(asked) == 1 or isinstance(error, OutcomeUnknown):
                    raise
        return outcomes

    async def _made(self, tenant: Tenant, asked: Sequence[_Asked]) -> dict[_Asked, Outcome]:
        moves = [each.move for each in asked]
        for each in asked:
            each.is_begun = True
        deadline = min(each.deadline for each in asked)
        if card_movements.are_of_different_cards(moves):
            session = self.database.by(tenant.id, deadline, _TOGETHER_SECONDS)
            outcomes = await card_movements.move(session, tenant, moves, patient=False)
        else:
            outcomes = await self.database.transaction(
                lambda session: card_movements.move_in_turn(session, tenant, moves),
                tenant=tenant.id,
                deadline=deadline,
                work_seconds=_TOGETHER_SECONDS,
            )
        return dict(zip(asked, outcomes, strict=True))
