"""Ports for servers of our own, so that no two of them want the same one."""

from __future__ import annotations

import socket


def reserve(port: int = 0) -> socket.socket:
    """Keep a port of 127.0.0.1, any one where it is 0, for a server that is started later.

    The socket is bound and does not listen. As long as it is open nobody else finds the port free,
    neither for listening nor for a connection of theirs; but a server that sets SO_REUSEADDR, as
    Twisted's do, may listen on it, also again after it was restarted. Raises `OSError` for a port
    that is in use.
    """
    kept = socket.socket()
    try:
        kept.bind(("127.0.0.1", port))
        # Only now: two reservations that allow it from the start would get the same port.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except BaseException:
        kept.close()
        raise
    return kept


def number(reserved: socket.socket) -> int:
    """The number of a reserved port."""
    return int(reserved.getsockname()[1])
