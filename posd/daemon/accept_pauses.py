"""Accepting connections: a few in one turn of the reactor, and when no file descriptor is left.

Twisted keeps one descriptor in reserve, with which it accepts and closes what waits. Where that one is lost,
and for the limits of the whole machine (ENFILE, ENOBUFS, ENOMEM), its port tries again in each turn of the
reactor, which takes a whole processor and fills the log. So a port rests for a moment then.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.logger import Logger

from posd.database.socket_reactor import socket_shortage

_PAUSE_SECONDS: Final = 1.0
_ACCEPTS_PER_TURN: Final = 2
"""Connections that are accepted in one turn of the reactor. Twisted accepts a hundred and more."""


class AcceptPauses:
    """Lets a listening port of Twisted's rest while no connection could be accepted."""

    _log = Logger()

    def __init__(self, reactor: Any, port: Any) -> None:
        self._reactor = reactor
        self._port = port
        self._accept = port.doRead
        self._is_paused = False
        port.doRead = self._do_read

    def _do_read(self) -> None:
        self._port.numberAccepts = _ACCEPTS_PER_TURN
        self._accept()
        trouble = socket_shortage()
        if trouble is None:
            self._is_paused = False
            return
        if not self._is_paused:
            self._is_paused = True
            self._log.error(
                "new connections wait: {trouble}; posd tries again each second", trouble=trouble
            )
        self._port.stopReading()
        self._reactor.callLater(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._port.connected:
            self._port.startReading()
