"""TLS of the server: its certificate and the reload of it, ciphers, and client certificates.

`posd.security.pem` reads each file once, so that the checked contents are the contents in use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen
from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import AcceptableCiphers, CertificateOptions, TLSVersion
from zope.interface import implementer

from posd import errors
from posd.security import pem
from posd.security.tls_refusals import TLSRefusals
from posd.security.validity import Validity

if TYPE_CHECKING:
    from twisted.protocols.tls import TLSMemoryBIOProtocol

    from posd.config.model import TLSConfig

_HTTP_1_1 = b"http/1.1"
"""The only protocol offered by ALPN, because Twisted's HTTP/2 cannot open a WebSocket."""

_MINIMUM = {"1.2": TLSVersion.TLSv1_2, "1.3": TLSVersion.TLSv1_3}

_CIPHERS = AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AESGCM:ECDHE+CHACHA20")
"""TLS 1.2 with authenticated encryption and forward secrecy (RFC 9325 §4.2). All of TLS 1.3 has both."""
_LEGACY_CIPHERS = AcceptableCiphers.fromOpenSSLCipherString(
    "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:RSA+AESGCM:RSA+AES:!aNULL"
)

_TICKET_KEY_SECONDS = 24 * 3600.0
"""How long a key protects session tickets. RFC 5077 §5.5 requires regular changes.

An attacker who gets the key can decrypt the TLS 1.2 sessions that were resumed with its tickets.
"""


@frozen
class _Material:
    """The checked contents of the files."""

    identity: pem.TLSIdentity
    client_authorities: Sequence[x509.Certificate]


