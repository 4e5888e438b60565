"""Options of the socket below a connection of Twisted's, with TLS or without."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Final

_KERNEL_BYTES: Final = 256 * 1024
"""Of what was written to one connection; at 50 ms to the client and back it is 40 Mbit/s."""


_TWISTED_BYTES: Final = 8 * 1024
"""So much Twisted reads in one turn, which may be four hundred frames; its own value is 64 KiB.

Twisted also pauses the producer of a connection for which it keeps more than that.
"""


def limit_buffers(transport: Any) -> None:
    """Bound what is read in one turn of the reactor, and what Twisted and the kernel keep to send.

    What they keep is what a client costs that does not read. Linux gives a connection up to 4 MiB for it
    (tcp(7), tcp_wmem), which count as posd's memory in its control group, and which no limit of posd's
    own would see. It doubles the value.
    """
    lower = socket_transport(transport)
    with suppress(AttributeError, OSError):
        lower.bufferSize = _TWISTED_BYTES
        lower.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES // 2)


def set_low_latency(transport: Any, unconfirmed_milliseconds: int) -> None:
    """Have what is written leave at once, and the connection fail when nobody confirms it for so long.

    The kernel would try for a quarter of an hour otherwise (tcp(7), TCP_USER_TIMEOUT).
    """
    with suppress(AttributeError, OSError):
        # A unix socket, behind a proxy on this machine, has no such options.
        lower = socket_transport(transport)
        lower.setTcpNoDelay(True)
        lower.getHandle().setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unconfirmed_milliseconds
        )


def socket_transport(transport: Any) -> Any:
    """The transport that has the socket, below TLS and other wrappers."""
    while (lower := getattr(transport, "transport", None)) is not None:
        transport = lower
    return transport
