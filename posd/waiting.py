"""Waiting that ends: for a result, but no longer than so many seconds, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")


def within(
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
