"""Reserve ports for servers, so that no two servers use the same port."""

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
    """A port of this machine that is reserved for a server. The end of its context releases the port."""

    number: int
    _sockets: ExitStack

    def close(self) -> None:
        """Release the port."""
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
    """Reserve a port of an address for a server that is started later. 0 means any free port.

    The reservation is a bound socket that does not listen. While it is open, the system does not give
    the port to other sockets. A server that sets SO_REUSEADDR, as Twisted does, can listen on it, also
    after a restart. Raises `OSError` if the port is in use or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as sockets:
        kept = sockets.enter_context(socket.socket(family))
        try:
            kept.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # A closed connection keeps its port for a minute (TIME-WAIT, RFC 9293 §3.3.2). With
            # SO_REUSEADDR, bind fails only if another socket listens on the port.
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind((address, port))
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        number = int(kept.getsockname()[1])
        if sys.platform == "linux":
            # On Linux, two bound sockets with SO_REUSEADDR that do not listen may share a port. A
            # name in the abstract namespace, which only one socket can have, prevents that.
            owner = str(number) if address == "127.0.0.1" else f"{address}-{number}"
            sockets.enter_context(socket.socket(socket.AF_UNIX)).bind(f"\0posd-port-{owner}")
        return PortReservation(number, sockets.pop_all())
