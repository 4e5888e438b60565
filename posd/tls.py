"""TLS: the server's certificate and how it is replaced, and whom posd's own clients trust.

Nothing else in posd imports OpenSSL. PEM is read and checked by `cryptography`, whose sentences
about what is wrong are better, and each file is read once, so that what was checked is what is
used.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.logger import Logger
from zope.interface import implementer

from posd import errors

if TYPE_CHECKING:
    from twisted.protocols.tls import TLSMemoryBIOProtocol

    from posd.config import TLS

_log = Logger()

_HTTP_1_1 = b"http/1.1"
"""The only protocol offered by ALPN: a WebSocket cannot be opened within Twisted's HTTP/2."""

_MINIMUM = {"1.2": TLSVersion.TLSv1_2, "1.3": TLSVersion.TLSv1_3}

_TICKET_KEY_SECONDS = 24 * 3600.0
"""How long one key protects session tickets; RFC 5077 §5.5 wants it changed regularly.

Whoever steals the key from memory can read what TLS 1.2 sessions resumed under it said.
"""

_Key = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


_T = TypeVar("_T")


class UnusableFiles(errors.StartError):
    """What `[tls]` names cannot be used; `problems` has a line for each key that is to blame."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("\n".join(problems.values()))
        self.problems = problems


@frozen
class _Material:
    """What the files had in them, checked: the certificate first in `chain` belongs to `key`."""

    chain: Sequence[x509.Certificate]
    key: _Key
    client_authorities: Sequence[x509.Certificate]


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """The server's side of TLS, for `twisted.internet.endpoints.wrapServerTLS`.

    The files are read when it is made: `StartError` has a line for each that cannot be used, which
    names the file and the remedy. A certificate that has ended, or not begun, is used with a
    warning: a shop whose clock is wrong is better served than not. `seconds` is a monotonic clock.
    """

    def __init__(self, settings: TLS, *, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._use(settings)

    def reload(self, settings: TLS | None = None) -> None:
        """Read the files again, or others, for the connections to come; the old ones stay up.

        Raises `StartError` for files that cannot be used; then what was in force stays so.
        """
        self._use(settings or self._settings)

    @property
    def expires_at(self) -> datetime:
        """When the certificate that new connections get ends, in UTC."""
        return self._material.chain[0].not_valid_after_utc

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        if self._seconds() - self._context_since >= _TICKET_KEY_SECONDS:
            self._renew_context(_context(self._settings, self._material))
        return SSL.Connection(self._context)

    def _use(self, settings: TLS) -> None:
        material = _read_material(settings)
        self._renew_context(_context(settings, material))
        self._settings, self._material = settings, material
        _warn_about_dates(settings, material.chain[0])

    def _renew_context(self, context: SSL.Context) -> None:
        self._context, self._context_since = context, self._seconds()


def problems(settings: TLS) -> Mapping[str, str]:
    """Find everything wrong with the files that `[tls]` names: a key of it, and what to say of it.

    A key that is not set names no file, so nothing is said of it.
    """
    try:
        _context(settings, _read_material(settings))
    except UnusableFiles as error:
        return error.problems
    except errors.StartError:
        return {}
    return {}


def client_context(host: str, ca: Path | None = None) -> IOpenSSLClientConnectionCreator:
    """What a client needs to call `host`, for `twisted.internet.endpoints.wrapClientTLS`.

    The server must prove to be `host` (a name or an IP address) by a certificate of an authority
    in the PEM file `ca`, or of one that the platform trusts where that is None. Raises
    `StartError` for a file that cannot be used.
    """
    if ca is None:
        return optionsForClientTLS(host)
    authorities = _certificates(str(ca), _read(str(ca)))
    # Twisted's trust root takes only its own certificate class, not that of `cryptography`.
    trusted = trustRootFromCertificates(
        [Certificate.loadPEM(authority.public_bytes(Encoding.PEM)) for authority in authorities]
    )
    return optionsForClientTLS(host, trustRoot=trusted)


def _context(settings: TLS, material: _Material) -> SSL.Context:
    """Twisted's defaults (ciphers, no compression, buffers of idle connections released), and:

    Session tickets. Twisted's defaults forbid them (OP_NO_TICKET) *and* switch the session cache
    off, so TLS 1.2 clients get nothing to resume with and TLS 1.3 clients get tickets for a cache
    that is not there. With tickets the client keeps the session and the server no memory of it.
    """
    options = CertificateOptions(
        raiseMinimumTo=_MINIMUM[settings.minimum_version], enableSessionTickets=True
    )
    # Ours alone, so it may be adjusted. As a connection creator, `options` would add to ALPN
    # whatever the wrapped factory speaks: `h2`, wherever that library happens to be installed.
    context = options.getContext()
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    context.set_alpn_select_callback(_choose_protocol)
    try:
        context.use_certificate(material.chain[0])
        for issuer in material.chain[1:]:
            context.add_extra_chain_cert(issuer)
        context.use_privatekey(material.key)
    except SSL.Error as error:
        text = (
            f"{settings.certificate} is refused by OpenSSL ({_reason(error)}); have it issued anew"
        )
        raise UnusableFiles({"certificate": text}) from error
    if material.client_authorities:
        _ask_for_client_certificates(context, material.client_authorities)
    return context


def _ask_for_client_certificates(
    context: SSL.Context, authorities: Sequence[x509.Certificate]
) -> None:
    """Let in only clients that have a certificate of one of these authorities."""
    store = context.get_cert_store()
    assert store is not None
    for authority in authorities:
        store.add_cert(X509.from_cryptography(authority))
        context.add_client_ca(authority)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """Agree to HTTP/1.1, or end the handshake with `no_application_protocol` (RFC 7301 §3.2).

    Going on without an agreement would allow cross-protocol attacks (https://alpaca-attack.com).
    """
    if _HTTP_1_1 in offered:
        return _HTTP_1_1
    # pyOpenSSL sends that alert for an exception only, and Twisted ends a connection for this one.
    raise SSL.Error([("posd", "ALPN", "no protocol in common with the client")])


def _read_material(settings: TLS) -> _Material:
    found: dict[str, str] = {}

    def read(key: str, path: str | None, understand: Callable[[str, bytes], _T]) -> _T | None:
        if path is None:
            return None
        try:
            return understand(path, _read(path))
        except errors.StartError as error:
            found[key] = str(error)
            return None

    chain = read("certificate", settings.certificate, _certificates)
    key = read("private_key", settings.private_key, _private_key)
    authorities = read("client_ca", settings.client_ca, _certificates)
    if chain is not None and key is not None:
        found |= _misfit(settings, chain, key)
    if found:
        raise UnusableFiles(found)
    if chain is None or key is None:
        raise errors.StartError(
            "A listener has tls = true, so tls.certificate and tls.private_key must be set; "
            "`posctl make-cert` makes both"
        )
    return _Material(chain, key, authorities or ())


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        remedy = {
            errno.ENOENT: "put it there, or make one with `posctl make-cert`",
            errno.EACCES: "let posd read it: owner root, group posd, mode 0640",
        }.get(error.errno or 0, "give the path of a PEM file")
        raise errors.StartError(f"{path} cannot be read ({error.strerror}); {remedy}") from error


def _certificates(path: str, pem: bytes) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        _refuse(path, "has no readable certificate", "it must be PEM, -----BEGIN CERTIFICATE-----")


def _private_key(path: str, pem: bytes) -> _Key:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        _refuse(path, "is encrypted", "store the key without a password, readable by posd only")
    except (ValueError, UnsupportedAlgorithm):
        _refuse(path, "has no readable private key", "it must be PEM, -----BEGIN PRIVATE KEY-----")
    if not isinstance(key, _Key):
        _refuse(path, "is not a key that can sign", "use ECDSA P-256 or RSA")
    return key


def _misfit(settings: TLS, chain: Sequence[x509.Certificate], key: _Key) -> Mapping[str, str]:
    """Tell which key of `[tls]` to change, and why, so that certificate and key fit together."""
    own = key.public_key()
    if chain[0].public_key() == own:
        return {}
    if any(issuer.public_key() == own for issuer in chain[1:]):
        what = f"{settings.certificate} begins with another certificate than the server's"
        return {"certificate": f"{what}; put the server's first and its issuers after it"}
    what = f"{settings.private_key} does not belong to {settings.certificate}"
    return {"private_key": f"{what}; give the key that the certificate was made for"}


def _warn_about_dates(settings: TLS, certificate: x509.Certificate) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.now(UTC)
    if ends <= now:
        _log.warn(
            "{file} ended on {ends}: tills will refuse it; renew it and reload posd",
            file=settings.certificate,
            ends=ends,
        )
    elif begins > now:
        _log.warn(
            "{file} is not valid before {begins}: check this machine's clock",
            file=settings.certificate,
            begins=begins,
        )


def _reason(error: SSL.Error) -> str:
    """OpenSSL's words for an error, such as `ee key too small`."""
    return "; ".join(str(reason) for _library, _function, reason in error.args[0])


def _refuse(path: str, problem: str, remedy: str) -> NoReturn:
    raise errors.StartError(f"{path} {problem}; {remedy}")
