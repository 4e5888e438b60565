"""How late the reactor is: what keeps one thing waiting keeps every till waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_LOOK_SECONDS: Final = 0.5


class Lag(Service):
    """Tells `late`, twice a second, by how many seconds that moment was missed."""

    _log = Logger()

    def __init__(self, reactor: IReactorTime, late: Callable[[float], None]) -> None:
        self._reactor = reactor
        self._late = late
        self._due = 0.0
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def startService(self) -> None:
        Service.startService(self)
        self._due = self._reactor.seconds() + _LOOK_SECONDS
        self._looking.start(_LOOK_SECONDS, now=False)

    def stopService(self) -> None:
        Service.stopService(self)
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        now = self._reactor.seconds()
        try:
            self._late(max(0.0, now - self._due))
        except Exception:
            # It was the last look otherwise.
            self._log.failure("it could not be told how late the reactor is")
        # Of moments that have passed meanwhile LoopingCall leaves out all but the next.
        while self._due <= now:
            self._due += _LOOK_SECONDS
