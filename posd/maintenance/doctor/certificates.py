"""The server's certificate and the tills' authority: whether tills will believe the one, and for how long."""

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
    """Everything about what the files of `[tls]` say; `now` is aware.

    Files that cannot be used are told by `files.load_configuration`.
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
            yield ok(_PART, f"{settings.certificate} and its key fit together")
    if authorities:
        yield from _authorities(authorities, now)


def _names(certificate: x509.Certificate) -> Iterator[CheckResult]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        found = None
    if not found:
        what = (
            "it names no server: it has no subject alternative names, and tills look nowhere else"
        )
        yield fault(_PART, what, "have it issued with the name that tills connect to")
    else:
        yield ok(_PART, f"it is for {', '.join(str(each.value) for each in found)}")


def _uses(certificate: x509.Certificate) -> Iterator[CheckResult]:
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & {*uses}:
        what = "it is not for servers: its extended key usage lacks serverAuth"
        yield fault(_PART, what, "have it issued for a server")


def _order(
    chain: Sequence[x509.Certificate],
    beside: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
) -> Iterator[CheckResult]:
    """Each is followed by its issuer, up to one that tills have."""
    for number, (each, issuer) in enumerate(pairwise(chain), 1):
        if not is_issued_by(each, issuer):
            what = f"certificate {number + 1} of the file is not the issuer of the one before it"
            remedy = "put the server's certificate first and each one's issuer after it"
            yield fault(_PART, what, remedy)
            return
    last = chain[-1]
    if last.subject == last.issuer:
        what = "it ends with a certificate that has issued itself"
        if last.public_key() not in [root.public_key() for root in roots]:
            what += "; each till needs that one"
        yield ok(_PART, what)
    elif any(is_issued_by(last, root) for root in roots):
        yield ok(_PART, "it leads to an authority that this system knows")
    elif any(is_issued_by(last, root) for root in beside):
        yield ok(_PART, "it is of the authority beside it, which each till needs")
    else:
        name = last.issuer.rfc4514_string()
        what = f"its last issuer, {name}, is neither in the file nor known to this system"
        remedy = "add the issuers' certificates to the file; a private authority's go to the tills"
        yield warning(_PART, what, remedy)


def _dates(
    part: str, certificates: Sequence[x509.Certificate], now: datetime
) -> Iterator[CheckResult]:
    """Of the one that ends first, and of all that have ended or not begun."""
    for each in sorted(certificates, key=lambda each: each.not_valid_after_utc):
        validity = Validity.of(each)
        ends = f"{validity.ends:%Y-%m-%d}"
        name = each.subject.rfc4514_string() or "a certificate"
        match validity.state(now):
            case CertificateState.ENDED:
                what = f"{name} ended on {ends}: it is refused everywhere"
                yield fault(part, what, "renew it; a running posd takes the new files by itself")
            case CertificateState.FUTURE:
                what = f"{name} is not valid before {validity.begins:%Y-%m-%d %H:%M} UTC"
                yield fault(part, what, "set this machine's clock, or have it issued anew")
            case CertificateState.ENDING:
                what = f"{name} ends on {ends}, in {validity.time_left(now)}"
                yield warning(part, what, "renew it; a running posd takes the new files by itself")
            case CertificateState.GOOD:
                yield ok(part, f"{name} is valid until {ends}, for {validity.time_left(now)}")


def _authorities(authorities: Sequence[x509.Certificate], now: datetime) -> Iterator[CheckResult]:
    for each in authorities:
        try:
            is_authority = each.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (x509.ExtensionNotFound, ValueError):
            is_authority = False
        if not is_authority:
            what = f"{each.subject.rfc4514_string()} is no authority: it can have issued nothing"
            yield fault(_CLIENTS, what, "name the file of who issues the tills' certificates")
    yield from _dates(_CLIENTS, authorities, now)


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether one certificate was issued by another."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def own_authorities(certificate: str | None) -> Sequence[x509.Certificate]:
    """The authority that `posctl make-cert` leaves beside a server's certificate."""
    if certificate is None:
        return ()
    return pem.PEMReading().certificates("ca", str(Path(certificate).parent / "ca.pem")) or ()


def system_roots() -> Sequence[x509.Certificate]:
    """The authorities that this system's programs trust, as far as they are in one file."""
    bundle = Path(ssl.get_default_verify_paths().cafile or _DEBIAN_BUNDLE)
    try:
        blocks = _BLOCK.findall(bundle.read_bytes())
    except OSError:
        return ()
    found = []
    with warnings.catch_warnings():
        # Some old ones do not keep to all rules, which is neither posd's affair nor an operator's.
        warnings.simplefilter("ignore")
        for block in blocks:
            with suppress(ValueError):
                found.append(x509.load_pem_x509_certificate(block))
    return found
