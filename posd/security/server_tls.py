"""The server's side of TLS: its certificate and how it is replaced, and which clients it lets in.

The files are read by `posd.security.pem`, each once, so that what was checked is what is used.
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
"""The only protocol offered by ALPN: a WebSocket cannot be opened within Twisted's HTTP/2."""

_MINIMUM = {"1.2": TLSVersion.TLSv1_2, "1.3": TLSVersion.TLSv1_3}

_CIPHERS = AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AESGCM:ECDHE+CHACHA20")
"""TLS 1.2 with authenticated encryption and forward secrecy (RFC 9325 §4.2). TLS 1.3 has nothing else."""
_LEGACY_CIPHERS = AcceptableCiphers.fromOpenSSLCipherString(
    "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:RSA+AESGCM:RSA+AES:!aNULL"
)

_TICKET_KEY_SECONDS = 24 * 3600.0
"""How long one key protects session tickets; RFC 5077 §5.5 wants it changed regularly.

Whoever steals the key from memory can read what TLS 1.2 sessions resumed under it said.
"""


@frozen
class _Material:
    """What the files had in them, checked."""

    identity: pem.TLSIdentity
    client_authorities: Sequence[x509.Certificate]


_InfoCallback = Callable[[SSL.Connection, int, int], None]
Stamp = tuple[int, int, int, int, int]
_ABSENT: Stamp = (0, 0, 0, 0, 0)


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """The server's side of TLS, for `posd.web.http.tls_endpoint.TLSEndpoint`.

    The files are read when it is made: `StartError` has a line for each that cannot be used, which
    names the file and the remedy. A certificate that has ended, or not begun, is used: a shop whose
    clock is wrong is better served than not. `seconds` is a monotonic clock.
    """

    def __init__(
        self, settings: TLSConfig, *, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self.refusals = TLSRefusals(seconds)
        self._load(settings)

    def reload(self, settings: TLSConfig | None = None) -> bool:
        """Read the files again, or others, for the connections to come; the old ones stay up.

        Tells whether anything is new, even if only a setting. Raises `StartError` for files that
        cannot be used; then what was in force stays so.
        """
        before = self.settings, self._material
        self._load(settings or self.settings)
        return before != (self.settings, self._material)

    @property
    def is_stale(self) -> bool:
        """Whether a file is another than the one that is in force, or was touched since."""
        return self._stamps_of != self.file_stamps()

    def file_stamps(self) -> Sequence[Stamp]:
        """What the files that are there now can be told from others by, without reading them."""
        return _stamps_of(self.settings)

    @property
    def serial_number(self) -> int:
        """That of the certificate that new connections get."""
        return self._material.identity.chain[0].serial_number

    @property
    def expires_at(self) -> datetime:
        """When the certificate that new connections get ends, in UTC."""
        return self._material.identity.chain[0].not_valid_after_utc

    @property
    def validity(self) -> Validity:
        """From when until when that certificate is valid."""
        return Validity.of(self._material.identity.chain[0])

    @property
    def validities(self) -> Mapping[str, Validity]:
        """How long the server's certificate is valid, and the last of the tills' authorities, by file."""
        ours = {str(self.settings.certificate): self.validity}
        if not self._material.client_authorities:
            return ours
        # Of an old authority and the one that follows it, only the last one's end locks tills out.
        authorities = [Validity.of(each) for each in self._material.client_authorities]
        return {str(self.settings.client_ca): max(authorities, key=lambda each: each.ends), **ours}

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        if self._seconds() - self._context_since >= _TICKET_KEY_SECONDS:
            self._renew_context(self.settings, self._material)
        connection = SSL.Connection(self._context)
        connection.set_app_data(tlsProtocol)
        return connection

    def _load(self, settings: TLSConfig) -> None:
        # Looked at before they are read: what is written meanwhile is seen the next time.
        stamps = _stamps_of(settings)
        material = _read_material(settings)
        self._renew_context(settings, material)
        self.settings, self._material, self._stamps_of = settings, material, stamps

    def _renew_context(self, settings: TLSConfig, material: _Material) -> None:
        self._context = _context(settings, material, self.refusals.info_callback)
        self._context_since = self._seconds()


def problems(settings: TLSConfig) -> Mapping[str, str]:
    """Find everything wrong with the files that `[tls]` names: a key of it, and what to say of it.

    A key that is not set names no file, so nothing is said of it.
    """
    try:
        _context(settings, _read_material(settings), lambda *_: None)
    except pem.UnusableFiles as error:
        return error.problems
    except errors.StartError:
        return {}
    return {}


def _context(settings: TLSConfig, material: _Material, info_callback: _InfoCallback) -> SSL.Context:
    """Twisted's defaults (no compression, buffers of idle connections released), and:

    Session tickets. Twisted's defaults forbid them (OP_NO_TICKET) *and* switch the session cache
    off, so TLS 1.2 clients get nothing to resume with and TLS 1.3 clients get tickets for a cache
    that is not there. With tickets the client keeps the session and the server no memory of it.
    """
    options = CertificateOptions(
        raiseMinimumTo=_MINIMUM[settings.minimum_version],
        enableSessionTickets=True,
        acceptableCiphers=_LEGACY_CIPHERS if settings.legacy_ciphers else _CIPHERS,
    )
    # Ours alone, so it may be adjusted. As a connection creator, `options` would add to ALPN
    # whatever the wrapped factory speaks: `h2`, wherever that library happens to be installed.
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
    """Let in only clients that have a certificate of one of these authorities."""
    store = context.get_cert_store()
    assert store is not None
    for authority in authorities:
        store.add_cert(X509.from_cryptography(authority))
        context.add_client_ca(authority)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.set_info_callback(info_callback)


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """Agree to HTTP/1.1, or end the handshake with `no_application_protocol` (RFC 7301 §3.2).

    Going on without an agreement would allow cross-protocol attacks (https://alpaca-attack.com).
    """
    if _HTTP_1_1 in offered:
        return _HTTP_1_1
    # pyOpenSSL sends that alert for an exception only, and Twisted ends a connection for this one.
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
    """By what a change of the files is seen: of those behind symbolic links, where there are any.

    The change of an inode's time cannot be undone by who writes a file, unlike that of its content.
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
    """OpenSSL's words for an error, such as `ee key too small`."""
    return "; ".join(str(reason) for _library, _function, reason in error.args[0])
