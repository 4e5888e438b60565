"""Options of the socket below a transport, with TLS or without."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Final

_KERNEL_BYTES: Final = 256 * 1024
"""Unsent bytes of one connection in the kernel. With a round trip of 50 ms this permits 40 Mbit/s."""


_TWISTED_BYTES: Final = 8 * 1024
"""Bytes that Twisted reads in one turn, up to four hundred frames. Twisted's own value is 64 KiB.

Twisted also pauses the producer of a connection with more unsent bytes.
"""


def limit_buffers(transport: Any) -> None:
    """Bound the bytes that are read in a turn of the reactor, and the unsent bytes in Twisted and the kernel.

    A client that does not read costs the memory of these unsent bytes. By default Linux keeps up to 4 MiB for
    a connection (tcp(7), tcp_wmem). They count in the control group of posd, and posd's own limits do not see
    them. Linux doubles the value of SO_SNDBUF.
    """
    lower = socket_transport(transport)
    with suppress(AttributeError, OSError):
        lower.bufferSize = _TWISTED_BYTES
        lower.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES // 2)


def set_low_latency(transport: Any, unconfirmed_milliseconds: int) -> None:
    """Send small writes at once, and close the connection if the peer does not acknowledge bytes in time.

    By default the kernel tries for a quarter of an hour (tcp(7), TCP_USER_TIMEOUT).
    """
    with suppress(AttributeError, OSError):
        # A unix socket, which a local proxy may use, does not have these options.
        lower = socket_transport(transport)
        lower.setTcpNoDelay(True)
        lower.getHandle().setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unconfirmed_milliseconds
        )


def socket_transport(transport: Any) -> Any:
    """Return the transport that has the socket, below TLS and other wrappers."""
    while (lower := getattr(transport, "transport", None)) is not None:
        transport = lower
    return transport
