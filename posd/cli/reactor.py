"""A reactor for one command: it runs until the command has its result."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar, cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorCore, IReactorThreads, IReactorTime
from twisted.internet.task import react
from twisted.logger import ILogObserver, LogEvent, globalLogBeginner
from zope.interface import implementer

from posd.monitoring.logs import LogObserver
from posd.monitoring.monotonic import schedule_by_monotonic_clock

T = TypeVar("T")


class CommandReactor(IReactorCore, IReactorTime, IReactorThreads):
    """What a command asks of its reactor."""


def run(main: Callable[[CommandReactor], Awaitable[T]]) -> T:
    """Run `main(reactor)` to its end; return its result or raise what it raised.

    Ctrl-C and SIGTERM, also when they come before the reactor runs, stop it once everything has
    happened that `main` has registered for its shutdown; KeyboardInterrupt is raised if there is no
    result then. What libraries warn of goes to standard error.
    """
    results: list[T] = []
    errors: list[Exception] = []

    async def captured(reactor: CommandReactor) -> None:
        schedule_by_monotonic_clock(cast(ReactorBase, reactor))
        try:
            results.append(await main(reactor))
        except Exception as error:
            errors.append(error)

    def begin(reactor: CommandReactor) -> Deferred[None]:
        # This comes before everything that `main` asks for, and after the reactor's own handlers.
        reactor.callWhenRunning(signal.pthread_sigmask, signal.SIG_SETMASK, unmasked)
        return Deferred.fromCoroutine(captured(reactor))

    globalLogBeginner.beginLoggingTo([_WarningObserver()], redirectStandardIO=False)
    # A KeyboardInterrupt that is raised within a callback is lost: the Deferred keeps it as its result.
    unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        with suppress(SystemExit):  # which is how `react` returns
            react(begin)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
    if errors:
        raise errors[0]
    if not results:
        raise KeyboardInterrupt
    return results[0]


@implementer(ILogObserver)
class _WarningObserver:
    """Shows warnings and bugs. That the reader of our output has gone is neither."""

    def __init__(self) -> None:
        self._shown = LogObserver(level="warn", format_name="text")

    def __call__(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is None or not failure.check(BrokenPipeError):
            self._shown(event)
