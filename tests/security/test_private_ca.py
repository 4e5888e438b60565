"""Tests that clients accept the authority and the certificates that posd makes."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.security.private_ca import (
    LONGEST_DAYS,
    CertificateError,
    IssuedCertificate,
    NotCertifiable,
    make,
    make_client,
)

NAMES = ("till-server.lan", "192.0.2.7", "2001:db8::7")
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def leaf(made: IssuedCertificate) -> x509.Certificate:
    (certificate,) = x509.load_pem_x509_certificates(made.certificate_path.read_bytes())
    return certificate


def verify(made: IssuedCertificate, name: str, at: datetime = NOW) -> None:
    """Verify a certificate as a client does: path to the authority, and name."""
    store = Store(x509.load_pem_x509_certificates(made.ca_path.read_bytes()))
    subject: x509.GeneralName
    try:
        subject = x509.IPAddress(ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    PolicyBuilder().store(store).time(at).build_server_verifier(subject).verify(leaf(made), [])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class WhatIsMade(SynchronousTestCase):
    """The directory is empty."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()) / "tls"
        self.made = make(self.directory, NAMES, now=NOW)

    def test_a_client_that_trusts_the_authority_accepts_every_name(self) -> None:
        for name in NAMES:
            verify(self.made, name)

    def test_a_client_refuses_a_name_that_was_not_asked_for(self) -> None:
        for name in ("other.lan", "192.0.2.8"):
            self.assertRaises(VerificationError, verify, self.made, name)

    def test_a_client_whose_clock_is_half_an_hour_behind_accepts_it_at_once(self) -> None:
        verify(self.made, NAMES[0], NOW - timedelta(minutes=30))

    def test_it_ends_when_made_says_and_not_later_than_any_platform_accepts(self) -> None:
        certificate = leaf(self.made)
        self.assertEqual(certificate.not_valid_after_utc, self.made.expires_at)
        self.assertEqual(
            certificate.not_valid_after_utc - certificate.not_valid_before_utc,
            timedelta(days=LONGEST_DAYS),
        )
        self.assertRaises(
            VerificationError,
            verify,
            self.made,
            NAMES[0],
            self.made.expires_at + timedelta(seconds=1),
        )

    def test_the_keys_are_for_nobody_else_and_the_certificates_are_for_all(self) -> None:
        self.assertEqual(mode(self.made.key_path), 0o600)
        self.assertEqual(mode(self.directory / "ca-key.pem"), 0o600)
        self.assertEqual(mode(self.made.ca_path), 0o644)
        self.assertEqual(mode(self.made.certificate_path), 0o644)

    def test_nothing_but_the_four_files_is_left_in_the_directory(self) -> None:
        self.assertEqual(
            sorted(path.name for path in self.directory.iterdir()),
            ["ca-key.pem", "ca.pem", "fullchain.pem", "privkey.pem"],
        )

    def test_the_key_belongs_to_the_certificate_and_is_p256(self) -> None:
        key = load_pem_private_key(self.made.key_path.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.assertEqual(key.curve.name, "secp256r1")
        self.assertEqual(key.public_key(), leaf(self.made).public_key())

    def test_the_certificate_can_neither_sign_others_nor_pass_for_a_client(self) -> None:
        extensions = leaf(self.made).extensions
        self.assertFalse(extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        self.assertTrue(usage.critical)
        self.assertTrue(usage.value.digital_signature)
        self.assertFalse(usage.value.key_cert_sign)
        self.assertEqual(
            list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value),
            [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH],
        )

    def test_the_authority_signs_certificates_and_no_further_authorities(self) -> None:
        authority = x509.load_pem_x509_certificate(self.made.ca_path.read_bytes())
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
        self.assertTrue(constraints.critical)
        self.assertEqual((constraints.value.ca, constraints.value.path_length), (True, 0))
        usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
        self.assertTrue(usage.key_cert_sign)
        self.assertFalse(usage.digital_signature)


class Clients(SynchronousTestCase):
    """Client certificates."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()) / "tls"

    def test_it_is_of_the_same_authority_as_the_servers(self) -> None:
        server = make(self.directory, NAMES, now=NOW)
        made = make_client(self.directory, "POS_1", days=90, now=NOW)
        self.assertEqual(made.ca_path, server.ca_path)
        self.assertEqual(made.certificate_path, self.directory / "client-POS_1.pem")
        self.assertEqual(mode(made.key_path), 0o600)
        (authority,) = x509.load_pem_x509_certificates(made.ca_path.read_bytes())
        leaf(made).verify_directly_issued_by(authority)
        self.assertEqual(made.expires_at, NOW + timedelta(days=90) - timedelta(hours=1))

    def test_it_needs_no_server_to_be_made(self) -> None:
        make_client(self.directory, "POS_1")
        self.assertEqual(
            sorted(path.name for path in self.directory.iterdir()),
            ["ca-key.pem", "ca.pem", "client-POS_1-key.pem", "client-POS_1.pem"],
        )

    def test_it_names_the_till_and_can_be_no_server(self) -> None:
        certificate = leaf(make_client(self.directory, "POS_1"))
        (name,) = certificate.subject.get_attributes_for_oid(x509.oid.NameOID.COMMON_NAME)
        self.assertEqual(name.value, "POS_1")
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        self.assertEqual(list(usage.value), [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])
        kinds = [type(each.value) for each in certificate.extensions]
        self.assertNotIn(x509.SubjectAlternativeName, kinds)

    def test_one_that_is_there_is_kept_unless_it_is_to_be_replaced(self) -> None:
        first = leaf(make_client(self.directory, "POS_1"))
        self.assertRaises(CertificateError, make_client, self.directory, "POS_1")
        self.assertNotEqual(leaf(make_client(self.directory, "POS_1", replace=True)), first)

    def test_a_name_that_is_no_file_name_is_refused_before_anything_is_made(self) -> None:
        for name in ("", "../ca", "a/b", "-x", ".x", "a b", "x" * 64, "\n"):
            self.assertRaises(NotCertifiable, make_client, self.directory, name)
        self.assertRaises(NotCertifiable, make_client, self.directory, "a", days=0)
        self.assertFalse(self.directory.exists())


class Names(SynchronousTestCase):
    def names_of(self, *names: str) -> list[object]:
        made = make(Path(self.mktemp()), names)
        extension = leaf(made).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return [name.value for name in extension.value]

    def test_a_wildcard_an_international_name_and_a_trailing_dot_are_understood(self) -> None:
        self.assertEqual(
            self.names_of("*.shop.example", "Küche.example", "pos.example."),
            ["*.shop.example", "xn--kche-0ra.example", "pos.example"],
        )

    def test_a_name_given_twice_is_in_it_once(self) -> None:
        self.assertEqual(self.names_of("pos.lan", "pos.lan"), ["pos.lan"])

    def test_a_name_longer_than_a_common_name_is_whole_among_the_alternatives(self) -> None:
        name = f"{'a' * 60}.{'b' * 60}.lan"
        self.assertEqual(self.names_of(name), [name])

    def test_what_is_no_name_is_refused_before_anything_is_written(self) -> None:
        for name in ("", "shop lan", "-shop.lan", "a..b", "192.0.2.300", "https://pos.lan", "*"):
            directory = Path(self.mktemp())
            error = self.assertRaises(CertificateError, make, directory, [name])
            self.assertIn(repr(name), str(error))
            self.assertFalse(directory.exists())

    def test_no_name_at_all_is_refused(self) -> None:
        self.assertRaises(CertificateError, make, Path(self.mktemp()), [])

    @settings(deadline=None, max_examples=40)
    @given(st.text(max_size=80))
    def test_any_text_is_either_a_name_or_refused(self, name: str) -> None:
        try:
            names = self.names_of(name)
        except CertificateError as error:
            self.assertIn(repr(name), str(error))
        else:
            self.assertEqual(len(names), 1)


class TheSecondTime(SynchronousTestCase):
    """The directory has an authority and a certificate already."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.made = make(self.directory, NAMES, now=NOW)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}

    def test_a_certificate_is_not_overwritten_unasked(self) -> None:
        before = self.files()
        error = self.assertRaises(CertificateError, make, self.directory, NAMES)
        self.assertIn(str(self.made.certificate_path), str(error))
        self.assertEqual(self.files(), before)

    def test_a_key_alone_is_not_overwritten_either(self) -> None:
        self.made.certificate_path.unlink()
        error = self.assertRaises(CertificateError, make, self.directory, NAMES)
        self.assertIn(str(self.made.key_path), str(error))

    def test_a_replacement_has_a_new_key_under_the_same_authority(self) -> None:
        before = self.files()
        made = make(self.directory, ["new.lan"], replace=True, now=NOW)
        after = self.files()
        self.assertEqual(before["ca.pem"], after["ca.pem"])
        self.assertEqual(before["ca-key.pem"], after["ca-key.pem"])
        self.assertNotEqual(before["privkey.pem"], after["privkey.pem"])
        self.assertEqual(mode(made.key_path), 0o600)
        verify(made, "new.lan")

    def test_an_authority_without_its_key_is_refused_and_named(self) -> None:
        (self.directory / "ca-key.pem").unlink()
        error = self.assertRaises(CertificateError, make, self.directory, NAMES, replace=True)
        self.assertIn("ca-key.pem does not", str(error))

    def test_another_authoritys_key_is_refused(self) -> None:
        other = Path(self.mktemp())
        make(other, NAMES)
        (self.directory / "ca-key.pem").write_bytes((other / "ca-key.pem").read_bytes())
        error = self.assertRaises(CertificateError, make, self.directory, NAMES, replace=True)
        self.assertIn("does not belong to", str(error))

    def test_a_server_certificate_does_not_pass_for_an_authority(self) -> None:
        (self.directory / "ca.pem").write_bytes(self.made.certificate_path.read_bytes())
        (self.directory / "ca-key.pem").write_bytes(self.made.key_path.read_bytes())
        error = self.assertRaises(CertificateError, make, self.directory, NAMES, replace=True)
        self.assertIn("is not an authority's certificate", str(error))

    def test_files_that_are_not_pem_are_named(self) -> None:
        for name in ("ca-key.pem", "ca.pem"):
            (self.directory / name).write_bytes(b"not PEM")
            error = self.assertRaises(CertificateError, make, self.directory, NAMES, replace=True)
            self.assertIn(name, str(error))

    def test_a_certificate_cannot_outlive_its_authority(self) -> None:
        late = NOW + timedelta(days=3600)
        error = self.assertRaises(
            CertificateError, make, self.directory, NAMES, replace=True, now=late
        )
        self.assertIn("The authority itself expires on 2036-11-19", str(error))
        verify(make(self.directory, NAMES, days=30, replace=True, now=late), NAMES[0], late)

    def test_two_authorities_have_different_names(self) -> None:
        other = make(Path(self.mktemp()), NAMES)
        subjects = {
            x509.load_pem_x509_certificate(made.ca_path.read_bytes()).subject
            for made in (self.made, other)
        }
        self.assertEqual(len(subjects), 2)


class WhatCannotBe(SynchronousTestCase):
    def test_more_days_than_platforms_accept_are_refused(self) -> None:
        for days in (0, LONGEST_DAYS + 1):
            error = self.assertRaises(CertificateError, make, Path(self.mktemp()), NAMES, days=days)
            self.assertIn(f"not {days}", str(error))

    def test_a_directory_that_is_a_file_is_named(self) -> None:
        path = Path(self.mktemp())
        path.write_bytes(b"")
        error = self.assertRaises(CertificateError, make, path / "tls", NAMES)
        self.assertIn(str(path), str(error))
