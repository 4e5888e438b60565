"""Check the server's certificate and the CA of the tills: trust, names, purpose and dates."""

from __future__ import annotations

import re
import ssl
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from posd.config.model import TLSConfig
from posd.maintenance.doctor import CheckResult, fault, ok, warning
from posd.security import pem
from posd.security import server_tls as tls
from posd.security.validity import CertificateState, Validity

_PART: Final = "certificate"
_CLIENTS: Final = "client CA"
_DEBIAN_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
_BLOCK: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def examine(settings: TLSConfig, now: datetime) -> Iterator[CheckResult]:
    """Check the contents of the files of `[tls]`; `now` is aware.

    `files.load_configuration` reports files that cannot be used.
    """
    reading = pem.PEMReading()
    chain = reading.certificates("certificate", settings.certificate)
    authorities = reading.certificates("client_ca", settings.client_ca)
    if chain:
        yield from _names(chain[0])
        yield from _uses(chain[0])
        yield from _order(chain, own_authorities(settings.certificate), system_roots())
        yield from _dates(_PART, chain, now)
        if not tls.problems(settings):
            yield ok(_PART, f"{settings.certificate} and its private key match")
    if authorities:
        yield from _authorities(authorities, now)


def _names(certificate: x509.Certificate) -> Iterator[CheckResult]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        found = None
    if not found:
        what = (
            "it names no server: it has no subject alternative names, and tills use no other names"
        )
        yield fault(_PART, what, "request a certificate with the host name that tills connect to")
    else:
        yield ok(_PART, f"it is for {', '.join(str(each.value) for each in found)}")


def _uses(certificate: x509.Certificate) -> Iterator[CheckResult]:
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & {*uses}:
        what = "it is not for servers: its extended key usage lacks serverAuth"
        yield fault(_PART, what, "request a certificate with extended key usage serverAuth")


def _order(
    chain: Sequence[x509.Certificate],
    beside: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
) -> Iterator[CheckResult]:
    """Check that each certificate is followed by its issuer, and that a known authority issued the last.

    `beside` are the authorities in the certificate's folder, and `roots` those of the system.
    """
    for number, (each, issuer) in enumerate(pairwise(chain), 1):
        if not is_issued_by(each, issuer):
            what = f"certificate {number + 1} of the file is not the issuer of the one before it"
            remedy = "put the server's certificate first, and after each certificate its issuer"
            yield fault(_PART, what, remedy)
            return
    last = chain[-1]
    if last.subject == last.issuer:
        what = "the chain ends with a self-signed certificate"
        if last.public_key() not in [root.public_key() for root in roots]:
            what += ", which must be installed on each till"
        yield ok(_PART, what)
    elif any(is_issued_by(last, root) for root in roots):
        yield ok(_PART, "it was issued by an authority that this system trusts")
    elif any(is_issued_by(last, root) for root in beside):
        yield ok(_PART, "it was issued by ca.pem beside it, which must be installed on each till")
    else:
        name = last.issuer.rfc4514_string()
        what = f"its last issuer, {name}, is neither in the file nor trusted by this system"
        remedy = "add the intermediate certificates to the file; install a private CA on the tills"
        yield warning(_PART, what, remedy)


def _dates(
    part: str, certificates: Sequence[x509.Certificate], now: datetime
) -> Iterator[CheckResult]:
    """Check the validity of each certificate, the one that expires first at the start."""
    for each in sorted(certificates, key=lambda each: each.not_valid_after_utc):
        validity = Validity.of(each)
        ends = f"{validity.ends:%Y-%m-%d}"
        name = each.subject.rfc4514_string() or "a certificate"
        match validity.state(now):
            case CertificateState.ENDED:
                what = f"{name} expired on {ends}: every peer rejects it"
                yield fault(part, what, "renew it; a running posd loads the new files by itself")
            case CertificateState.FUTURE:
                what = f"{name} is not valid before {validity.begins:%Y-%m-%d %H:%M} UTC"
                yield fault(
                    part, what, "correct this machine's clock, or request a new certificate"
                )
            case CertificateState.ENDING:
                what = f"{name} expires on {ends}, in {validity.time_left(now)}"
                yield warning(part, what, "renew it; a running posd loads the new files by itself")
            case CertificateState.GOOD:
                yield ok(part, f"{name} is valid until {ends}, for {validity.time_left(now)}")


def _authorities(authorities: Sequence[x509.Certificate], now: datetime) -> Iterator[CheckResult]:
    for each in authorities:
        try:
            is_authority = each.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (x509.ExtensionNotFound, ValueError):
            is_authority = False
        if not is_authority:
            what = f"{each.subject.rfc4514_string()} is not a CA certificate: it cannot issue certificates"
            yield fault(
                _CLIENTS, what, "set tls.client_ca to the CA that issues tills' certificates"
            )
    yield from _dates(_CLIENTS, authorities, now)


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether `issuer` issued the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def own_authorities(certificate: str | None) -> Sequence[x509.Certificate]:
    """Return the CA certificate that `posctl make-cert` writes beside a server's certificate."""
    if certificate is None:
        return ()
    return pem.PEMReading().certificates("ca", str(Path(certificate).parent / "ca.pem")) or ()


def system_roots() -> Sequence[x509.Certificate]:
    """Return the authorities that this system trusts, from OpenSSL's CA file; empty if there is no file."""
    bundle = Path(ssl.get_default_verify_paths().cafile or _DEBIAN_BUNDLE)
    try:
        blocks = _BLOCK.findall(bundle.read_bytes())
    except OSError:
        return ()
    found = []
    with warnings.catch_warnings():
        # cryptography warns of old root certificates that violate RFC 5280. An operator cannot mend them.
        warnings.simplefilter("ignore")
        for block in blocks:
            with suppress(ValueError):
                found.append(x509.load_pem_x509_certificate(block))
    return found
