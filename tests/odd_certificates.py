"""Server certificates that `posctl make-cert` never makes, issued by its authority."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from posd.security.private_ca import IssuedCertificate, make


def issue_odd_certificate(
    folder: Path,
    common_name: str,
    names: Sequence[x509.GeneralName] = (),
    ends: datetime | None = None,
) -> IssuedCertificate:
    """Issue a certificate with these names, which is valid for two days."""
    made = make(folder, ["unused.lan"])
    authority = x509.load_pem_x509_certificate(made.ca_path.read_bytes())
    signer = load_pem_private_key((folder / "ca-key.pem").read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, common_name)])
    ends = ends or datetime.now(UTC) + timedelta(days=1)
    builder = (
        x509.CertificateBuilder(authority.subject, subject, key.public_key(), 7)
        .not_valid_before(ends - timedelta(days=2))
        .not_valid_after(ends)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    made.certificate_path.write_bytes(certificate.public_bytes(Encoding.PEM))
    made.key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made
