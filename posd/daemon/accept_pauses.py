"""Limits how many connections a port accepts in one turn, and pauses a port that cannot accept.

When no file descriptor is left, Twisted uses a reserved one to accept and close the waiting connections. If
the reserved one is lost, or at a limit of the whole machine (ENFILE, ENOBUFS, ENOMEM), Twisted's port tries
again in each turn of the reactor. That uses a whole processor and fills the log, so posd pauses the port.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.logger import Logger

from posd.database.socket_reactor import socket_shortage

_PAUSE_SECONDS: Final = 1.0
_ACCEPTS_PER_TURN: Final = 2
"""Connections that a port accepts in one turn of the reactor. Twisted would accept a hundred or more."""


class AcceptPauses:
    """Pauses a listening port of Twisted for a second when it cannot accept a connection."""

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
                "new connections wait: {trouble}; posd tries again every second", trouble=trouble
            )
        self._port.stopReading()
        self._reactor.callLater(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._port.connected:
            self._port.startReading()
