"""Limits how many requests of one credential are handled at the same time. The others wait in their order.

A credential may send the requests of ten seconds at once. Without this limit posd would handle all of them in
the next turns of the reactor, and requests of other credentials would wait. A tenant has two connections to
the database, so a higher limit would not be faster.
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
"""The metric label of requests that are refused because their turn did not come."""
AT_ONCE: Final = 2
"""Requests of one credential that are handled at the same time."""
MOST_WAITING: Final = 1000
"""The most waiting requests of one credential, enough for a thousand terminals with one key.

Each holds a connection. If they held all connections of a listener, no other client could connect.
"""
ALL_WAITING: Final = 1500
"""If this many requests wait in all, credentials are limited to `_FAIR_SHARE`."""
_FAIR_SHARE: Final = 20
"""The most waiting requests of one credential while `ALL_WAITING` requests wait in all."""
WAIT_SECONDS: Final = 5.0
"""A statement may wait as long for a database connection. A till gives up after ten seconds."""
_HOLD_SECONDS: Final = 0.25
"""A turn ends after this time even if its request is not done: the database is slow, or waits for a lock.

A request that waits for an event releases its turn before it waits (`HTTPRequest.release_turn`).
"""


class _HeldTurn:
    """The turn of one request. It ends once: by `release`, or when `expires_at` has passed."""

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
    """The turns of all groups of requests. A group is any hashable value, such as a credential and a tenant.

    `refused` is called with `BY_TURN` for each request whose turn did not come.
    """

    def __init__(
        self, reactor: IReactorTime, refused: Callable[[str], None] = lambda by: None
    ) -> None:
        self._reactor = reactor
        self._refused = refused
        self._held_counts: dict[object, int] = {}
        self._waiting: dict[object, deque[Deferred[None]]] = {}
        self._count = 0
        """The number of waiting requests of all groups."""
        self._held_turns: deque[_HeldTurn] = deque()
        """Turns in the order of `expires_at`, which is the order in which they began."""
        self._end_call: IDelayedCall | None = None

    async def acquire(self, group: object) -> Callable[[], None]:
        """Wait for a turn. Return the function that releases it; a second call of the function does nothing.

        Raises `TooManyRequests` if too many requests wait, or after `WAIT_SECONDS`.
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
        """End expired turns. All turns share one delayed call, because most of them are short."""
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
        """Pass a turn to the next waiting request of the group, in another turn of the reactor."""
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
            # The wait ended by its timeout after `_hand_on` had chosen it.
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
