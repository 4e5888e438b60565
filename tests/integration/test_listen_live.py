"""`posctl listen` with correct and wrong URLs, authorities and tenants, at a running posd."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from twisted.trial import unittest

from posd.security import private_ca
from tests.integration import forked
from tests.integration.harness import Daemon, Shop
from tests.integration.wire_case import until
from tests.odd_certificates import issue_odd_certificate

SECONDS = 300.0


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Return the port of a server on 127.0.0.1 that sends this to every client and then closes."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(SECONDS)
                    connection.recv(65536)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextmanager
def believing(made: private_ca.IssuedCertificate) -> Iterator[int]:
    """Return the port of a server that does one TLS handshake with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate_path, made.key_path)

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listening.accept()
            context.wrap_socket(connection, server_side=True).recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listening.getsockname()[1])
        thread.join(SECONDS)


def http(status: str, body: str, *headers: str) -> bytes:
    head = "".join(f"{each}\r\n" for each in (*headers, f"Content-Length: {len(body)}"))
    return f"HTTP/1.1 {status}\r\n{head}\r\n{body}".encode()


class ListenCase(unittest.SynchronousTestCase):
    def listen(self, url: str, *options: str | Path, key: str = "pos_x") -> tuple[int, str]:
        """Return its exit code and its output. It must end by itself."""
        process, told = self.start(url, *options, key=key)
        code = process.wait(SECONDS)
        self.assertNotIn("Traceback", told.read_text())
        return code, told.read_text()

    def start(
        self, url: str, *options: str | Path, key: str = "pos_x"
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Start `posctl listen`. Return the file with its messages, without events."""
        arguments = ["listen", "--url", url, "--tenant", "kitchen", *map(str, options)]
        told = Path(self.mktemp()).absolute()
        told.parent.mkdir(parents=True, exist_ok=True)
        process = forked.start(
            "posctl", arguments, cwd=Path.cwd(), log=told, environ={"POSD_KEY": key}
        )

        def end() -> None:
            process.kill()
            process.wait()

        self.addCleanup(end)
        return process, told

    def ends(self, code: int, *words: str, url: str, options: tuple[str | Path, ...] = ()) -> None:
        """Assert that it does not try again, and that its last line says what to do."""
        with self.subTest(url=url, options=options):
            ended, told = self.listen(url, *options)
            self.assertEqual(ended, code, told)
            self.assertNotIn("trying again", told)
            for word in words:
                self.assertIn(word, told.splitlines()[-1])


class PosdTests(ListenCase):
    shop: Shop
    posd: Daemon

    def setUp(self) -> None:
        self.shop = Shop.open()
        self.addCleanup(self.shop.close)
        self.posd = self.shop.start()

    def test_what_cannot_help_is_not_tried_again(self) -> None:
        port, ca = self.posd.port, ("--ca", self.posd.ca)
        other = private_ca.make(Path(self.mktemp()), ["localhost"]).ca_path
        for code, url, options, words in (
            (os.EX_PROTOCOL, f"ws://localhost:{port}", (), ("write wss://",)),
            (os.EX_CONFIG, f"wss://localhost:{port}", (), ("--ca",)),
            (os.EX_CONFIG, f"wss://localhost:{port}", ("--ca", other), (f"is not in {other}",)),
            (os.EX_NOPERM, f"wss://localhost:{port}", ca, ("API key",)),
            (os.EX_DATAERR, f"wss://localhost:{port}/pos", ca, ("404", "--url")),
            (os.EX_USAGE, f"https://localhost:{port}", ca, ("wss://",)),
            (os.EX_USAGE, f"http://localhost:{port}", ca, ("wss://",)),
            (os.EX_USAGE, f"localhost:{port}", ca, ("wss://",)),
            (os.EX_USAGE, "ws://192.0.2.1:9010", ca, ("wss://",)),
            (os.EX_USAGE, "wss://localhost:99999", ca, ("ort",)),
            (os.EX_NOHOST, "wss://no-such-host.invalid:9010", ca, ("--url",)),
        ):
            self.ends(code, *words, url=url, options=options)

    def test_a_tenant_that_there_is_not(self) -> None:
        code, told = self.listen(
            *(f"wss://localhost:{self.posd.port}", "--ca", self.posd.ca, "--tenant", "nowhere"),
            key=self.shop.key(),
        )
        self.assertIn(code, (os.EX_DATAERR, os.EX_NOPERM), told)
        self.assertNotIn("trying again", told)


class OtherTests(ListenCase):
    """Other servers than posd."""

    def test_answers_that_are_no_posds(self) -> None:
        page = "<html><body>Welcome to nginx!</body></html>"
        for answer, words in (
            (http("200 OK", page), ("HTTP 200", "the server is not posd")),
            (http("404 Not Found", page), ("HTTP 404", "the server is not posd")),
            (http("301 Moved", "", "Location: https://x/"), ("a redirect to https://x/",)),
            (http("400 Bad Request", page), ("HTTP 400",)),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", ("did not answer with HTTP",)),
            (b"\x15\x03\x01\x00\x02\x02\x46", ("wss://",)),
            (b"", ("wss://",)),
        ):
            with answering(answer) as port:
                self.ends(os.EX_PROTOCOL, *words, url=f"ws://127.0.0.1:{port}")

    def test_tls_at_a_port_without(self) -> None:
        for answer in (http("400 Bad Request", ""), b"SSH-2.0-OpenSSH_9.2p1\r\n"):
            with answering(answer) as port:
                url = f"wss://127.0.0.1:{port}"
                self.ends(os.EX_PROTOCOL, "does not use TLS", "ws://", url=url)

    def test_certificates_that_are_not_believed(self) -> None:
        name = x509.DNSName("localhost")
        ended = issue_odd_certificate(
            Path(self.mktemp()), "localhost", [name], datetime(2026, 1, 3, tzinfo=UTC)
        )
        other = private_ca.make(Path(self.mktemp()), ["pos.example.com"])
        nameless = issue_odd_certificate(Path(self.mktemp()), "localhost")
        for made, words in (
            (ended, ("has expired", "needs a new certificate")),
            (other, ("another name", "--url")),
            (nameless, ("names no server", "--url")),
        ):
            with believing(made) as port:
                url, options = f"wss://localhost:{port}", ("--ca", made.ca_path)
                self.ends(os.EX_CONFIG, *words, url=url, options=options)

    def test_what_may_pass_is_tried_again_with_its_reason(self) -> None:
        with socket.socket() as kept:
            kept.bind(("127.0.0.1", 0))
            free = kept.getsockname()[1]
            self.retries(f"ws://127.0.0.1:{free}", "refused")
        for answer, word in (
            (http("503 Service Unavailable", "<html>"), "HTTP 503"),
            (http("502 Bad Gateway", "<html>"), "HTTP 502"),
            (http("429 Too Many Requests", ""), "HTTP 429"),
        ):
            with answering(answer) as port:
                self.retries(f"ws://127.0.0.1:{port}", word)

    def retries(self, url: str, reason: str) -> None:
        process, told = self.start(url)
        until(lambda: "\n" in told.read_text(), "it says why", SECONDS)
        line = told.read_text().splitlines()[0]
        self.assertIn("disconnected, trying again: ", line)
        self.assertIn(reason, line)
        self.assertIsNone(process.poll())
