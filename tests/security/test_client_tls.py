"""posd's clients send nothing to a server whose certificate does not match the called host."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from service_identity import CertificateError, VerificationError
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from posd.config.model import TLSConfig
from posd.errors import StartError
from posd.security.client_tls import client_context
from posd.security.dialing import Credentials, UntrustedCertificate, tls_failure
from posd.security.private_ca import make, make_client
from posd.security.server_tls import ServerTLS
from tests.caller import SpeakFirstClient
from tests.odd_certificates import issue_odd_certificate

SECRET = b"the key"


class Listener(Protocol):
    """Records its input, and answers."""

    def dataReceived(self, data: bytes) -> None:
        assert isinstance(self.factory, Listeners)
        self.factory.told.append(data)
        assert self.transport is not None
        self.transport.write(b"welcome")


class Listeners(Factory):
    protocol = Listener
    noisy = False

    def __init__(self) -> None:
        self.told: list[bytes] = []


class Teller(SpeakFirstClient):
    words = SECRET


class TrustCase(TestCase):
    timeout = 300

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.listeners = Listeners()

    async def listen(self, certificate: Path, key: Path, client_ca: Path | None = None) -> int:
        asked = None if client_ca is None else str(client_ca)
        settings = TLSConfig(str(certificate), str(key), client_ca=asked)
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await wrapServerTLS(ServerTLS(settings), endpoint).listen(self.listeners)
        self.addCleanup(port.stopListening)
        address = port.getHost()
        assert isinstance(address, IPv4Address)
        return address.port

    async def server(self, *names: str, client_ca: Path | None = None) -> int:
        """Start a server with a certificate for these names, signed by the authority in `folder`."""
        made = make(self.folder, names)
        return await self.listen(made.certificate_path, made.key_path, client_ca)

    async def call(
        self, port: int, host: str, ca: Path | None = None, credentials: Credentials | None = None
    ) -> BaseException | None:
        """Call 127.0.0.1 as `host`. Returns the error, or None."""
        trust = client_context(host, ca or self.folder / "ca.pem", credentials)
        endpoint = wrapClientTLS(trust, TCP4ClientEndpoint(reactor, "127.0.0.1", port))
        caller = await endpoint.connect(Factory.forProtocol(Teller))
        assert isinstance(caller, Teller)
        assert caller.transport is not None
        failed: BaseException | None = None
        try:
            await caller.heard
        except Exception as error:
            failed = error
        caller.transport.loseConnection()
        await caller.lost
        return failed


class ServerTests(TrustCase):
    def refused(self, error: BaseException | None, words: str) -> None:
        self.assertIn(words, tls_failure(error) or "")
        self.assertEqual(self.listeners.told, [], "it was told nothing")

    async def test_a_server_is_known_by_each_name_and_address_of_its_certificate(self) -> None:
        names = ("pos.lan", "*.shops.lan", "127.0.0.1", "2001:db8::7")
        port = await self.server(*names)
        for host in ("pos.lan", "POS.lan", "bar.shops.lan", "127.0.0.1", "2001:db8::7"):
            with self.subTest(host=host):
                self.assertIsNone(await self.call(port, host))
        self.assertEqual(set(self.listeners.told), {SECRET})

    async def test_a_server_of_another_name_or_address_is_refused(self) -> None:
        port = await self.server("pos.lan", "*.shops.lan", "192.0.2.7")
        for host in (
            *("pos.lan.example", "lan", "a.bar.shops.lan", "shops.lan"),
            *("127.0.0.1", "192.0.2.8", "2001:db8::7"),
        ):
            with self.subTest(host=host):
                error = await self.call(port, host)
                self.assertIsInstance(error, VerificationError)
                self.refused(error, "for another name")

    async def test_an_address_in_a_name_is_not_an_address(self) -> None:
        names = [x509.DNSName("127.0.0.1")]
        error = await self.call(await self.signed("127.0.0.1", names), "127.0.0.1")
        self.refused(error, "names no server")

    async def test_a_certificate_with_no_more_than_a_common_name_is_refused(self) -> None:
        port = await self.signed("pos.lan", [])
        for host in ("pos.lan", "other.lan", "127.0.0.1"):
            with self.subTest(host=host), capturedLogs() as logs:
                error = await self.call(port, host)
                self.assertIsInstance(error, CertificateError)
                self.refused(error, "does not contain any `subjectAltName`s")
                self.assertEqual([log for log in logs if "log_failure" in log], [])

    async def test_a_common_name_does_not_count_beside_other_names(self) -> None:
        port = await self.signed("pos.lan", [x509.DNSName("other.lan")])
        self.refused(await self.call(port, "pos.lan"), "for another name")
        self.assertIsNone(await self.call(port, "other.lan"))

    async def test_a_certificate_of_an_untrusted_authority_is_refused(self) -> None:
        port = await self.server("pos.lan")
        stranger = make(Path(self.mktemp()), ["pos.lan"])
        error = await self.call(port, "pos.lan", stranger.ca_path)
        self.assertIsInstance(error, UntrustedCertificate)
        self.refused(error, "authority of the server's certificate")

    async def test_an_expired_certificate_is_refused(self) -> None:
        names = [x509.DNSName("pos.lan")]
        port = await self.signed("pos.lan", names, ends=datetime.now(UTC) - timedelta(hours=1))
        self.refused(await self.call(port, "pos.lan"), "has expired")

    async def test_a_tills_certificate_is_not_taken_for_a_servers(self) -> None:
        made = make_client(self.folder, "pos.lan")
        port = await self.listen(made.certificate_path, made.key_path)
        error = await self.call(port, "pos.lan")
        self.refused(error, "is not a server certificate")

    async def test_an_invalid_host_name_is_an_error_before_the_call(
        self,
    ) -> None:
        self.assertRaises(ValueError, client_context, "pos lan")

    async def signed(
        self, name: str, names: Sequence[x509.GeneralName], ends: datetime | None = None
    ) -> int:
        """Start a server with a certificate like posd's own, except for its names and its expiry."""
        made = issue_odd_certificate(self.folder, name, names, ends)
        return await self.listen(made.certificate_path, made.key_path)


