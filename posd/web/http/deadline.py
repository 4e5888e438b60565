"""A time by which something has to happen on a connection. It moves with each request, and seldom passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

_ROUNDING: Final = 1e-6


class DeadlineTimer:
    """At most one time; `on_expiry` is called when it has passed.

    To move the time to a later one, or to clear it, is an assignment. The delayed call that exists by then
    looks at the time when it is called, and waits for the rest of it.
    """

    __slots__ = ("_call", "_clock", "_expires_at", "_on_expiry")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._expires_at: float | None = None
        self._on_expiry: Callable[[], None] | None = None
        self._call: IDelayedCall | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is a time."""
        return self._expires_at is not None

    def set(self, seconds: float, on_expiry: Callable[[], None]) -> None:
        """Call `on_expiry` after so many seconds, instead of what was set before."""
        self._expires_at, self._on_expiry = self._clock.seconds() + seconds, on_expiry
        if self._call is None:
            self._call = self._clock.callLater(seconds, self._check)
        elif self._call.getTime() > self._expires_at:
            self._call.reset(seconds)

    def clear(self) -> None:
        """There is no time any more."""
        self._expires_at = self._on_expiry = None

    def stop(self) -> None:
        """Clear it and cancel the delayed call: for a connection that has ended, or is something else now."""
        self.clear()
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _check(self) -> None:
        self._call = None
        if self._expires_at is None or self._on_expiry is None:
            return
        seconds_left = self._expires_at - self._clock.seconds()
        if seconds_left > _ROUNDING:
            self._call = self._clock.callLater(seconds_left, self._check)
        else:
            on_expiry = self._on_expiry
            self.clear()
            on_expiry()
