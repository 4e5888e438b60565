"""Run the reactor for one command, until the command has its result."""

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
    """The interfaces of the reactor that commands use."""


def run(main: Callable[[CommandReactor], Awaitable[T]]) -> T:
    """Run `main(reactor)`; return its result or raise its exception.

    Ctrl-C and SIGTERM stop the reactor after the shutdown triggers of `main`, also if they arrive
    before the reactor runs. `run` then raises KeyboardInterrupt, unless `main` has a result. Warnings of
    libraries go to standard error.
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
        # Unblock the signals after the reactor has installed its handlers, and before `main` runs.
        reactor.callWhenRunning(signal.pthread_sigmask, signal.SIG_SETMASK, unmasked)
        return Deferred.fromCoroutine(captured(reactor))

    globalLogBeginner.beginLoggingTo([_WarningObserver()], redirectStandardIO=False)
    # Block the signals until then. A KeyboardInterrupt within a callback would be lost in its Deferred.
    unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        with suppress(SystemExit):  # `react` always raises it
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
    """Writes warnings and errors to standard error, except a BrokenPipeError of the output."""

    def __init__(self) -> None:
        self._shown = LogObserver(level="warn", format_name="text")

    def __call__(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is None or not failure.check(BrokenPipeError):
            self._shown(event)
