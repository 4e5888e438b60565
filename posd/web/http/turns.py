"""Requests of one credential take turns: so many are worked on at once, and the others wait in their order.

A credential may send ten seconds' worth of requests at once. Without turns all of that would be worked on in
the next turns of the reactor, and requests of others would wait behind it. A tenant has two connections to
the database, so more at once would not be faster either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

AT_ONCE: Final = 4
_HOLD_SECONDS: Final = 0.25
"""After so long the next one begins all the same: the database is slow, or waits for a lock.

A request that waits for what others wait for too, an event for example, gives its turn back at once
(`Call.give_turn`).
"""


class Turns:
    """Who has the turn, by whatever names those who take turns with each other."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._held: dict[object, int] = {}
        self._waiting: dict[object, deque[Deferred[None]]] = {}

    async def take(self, who: object) -> Callable[[], None]:
        """Wait for a turn. What is returned gives it back; a second call of it does nothing."""
        if self._held.get(who, 0) < AT_ONCE:
            self._held[who] = self._held.get(who, 0) + 1
        else:
            turn: Deferred[None] = Deferred()
            self._waiting.setdefault(who, deque()).append(turn)
            await turn
        given = False

        def give() -> None:
            nonlocal given
            if not given:
                given = True
                if timer.active():
                    timer.cancel()
                self._give(who)

        timer = self._reactor.callLater(_HOLD_SECONDS, give)
        return give

    def _give(self, who: object) -> None:
        """Hand a turn to the next one, in a turn of the reactor of its own."""
        waiting = self._waiting.get(who)
        if waiting:
            self._reactor.callLater(0, waiting.popleft().callback, None)
            if not waiting:
                del self._waiting[who]
        elif self._held[who] == 1:
            del self._held[who]
        else:
            self._held[who] -= 1
