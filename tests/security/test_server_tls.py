"""Tests of TLS handshakes with `ssl` of the standard library as the till, and over loopback."""

from __future__ import annotations

import contextlib
import socket
import ssl
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from attrs import evolve
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from OpenSSL import SSL
from OpenSSL._util import lib as openssl
from service_identity import VerificationError
from twisted.internet import reactor as global_reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ServerEndpoint,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from zope.interface.verify import verifyObject

from posd.config.model import TLSConfig
from posd.errors import StartError
from posd.security.client_tls import client_context
from posd.security.dialing import UntrustedCertificate
from posd.security.private_ca import IssuedCertificate, make, make_client
from posd.security.server_tls import ServerTLS, problems
from tests.caller import SpeakFirstClient

PEER = IPv4Address("TCP", "192.0.2.7", 40000)
OLD_SUITES = ("ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES128-SHA")
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


def settings_of(made: IssuedCertificate) -> TLSConfig:
    return TLSConfig(certificate=str(made.certificate_path), private_key=str(made.key_path))


def till_context(made: IssuedCertificate, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Return the context of a till that trusts the authority and supports one version, or all."""
    context = ssl.create_default_context(cafile=str(made.ca_path))
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


class Call:
    """A connection in memory between a till and the server. The constructor does the handshake.

    Raises the error of the till's handshake, or else that of the server's.
    """

    def __init__(
        self, tls: ServerTLS, till: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> None:
        self._tls = tls
        self._to_till, self._to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.till = till.wrap_bio(
            self._to_till, self._to_server, server_hostname="localhost", session=session
        )
        # Only the address of the till is read from the protocol.
        protocol = cast(TLSMemoryBIOProtocol, StringTransport(peerAddress=PEER))
        self.server = tls.serverConnectionForTLS(protocol)
        self.server.set_accept_state()
        failed: SSL.Error | None = None
        for _ in range(5):
            try:
                self.till.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                # The server gets the alert.
                self._serve()
                raise
            failed = self._serve() or failed
        with contextlib.suppress(ssl.SSLWantReadError):
            self.till.do_handshake()
        if failed is not None:
            raise failed
        # In TLS 1.3, a client gets tickets and refusals with its next read.
        if self.server.get_cipher_name() is not None:
            assert self.say(b"welcome") == b"welcome"

    def _serve(self) -> SSL.Error | None:
        failed = None
        if self._to_server.pending:
            self.server.bio_write(self._to_server.read())
        try:
            self.server.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            failed = error
            # As `posd.web.http.tls_endpoint` does.
            self._tls.refusals.failed(error, PEER.host)
        self._carry_to_till()
        return failed

    def _carry_to_till(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            while True:
                self._to_till.write(self.server.bio_read(65536))

    def say(self, data: bytes) -> bytes:
        """Send data from the server, and return the data that the till reads."""
        self.server.sendall(data)
        self._carry_to_till()
        return self.till.read(len(data))

    @property
    def serial_number(self) -> int:
        """The serial number of the certificate of the server."""
        der = self.till.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number


class Server(SynchronousTestCase):
    """A server with a certificate for localhost, and a till that trusts the authority."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.made = make(self.directory, ["localhost"])
        self.clock = Clock()
        self.tls = self.server()

    def server(self, **changes: str | bool) -> ServerTLS:
        settings = evolve(settings_of(self.made), **changes)  # type: ignore[arg-type]
        return ServerTLS(settings, seconds=self.clock.seconds)

    def resumed(self, tls: ServerTLS, till: ssl.SSLContext, before: Call) -> bool | None:
        return Call(tls, till, before.till.session).till.session_reused


class Handshakes(Server):
    def test_it_is_what_twisted_wants_for_a_server(self) -> None:
        self.assertTrue(verifyObject(IOpenSSLServerConnectionCreator, self.tls))

    def test_a_till_that_verifies_everything_gets_through_with_either_version(self) -> None:
        for version in VERSIONS:
            call = Call(self.tls, till_context(self.made, version))
            self.assertEqual(call.till.version(), version.name.replace("_", "."))

    def test_a_till_with_1_2_is_refused_where_1_3_is_the_minimum(self) -> None:
        tls = self.server(minimum_version="1.3")
        error = self.assertRaises(
            ssl.SSLError, Call, tls, till_context(self.made, ssl.TLSVersion.TLSv1_2)
        )
        self.assertEqual(error.reason, "TLSV1_ALERT_PROTOCOL_VERSION")
        Call(tls, till_context(self.made))

    def test_a_till_with_1_1_is_always_refused(self) -> None:
        till = till_context(self.made)
        till.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            till.minimum_version = ssl.TLSVersion.TLSv1
            till.maximum_version = ssl.TLSVersion.TLSv1_1
        error = self.assertRaises(ssl.SSLError, Call, self.tls, till)
        self.assertEqual(error.reason, "TLSV1_ALERT_PROTOCOL_VERSION")

    def test_an_up_to_date_till_gets_the_strongest_cipher_suite(self) -> None:
        for version in VERSIONS:
            cipher = Call(self.tls, till_context(self.made, version)).till.cipher()
            assert cipher is not None
            self.assertIn(cipher[0], ("TLS_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"))

    def test_a_till_whose_cipher_suites_are_not_authenticated_is_refused(self) -> None:
        for suite in OLD_SUITES:
            till = till_context(self.made, ssl.TLSVersion.TLSv1_2)
            till.set_ciphers(suite)
            with self.subTest(suite=suite), self.assertRaises(ssl.SSLError):
                Call(self.tls, till)

    def reason(self, till: ssl.SSLContext, **changes: str | bool) -> str:
        """Return the logged reason of a failed handshake."""
        with capturedLogs() as logs:
            self.assertRaises((SSL.Error, ssl.SSLError), Call, self.server(**changes), till)
        (event,) = logs
        return str(event["reason"])

    def test_why_no_connection_comes_about_is_logged(self) -> None:
        old = till_context(self.made, ssl.TLSVersion.TLSv1_2)
        self.assertIn("tls.minimum_version", self.reason(old, minimum_version="1.3"))
        old.set_ciphers(OLD_SUITES[0])
        self.assertIn("tls.legacy_ciphers", self.reason(old))
        # If client certificates are requested, both cases are the same alert.
        client_ca = str(self.made.ca_path)
        self.assertIn("tls.legacy_ciphers", self.reason(old, client_ca=client_ca))
        self.assertIn("does not trust", self.reason(ssl.create_default_context()))

    def test_every_authenticated_cipher_suite_is_spoken(self) -> None:
        for suite in (
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-ECDSA-CHACHA20-POLY1305",
        ):
            till = till_context(self.made, ssl.TLSVersion.TLSv1_2)
            till.set_ciphers(suite)
            cipher = Call(self.tls, till).till.cipher()
            assert cipher is not None
            self.assertEqual(cipher[0], suite)

    def test_old_cipher_suites_are_spoken_where_they_are_allowed(self) -> None:
        tls = self.server(legacy_ciphers=True)
        for suite in OLD_SUITES:
            till = till_context(self.made, ssl.TLSVersion.TLSv1_2)
            till.set_ciphers(suite)
            cipher = Call(tls, till).till.cipher()
            assert cipher is not None
            self.assertEqual(cipher[0], suite)
        strong = Call(tls, till_context(self.made, ssl.TLSVersion.TLSv1_2)).till.cipher()
        assert strong is not None
        self.assertEqual(strong[0], "ECDHE-ECDSA-AES256-GCM-SHA384")

    def test_whether_old_cipher_suites_are_allowed_takes_effect_by_a_reload(self) -> None:
        till = till_context(self.made, ssl.TLSVersion.TLSv1_2)
        till.set_ciphers(OLD_SUITES[0])
        self.assertTrue(self.tls.reload(evolve(self.tls.settings, legacy_ciphers=True)))
        Call(self.tls, till)

    def test_the_expiry_is_that_of_the_servers_certificate(self) -> None:
        self.assertEqual(self.tls.expires_at, self.made.expires_at)

    def test_issuers_in_the_file_are_sent_along(self) -> None:
        with self.made.certificate_path.open("ab") as chain:
            chain.write(self.made.ca_path.read_bytes())
        # Not `ssl` of the standard library, which does not show the received chain.
        till = SSL.Connection(SSL.Context(SSL.TLS_METHOD))
        till.set_connect_state()
        server = self.server().serverConnectionForTLS(cast(TLSMemoryBIOProtocol, None))
        server.set_accept_state()
        for _ in range(3):
            for here, there in ((till, server), (server, till)):
                with contextlib.suppress(SSL.WantReadError):
                    here.do_handshake()
                with contextlib.suppress(SSL.WantReadError):
                    there.bio_write(here.bio_read(65536))
        self.assertEqual(len(till.get_peer_cert_chain(as_cryptography=True) or ()), 2)


class ALPN(Server):
    def agreed(self, *offered: str) -> str | None:
        till = till_context(self.made)
        if offered:
            till.set_alpn_protocols(offered)
        return Call(self.tls, till).till.selected_alpn_protocol()

    def test_http_1_1_is_agreed_whatever_else_is_offered(self) -> None:
        self.assertEqual(self.agreed("http/1.1"), "http/1.1")
        self.assertEqual(self.agreed("h2", "http/1.1"), "http/1.1")

    def test_a_till_that_knows_no_alpn_is_welcome(self) -> None:
        self.assertIsNone(self.agreed())

    def test_a_till_that_offers_nothing_else_is_told_so(self) -> None:
        error = self.assertRaises(ssl.SSLError, self.agreed, "h2")
        self.assertIn("alert no application protocol", str(error))
        self.assertEqual(self.agreed("http/1.1"), "http/1.1")


class Resumption(Server):
    def test_a_till_that_comes_back_resumes_its_session_with_either_version(self) -> None:
        for version in VERSIONS:
            till = till_context(self.made, version)
            first = Call(self.tls, till)
            self.assertFalse(first.till.session_reused)
            self.assertTrue(self.resumed(self.tls, till, first), version)

    def test_it_also_does_where_tills_have_certificates(self) -> None:
        tls = self.server(client_ca=str(self.made.ca_path))
        for version in VERSIONS:
            till = till_context(self.made, version)
            till.load_cert_chain(*client_certificate(self.directory))
            self.assertTrue(self.resumed(tls, till, Call(tls, till)), version)

    def test_a_session_from_before_a_reload_is_answered_by_a_whole_handshake(self) -> None:
        for version in VERSIONS:
            till = till_context(self.made, version)
            first = Call(self.tls, till)
            self.tls.reload()
            self.assertFalse(self.resumed(self.tls, till, first), version)

    def test_the_key_of_the_tickets_is_a_day_old_at_most(self) -> None:
        till = till_context(self.made)
        first = Call(self.tls, till)
        self.clock.advance(86399)
        self.assertTrue(self.resumed(self.tls, till, first))
        self.clock.advance(1)
        self.assertFalse(self.resumed(self.tls, till, first))
        self.assertTrue(self.resumed(self.tls, till, Call(self.tls, till)))


class Options(Server):
    """Options that a client cannot observe are read from OpenSSL."""

    def context(self) -> object:
        connection = self.tls.serverConnectionForTLS(cast(TLSMemoryBIOProtocol, None))
        return connection.get_context()._context

    def test_idle_connections_give_their_buffers_back(self) -> None:
        mode = openssl.SSL_CTX_set_mode(self.context(), 0)
        self.assertTrue(mode & SSL.MODE_RELEASE_BUFFERS)

    def test_there_is_no_compression_and_no_renegotiation(self) -> None:
        options = openssl.SSL_CTX_get_options(self.context())
        for option in (SSL.OP_NO_COMPRESSION, SSL.OP_NO_RENEGOTIATION):
            self.assertTrue(options & option)

    def test_no_session_is_remembered_by_the_server(self) -> None:
        connection = self.tls.serverConnectionForTLS(cast(TLSMemoryBIOProtocol, None))
        self.assertEqual(connection.get_context().get_session_cache_mode(), SSL.SESS_CACHE_OFF)


class Reloading(Server):
    def test_new_connections_get_the_new_certificate_and_old_ones_stay(self) -> None:
        till = till_context(self.made)
        old = Call(self.tls, till)
        self.made = make(self.directory, ["localhost"], days=30, replace=True)
        self.tls.reload()
        new = Call(self.tls, till)
        self.assertNotEqual(old.serial_number, new.serial_number)
        self.assertEqual(self.tls.expires_at, self.made.expires_at)
        self.assertEqual(old.say(b"still here"), b"still here")

    def test_whether_files_are_others_is_seen_without_reading_them(self) -> None:
        self.assertFalse(self.tls.is_stale)
        make(self.directory, ["localhost"], replace=True)
        self.assertTrue(self.tls.is_stale)
        self.tls.reload()
        self.assertFalse(self.tls.is_stale)

    def test_it_is_told_whether_there_was_anything_new(self) -> None:
        self.assertFalse(self.tls.reload())
        self.made.key_path.touch()
        self.assertTrue(self.tls.is_stale)
        self.assertFalse(self.tls.reload())
        self.assertTrue(self.tls.reload(evolve(self.tls.settings, minimum_version="1.3")))
        make(self.directory, ["localhost"], replace=True)
        self.assertTrue(self.tls.reload())

    def test_without_a_reload_new_files_change_nothing(self) -> None:
        till = till_context(self.made)
        before = Call(self.tls, till).serial_number
        make(self.directory, ["localhost"], replace=True)
        self.clock.advance(100_000)  # Not even after the key of the tickets has been renewed.
        self.assertEqual(Call(self.tls, till).serial_number, before)

    def test_a_bad_file_leaves_the_old_certificate_in_force(self) -> None:
        before = Call(self.tls, till_context(self.made)).serial_number
        self.made.certificate_path.write_bytes(b"half a fi")
        self.assertRaises(StartError, self.tls.reload)
        self.assertEqual(Call(self.tls, till_context(self.made)).serial_number, before)
        self.assertEqual(self.tls.expires_at, self.made.expires_at)

    def test_other_places_are_used_once_they_have_been_found_good(self) -> None:
        elsewhere = make(Path(self.mktemp()), ["localhost"])
        self.assertRaises(StartError, self.tls.reload, TLSConfig())
        self.tls.reload()
        self.tls.reload(settings_of(elsewhere))
        self.tls.reload()
        Call(self.tls, till_context(elsewhere))


class ClientCertificates(Server):
    """Only tills with a certificate of the shop's authority are accepted."""

    def setUp(self) -> None:
        super().setUp()
        self.tls = self.server(client_ca=str(self.made.ca_path))

    def test_a_till_with_one_gets_in(self) -> None:
        for version in VERSIONS:
            till = till_context(self.made, version)
            till.load_cert_chain(*client_certificate(self.directory))
            self.assertEqual(Call(self.tls, till).say(b"in"), b"in")

    def refused(self, made: IssuedCertificate | None = None) -> set[str]:
        """Return the logged reasons for a till with this certificate, in all versions of TLS."""
        said = set()
        for version in VERSIONS:
            till = till_context(self.made, version)
            if made is not None:
                till.load_cert_chain(made.certificate_path, made.key_path)
            with capturedLogs() as logs:
                self.assertRaises((SSL.Error, ssl.SSLError), Call, self.tls, till)
            (event,) = logs
            reason = event["reason"]
            line = f"not let in: reason={reason!r} address=192.0.2.7 unsaid=0"
            self.assertEqual(formatEvent(event), line)
            said.add(reason)
        return said

    def test_a_till_without_a_certificate_is_refused(self) -> None:
        self.assertEqual(self.refused(), {"it has no certificate"})

    def test_a_till_with_one_of_another_authority_does_not(self) -> None:
        other = Path(self.mktemp())
        self.assertEqual(
            self.refused(make_client(other, "POS_KITCHEN_1")),
            {"its certificate is not signed by an authority in tls.client_ca"},
        )

    def test_a_till_with_an_expired_certificate_is_refused(self) -> None:
        past = datetime.now(UTC) - timedelta(days=3)
        made = make_client(self.directory, "old", days=1, now=past)
        self.assertEqual(
            self.refused(made),
            {"its certificate has expired"},
        )

    def test_a_till_with_a_servers_certificate_does_not(self) -> None:
        self.assertEqual(
            self.refused(self.made),
            {"its certificate is not a client certificate"},
        )

    def test_log_lines_about_one_address_are_limited(self) -> None:
        def attempts(count: int) -> list[int]:
            with capturedLogs() as logs:
                for _ in range(count):
                    till = till_context(self.made, ssl.TLSVersion.TLSv1_2)
                    self.assertRaises((SSL.Error, ssl.SSLError), Call, self.tls, till)
            return [event["unsaid"] for event in logs]

        self.assertEqual(attempts(8), [0] * 5)
        self.clock.advance(60)
        self.assertEqual(attempts(3), [3])
        self.clock.advance(60)
        self.assertEqual(attempts(1), [2])

    def test_accepted_tills_are_not_logged(self) -> None:
        for version in VERSIONS:
            till = till_context(self.made, version)
            till.load_cert_chain(*client_certificate(self.directory))
            with capturedLogs() as logs:
                call = Call(self.tls, till)
                call.server.shutdown()
            self.assertEqual(list(logs), [])

    def test_a_new_authority_takes_effect_by_a_reload(self) -> None:
        other = Path(self.mktemp())
        make(other, ["localhost"])
        till = till_context(self.made)
        till.load_cert_chain(*client_certificate(other))
        (self.directory / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
        self.tls.reload()
        Call(self.tls, till)

    def test_a_file_without_certificates_is_refused(self) -> None:
        error = self.assertRaises(StartError, self.server, client_ca=str(self.made.key_path))
        self.assertIn(f"{self.made.key_path} has no readable certificate", str(error))


class WhatCannotBeUsed(Server):
    """An error is one line with the file and the remedy."""

    def refusal(self, **changes: str) -> str:
        text = str(self.assertRaises(StartError, self.server, **changes))
        self.assertEqual(len(text.splitlines()), 1)
        return text

    def file(self, content: bytes) -> str:
        path = Path(self.mktemp())
        path.write_bytes(content)
        return str(path)

    def key_file(
        self,
        key: dsa.DSAPrivateKey
        | x25519.X25519PrivateKey
        | ec.EllipticCurvePrivateKey
        | rsa.RSAPrivateKey,
    ) -> str:
        return self.file(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def test_a_listener_without_a_certificate_is_told_how_to_get_one(self) -> None:
        error = self.assertRaises(StartError, ServerTLS, TLSConfig())
        self.assertIn("tls.certificate and tls.private_key must be set", str(error))
        self.assertIn("posctl make-cert", str(error))

    def test_a_file_that_is_not_there(self) -> None:
        for option in ("certificate", "private_key", "client_ca"):
            self.assertEqual(
                self.refusal(**{option: "/nonexistent/tls.pem"}),
                "/nonexistent/tls.pem cannot be read (No such file or directory); "
                "put it there, or make one with `posctl make-cert`",
            )

    def test_every_file_is_looked_at_and_blamed_on_its_key(self) -> None:
        keys = ("certificate", "private_key", "client_ca")
        missing = TLSConfig(**dict.fromkeys(keys, "/nonexistent/tls.pem"))  # type: ignore[arg-type]
        self.assertEqual(tuple(problems(missing)), keys)
        error = self.assertRaises(StartError, ServerTLS, missing)
        self.assertEqual(len(str(error).splitlines()), 3)

    def test_of_a_key_that_is_not_set_nothing_is_said(self) -> None:
        self.assertEqual(problems(TLSConfig()), {})
        alone = TLSConfig(private_key="/nonexistent/tls.pem")
        self.assertEqual(tuple(problems(alone)), ("private_key",))

    def test_files_that_can_be_used_have_no_problem(self) -> None:
        self.assertEqual(problems(settings_of(self.made)), {})

    def test_a_folder_where_a_file_should_be(self) -> None:
        self.assertIn("(Is a directory)", self.refusal(certificate=str(self.directory)))

    def test_a_file_that_posd_may_not_read(self) -> None:
        def forbidden(path: Path) -> bytes:
            raise PermissionError(13, "Permission denied", str(path))

        self.patch(Path, "read_bytes", forbidden)
        for text in problems(settings_of(self.made)).values():
            self.assertIn("let posd read it: owner root, group posd, mode 0640", text)

    def test_certificate_and_key_exchanged(self) -> None:
        self.assertIn(
            "has no readable certificate", self.refusal(certificate=str(self.made.key_path))
        )
        self.assertIn(
            "has no readable private key", self.refusal(private_key=str(self.made.certificate_path))
        )

    def test_a_key_with_a_password(self) -> None:
        key = load_pem_private_key(self.made.key_path.read_bytes(), password=None)
        encrypted = self.file(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw"))
        )
        self.assertIn("is encrypted", self.refusal(private_key=encrypted))

    def test_a_key_of_a_kind_that_tls_does_not_use(self) -> None:
        for key in (dsa.generate_private_key(2048), x25519.X25519PrivateKey.generate()):
            self.assertIn("use ECDSA P-256 or RSA", self.refusal(private_key=self.key_file(key)))

    def test_the_key_of_another_certificate(self) -> None:
        other = self.key_file(ec.generate_private_key(ec.SECP256R1()))
        self.assertIn(
            f"{other} does not belong to {self.made.certificate_path}",
            self.refusal(private_key=other),
        )

    def test_a_chain_in_the_wrong_order(self) -> None:
        chain = self.made.ca_path.read_bytes() + self.made.certificate_path.read_bytes()
        self.assertIn("put that first", self.refusal(certificate=self.file(chain)))

    def test_a_certificate_that_openssl_finds_too_weak(self) -> None:
        key = rsa.generate_private_key(65537, 1024)
        name = x509.Name([])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), 1)
            .not_valid_before(datetime.now(UTC))
            .not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        weak = self.file(certificate.public_bytes(Encoding.PEM))
        files = {"certificate": weak, "private_key": self.key_file(key)}
        self.assertIn(f"{weak} is refused by OpenSSL (", self.refusal(**files))
        self.assertEqual(tuple(problems(TLSConfig(**files))), ("certificate",))  # type: ignore[arg-type]


class Dates(SynchronousTestCase):
    def test_a_certificate_that_is_not_valid_now_is_used_all_the_same(self) -> None:
        for days in (-31, 1):
            begins = datetime.now(UTC) + timedelta(days=days)
            made = make(Path(self.mktemp()), ["localhost"], days=30, now=begins)
            self.assertEqual(ServerTLS(settings_of(made)).expires_at, made.expires_at)

    def test_the_end_of_the_last_of_the_tills_authorities_counts(self) -> None:
        now = datetime.now(UTC)
        old, new = (
            make(Path(self.mktemp()), ["localhost"], now=now - timedelta(days=days))
            for days in (3000, 0)
        )
        both = Path(self.mktemp())
        both.write_bytes(new.ca_path.read_bytes() + old.ca_path.read_bytes())
        settings = evolve(settings_of(new), client_ca=str(both))
        validities = ServerTLS(settings).validities
        self.assertEqual(set(validities), {str(both), str(new.certificate_path)})
        self.assertEqual(validities[str(new.certificate_path)].ends, new.expires_at)
        (authority,) = x509.load_pem_x509_certificates(new.ca_path.read_bytes())
        self.assertEqual(validities[str(both)].ends, authority.not_valid_after_utc)


def client_certificate(directory: Path) -> tuple[Path, Path]:
    """Return the certificate and key of a till, signed by the authority in `directory`."""
    made = make_client(directory, "POS_KITCHEN_1", replace=True)
    return made.certificate_path, made.key_path


class Browser(SpeakFirstClient):
    words = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Hello(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return b"hello"


class Loopback(TestCase):
    """twisted.web behind `wrapServerTLS` on a real port."""

    async def setUp(self) -> None:  # type: ignore[override]
        self.directory = Path(self.mktemp())
        self.made = make(self.directory, ["localhost"])
        self.tls = ServerTLS(settings_of(self.made))
        endpoint = TCP4ServerEndpoint(global_reactor, 0, interface="127.0.0.1")
        port = await wrapServerTLS(self.tls, endpoint).listen(Site(Hello(), timeout=20))
        self.addCleanup(port.stopListening)
        address = port.getHost()
        assert isinstance(address, IPv4Address)
        self.port = address.port

    def test_sessions_resume_through_twisted_with_either_version(self) -> Deferred[None]:
        def call_twice(version: ssl.TLSVersion) -> list[bool | None]:
            till = till_context(self.made, version)
            session, reused = None, []
            for _ in range(2):
                with (
                    socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain,
                    till.wrap_socket(plain, server_hostname="localhost", session=session) as call,
                ):
                    call.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    while call.recv(4096):
                        pass
                    session = call.session
                    reused.append(call.session_reused)
            return reused

        async def each_version() -> None:
            for version in VERSIONS:
                self.assertEqual(await deferToThread(call_twice, version), [False, True])

        return Deferred.fromCoroutine(each_version())

    async def call(self, host: str, ca: Path | None) -> Browser:
        """Call the server as `host`, with Twisted as the till."""
        endpoint = HostnameEndpoint(global_reactor, "127.0.0.1", self.port)
        caller = await wrapClientTLS(client_context(host, ca), endpoint).connect(
            Factory.forProtocol(Browser)
        )
        assert isinstance(caller, Browser)
        return caller

    async def hang_up(self, caller: Browser) -> None:
        assert caller.transport is not None
        caller.transport.loseConnection()
        await caller.lost

    async def test_a_client_accepts_the_name_from_the_authority_that_it_trusts(self) -> None:
        caller = await self.call("localhost", self.made.ca_path)
        self.assertTrue((await caller.heard).startswith(b"HTTP/1.1 200"))
        await self.hang_up(caller)

    async def test_a_client_refuses_another_name(self) -> None:
        caller = await self.call("other.example", self.made.ca_path)
        with self.assertRaises(VerificationError):
            await caller.heard

    async def test_a_client_refuses_an_authority_that_it_does_not_know(self) -> None:
        stranger = make(Path(self.mktemp()), ["localhost"])
        for ca in (stranger.ca_path, None):
            caller = await self.call("localhost", ca)
            with self.assertRaises(UntrustedCertificate) as caught:
                await caller.heard
            self.assertIn("authority of the server's certificate", str(caught.exception))

    async def test_a_connection_outlives_a_reload(self) -> None:
        caller = await self.call("localhost", self.made.ca_path)
        await caller.heard
        make(self.directory, ["localhost"], replace=True)
        self.tls.reload()
        caller.heard = Deferred()
        caller.connectionMade()
        self.assertTrue((await caller.heard).startswith(b"HTTP/1.1 200"))
        await self.hang_up(caller)

    def test_a_client_with_an_unusable_file_is_told_which(self) -> None:
        error = self.assertRaises(StartError, client_context, "localhost", self.made.key_path)
        self.assertIn(str(self.made.key_path), str(error))
