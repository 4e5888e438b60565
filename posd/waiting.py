"""Waiting that ends, and telling a loop that still tries from one that does not."""

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
    """When something that goes on for ever last made an attempt, a refused one included.

    By the monotonic clock. Only the daemon's reactor follows that too (`posd.monitoring.monotonic`).
    """

    def __init__(self) -> None:
        self._last = monotonic()

    def beat(self) -> None:
        """An attempt begins now."""
        self._last = monotonic()

    @property
    def stalled(self) -> bool:
        """Whether there was none for a minute: it is waiting for what will never come."""
        return monotonic() - self._last > _STALLED_SECONDS


class RoundPauses:
    """The pauses of a service between its rounds. The service ends them when it stops."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._under_way: set[Deferred[None]] = set()

    async def take(self, seconds: float) -> bool:
        """Wait; False if `end` was called before the time was over."""
        pause: Deferred[None] = deferLater(self._reactor, seconds)
        self._under_way.add(pause)
        try:
            await pause
        except CancelledError:
            return False
        finally:
            self._under_way.discard(pause)
        return True

    def end(self) -> None:
        """End the pauses that are under way."""
        for pause in list(self._under_way):
            pause.cancel()


def with_timeout(
    reactor: IReactorTime, seconds: float, work: Deferred[T] | Coroutine[Any, Any, T]
) -> Deferred[T]:
    """The result of `work`; after `seconds` it fails with `TimeoutError` and cancels `work`.

    `Deferred.addTimeout` cancels and goes on waiting. This one does not wait for work that ignores
    its cancellation: what that work brings later, a failure included, is dropped.
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
