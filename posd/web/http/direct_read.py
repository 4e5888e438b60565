"""Reads decrypted input from OpenSSL, with half of the calls that Twisted needs.

Twisted reads plain text from pyOpenSSL until `WantReadError` is raised, and then reads records to send, which
nearly always raises the exception again. This module asks the memory BIOs how many bytes they hold, and
checks the return value of `SSL_read`, so that no exception is raised while a connection is open.

Like `posd.web.http.direct_write`, this module uses undocumented attributes of Twisted's transport and of
pyOpenSSL's connections. If they are missing, and if a connection ends, it calls Twisted's own methods.
`tests.web.http.test_direct_read` fails if they are missing.
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL
from twisted.protocols.tls import TLSMemoryBIOProtocol

_ffi: Final[Any] = getattr(SSL, "_ffi", None)
_openssl: Final[Any] = getattr(SSL, "_lib", None)
_REQUIRED_FUNCTIONS: Final = ("BIO_write", "BIO_get_mem_data", "SSL_read", "SSL_get_error")


def is_supported(protocol: type, connection: object) -> bool:
    """Return whether OpenSSL can be called directly for these classes of transports and connections."""
    return (
        all(hasattr(_openssl, each) for each in (*_REQUIRED_FUNCTIONS, "SSL_ERROR_WANT_READ"))
        and all(hasattr(protocol, each) for each in ("_aborted", "_lostTLSConnection"))
        and all(
            isinstance(getattr(connection, each, None), _ffi.CData)
            for each in ("_ssl", "_into_ssl", "_from_ssl")
        )
    )


IS_SUPPORTED: Final = is_supported(
    TLSMemoryBIOProtocol, SSL.Connection(SSL.Context(SSL.TLS_METHOD))
)
"""Whether this module calls OpenSSL directly."""

_RECORD_BYTES: Final = 16 * 1024
"""The longest plain text of a record (RFC 8446 §5.1). `SSL_read` returns at most one record."""
# All connections share this buffer. Its content is copied before the next read.
_plain: Final[Any] = None if _ffi is None else _ffi.new("char[]", _RECORD_BYTES)
_plain_view: Final = memoryview(b"" if _ffi is None else _ffi.buffer(_plain))


class DirectlyRead(TLSMemoryBIOProtocol):
    """Twisted's TLS transport, which reads directly after the handshake."""

    _tlsConnection: Any
    _appSendBuffer: list[bytes]
    wrappedProtocol: Any

    def dataReceived(self, data: bytes) -> None:
        if IS_SUPPORTED and self._handshakeDone and not self._appSendBuffer:
            written = _openssl.BIO_write(
                self._tlsConnection._into_ssl, _ffi.from_buffer(data), len(data)
            )
            if written == len(data):
                self._read_records()
                return
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def _read_records(self) -> None:
        """Deliver the plain text of all complete records."""
        connection = self._tlsConnection
        ssl, records = connection._ssl, connection._into_ssl
        while _openssl.BIO_get_mem_data(records, _ffi.NULL) and not self._lostTLSConnection:
            size = _openssl.SSL_read(ssl, _plain, _RECORD_BYTES)
            if size > 0:
                data = _plain_view[:size].tobytes()
                if not self._aborted:
                    self.wrappedProtocol.dataReceived(data)
            elif _openssl.SSL_get_error(ssl, size) == _openssl.SSL_ERROR_WANT_READ:
                break
            else:
                # The connection ends. Twisted reads again, gets the same error, and handles it.
                self._flushReceiveBIO()  # type: ignore[no-untyped-call]
                return
        # OpenSSL may have written an answer, for example to a KeyUpdate (RFC 8446 §4.6.3).
        if _openssl.BIO_get_mem_data(connection._from_ssl, _ffi.NULL):
            self._flushSendBIO()  # type: ignore[no-untyped-call]