class ClientTests(TrustCase):
    """The server requests a client certificate."""

    async def ask(self, credentials: Credentials | None) -> str | None:
        """Connect with these credentials. Returns the error, or None."""
        tills = make_client(self.folder / "tills", "unused").ca_path
        port = await self.server("pos.lan", client_ca=tills)
        error = await self.call(port, "pos.lan", credentials=credentials)
        return tls_failure(error) if error is not None else None

    def credentials(self, folder: str, name: str = "POS_1", **how: object) -> Credentials:
        made = make_client(self.folder / folder, name, **how)  # type: ignore[arg-type]
        return Credentials(made.certificate_path, made.key_path)

    async def test_a_client_with_one_of_its_authority_is_let_in(self) -> None:
        self.assertIsNone(await self.ask(self.credentials("tills")))
        self.assertEqual(self.listeners.told, [SECRET])

    async def test_a_client_without_one_is_told_so(self) -> None:
        told = await self.ask(None)
        self.assertEqual(told, "TLS: the server refuses this client: it has no certificate")
        self.assertEqual(self.listeners.told, [])

    async def test_a_client_with_a_foreign_one_is_told_so(self) -> None:
        told = await self.ask(self.credentials("strangers"))
        self.assertEqual(
            told,
            "TLS: the server refuses this client: its certificate is signed by another authority",
        )

    async def test_a_client_with_an_expired_certificate_gets_that_reason(self) -> None:
        past = datetime.now(UTC) - timedelta(days=9)
        told = await self.ask(self.credentials("tills", days=3, now=past))
        self.assertEqual(told, "TLS: the server refuses this client: its certificate has expired")

    async def test_unusable_files_are_named_before_the_call(self) -> None:
        good, other = self.credentials("tills"), self.credentials("tills", "POS_2")
        for bad, words in (
            (Credentials(good.certificate, other.private_key), "does not belong to"),
            (Credentials(good.private_key, good.private_key), "no readable certificate"),
            (Credentials(good.certificate, self.folder / "none"), "cannot be read"),
        ):
            error = self.assertRaises(StartError, client_context, "pos.lan", None, bad)
            self.assertIn(words, str(error))
