"""The benchmarks: the load client counts events and detects missing ones, and the page has all rows."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from bench.__main__ import ROWS
from bench.loader import Failed, Loader, NotRun, build
from bench.world import opening, publishing
from posd.security import private_ca
from posd.testing.ports import reserve

_GREETING = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


def frame(text: bytes) -> bytes:
    return bytes([0x81, len(text)]) + text


class PageTests(SynchronousTestCase):
    """bench/README.md."""

    def test_it_has_every_row(self) -> None:
        text = (Path(__file__).parents[1] / "bench" / "README.md").read_text("utf-8")
        table = text.partition("## Rows")[2].partition("\n## ")[0]
        first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
        named = {name for cell in first_cells for name in re.findall("`([a-z-]+)`", cell)}
        self.assertEqual(named, {row.name for row in ROWS})


class LoadClientTests(SynchronousTestCase):
    """The load client, with a correct server in C, and with faulty servers."""

    def setUp(self) -> None:
        try:
            build("loader")
            self.floor = build("floor")
        except NotRun as error:
            raise SkipTest(str(error)) from None
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tls = private_ca.make(Path(folder.name), ["localhost"])

    def connect(self, port: int) -> Loader:
        loader = Loader.start(port)
        self.addCleanup(loader.__exit__, None, None, None)
        return loader

    def test_counts_what_every_till_gets(self) -> None:
        port = reserve()
        certificate = (str(self.tls.certificate_path), str(self.tls.key_path))
        server = subprocess.Popen([str(self.floor), str(port.number), *certificate])
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        _wait_for(port.number)
        loader = self.connect(port.number)
        self.assertEqual(loader.open([opening(1)] * 5)["done"], 5)

        waves = loader.waves([publishing(1)], 0.05)
        self.assertEqual(waves["messages"], 5 * waves["requests"])
        self.assertGreater(waves["requests"], 0)
        self.assertLess(waves["latency_ms"]["max"], 60_000)

        load = loader.load([publishing(1)] * 40, 0, posters=4, deliveries=5)
        self.assertEqual((load["requests"], load["messages"]), (40, 200))
        with self.assertRaisesRegex(Failed, "missing 1"):
            # The load client waits a fifth of a second for missing events.
            loader.wait(1, 0.2)
        self.assertGreater(loader.churn([opening(1)], 0.05, at_once=2)["done"], 0)

    def test_sees_an_event_that_is_missing(self) -> None:
        events = [frame(b'{"type":"notice","id":%d,"data":{}}' % id_) for id_ in (5, 7)]
        with self.assertRaisesRegex(Failed, "disorder 1; a till got event 7 after 5"):
            self.answered(_GREETING, frame(b'{"type":"connected","lastEventId":4}'), *events)

    def test_sees_an_event_that_comes_twice(self) -> None:
        events = [frame(b'{"type":"notice","id":5,"data":{}}')] * 2
        with self.assertRaisesRegex(Failed, "disorder 1; a till got event 5 after 5"):
            self.answered(_GREETING, frame(b'{"type":"connected","lastEventId":4}'), *events)

    def test_says_why_a_till_was_refused(self) -> None:
        with self.assertRaisesRegex(Failed, "failed 1; a till was refused: HTTP/1.1 401"):
            self.answered(b"HTTP/1.1 401 Unauthorized\r\n\r\n")

    def answered(self, *pieces: bytes) -> None:
        """Open a till at a server with this answer, and wait for two events."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.tls.certificate_path, self.tls.key_path)
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def serve() -> None:
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(listener.accept()[0], server_side=True) as till,
            ):
                till.recv(4096)
                for piece in pieces:
                    till.sendall(piece)
                till.recv(4096)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        loader = self.connect(listener.getsockname()[1])
        try:
            loader.open([opening(1)], missed=2)
        finally:
            loader.close()
            server.join(300)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.01)
    raise AssertionError("the floor does not listen")
