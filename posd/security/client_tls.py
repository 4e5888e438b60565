"""TLS of posd's own clients: how they verify a server, and which client certificate they present.

The certificate of the server must have the name or the address of the called host in subjectAltName
(RFC 9525). A certificate that cannot be verified is refused, for whatever reason.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.python.failure import Failure
from zope.interface import implementer

from posd.security import pem
from posd.security.dialing import Credentials, UntrustedCertificate

if TYPE_CHECKING:
    from twisted.protocols.tls import TLSMemoryBIOProtocol

_Verify = Callable[[SSL.Connection, X509, int, int, int], bool]


def client_context(
    host: str, ca: Path | None = None, credentials: Credentials | None = None
) -> IOpenSSLClientConnectionCreator:
    """Return the TLS options of a connection to `host`, for `twisted.internet.endpoints.wrapClientTLS`.

    `host` is a name or an IP address. `ca` is a PEM file of trusted authorities; if it is None, the
    authorities of the platform are trusted. `credentials` are presented to a server that requests a
    client certificate. Raises `StartError` for an unusable file, and ValueError if `host` is not a
    valid name.
    """
    options: dict[str, Any] = {}
    if credentials is not None:
        identity = _identity(credentials)
        first, *issuers = identity.chain
        options = {"certificate": first, "privateKey": identity.key, "extraCertChain": issuers}
    # Twisted's trust root takes only its own certificate class, not that of `cryptography`.
    trusted = (
        [] if ca is None else [each.public_bytes(Encoding.PEM) for each in pem.authorities(ca)]
    )
    root = trustRootFromCertificates([Certificate.loadPEM(each) for each in trusted])
    creator = optionsForClientTLS(
        host, trustRoot=None if ca is None else root, extraCertificateOptions=options
    )
    return _StrictClientOptions(creator, _service(host))


def _service(host: str) -> DNS_ID | IPAddress_ID:
    try:
        ip_address(host)
    except ValueError:
        return DNS_ID(host)
    return IPAddress_ID(host)


def _identity(credentials: Credentials) -> pem.TLSIdentity:
    reading = pem.PEMReading()
    files = str(credentials.certificate), str(credentials.private_key)
    identity = reading.identity(("certificate", "private_key"), *files)
    reading.raise_problems()
    assert identity is not None
    return identity


@implementer(IOpenSSLClientConnectionCreator)
@frozen
class _StrictClientOptions:
    """Twisted's client options with a strict verification of the server's certificate.

    Twisted 26.10 logs an unexpected error in the comparison of names and accepts the connection. It would
    accept a certificate of a trusted authority without subjectAltName for every host.
    """

    creator: IOpenSSLClientConnectionCreator
    service: DNS_ID | IPAddress_ID

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection: SSL.Connection = self.creator.clientConnectionForTLS(tlsProtocol)
        connection.set_verify(
            SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verifier(tlsProtocol)
        )
        return connection

    def _verifier(self, protocol: TLSMemoryBIOProtocol) -> _Verify:
        def verify(_: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
            if not ok:
                protocol.failVerification(Failure(UntrustedCertificate(error)))
                return False
            if depth:
                return True
            try:
                patterns = extract_patterns(certificate.to_cryptography())
                verify_service_identity(patterns, [self.service], [])
            except Exception:
                # OpenSSL would only print the exception. As a failure it ends the connection.
                protocol.failVerification(Failure())
                return False
            return True

        return verify
