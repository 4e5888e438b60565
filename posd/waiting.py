"""Timeouts, pauses that a service can end, and the detection of stalled loops."""

from __future__ import annotations

from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

T = TypeVar("T")

_STALLED_SECONDS: Final = 60.0


class AttemptPulse:
    """The time of the last attempt of a loop, successful or not.

    It uses the monotonic clock directly, because only the daemon's reactor does
    (`posd.monitoring.monotonic`).
    """

    def __init__(self) -> None:
        self._last = monotonic()

    def beat(self) -> None:
        """Note that an attempt begins now."""
        self._last = monotonic()

    @property
    def stalled(self) -> bool:
        """Whether the loop has made no attempt for a minute."""
        return monotonic() - self._last > _STALLED_SECONDS


class RoundPauses:
    """The pauses of a service between its rounds. The service ends the pauses when it stops."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._current: set[Deferred[None]] = set()

    async def take(self, seconds: float) -> bool:
        """Wait for `seconds`. Return False if `end` was called before."""
        pause: Deferred[None] = deferLater(self._reactor, seconds)
        self._current.add(pause)
        try:
            await pause
        except CancelledError:
            return False
        finally:
            self._current.discard(pause)
        return True

    def end(self) -> None:
        """End the current pauses."""
        for pause in list(self._current):
            pause.cancel()


def with_timeout(
    reactor: IReactorTime, seconds: float, work: Deferred[T] | Coroutine[Any, Any, T]
) -> Deferred[T]:
    """Return the result of `work`. After `seconds`, fail with `TimeoutError` and cancel `work`.

    `Deferred.addTimeout` cancels the work and then waits until the work ends. This function does not wait
    for work that ignores its cancellation, and drops the later result or failure of the work.
    """
    inner = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
    outer: Deferred[T] = Deferred(lambda _: inner.cancel())

    def late() -> None:
        outer.errback(TimeoutError(f"not done after {seconds:g} s"))
        inner.cancel()

    timer = reactor.callLater(seconds, late)

    def bring(result: T | Failure) -> None:
        if timer.active():
            timer.cancel()
        if outer.called:
            return
        if isinstance(result, Failure):
            outer.errback(result)
        else:
            outer.callback(result)

    inner.addBoth(bring)
    return outer
