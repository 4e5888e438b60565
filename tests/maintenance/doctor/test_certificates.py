"""Tests of the checks of certificates: trust, names, purpose and dates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import evolve
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.trial.unittest import SynchronousTestCase

from posd.config.model import TLSConfig
from posd.maintenance.doctor import CheckResult, CheckState, certificates
from posd.security.private_ca import IssuedCertificate, make

NOW = datetime.now(UTC)


class Authority:
    """A CA. Its certificate is self-signed or issued by another CA."""

    def __init__(self, name: str, issuer: Authority | None = None) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = (issuer or self).issue(self.name, self.key.public_key(), ca=True)

    def issue(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        ca: bool = False,
        names: Sequence[str] = ("pos.example.net",),
        use: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder(self.name, subject, key, x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            if names:
                general = [x509.DNSName(name) for name in names]
                builder = builder.add_extension(
                    x509.SubjectAlternativeName(general), critical=False
                )
        return builder.sign(self.key, hashes.SHA256())


class CertificateCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def made(self, **how: object) -> IssuedCertificate:
        return make(self.folder / "tls", ["pos.example.net"], replace=True, **how)  # type: ignore[arg-type]

    def written(self, *chain: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> TLSConfig:
        certificate, private = self.folder / "fullchain.pem", self.folder / "privkey.pem"
        certificate.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return TLSConfig(certificate=str(certificate), private_key=str(private))

    def found(self, settings: TLSConfig, now: datetime = NOW) -> list[CheckResult]:
        return [*certificates.examine(settings, now)]

    def only(self, settings: TLSConfig, state: CheckState, now: datetime = NOW) -> CheckResult:
        """Return the only result that is not OK."""
        wrong = [line for line in self.found(settings, now) if line.state is not CheckState.OK]
        self.assertEqual([line.state for line in wrong], [state], wrong)
        return wrong[0]


def of(made: IssuedCertificate) -> TLSConfig:
    return TLSConfig(certificate=str(made.certificate_path), private_key=str(made.key_path))


class ServerTests(CertificateCase):
    def test_a_certificate_of_a_private_ca_is_ok_and_is_described(self) -> None:
        lines = self.found(of(self.made()))
        self.assertEqual({line.state for line in lines}, {CheckState.OK})
        told = " ".join(line.what for line in lines)
        for part in ("pos.example.net", "ca.pem beside it", "private key match", "is valid until"):
            self.assertIn(part, told)

    def test_unusable_files_are_left_to_the_check_of_the_configuration(self) -> None:
        made = self.made()
        made.key_path.unlink()
        lines = self.found(of(made))
        self.assertEqual({line.state for line in lines}, {CheckState.OK})
        self.assertNotIn("private key match", " ".join(line.what for line in lines))

    def test_a_certificate_that_expires_soon_is_expired_or_is_not_valid_yet(self) -> None:
        made = self.made(days=60)
        ends = made.expires_at
        self.assertRegex(
            self.only(of(made), CheckState.WARNING, ends - timedelta(days=13)).what,
            "expires on .* 13 days",
        )
        self.assertIn("expired on", self.only(of(made), CheckState.FAULT, ends).what)
        before = ends - timedelta(days=61)
        line = self.only(of(made), CheckState.FAULT, before)
        self.assertIn("is not valid before", line.what)
        self.assertIn("clock", str(line.remedy))

    def test_a_certificate_without_names_is_a_fault(self) -> None:
        root, key = Authority("root"), ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pos.example.net")])
        own = root.issue(subject, key.public_key(), names=())
        settings = self.written(own, root.certificate, key=key)
        self.assertIn("names no server", self.only(settings, CheckState.FAULT).what)

    def test_a_certificate_that_is_not_for_servers_is_a_fault(self) -> None:
        root, key = Authority("root"), ec.generate_private_key(ec.SECP256R1())
        own = root.issue(root.name, key.public_key(), use=ExtendedKeyUsageOID.CLIENT_AUTH)
        settings = self.written(own, root.certificate, key=key)
        self.assertIn("not for servers", self.only(settings, CheckState.FAULT).what)

    def test_each_certificate_must_be_followed_by_its_issuer(self) -> None:
        root = Authority("root")
        between, key = Authority("between", root), ec.generate_private_key(ec.SECP256R1())
        own = between.issue(x509.Name([]), key.public_key())
        whole = self.written(own, between.certificate, root.certificate, key=key)
        self.assertEqual({line.state for line in self.found(whole)}, {CheckState.OK})
        mixed = self.written(own, root.certificate, between.certificate, key=key)
        self.assertIn("certificate 2 of the file", self.only(mixed, CheckState.FAULT).what)

    def test_an_unknown_issuer_is_a_warning(self) -> None:
        root = Authority("root")
        between, key = Authority("between", root), ec.generate_private_key(ec.SECP256R1())
        own = between.issue(x509.Name([]), key.public_key())
        line = self.only(self.written(own, key=key), CheckState.WARNING)
        self.assertIn("CN=between, is neither in the file nor trusted", line.what)

    def test_an_authority_of_this_system_is_trusted(self) -> None:
        root, key = Authority("root"), ec.generate_private_key(ec.SECP256R1())
        settings = self.written(root.issue(x509.Name([]), key.public_key()), key=key)
        self.patch(certificates, "system_roots", lambda: [root.certificate])
        told = [line.what for line in self.found(settings)]
        self.assertIn("it was issued by an authority that this system trusts", told)


class ClientAuthorityTests(CertificateCase):
    def test_a_client_ca_is_ok_until_it_expires(self) -> None:
        made = self.made()
        settings = evolve(of(made), client_ca=str(made.ca_path))
        self.assertEqual({line.state for line in self.found(settings)}, {CheckState.OK})
        late = NOW + timedelta(days=3640)
        told = [line for line in self.found(settings, late) if line.part == "client CA"]
        self.assertEqual([line.state for line in told], [CheckState.WARNING])

    def test_a_client_ca_must_be_a_ca_certificate(self) -> None:
        made = self.made()
        settings = evolve(of(made), client_ca=str(made.certificate_path))
        line = self.only(settings, CheckState.FAULT)
        self.assertEqual(line.part, "client CA")
        self.assertIn("is not a CA certificate", line.what)
