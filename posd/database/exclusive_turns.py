"""Turns at something that serves one at a time: in order, bounded, and flat.

A `DeferredLock` runs the next waiter in the stack of the one before, so that some hundred of them that are
done at once end in `RecursionError`. Here one loop lets them have their turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred

from posd.errors import Busy


class ExclusiveTurns:
    """One turn is taken at most; `most` wait for theirs."""

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
        """End a turn, and begin those of the waiters, one after the other.

        A turn may be over before `callback` returns. It does not call the next one from there, where
        each would run inside the one before it; the loop that is under way does.
        """
        self._is_taken = False
        if self._is_passing_on:
            return
        self._is_passing_on = True
        try:
            while self._waiting and not self._is_taken:
                # Taken before the callback, so that no other caller takes it first.
                self._is_taken = True
                self._waiting.popleft().callback(None)
        finally:
            self._is_passing_on = False

    def fail(self, error: Callable[[], Exception]) -> None:
        """Fail all waiters, each with an error of its own."""
        while self._waiting:
            self._waiting.popleft().errback(error())
