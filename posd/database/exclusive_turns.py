"""Turns at a resource that serves one caller at a time: in order, bounded, and without recursion.

A `DeferredLock` runs the next waiter in the stack of the previous one, so that some hundred waiters that
finish at once end in `RecursionError`. Here one loop starts the turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred

from posd.errors import Busy


class ExclusiveTurns:
    """At most one caller has a turn, and at most `most` wait."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._is_taken = False
        self._waiting: deque[Deferred[None]] = deque()
        self._is_passing_on = False

    async def take(self) -> None:
        """Wait for a turn. Raises `Busy` if too many wait, and the error of `fail`."""
        if self._is_taken or self._waiting:
            if len(self._waiting) >= self._most:
                raise Busy("Too many statements wait for the database.", retry_after=1)
            waiter: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(waiter)
            await waiter
        self._is_taken = True

    def give_back(self) -> None:
        """End a turn, and start the turns of the waiters, one after the other.

        A turn may end before `callback` returns. The running loop then starts the next turn, so that no
        turn runs in the stack of another.
        """
        self._is_taken = False
        if self._is_passing_on:
            return
        self._is_passing_on = True
        try:
            while self._waiting and not self._is_taken:
                # The turn is taken before the callback, so that no other caller takes it.
                self._is_taken = True
                self._waiting.popleft().callback(None)
        finally:
            self._is_passing_on = False

    def fail(self, error: Callable[[], Exception]) -> None:
        """Fail all waiters, each with an error of its own."""
        while self._waiting:
            self._waiting.popleft().errback(error())
