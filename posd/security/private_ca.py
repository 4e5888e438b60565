"""A private certificate authority for networks that have none: `posctl make-cert`, demo, tests.

One directory holds one authority and the certificates that it has signed, as PEM files:

- `ca.pem`: the certificate of the authority, for the tills
- `ca-key.pem` (0600): its key, which should be kept offline
- `fullchain.pem` and `privkey.pem` (0600): the server's certificate and key, for `[tls]`
- `client-NAME.pem` and `client-NAME-key.pem` (0600): the certificate and key of a till

`fullchain.pem` has only the server's certificate. A chain may leave out the trust anchor, which the client
has already (RFC 8446 §4.4.2). Certificates of tills may come from the same authority or from another one.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import idna
from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from posd import errors

LONGEST_DAYS = 825
"""The longest validity that Apple's platforms accept from a user-installed authority (HT210176)."""

_AUTHORITY_DAYS = 3650
_CLOCK_SKEW = timedelta(hours=1)  # The clock of a till may be behind the clock of the server.
_COMMON_NAME_LIMIT = 64  # ub-common-name, RFC 5280 appendix A.1
_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


class CertificateError(errors.PosdError):
    """The certificate cannot be made. The message says why, and what the reader can do."""


class NotCertifiable(CertificateError):
    """The requested names or days are not possible in a certificate, in any directory."""


@frozen
class IssuedCertificate:
    """The paths of the files, and when the certificate expires."""

    ca_path: Path
    certificate_path: Path
    key_path: Path
    expires_at: datetime


@frozen
class _CertificateAuthority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make(
    directory: Path,
    names: Sequence[str],
    *,
    days: int = LONGEST_DAYS,
    replace: bool = False,
    now: datetime | None = None,
) -> IssuedCertificate:
    """Make a server certificate for host names and IP addresses, and an authority if there is none.

    The key is ECDSA P-256. The certificate is valid for `days`, from an hour before `now` (UTC; default:
    the present time). Every name becomes a subject alternative name; wildcards (`*.example.net`) and
    international names are allowed. An authority in `directory` is used again, so that the tills keep
    their `ca.pem`.

    Raises `NotCertifiable` for impossible names and days, and `CertificateError` if the server's files
    exist and `replace` is false, or if a file cannot be used. In these cases the server's files are
    unchanged.
    """
    begins = (now or datetime.now(UTC)) - _CLOCK_SKEW
    alternatives = x509.SubjectAlternativeName(_alternative_names(names))
    request = _CertificateRequest(
        str(next(iter(alternatives)).value), ExtendedKeyUsageOID.SERVER_AUTH, alternatives
    )
    return _issue(directory, "fullchain.pem", "privkey.pem", request, days, replace, begins)


def make_client(
    directory: Path,
    name: str,
    *,
    days: int = LONGEST_DAYS,
    replace: bool = False,
    now: datetime | None = None,
) -> IssuedCertificate:
    """Make a client certificate with this name, signed by the authority in `directory`. See `make`.

    A server whose `tls.client_ca` has that authority accepts the certificate. The key of the client still
    decides its rights. The certificate is not valid for a server.
    """
    begins = (now or datetime.now(UTC)) - _CLOCK_SKEW
    if not _CLIENT.fullmatch(name):
        raise NotCertifiable(
            f"{name!r} is not a valid client name; use up to 63 letters, digits, '.', '_' and '-'."
        )
    files = f"client-{name}.pem", f"client-{name}-key.pem"
    request = _CertificateRequest(name, ExtendedKeyUsageOID.CLIENT_AUTH)
    return _issue(directory, *files, request, days, replace, begins)


@frozen
class _CertificateRequest:
    """The contents of a certificate: common name, extended key usage, alternative names."""

    name: str
    usage: x509.ObjectIdentifier
    alternatives: x509.SubjectAlternativeName | None = None


