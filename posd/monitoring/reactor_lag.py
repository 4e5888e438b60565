"""Measures the delay of the reactor, by which all tills are delayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_INTERVAL_SECONDS: Final = 0.5


class ReactorLag(Service):
    """Calls `report` twice a second with the delay of that call in seconds."""

    _log = Logger()

    def __init__(self, reactor: IReactorTime, report: Callable[[float], None]) -> None:
        self._reactor = reactor
        self._report = report
        self._due = 0.0
        self._loop = LoopingCall(self._measure)
        self._loop.clock = reactor

    def startService(self) -> None:
        Service.startService(self)
        self._due = self._reactor.seconds() + _INTERVAL_SECONDS
        self._loop.start(_INTERVAL_SECONDS, now=False)

    def stopService(self) -> None:
        Service.stopService(self)
        if self._loop.running:
            self._loop.stop()

    def _measure(self) -> None:
        now = self._reactor.seconds()
        try:
            self._report(max(0.0, now - self._due))
        except Exception:
            # An exception would stop the LoopingCall.
            self._log.failure("the delay of the reactor could not be recorded")
        # LoopingCall skips the calls whose time has passed.
        while self._due <= now:
            self._due += _INTERVAL_SECONDS
