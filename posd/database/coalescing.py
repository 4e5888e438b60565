"""One run of a piece of work for all callers that wait for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from posd.errors import Busy, StatementFailed

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")


class Coalescer(Generic[K, V]):
    """Collects the keys that callers ask for while `work` runs, and passes them to the next run together.

    `work` gets up to `most` different keys, in the order of the first calls, and returns a value for each.
    There
    is one run at a time. A caller that asks during a run waits for a later run, so that its value is not
    older
    than its call. If PostgreSQL refuses the data of several keys, they are tried again in halves, so that
    a faulty key fails alone.

    One loop answers the callers, so the stack does not grow with their number. If callers do much with an
    answer,
    `turn` limits how many are answered in one turn of the reactor. A caller waits for `seconds` at most,
    and then fails with `Busy`. `done` is called when no caller waits any more.
    """

    def __init__(
        self,
        clock: IReactorTime,
        work: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        most: int = 1,
        seconds: float,
        turn: int | None = None,
        done: Callable[[], object] = lambda: None,
    ) -> None:
        self._clock = clock
        self._turn = turn
        self._work = work
        self._most = most
        self._seconds = seconds
        self._done = done
        self._waiting: dict[K, list[Deferred[V]]] = {}
        self._is_held = False
        self.running = False
        """Whether a run is in progress."""

    @property
    def waiting(self) -> int:
        """The number of keys that wait for the next run."""
        return len(self._waiting)

    def ask(self, key: K) -> Deferred[V]:
        """Get the value of a key from the next run, which begins now if no run is in progress."""
        waiter: Deferred[V] = Deferred()
        self._waiting.setdefault(key, []).append(waiter)
        self._start()
        if waiter.called:
            return waiter
        return or_busy(waiter, self._clock, self._seconds, "The database is busy. Try again.")

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Begin no run until the block ends, so that all calls in it share one run."""
        held, self._is_held = self._is_held, True
        try:
            yield
        finally:
            self._is_held = held
            self._start()

    def _start(self) -> None:
        if self._waiting and not self.running and not self._is_held:
            self.running = True
            Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                keys = list(islice(self._waiting, self._most))
                await self._serve({key: self._waiting.pop(key) for key in keys})
        finally:
            self.running = False
            self._done()

    async def _serve(self, waiters_by_key: dict[K, list[Deferred[V]]]) -> None:
        try:
            values = await self._work(list(waiters_by_key))
            answers = {key: values[key] for key in waiters_by_key}
        except Exception as error:
            if len(waiters_by_key) > 1 and isinstance(error, StatementFailed) and error.about_data:
                keys = list(waiters_by_key)
                for half in (keys[: len(keys) // 2], keys[len(keys) // 2 :]):
                    await self._serve({key: waiters_by_key[key] for key in half})
                return
            for waiters in waiters_by_key.values():
                fail_all(waiters, error)
            return
        answered = 0
        for key, waiters in waiters_by_key.items():
            for waiter in waiters:
                if answered == self._turn:
                    answered = 0
                    await deferLater(self._clock, 0)
                answered += 1
                waiter.callback(answers[key])


def fail_all(waiters: Sequence[Deferred[T]], error: Exception) -> None:
    """Fail all waiters with the same exception.

    Each raise adds to the traceback of the exception. If the traceback were not cleared, it would keep the
    frames of every waiter.
    """
    for waiter in waiters:
        waiter.errback(Failure(error.with_traceback(None)))


def or_busy(waiter: Deferred[T], clock: IReactorTime, seconds: float, message: str) -> Deferred[T]:
    """Make a waiter fail with `Busy` if it has no value after this many seconds."""

    def too_late(result: T | Failure, _: float) -> T | Failure:
        if isinstance(result, Failure) and result.check(CancelledError):
            raise Busy(message, retry_after=1)
        return result

    return waiter.addTimeout(seconds, clock, onTimeoutCancel=too_late)