def _issue(
    directory: Path,
    certificate_name: str,
    key_name: str,
    request: _CertificateRequest,
    days: int,
    replace: bool,
    begins: datetime,
) -> IssuedCertificate:
    if not 1 <= days <= LONGEST_DAYS:
        raise NotCertifiable(f"A certificate is valid for 1 to {LONGEST_DAYS} days, not {days}.")
    certificate_path, key_path = directory / certificate_name, directory / key_name
    for path in (certificate_path, key_path):
        if not replace and path.exists():
            raise CertificateError(f"{path} exists already; `--replace` replaces it.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        authority = _load_or_make_authority(directory, begins)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(authority, key, request, begins, timedelta(days=days))
        # A CertificateWatch that reads between the two writes finds a mismatch and checks again.
        _write(key_path, _key_pem(key), 0o600)
        _write(certificate_path, certificate.public_bytes(Encoding.PEM), 0o644)
    except OSError as error:
        where = error.filename or directory
        raise CertificateError(f"{where} cannot be used: {error.strerror}.") from error
    return IssuedCertificate(
        directory / "ca.pem", certificate_path, key_path, certificate.not_valid_after_utc
    )


def _alternative_names(names: Sequence[str]) -> list[x509.GeneralName]:
    if not names:
        raise NotCertifiable("A certificate needs at least one host name or IP address.")
    return [_general_name(name) for name in dict.fromkeys(names)]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(_dns_name(name))


def _dns_name(name: str) -> str:
    """Return the ASCII form of a host name (RFC 5891), with its wildcard if it begins with one."""
    host = name.removesuffix(".")
    wildcard = "*." if host.startswith("*.") else ""
    try:
        host = idna.encode(host.removeprefix(wildcard), uts46=True).decode("ascii")
    except idna.IDNAError:
        host = ""
    # A name whose last label is a number is a mistyped address. Clients do not look it up as a name.
    labels = host.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise NotCertifiable(f"{name!r} is neither a host name nor an IP address.")
    return wildcard + host


def _load_or_make_authority(directory: Path, begins: datetime) -> _CertificateAuthority:
    """Return the authority of `directory`. Make one if there is none."""
    certificate_path, key_path = directory / "ca.pem", directory / "ca-key.pem"
    found = [path for path in (certificate_path, key_path) if path.exists()]
    if len(found) == 1:
        (present,) = found
        absent = key_path if present == certificate_path else certificate_path
        raise CertificateError(
            f"{present} exists but {absent.name} does not; restore it, or use another directory."
        )
    if found:
        return _load_authority(certificate_path, key_path)
    authority = _make_authority(begins)
    _write(key_path, _key_pem(authority.key), 0o600)
    _write(certificate_path, authority.certificate.public_bytes(Encoding.PEM), 0o644)
    return authority


def _load_authority(certificate_path: Path, key_path: Path) -> _CertificateAuthority:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise CertificateError(f"{certificate_path} is not an authority's certificate.") from error
    try:
        key = load_pem_private_key(key_path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{key_path} is not a private key without a password.") from error
    if not constraints.value.ca:
        raise CertificateError(f"{certificate_path} is not an authority's certificate.")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{key_path} is not an elliptic-curve key, as posd makes them.")
    if key.public_key() != certificate.public_key():
        raise CertificateError(f"{key_path} does not belong to {certificate_path}.")
    return _CertificateAuthority(certificate, key)


def _make_authority(begins: datetime) -> _CertificateAuthority:
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # A tablet may trust the authorities of two shops. A part of the key id tells them apart.
    name = _name(f"posd private CA {identifier.digest[:4].hex()}")
    certificate = (
        _builder(name, name, key.public_key(), begins, timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return _CertificateAuthority(certificate, key)


def _sign(
    authority: _CertificateAuthority,
    key: ec.EllipticCurvePrivateKey,
    request: _CertificateRequest,
    begins: datetime,
    valid: timedelta,
) -> x509.Certificate:
    ends = authority.certificate.not_valid_after_utc
    if begins + valid > ends:
        raise CertificateError(
            f"The authority itself expires on {ends:%Y-%m-%d}; ask for fewer days, or make a new "
            "authority in another directory and install it on the tills."
        )
    public = key.public_key()
    builder = _builder(_name(request.name), authority.certificate.subject, public, begins, valid)
    if request.alternatives is not None:
        builder = builder.add_extension(request.alternatives, critical=False)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([request.usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_authority_key_identifier(authority), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def _authority_key_identifier(authority: _CertificateAuthority) -> x509.AuthorityKeyIdentifier:
    """Return the key identifier of the authority's certificate, or the usual hash if there is none."""
    try:
        own = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    begins: datetime,
    valid: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + valid)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "posd"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_COMMON_NAME_LIMIT]),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return the key usage (RFC 5280 §4.2.1.3): signing certificates, or signing handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file atomically. A key is never readable by others, and a file is never incomplete.

    The temporary file is created with mode 0600 (`mkstemp`) and renamed when it is complete.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CertificateError(f"{path} cannot be written: {error.strerror}.") from error
