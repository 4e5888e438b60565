"""Requests of one credential take turns: so many are worked on at once, and the others wait in their order.

A credential may send ten seconds' worth of requests at once. Without turns all of that would be worked on in
the next turns of the reactor, and requests of others would wait behind it. A tenant has two connections to
the database, so more at once would not be faster either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from posd.errors import TooManyRequests

T = TypeVar("T")

BY_TURN: Final = "turn"
"""What is counted when a request is refused since its turn did not come."""
AT_ONCE: Final = 2
MOST_WAITING: Final = 1000
"""Requests of one credential that wait: as many as a crowd of terminals with one key sends at once.

Each waits on a connection. If they were all of a listener's connections, others could not connect.
"""
ALL_WAITING: Final = 1500
_FAIR_SHARE: Final = 20
"""When so many wait together, a credential of which a few wait may have no more."""
WAIT_SECONDS: Final = 5.0
"""As long as a statement waits for the database. A till gives up after ten."""
_HOLD_SECONDS: Final = 0.25
"""After so long the next one begins all the same: the database is slow, or waits for a lock.

A request that waits for what others wait for too, an event for example, gives its turn back at once
(`Call.give_turn`).
"""


class _HeldTurn:
    """A turn that somebody has. It is given back once, and after a while by itself."""

    __slots__ = ("_on_release", "expires_at")

    def __init__(self, on_release: Callable[[], None], expires_at: float) -> None:
        self._on_release: Callable[[], None] | None = on_release
        self.expires_at = expires_at

    @property
    def is_released(self) -> bool:
        return self._on_release is None

    def release(self) -> None:
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()


class RequestTurns:
    """Who has the turn, by whatever names those who take turns with each other.

    `refused` is told `BY_TURN` of each request whose turn did not come.
    """

    def __init__(
        self, reactor: IReactorTime, refused: Callable[[str], None] = lambda by: None
    ) -> None:
        self._reactor = reactor
        self._refused = refused
        self._held_counts: dict[object, int] = {}
        self._waiting: dict[object, deque[Deferred[None]]] = {}
        self._count = 0
        """How many wait."""
        self._held_turns: deque[_HeldTurn] = deque()
        """The turns in the order in which they began, which is the order in which they end by themselves."""
        self._end_call: IDelayedCall | None = None

    async def acquire(self, group: object) -> Callable[[], None]:
        """Wait for a turn. What is returned gives it back; a second call of it does nothing.

        Raises `TooManyRequests` if too many wait already, and after five seconds.
        """
        if self._held_counts.get(group, 0) < AT_ONCE:
            self._held_counts[group] = self._held_counts.get(group, 0) + 1
        else:
            await self._wait(group)
        turn = _HeldTurn(lambda: self._hand_on(group), self._reactor.seconds() + _HOLD_SECONDS)
        self._held_turns.append(turn)
        if self._end_call is None:
            self._end_call = self._reactor.callLater(_HOLD_SECONDS, self._end_expired)
        return turn.release

    def _end_expired(self) -> None:
        """End the turns that were held for too long. One delayed call serves all turns, which are short."""
        self._end_call = None
        now = self._reactor.seconds()
        while self._held_turns and (
            self._held_turns[0].is_released or self._held_turns[0].expires_at <= now
        ):
            self._held_turns.popleft().release()
        if self._held_turns:
            self._end_call = self._reactor.callLater(
                self._held_turns[0].expires_at - now, self._end_expired
            )

    def _wait(self, group: object) -> Deferred[None]:
        count = len(self._waiting.get(group, ()))
        if count >= MOST_WAITING or (self._count >= ALL_WAITING and count >= _FAIR_SHARE):
            raise self._too_many()
        turn: Deferred[None] = Deferred()
        self._waiting.setdefault(group, deque()).append(turn)
        self._count += 1
        return turn.addTimeout(WAIT_SECONDS, self._reactor, onTimeoutCancel=self._on_timeout)

    def _hand_on(self, group: object) -> None:
        """Hand a turn to the next one that still waits, in a turn of the reactor of its own."""
        waiting = self._waiting.get(group, deque())
        turn = None
        while waiting and (turn is None or turn.called):
            turn = waiting.popleft()
            self._count -= 1
        if not waiting:
            self._waiting.pop(group, None)
        if turn is not None and not turn.called:
            self._reactor.callLater(0, self._begin, group, turn)
        elif self._held_counts[group] == 1:
            del self._held_counts[group]
        else:
            self._held_counts[group] -= 1

    def _begin(self, group: object, turn: Deferred[None]) -> None:
        if turn.called:
            # It was given up in this very moment.
            self._hand_on(group)
        else:
            turn.callback(None)

    def _too_many(self) -> TooManyRequests:
        self._refused(BY_TURN)
        return TooManyRequests("Too many requests with this key are waiting.", retry_after=1)

    def _on_timeout(self, result: T | Failure, seconds: float) -> T | Failure:
        if isinstance(result, Failure) and result.check(CancelledError):
            raise self._too_many()
        return result
