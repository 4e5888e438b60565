"""Accepting connections: a few in one turn of the reactor, and when no file descriptor is left.

Twisted keeps one descriptor in reserve, with which it accepts and closes what waits. Where that one is lost,
and for the limits of the whole machine (ENFILE, ENOBUFS, ENOMEM), its port tries again in each turn of the
reactor, which takes a whole processor and fills the log. So a port rests for a moment then.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.logger import Logger

from posd.database.watch import shortage

_REST_SECONDS: Final = 1.0
_AT_ONCE: Final = 2
"""Connections that are accepted in one turn of the reactor. Twisted accepts a hundred and more."""


class Rests:
    """Lets a listening port of Twisted's rest while no connection could be accepted."""

    _log = Logger()

    def __init__(self, reactor: Any, port: Any) -> None:
        self._reactor = reactor
        self._port = port
        self._accept = port.doRead
        self._resting = False
        port.doRead = self._do_read

    def _do_read(self) -> None:
        self._port.numberAccepts = _AT_ONCE
        self._accept()
        trouble = shortage()
        if trouble is None:
            self._resting = False
            return
        if not self._resting:
            self._resting = True
            self._log.error(
                "new connections wait: {trouble}; posd tries again each second", trouble=trouble
            )
        self._port.stopReading()
        self._reactor.callLater(_REST_SECONDS, self._go_on)

    def _go_on(self) -> None:
        if self._port.connected:
            self._port.startReading()
