"""Sends to a client in the same turn of the reactor, where Twisted would send in the next one.

Twisted's `transport.write` appends to a buffer and asks epoll to report when the socket can be written.
That costs more than to encrypt and send a message, and the message waits for everything else that is done in
the turn. Here bytes are encrypted and sent at once if nothing waits before them. Otherwise `transport.write`
takes them, and Twisted pauses and resumes the producer of the connection as always.

This module uses attributes of Twisted's transports that are not documented: `_appSendBuffer`, `dataBuffer`
and `_tempDataLen`. A transport that does not have them is written to by `transport.write`, and
`tests.web.http.test_direct_write` fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from OpenSSL import SSL
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol

from posd.web.http.sockets import socket_below

Write = Callable[[bytes], None]

_RECORD_BYTES: Final = 32 * 1024
"""More than the largest record of TLS has: 16 KiB and a few bytes (RFC 8446 §5.2)."""

_log = Logger()
_unknown: set[type] = set()
"""The transports that the log was told of."""


def direct_write(transport: Any) -> Write:
    """A function that writes to `transport`, directly if that is possible with a transport of this kind."""
    socket = socket_below(transport)
    if not isinstance(socket, Connection):
        return cast(Write, transport.write)
    is_tls = isinstance(transport, TLSMemoryBIOProtocol)
    if is_tls and _has_what_tls_uses(transport) and _has_what_is_used(socket):
        return DirectTLS(transport, socket).write
    if not is_tls and _has_what_is_used(socket):
        return DirectSocket(transport, socket).write
    if type(transport) not in _unknown:
        _unknown.add(type(transport))
        _log.warn(
            "posd does not know how {transport} of this version of Twisted works; events are sent to tills by"
            " its write(), which is slower. Install the versions of requirements.lock",
            transport=type(transport).__name__,
        )
    return cast(Write, transport.write)


class DirectSocket:
    """Writes to a connection without TLS."""

    def __init__(self, transport: Any, socket: Any) -> None:
        self._transport = transport
        self._socket = socket
        self._to_kernel = socket.getHandle().send

    def write(self, data: bytes) -> None:
        if self._is_idle():
            self._send(data)
        else:
            self._transport.write(data)

    def _is_idle(self) -> bool:
        """Whether the connection is open and nothing waits to be sent."""
        socket = self._socket
        return socket.connected and not (
            socket.dataBuffer or socket._tempDataLen or self._transport.disconnecting
        )

    def _send(self, data: bytes) -> None:
        try:
            sent = self._to_kernel(data)
        except OSError:
            # The kernel takes nothing for now, or the connection is lost. Twisted tries again and finds out.
            sent = 0
        if sent < len(data):
            self._socket.write(data[sent:])


class DirectTLS(DirectSocket):
    """Writes to a connection with TLS."""

    def __init__(self, transport: Any, socket: Any) -> None:
        super().__init__(transport, socket)
        connection: SSL.Connection = transport.getHandle()
        self._encrypt = connection.send
        self._take_record = connection.bio_read

    def write(self, data: bytes) -> None:
        # One record at a time; nearly always there is only one.
        while data:
            if self._transport._appSendBuffer or not self._is_idle():
                self._transport.write(data)
                return
            try:
                encrypted = self._encrypt(data)
            except SSL.Error:
                # Twisted tries again, and waits for the client or closes the connection.
                self._transport.write(data)
                return
            self._send(self._take_record(_RECORD_BYTES))
            data = data[encrypted:]


def _has_what_is_used(socket: Any) -> bool:
    return isinstance(getattr(socket, "dataBuffer", None), bytes) and isinstance(
        getattr(socket, "_tempDataLen", None), int
    )


def _has_what_tls_uses(transport: Any) -> bool:
    """Whether `write` encrypts at once, with no buffer before that but `_appSendBuffer`."""
    encrypts = getattr(transport.write, "__func__", None) is TLSMemoryBIOProtocol.write
    return encrypts and isinstance(getattr(transport, "_appSendBuffer", None), list)
