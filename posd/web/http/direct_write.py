"""Sends to a client in the same turn of the reactor. Twisted would send in the next one.

Twisted's `transport.write` appends to a buffer and registers the socket with epoll. That costs more than to
encrypt and send a message, and the message waits for all other work of the turn. This module encrypts and
sends bytes at once if no bytes wait before them. Otherwise it calls `transport.write`, and Twisted pauses and
resumes the producer of the connection as usual.

This module uses undocumented attributes of Twisted's transports and of pyOpenSSL's connections. If a
transport does not have them, `transport.write` is used, and `tests.web.http.test_direct_write` fails. OpenSSL
is called without `Connection.send` and `bio_read`, which take longer than to encrypt 1 KiB.
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
"""More than the largest TLS record, which has 16 KiB and a few bytes (RFC 8446 §5.2)."""

# All connections share this buffer. A record is sent or copied before the next one is encrypted.
_record: Final[Any] = None if _ffi is None else _ffi.new("char[]", _RECORD_BYTES)
_record_view: Final = memoryview(b"" if _ffi is None else _ffi.buffer(_record))

_log = Logger()
_reported_transports: set[type] = set()
"""The classes of transports that were logged as unsupported."""


def direct_write(transport: Any) -> Write:
    """Return a function that writes to `transport`, directly if its class supports that."""
    socket = socket_transport(transport)
    # A lost connection has no socket. Requests that were received before are still answered.
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
            # The kernel's buffer is full, or the connection is lost. Twisted tries again and handles both.
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
        """Encrypt and send. This runs for each till and event, so it avoids calls of Python functions."""
        socket = self._socket
        # One record at a time. Nearly always there is only one.
        while not (socket.dataBuffer or socket._tempDataLen):
            length = len(data)
            # cffi passes the address of a `bytes` object without a copy.
            encrypted = _openssl.SSL_write(self._ssl, data, length)
            if encrypted <= 0:
                # Twisted tries again, and waits for the client or closes the connection. An error that stays
                # in OpenSSL's queue would be reported for the next connection.
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
    """Return whether unsent bytes are in `dataBuffer`, or counted by `_tempDataLen`."""
    return isinstance(getattr(socket, "dataBuffer", None), bytes) and isinstance(
        getattr(socket, "_tempDataLen", None), int
    )


def _is_supported_tls(transport: Any) -> bool:
    """Return whether the transport encrypts at once, and OpenSSL can be called directly."""
    if getattr(transport.write, "__func__", None) is not TLSMemoryBIOProtocol.write:
        return False
    if not all(hasattr(_openssl, each) for each in _REQUIRED_FUNCTIONS):
        return False
    connection = transport.getHandle()
    return all(
        isinstance(getattr(connection, each, None), _ffi.CData) for each in ("_ssl", "_from_ssl")
    )
