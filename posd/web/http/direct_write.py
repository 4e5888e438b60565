"""Sends to a client in the same turn of the reactor, where Twisted would send in the next one.

Twisted's `transport.write` appends to a buffer and asks epoll to report when the socket can be written.
That costs more than to encrypt and send a message, and the message waits for everything else that is done in
the turn. Here bytes are encrypted and sent at once if nothing waits before them. Otherwise `transport.write`
takes them, and Twisted pauses and resumes the producer of the connection as always.

This module uses attributes of Twisted's transports and of pyOpenSSL's connections that are not documented. A
transport that does not have them is written to by `transport.write`, and `tests.web.http.test_direct_write`
fails. OpenSSL is called without `Connection.send` and `bio_read`, which take longer than to encrypt 1 KiB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from OpenSSL import SSL
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol

from posd.web.http.sockets import socket_transport

Write = Callable[[bytes], None]

_ffi: Final[Any] = getattr(SSL, "_ffi", None)
_openssl: Final[Any] = getattr(SSL, "_lib", None)
_REQUIRED_FUNCTIONS: Final = ("SSL_write", "BIO_read", "ERR_clear_error")

_RECORD_BYTES: Final = 32 * 1024
"""More than the largest record of TLS has: 16 KiB and a few bytes (RFC 8446 §5.2)."""

# Each record is read into it and has left it before the next one is made.
_record: Final[Any] = None if _ffi is None else _ffi.new("char[]", _RECORD_BYTES)
_record_view: Final = memoryview(b"" if _ffi is None else _ffi.buffer(_record))

_log = Logger()
_reported_transports: set[type] = set()
"""The transports that the log was told of."""


def direct_write(transport: Any) -> Write:
    """A function that writes to `transport`, directly if that is possible with a transport of this kind."""
    socket = socket_transport(transport)
    # A connection that is lost has no socket. What a client sent before that is still answered.
    if not isinstance(socket, Connection) or not socket.connected:
        return cast(Write, transport.write)
    is_tls = isinstance(transport, TLSMemoryBIOProtocol)
    if _is_supported_socket(socket) and (not is_tls or _is_supported_tls(transport)):
        return (DirectTLS if is_tls else DirectSocket)(transport, socket).write
    if type(transport) not in _reported_transports:
        _reported_transports.add(type(transport))
        _log.warn(
            "posd does not know how {transport} works in these versions of Twisted and pyOpenSSL; events are"
            " sent to tills by its write(), which is slower. Install the versions of requirements.lock",
            transport=type(transport).__name__,
        )
    return cast(Write, transport.write)


class DirectSocket:
    """Writes to a connection without TLS."""

    __slots__ = ("_socket", "_to_kernel", "_transport")

    def __init__(self, transport: Any, socket: Any) -> None:
        self._transport = transport
        self._socket = socket
        self._to_kernel = socket.getHandle().send

    def write(self, data: bytes) -> None:
        socket = self._socket
        if socket.dataBuffer or socket._tempDataLen:
            self._transport.write(data)
            return
        try:
            sent = self._to_kernel(data)
        except OSError:
            # The kernel takes nothing for now, or the connection is lost. Twisted tries again and finds out.
            sent = 0
        if sent < len(data):
            socket.write(data[sent:])


class DirectTLS(DirectSocket):
    """Writes to a connection with TLS."""

    __slots__ = ("_records", "_ssl")

    def __init__(self, transport: Any, socket: Any) -> None:
        super().__init__(transport, socket)
        connection = transport.getHandle()
        self._ssl = connection._ssl
        self._records = connection._from_ssl

    def write(self, data: bytes) -> None:
        """Encrypt and send. It runs for each till and event, so it calls no other method of Python."""
        socket = self._socket
        # A record at a time. Nearly always there is one record.
        while not (socket.dataBuffer or socket._tempDataLen):
            length = len(data)
            # cffi passes the address of a `bytes`, and copies nothing.
            encrypted = _openssl.SSL_write(self._ssl, data, length)
            if encrypted <= 0:
                # Twisted tries again, and waits for the client or closes the connection. What is left in the
                # queue of errors would be taken for an error of the next connection.
                _openssl.ERR_clear_error()
                break
            size = _openssl.BIO_read(self._records, _record, _RECORD_BYTES)
            try:
                sent = self._to_kernel(_record_view[:size])
            except OSError:
                sent = 0
            if sent < size:
                socket.write(bytes(_record_view[sent:size]))
            if encrypted == length:
                return
            data = data[encrypted:]
        self._transport.write(data)


def _is_supported_socket(socket: Any) -> bool:
    """Whether what waits to be sent is in `dataBuffer`, or counted by `_tempDataLen`."""
    return isinstance(getattr(socket, "dataBuffer", None), bytes) and isinstance(
        getattr(socket, "_tempDataLen", None), int
    )


def _is_supported_tls(transport: Any) -> bool:
    """Whether what is written is encrypted at once, by OpenSSL as it is called here."""
    if getattr(transport.write, "__func__", None) is not TLSMemoryBIOProtocol.write:
        return False
    if not all(hasattr(_openssl, each) for each in _REQUIRED_FUNCTIONS):
        return False
    connection = transport.getHandle()
    return all(
        isinstance(getattr(connection, each, None), _ffi.CData) for each in ("_ssl", "_from_ssl")
    )
