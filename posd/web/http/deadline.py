"""A time by which something has to happen on a connection. It moves with each request, and seldom passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

_ROUNDING: Final = 1e-6


class Deadline:
    """At most one time; `late` is called when it has passed.

    To move the time to a later one, or to clear it, is an assignment. The delayed call that exists by then
    looks at the time when it is called, and waits for the rest of it.
    """

    __slots__ = ("_at", "_call", "_clock", "_late")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._at: float | None = None
        self._late: Callable[[], None] | None = None
        self._call: IDelayedCall | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is a time."""
        return self._at is not None

    def set(self, seconds: float, late: Callable[[], None]) -> None:
        """Call `late` after so many seconds, instead of what was set before."""
        self._at, self._late = self._clock.seconds() + seconds, late
        if self._call is None:
            self._call = self._clock.callLater(seconds, self._look)
        elif self._call.getTime() > self._at:
            self._call.reset(seconds)

    def clear(self) -> None:
        """There is no time any more."""
        self._at = self._late = None

    def stop(self) -> None:
        """Clear it and cancel the delayed call: for a connection that has ended, or is something else now."""
        self.clear()
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _look(self) -> None:
        self._call = None
        if self._at is None or self._late is None:
            return
        left = self._at - self._clock.seconds()
        if left > _ROUNDING:
            self._call = self._clock.callLater(left, self._look)
        else:
            late = self._late
            self.clear()
            late()
