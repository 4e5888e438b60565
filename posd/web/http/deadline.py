"""A timer that is cheap to move. The deadline of a connection moves with each request, and rarely passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

_ROUNDING: Final = 1e-6


class DeadlineTimer:
    """A timer with at most one deadline. It calls `on_expiry` when the deadline has passed.

    Moving the deadline to a later time, or clearing it, is only an assignment. The existing delayed call
    compares the time with the deadline when it runs, and is scheduled again for the rest.
    """

    __slots__ = ("_call", "_clock", "_expires_at", "_on_expiry")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._expires_at: float | None = None
        self._on_expiry: Callable[[], None] | None = None
        self._call: IDelayedCall | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is a deadline."""
        return self._expires_at is not None

    def set(self, seconds: float, on_expiry: Callable[[], None]) -> None:
        """Call `on_expiry` after so many seconds. This replaces an earlier deadline."""
        self._expires_at, self._on_expiry = self._clock.seconds() + seconds, on_expiry
        if self._call is None:
            self._call = self._clock.callLater(seconds, self._check)
        elif self._call.getTime() > self._expires_at:
            self._call.reset(seconds)

    def clear(self) -> None:
        """Remove the deadline."""
        self._expires_at = self._on_expiry = None

    def stop(self) -> None:
        """Remove the deadline and cancel the delayed call. For a connection that was closed or upgraded."""
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