_InfoCallback = Callable[[SSL.Connection, int, int], None]
Stamp = tuple[int, int, int, int, int]
_ABSENT: Stamp = (0, 0, 0, 0, 0)


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """Creates TLS connections of the server, for `posd.web.http.tls_endpoint.TLSEndpoint`.

    The constructor reads the files. It raises `StartError` with one line for each unusable file, which
    names the file and the remedy. An expired certificate, or one that is not valid yet, is used, because
    the clock of the machine may be wrong and the shop should still be served. `seconds` is a monotonic
    clock.
    """

    def __init__(
        self, settings: TLSConfig, *, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self.refusals = TLSRefusals(seconds)
        self._load(settings)

    def reload(self, settings: TLSConfig | None = None) -> bool:
        """Read the files again, or the files of new settings, for new connections.

        Existing connections stay up. Returns whether the files or the settings have changed. Raises
        `StartError` for unusable files, and keeps the previous ones then.
        """
        before = self.settings, self._material
        self._load(settings or self.settings)
        return before != (self.settings, self._material)

    @property
    def is_stale(self) -> bool:
        """Whether a file has been replaced or changed since it was read."""
        return self._stamps_of != self.file_stamps()

    def file_stamps(self) -> Sequence[Stamp]:
        """Return the identity, size and times of each file, which differ after a change."""
        return _stamps_of(self.settings)

    @property
    def serial_number(self) -> int:
        """The serial number of the certificate for new connections."""
        return self._material.identity.chain[0].serial_number

    @property
    def expires_at(self) -> datetime:
        """When the certificate for new connections expires, in UTC."""
        return self._material.identity.chain[0].not_valid_after_utc

    @property
    def validity(self) -> Validity:
        """The validity of the certificate for new connections."""
        return Validity.of(self._material.identity.chain[0])

    @property
    def validities(self) -> Mapping[str, Validity]:
        """The validity of the server's certificate and of the clients' authority, by file name."""
        ours = {str(self.settings.certificate): self.validity}
        if not self._material.client_authorities:
            return ours
        # An old authority and its successor may both be trusted. Tills are locked out when the last expires.
        authorities = [Validity.of(each) for each in self._material.client_authorities]
        return {str(self.settings.client_ca): max(authorities, key=lambda each: each.ends), **ours}

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        if self._seconds() - self._context_since >= _TICKET_KEY_SECONDS:
            self._renew_context(self.settings, self._material)
        connection = SSL.Connection(self._context)
        connection.set_app_data(tlsProtocol)
        return connection

    def _load(self, settings: TLSConfig) -> None:
        # Taken before the files are read, so that a write during the read is noticed at the next check.
        stamps = _stamps_of(settings)
        material = _read_material(settings)
        self._renew_context(settings, material)
        self.settings, self._material, self._stamps_of = settings, material, stamps

    def _renew_context(self, settings: TLSConfig, material: _Material) -> None:
        self._context = _context(settings, material, self.refusals.info_callback)
        self._context_since = self._seconds()


def problems(settings: TLSConfig) -> Mapping[str, str]:
    """Return the problems of the files of `[tls]`, by key of the configuration.

    A missing key is not a problem here; `posd.config.model` reports it.
    """
    try:
        _context(settings, _read_material(settings), lambda *_: None)
    except pem.UnusableFiles as error:
        return error.problems
    except errors.StartError:
        return {}
    return {}


def _context(settings: TLSConfig, material: _Material, info_callback: _InfoCallback) -> SSL.Context:
    """Return a context with Twisted's defaults (no compression, small idle connections) and session tickets.

    Twisted's defaults disable tickets (OP_NO_TICKET) and the session cache. TLS 1.2 clients could resume no
    session, and TLS 1.3 clients would get tickets for a cache that does not exist. With tickets, the client
    keeps the session and the server needs no memory for it.
    """
    options = CertificateOptions(
        raiseMinimumTo=_MINIMUM[settings.minimum_version],
        enableSessionTickets=True,
        acceptableCiphers=_LEGACY_CIPHERS if settings.legacy_ciphers else _CIPHERS,
    )
    # posd uses the context and not `options`, which as a connection creator would add the protocols of the
    # wrapped factory to ALPN: `h2`, if that library is installed.
    context = options.getContext()
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    context.set_alpn_select_callback(_choose_protocol)
    try:
        context.use_certificate(material.identity.chain[0])
        for issuer in material.identity.chain[1:]:
            context.add_extra_chain_cert(issuer)
        context.use_privatekey(material.identity.key)
    except SSL.Error as error:
        text = (
            f"{settings.certificate} is refused by OpenSSL ({_reason(error)}); have it issued anew"
        )
        raise pem.UnusableFiles({"certificate": text}) from error
    if material.client_authorities:
        _require_client_certificates(context, material.client_authorities, info_callback)
    return context


def _require_client_certificates(
    context: SSL.Context, authorities: Sequence[x509.Certificate], info_callback: _InfoCallback
) -> None:
    """Accept only clients that have a certificate of one of these authorities."""
    store = context.get_cert_store()
    assert store is not None
    for authority in authorities:
        store.add_cert(X509.from_cryptography(authority))
        context.add_client_ca(authority)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.set_info_callback(info_callback)


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """Choose HTTP/1.1, or end the handshake with `no_application_protocol` (RFC 7301 §3.2).

    A connection without an agreed protocol would allow cross-protocol attacks (https://alpaca-attack.com).
    """
    if _HTTP_1_1 in offered:
        return _HTTP_1_1
    # pyOpenSSL sends the alert only for an exception, and Twisted closes the connection only for SSL.Error.
    raise SSL.Error([("posd", "ALPN", "no protocol in common with the client")])


def _read_material(settings: TLSConfig) -> _Material:
    reading = pem.PEMReading()
    names = ("certificate", "private_key")
    identity = reading.identity(names, settings.certificate, settings.private_key)
    authorities = reading.certificates("client_ca", settings.client_ca)
    reading.raise_problems()
    if identity is None:
        raise errors.StartError(
            "A listener has tls = true, so tls.certificate and tls.private_key must be set; "
            "`posctl make-cert` makes both"
        )
    return _Material(identity, authorities or ())


def _stamps_of(settings: TLSConfig) -> list[Stamp]:
    """Return the stamps of the files, of the targets of symbolic links.

    A program that writes a file can set st_mtime back, but not st_ctime.
    """
    stamps = []
    for path in (settings.certificate, settings.private_key, settings.client_ca):
        try:
            file_stamps = Path(path or "").stat()
        except OSError:
            stamps.append(_ABSENT)
        else:
            times = file_stamps.st_mtime_ns, file_stamps.st_ctime_ns
            stamps.append((file_stamps.st_dev, file_stamps.st_ino, file_stamps.st_size, *times))
    return stamps


def _reason(error: SSL.Error) -> str:
    """Return OpenSSL's reasons for an error, such as `ee key too small`."""
    return "; ".join(str(reason) for _library, _function, reason in error.args[0])
