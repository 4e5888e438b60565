"""Frees what a connection's TLS keeps of its handshake and of the request, when the connection is a till's.

OpenSSL reads and writes through buffers in memory, which grow with what was in them and never shrink. A
handshake leaves some 4 KB in them, an eighth of what an idle till takes.

This module uses attributes of pyOpenSSL's connections that are not documented. Where they are not there, or
where something is still in a buffer, nothing is done, and `tests.web.http.test_tls_memory` fails.
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL
from twisted.protocols.tls import TLSMemoryBIOProtocol

_ffi: Final[Any] = getattr(SSL, "_ffi", None)
_openssl: Final[Any] = getattr(SSL, "_lib", None)
_CALLED: Final = ("BIO_new", "BIO_s_mem", "BIO_get_mem_data", "SSL_set_bio")


def renew_buffers(transport: Any) -> bool:
    """Give a connection with TLS new buffers; whether that was done.

    What has used the buffers by then, such as `posd.web.http.direct_write`, must not use them any more.
    """
    if not isinstance(transport, TLSMemoryBIOProtocol):
        return False
    connection: Any = transport.getHandle()
    if not _knows(connection) or _has_data(connection._into_ssl, connection._from_ssl):
        return False
    received, sent = (_openssl.BIO_new(_openssl.BIO_s_mem()) for _ in range(2))
    if _ffi.NULL in (received, sent):
        return False
    # The connection has the new ones now, and frees the old ones.
    _openssl.SSL_set_bio(connection._ssl, received, sent)
    connection._into_ssl, connection._from_ssl = received, sent
    return True


def _knows(connection: Any) -> bool:
    return all(hasattr(_openssl, each) for each in _CALLED) and all(
        isinstance(getattr(connection, each, None), _ffi.CData)
        for each in ("_ssl", "_into_ssl", "_from_ssl")
    )


def _has_data(*buffers: Any) -> bool:
    """Whether there is something in a buffer."""
    return any(_openssl.BIO_get_mem_data(each, _ffi.new("char **")) for each in buffers)
