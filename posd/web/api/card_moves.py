"""Money on cards is moved together, where several calls of a shop come at once.

What is asked for while one transaction is under way is done by the next one, together: it is written to disk
once. Each call gets what came of its own card. Where the transaction fails, its calls are made one by one,
each by its own deadline, and so is a call whose card somebody else has locked. No movement is made twice:
this is done only where PostgreSQL has rolled back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import define, field, frozen

from posd.database.gathering import Gathering
from posd.database.link import Reader
from posd.database.pool import Database
from posd.errors import Busy, StatementFailed
from posd.store import giftcards
from posd.store.giftcards import Move, Movement, Outcome
from posd.values import Tenant


@frozen(eq=False)
class _Asked:
    """A movement that is to be committed by the `deadline`, of the reactor's clock."""

    move: Move
    deadline: float


@define(eq=False)
class CardMoves:
    """Makes movements of gift cards."""

    database: Database
    _gathering: Gathering[Tenant, _Asked, Outcome] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._gathering = Gathering(self.database.clock, self._together)

    async def make(self, tenant: Tenant, move: Move, deadline: float) -> Movement:
        """Make a movement. Raises what `giftcards.deduct` raises, and what `Link.query` does."""
        outcome = await self._gathering.ask(tenant, _Asked(move, deadline))
        if outcome is None:
            return await giftcards.make(self.database.by(tenant.id, deadline), tenant, move)
        return giftcards.made(outcome)

    async def _together(self, tenant: Tenant, asked: Sequence[_Asked]) -> Mapping[_Asked, Outcome]:
        """What came of each movement; None where it was not made, and can be made alone."""
        now = self.database.clock.seconds()
        in_time = [each for each in asked if each.deadline > now]
        outcomes: dict[_Asked, Outcome] = dict.fromkeys(asked)
        if in_time:
            try:
                outcomes |= await self._made(tenant, in_time)
            except (Busy, StatementFailed):
                if len(asked) == 1:
                    raise
        return outcomes

    async def _made(self, tenant: Tenant, asked: Sequence[_Asked]) -> dict[_Asked, Outcome]:
        deadline = min(each.deadline for each in asked)
        first, *others = _rounds(asked)
        if not others:
            return await _moved(self.database.by(tenant.id, deadline), tenant, first)

        async def one_after_the_other(session: Reader) -> dict[_Asked, Outcome]:
            outcomes: dict[_Asked, Outcome] = {}
            for each in (first, *others):
                outcomes |= await _moved(session, tenant, each)
            return outcomes

        return await self.database.transaction(
            one_after_the_other, tenant=tenant.id, deadline=deadline
        )


async def _moved(session: Reader, tenant: Tenant, asked: Sequence[_Asked]) -> dict[_Asked, Outcome]:
    moves = [each.move for each in asked]
    outcomes = await giftcards.move(session, tenant, moves, patient=False)
    return dict(zip(asked, outcomes, strict=True))


def _rounds(asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    """All of them in their order, so that none of the lists names a card twice."""
    left = asked
    while left:
        first: dict[str, _Asked] = {}
        for each in left:
            first.setdefault(each.move.number, each)
        yield [*first.values()]
        left = [each for each in left if first[each.move.number] is not each]
