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
_where: Final[Any] = None if _ffi is None else _ffi.new("char **")


def renew_buffers(transport: Any) -> bool:
    """Give a connection with TLS new buffers; whether that was done.

    What has used the buffers by then, such as `posd.web.http.direct_write`, must not use them any more.
    """
    if not isinstance(transport, TLSMemoryBIOProtocol):
        return False
    connection: Any = transport.getHandle()
    if not _knows(connection):
        return False
    if _size(connection._into_ssl) or _size(connection._from_ssl):
        return False
    received, sent = _openssl.BIO_new(_kind), _openssl.BIO_new(_kind)
    if not (received and sent):
        return False
    # The connection has the new ones now, and frees the old ones.
    _openssl.SSL_set_bio(connection._ssl, received, sent)
    connection._into_ssl, connection._from_ssl = received, sent
    return True


def _knows(connection: Any) -> bool:
    """Whether OpenSSL can be called, and the connection has the attributes."""
    try:
        found = connection._ssl, connection._into_ssl, connection._from_ssl
        return _kind is not None and None not in found
    except AttributeError:
        return False


def _size(buffer: Any) -> int:
    """How many bytes are in a buffer."""
    size: int = _openssl.BIO_get_mem_data(buffer, _where)
    return size


def _kind_of_buffer() -> Any:
    """OpenSSL's kind of buffers in memory; None if it cannot be called as it is here."""
    return _openssl.BIO_s_mem() if all(hasattr(_openssl, each) for each in _CALLED) else None


_kind: Final[Any] = _kind_of_buffer()
