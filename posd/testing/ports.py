"""Ports for servers of our own, so that no two of them want the same one."""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from attrs import define


@define(eq=False)
class PortReservation:
    """A port of this machine that is kept for a server; leaving it as a context gives it back."""

    number: int
    _sockets: ExitStack

    def close(self) -> None:
        """Give it back."""
        self._sockets.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def reserve(port: int = 0, address: str = "127.0.0.1") -> PortReservation:
    """Keep a port of an address, any one where it is 0, for a server that is started later.

    Its socket is bound and does not listen. As long as it is open nobody else finds the port free,
    neither for listening nor for a connection of theirs; but a server that sets SO_REUSEADDR, as
    Twisted's do, may listen on it, also again after it was restarted. Raises `OSError` for a port
    that is in use, and for an address that this machine does not have.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as sockets:
        kept = sockets.enter_context(socket.socket(family))
        try:
            kept.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Connections that have ended keep their port for a minute (TIME-WAIT, RFC 9293 §3.3.2).
            # With SO_REUSEADDR those do not count; whoever listens still does.
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind((address, port))
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        number = int(kept.getsockname()[1])
        if sys.platform == "linux":
            # There, two that have SO_REUSEADDR and do not listen may share a port: a name in the
            # abstract namespace, which belongs to one socket and ends with it, keeps them apart.
            owner = str(number) if address == "127.0.0.1" else f"{address}-{number}"
            sockets.enter_context(socket.socket(socket.AF_UNIX)).bind(f"\0posd-port-{owner}")
        return PortReservation(number, sockets.pop_all())
