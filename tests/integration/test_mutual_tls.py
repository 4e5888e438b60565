"""A posd that accepts only tills with a certificate of the shop's authority."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import define
from twisted.trial.unittest import SynchronousTestCase

from posd.broadcaster import BlockingBroadcaster, Credentials, PublishFailed
from posd.security.private_ca import IssuedCertificate, make_client
from tests.integration.harness import ROOT, Daemon, Shop
from tests.integration.shared import shared
from tests.integration.wire import WAIT, Till
from tests.integration.wire_case import until

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
HOSTS = itertools.count(100)


@define(eq=False)
class Mutual(Daemon):
    """A posd whose clients present a certificate unless told otherwise."""

    own: IssuedCertificate

    def tls(self) -> ssl.SSLContext:
        context = Daemon.tls(self)
        context.load_cert_chain(self.own.certificate_path, self.own.key_path)
        return context


@shared
def running(stack: ExitStack) -> tuple[Shop, Mutual]:
    shop = Shop.open()
    stack.callback(shop.close)
    own = make_client(shop.folder / "tills", "POS_1")
    (shop.folder / "conf.d").mkdir()
    (shop.folder / "conf.d" / "mutual.toml").write_text(
        f'[tls]\nclient_ca = "{own.ca_path}"\n'
        f'[[listen]]\nname = "local"\nendpoint = "unix:{shop.folder}/local.sock:mode=660"\n'
        "trusted = true\n"
    )
    daemon = shop.start(wait=False)
    mutual = Mutual(daemon.port, daemon.ca, daemon.log_path, daemon.process, own)
    mutual.wait_ready()
    return shop, mutual


class MutualCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.shop, self.posd = running()
        self.key = self.shop.key()

    def made(self, folder: str, name: str, **how: object) -> IssuedCertificate:
        """Issue a till's certificate, with the authority in a folder."""
        return make_client(self.shop.folder / folder, name, replace=True, **how)  # type: ignore[arg-type]

    def refused(self, made: IssuedCertificate | None, version: ssl.TLSVersion) -> tuple[str, str]:
        """Return what a client with this certificate sees, and the log line of posd.

        Each client has an address of its own, because the lines of one address are limited.
        """
        context = Daemon.tls(self.posd)
        context.minimum_version = context.maximum_version = version
        if made is not None:
            context.load_cert_chain(made.certificate_path, made.key_path)
        before, source = self.posd.log(), (f"127.0.0.{next(HOSTS)}", 0)
        with (
            socket.create_connection(("127.0.0.1", self.posd.port), WAIT, source) as plain,
            self.assertRaises(ssl.SSLError) as caught,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            client.recv(1)
        (line,) = until(lambda: self.posd.log()[len(before) :].splitlines(), "it is logged")
        return str(caught.exception.reason), line


class TillTests(MutualCase):
    def test_a_till_with_a_certificate_gets_in_and_still_needs_its_key(self) -> None:
        till = Till.dial(self.posd, "/ws/pos/kitchen", {"X-API-Key": self.key})
        self.addCleanup(till.hang_up)
        self.assertTrue(till.next_is_pong(1))
        self.assertEqual(self.posd.request("GET", "/api/kitchen/pos-status").status, 401)

    def test_one_without_is_told_by_an_alert_and_logged_in_one_line(self) -> None:
        alerts = ("ALERT_HANDSHAKE_FAILURE", "ALERT_CERTIFICATE_REQUIRED")
        for version, alert in zip(VERSIONS, alerts, strict=True):
            seen, line = self.refused(None, version)
            self.assertTrue(seen.endswith(alert), seen)
            self.assertIn(
                "#info] not let in: reason='it has no certificate' address=127.0.0.", line
            )

    def test_a_foreign_one_and_one_that_has_ended_are_told_from_each_other(self) -> None:
        ended = datetime.now(UTC) - timedelta(days=9)
        for made, alert, words in (
            (
                self.made("strangers", "POS_1"),
                "ALERT_UNKNOWN_CA",
                "is not signed by an authority in",
            ),
            (self.made("tills", "POS_2", days=1, now=ended), "CERTIFICATE_EXPIRED", "has expired"),
        ):
            for version in VERSIONS:
                seen, line = self.refused(made, version)
                self.assertTrue(seen.endswith(alert), seen)
                self.assertIn(f"#info] not let in: reason='its certificate {words}", line)

    def test_programs_on_the_trusted_socket_need_none(self) -> None:
        connection = http.client.HTTPConnection("localhost")
        with closing(connection):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(WAIT)
            connection.sock.connect(str(self.shop.folder / "local.sock"))
            connection.request("GET", "/health/ready", headers={"Host": "localhost"})
            self.assertEqual(connection.getresponse().status, 200)


class ClientTests(MutualCase):
    """posd's own clients."""

    def listen(self, *options: str | Path, until_said: str) -> str:
        """Run `posctl listen` until it has printed something, and interrupt it. Return its output."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "posd.cli", "listen", "--tenant", "kitchen"),
                *("--url", f"wss://localhost:{self.posd.port}", "--ca", str(self.posd.ca)),
                *map(str, options),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "POSD_KEY": self.key},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr is not None
        with process:
            said = ""
            for line in process.stderr:
                said += line
                if until_said in line:
                    process.send_signal(signal.SIGINT)
        self.assertIn(until_said, said)
        self.assertNotIn("Traceback", said)
        return said

    def test_posctl_listen_shows_the_certificate_that_it_is_given(self) -> None:
        own = self.posd.own
        files = ("--client-cert", own.certificate_path, "--client-key", own.key_path)
        self.listen(*files, until_said="connected without a device id")

    def test_posctl_listen_without_one_says_what_is_missing(self) -> None:
        self.listen(until_said="the server refuses this client: it has no certificate")

    def test_a_platform_publishes_with_one_and_is_told_what_it_lacks_without(self) -> None:
        own, key = self.posd.own, self.shop.key("platform")
        credentials = Credentials(own.certificate_path, own.key_path)
        url = f"https://localhost:{self.posd.port}"
        posd = BlockingBroadcaster(url, key, ca=self.posd.ca, credentials=credentials)
        self.addCleanup(posd.close)
        self.assertGreater(posd.publish("kitchen", "note", {}).id or 0, 0)
        nobody = BlockingBroadcaster(url, key, ca=self.posd.ca, deadline=WAIT)
        self.addCleanup(nobody.close)
        failure = self.assertRaises(PublishFailed, nobody.publish, "kitchen", "note", {})
        self.assertIn("it has no certificate", str(failure))
