"""What the doctor says of certificates: whether tills will believe them, and for how long."""

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
    """Somebody who issues certificates, and is issued one by another authority or by itself."""

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
        """The one line that is not as it should be."""
        wrong = [line for line in self.found(settings, now) if line.state is not CheckState.OK]
        self.assertEqual([line.state for line in wrong], [state], wrong)
        return wrong[0]


def of(made: IssuedCertificate) -> TLSConfig:
    return TLSConfig(certificate=str(made.certificate_path), private_key=str(made.key_path))


class ServerTests(CertificateCase):
    def test_one_of_an_own_authority_is_good_and_all_that_matters_is_said(self) -> None:
        lines = self.found(of(self.made()))
        self.assertEqual({line.state for line in lines}, {CheckState.OK})
        told = " ".join(line.what for line in lines)
        for part in ("pos.example.net", "authority beside it", "fit together", "is valid until"):
            self.assertIn(part, told)

    def test_files_that_cannot_be_used_are_left_to_who_reads_the_configuration(self) -> None:
        made = self.made()
        made.key_path.unlink()
        lines = self.found(of(made))
        self.assertEqual({line.state for line in lines}, {CheckState.OK})
        self.assertNotIn("fit together", " ".join(line.what for line in lines))

    def test_one_that_ends_soon_has_ended_or_has_not_begun(self) -> None:
        made = self.made(days=60)
        ends = made.expires_at
        self.assertRegex(
            self.only(of(made), CheckState.WARNING, ends - timedelta(days=13)).what,
            "ends on .* 13 days",
        )
        self.assertIn("ended on", self.only(of(made), CheckState.FAULT, ends).what)
        before = ends - timedelta(days=61)
        line = self.only(of(made), CheckState.FAULT, before)
        self.assertIn("is not valid before", line.what)
        self.assertIn("clock", str(line.remedy))

    def test_one_without_names_is_refused_by_every_till(self) -> None:
        root, key = Authority("root"), ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pos.example.net")])
        own = root.issue(subject, key.public_key(), names=())
        settings = self.written(own, root.certificate, key=key)
        self.assertIn("names no server", self.only(settings, CheckState.FAULT).what)

    def test_one_that_is_for_something_else(self) -> None:
        root, key = Authority("root"), ec.generate_private_key(ec.SECP256R1())
        own = root.issue(root.name, key.public_key(), use=ExtendedKeyUsageOID.CLIENT_AUTH)
        settings = self.written(own, root.certificate, key=key)
        self.assertIn("not for servers", self.only(settings, CheckState.FAULT).what)

    def test_issuers_have_to_follow_one_another(self) -> None:
        root = Authority("root")
        between, key = Authority("between", root), ec.generate_private_key(ec.SECP256R1())
        own = between.issue(x509.Name([]), key.public_key())
        whole = self.written(own, between.certificate, root.certificate, key=key)
        self.assertEqual({line.state for line in self.found(whole)}, {CheckState.OK})
        mixed = self.written(own, root.certificate, between.certificate, key=key)
        self.assertIn("certificate 2 of the file", self.only(mixed, CheckState.FAULT).what)

    def test_an_issuer_that_nobody_knows_may_be_missing_or_private(self) -> None:
        root = Authority("root")
        between, key = Authority("between", root), ec.generate_private_key(ec.SECP256R1())
        own = between.issue(x509.Name([]), key.public_key())
        line = self.only(self.written(own, key=key), CheckState.WARNING)
        self.assertIn("CN=between, is neither in the file nor known", line.what)

    def test_an_authority_of_this_system_is_known(self) -> None:
        root, key = Authority("root"), ec.generate_private_key(ec.SECP256R1())
        settings = self.written(root.issue(x509.Name([]), key.public_key()), key=key)
        self.patch(certificates, "system_roots", lambda: [root.certificate])
        told = [line.what for line in self.found(settings)]
        self.assertIn("it leads to an authority that this system knows", told)


class ClientAuthorityTests(CertificateCase):
    def test_an_authority_is_good_and_its_end_counts(self) -> None:
        made = self.made()
        settings = evolve(of(made), client_ca=str(made.ca_path))
        self.assertEqual({line.state for line in self.found(settings)}, {CheckState.OK})
        late = NOW + timedelta(days=3640)
        told = [line for line in self.found(settings, late) if line.part == "client CA"]
        self.assertEqual([line.state for line in told], [CheckState.WARNING])

    def test_what_is_no_authority_can_have_issued_nothing(self) -> None:
        made = self.made()
        settings = evolve(of(made), client_ca=str(made.certificate_path))
        line = self.only(settings, CheckState.FAULT)
        self.assertEqual(line.part, "client CA")
        self.assertIn("is no authority", line.what)
