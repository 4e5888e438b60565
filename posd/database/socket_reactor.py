"""The reactor that txpostgres uses for one connection, whose socket libpq may replace.

libpq goes on to the next host of a connection string inside `poll()`: it closes its socket and opens
another one, usually with the same number. A reactor that watches the old socket would still have this number
registered. It would
not watch the new socket, and would refuse the number for another connection. Therefore the reactor gets a
duplicate of the descriptor, which only this module closes, and a new duplicate when the socket has changed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

Selectable = Any
"""txpostgres' connection, or its cursor while a statement runs: an `IReadWriteDescriptor`."""


class NoSocket(Exception):
    """libpq has closed its socket and has not opened another one."""

    def __init__(self) -> None:
        super().__init__("the connection was lost")


class SocketReactor:
    """The part of a reactor that txpostgres uses, for one connection.

    At most one selectable reads and one writes, on the same socket. `failed` is called with an exception
    that a selectable or the reactor raises in the reactor's turn, where there is no caller.
    """

    def __init__(self, reactor: Any, failed: Callable[[Exception], None]) -> None:
        self._reactor = reactor
        self._failed = failed
        self._reader: Selectable | None = None
        self._writer: Selectable | None = None
        self._watched: _WatchedSocket | None = None
        self._in_turn = False
        self._closed = False
        self.settled = False
        """Whether libpq will keep its socket, which is so once the connection is open."""

    def callLater(
        self, delay: float, work: Callable[..., object], *arguments: object
    ) -> IDelayedCall:
        called: IDelayedCall = self._reactor.callLater(delay, work, *arguments)
        return called

    def addReader(self, selectable: Selectable) -> None:
        self._reader = selectable
        self._apply()

    def addWriter(self, selectable: Selectable) -> None:
        self._writer = selectable
        self._apply()

    def removeReader(self, selectable: Selectable) -> None:
        self._reader = None
        self._apply()

    def removeWriter(self, selectable: Selectable) -> None:
        self._writer = None
        self._apply()

    def close(self) -> None:
        """Stop watching. Raises nothing."""
        self._closed = True
        self._reader = self._writer = None
        self._forget()

    def turn(self, selectable: Selectable | None, method: str, *arguments: object) -> None:
        """Call a selectable for an event of the reactor, then watch for the events that it asks for."""
        self._in_turn = True
        try:
            if selectable is not None:
                getattr(selectable, method)(*arguments)
        except Exception as error:
            self._failed(error)
        finally:
            self._in_turn = False
        try:
            self._apply()
        except Exception as error:
            self._failed(error)

    def ready_to_read(self) -> None:
        self.turn(self._reader, "doRead")

    def ready_to_write(self) -> None:
        self.turn(self._writer, "doWrite")

    def lost(self, reason: Failure) -> None:
        """The reactor has found the socket closed, and no longer watches it."""
        selectable = self._reader or self._writer
        self._reader = self._writer = None
        self._forget()
        self.turn(selectable, "connectionLost", reason)

    def _apply(self) -> None:
        """Update what the reactor watches; in the reactor's own turn, only at its end."""
        if self._closed or self._in_turn:
            return
        selectable = self._reader or self._writer
        if selectable is not None and not self._watch_socket(selectable.fileno()):
            # In a turn of its own, so that the error of libpq is reported first.
            self._reactor.callLater(0, self._forget_socket)
        if self._watched is not None:
            self._watched.want(self._reader is not None, self._writer is not None)

    def _watch_socket(self, number: int) -> bool:
        """Make the reactor watch the present socket of libpq. Return False if there is none."""
        if self._watched is not None and number >= 0:
            # The number alone is not enough: a new socket usually gets the number of the closed one.
            if self.settled and number == self._watched.original:
                return True
            if _identity(number) == self._watched.identity:
                return True
        self._forget()
        if number < 0:
            return False
        self._watched = _WatchedSocket(self, self._reactor, number)
        return True

    def _forget_socket(self) -> None:
        if not self._closed:
            self._failed(NoSocket())

    def _forget(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.forget()


@implementer(IReadWriteDescriptor)
class _WatchedSocket:
    """A duplicate of a socket's descriptor, and its registration at the reactor."""

    _log = Logger()

    def __init__(self, watch: SocketReactor, reactor: Any, number: int) -> None:
        self.original: Final = number
        self.identity: Final = _identity(number)
        self._number = os.dup(number)
        self._watch: SocketReactor | None = watch
        self._reactor = reactor
        self._reading = False
        self._writing = False

    def want(self, reading: bool, writing: bool) -> None:
        """Register or unregister for reading and writing."""
        if reading and not self._reading:
            self._reactor.addReader(self)
        elif self._reading and not reading:
            self._reactor.removeReader(self)
        self._reading = reading
        if writing and not self._writing:
            self._reactor.addWriter(self)
        elif self._writing and not writing:
            self._reactor.removeWriter(self)
        self._writing = writing

    def forget(self) -> None:
        """Unregister at the reactor, and close. Raises nothing."""
        self._watch = None
        for step in (self._reactor.removeReader, self._reactor.removeWriter):
            try:
                step(self)
            except Exception:
                self._log.failure(
                    "the reactor could not stop watching a connection to the database"
                )
        number, self._number = self._number, -1
        try:
            os.close(number)
        except OSError:
            self._log.failure("a descriptor of a connection to the database could not be closed")

    def fileno(self) -> int:
        return self._number

    def logPrefix(self) -> str:
        return "database"

    def doRead(self) -> None:
        if self._watch is not None:
            self._watch.ready_to_read()

    def doWrite(self) -> None:
        if self._watch is not None:
            self._watch.ready_to_write()

    def connectionLost(self, reason: Failure) -> None:
        if self._watch is not None:
            self._watch.lost(reason)


def socket_shortage() -> OSError | None:
    """Return why no socket can be opened, usually because no file descriptor is left; None if one can."""
    try:
        socket.socket().close()
    except OSError as error:
        return error
    return None


def _identity(number: int) -> tuple[int, int]:
    """Return an identity that is equal for two descriptors of the same open socket only."""
    status = os.fstat(number)
    return status.st_dev, status.st_ino
