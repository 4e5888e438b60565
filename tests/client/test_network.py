"""The reference till over real sockets, with TLS, TCP and back-pressure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, wrapServerTLS
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import TestCase

from posd.client import Connected, Outcome, ReceivedEvent, Till
from posd.client.connection import ClientConnection
from posd.security.private_ca import IssuedCertificate, make
from tests.odd_certificates import issue_odd_certificate
from tests.till_case import KEY, STREAM, Desk

BIG = "x" * 20_000


class Shop(Desk):
    """A server that sends `connected` and then a number of events at once."""

    def onOpen(self) -> None:
        self.factory.desks.append(self)
        self.greet(0)
        for seq in range(1, self.factory.events + 1):
            event = {"type": "new_order", "id": seq, "timestamp": "2026-11-22T10:00:00Z"}
            self.sendMessage(json.dumps({**event, "data": {"notes": BIG}}).encode())


class NetworkCase(TestCase):
    timeout = 300

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.factory = WebSocketServerFactory(reactor=reactor)
        self.factory.protocol = Shop
        self.factory.noisy = False
        self.factory.desks = []
        self.factory.events = 0

    async def listen(
        self, *, tls_name: str | None = None, made: IssuedCertificate | None = None
    ) -> int:
        endpoint: Any = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        if tls_name is not None:
            made = make(self.folder, [tls_name])
        if made is not None:
            pem = made.key_path.read_bytes() + made.certificate_path.read_bytes()
            endpoint = wrapServerTLS(PrivateCertificate.loadPEM(pem).options(), endpoint)
        port = await endpoint.listen(self.factory)
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def start(self, till: Till) -> None:
        till.startService()
        self.addCleanup(till.stopService)

    async def test_events_come_over_tls_from_a_server_with_a_private_authority(self) -> None:
        self.factory.events = 3
        port = await self.listen(tls_name="127.0.0.1")
        handled: list[int] = []
        third: Deferred[None] = Deferred()

        def handle(event: ReceivedEvent) -> None:
            handled.append(event.id)
            if event.id == 3:
                third.callback(None)

        url = f"wss://127.0.0.1:{port}"
        till = Till(reactor, url, "kitchen", KEY, handle=handle, ca=self.folder / "ca.pem")
        self.start(till)
        await third
        self.assertEqual(handled, [1, 2, 3])
        await till.stopService()
        [desk] = self.factory.desks
        await desk.is_closed
        self.assertEqual(desk.messages, [{"type": "ack", "id": 3}])
        self.assertEqual(desk.remoteCloseCode, 1000)

    async def ending_of(self, url: str) -> Outcome:
        ended: Deferred[Outcome] = Deferred()
        handle = lambda event: None  # noqa: E731
        ca = self.folder / "ca.pem"
        till = Till(
            reactor, url, "kitchen", KEY, handle=handle, ca=ca, on_disconnected=ended.callback
        )
        self.start(till)
        return await ended

    async def test_a_certificate_for_another_host_is_refused(self) -> None:
        port = await self.listen(tls_name="pos.example.net")
        outcome = await self.ending_of(f"wss://127.0.0.1:{port}")
        self.assertEqual(outcome.reason, "TLS: the server's certificate is for another name")
        self.assertEqual(self.factory.desks, [])

    async def test_a_certificate_with_only_a_common_name_is_refused(
        self,
    ) -> None:
        port = await self.listen(made=issue_odd_certificate(self.folder, "127.0.0.1"))
        outcome = await self.ending_of(f"wss://127.0.0.1:{port}")
        self.assertIn("TLS: the server's certificate names no server", outcome.reason)
        self.assertEqual(self.factory.desks, [])

    async def test_a_certificate_of_an_unknown_authority_is_named_as_the_reason(self) -> None:
        port = await self.listen(tls_name="127.0.0.1")
        (self.folder / "ca.pem").unlink()
        (self.folder / "ca-key.pem").unlink()
        make(self.folder, ["127.0.0.1"], replace=True)
        with capturedLogs() as logs:
            outcome = await self.ending_of(f"wss://127.0.0.1:{port}")
        self.assertIn("authority of the server's certificate", outcome.reason)
        loud = [log["log_format"] for log in logs if log["log_level"] > LogLevel.info]
        self.assertEqual(
            loud, [], "the till's owner, who is told the ending, says what it is worth"
        )

    async def test_small_messages_do_not_wait_for_one_another(self) -> None:
        port = await self.listen()
        greeted: Deferred[Connected] = Deferred()
        till = Till(
            reactor,
            f"ws://127.0.0.1:{port}",
            "kitchen",
            KEY,
            handle=lambda event: None,
            on_connected=greeted.callback,
        )
        self.start(till)
        self.assertEqual((await greeted).stream_id, STREAM)
        connection = till._connection
        assert connection is not None
        self.assertTrue(connection.transport.getTcpNoDelay())

    async def paused(self, till: Till) -> int:
        """Wait until the till stops reading, and for some time after that. Return how much it has read."""
        paused: Deferred[None] = Deferred()
        real = ClientConnection.pause

        def pause(connection: ClientConnection) -> None:
            real(connection)
            if not paused.called:
                paused.callback(None)

        self.patch(ClientConnection, "pause", pause)
        self.start(till)
        await paused
        for _ in range(50):
            await deferLater(reactor, 0)
        return till._event_queue.counts.received

    async def gated(self, *, tls: bool) -> None:
        self.factory.events = 2000
        port = await self.listen(tls_name="127.0.0.1" if tls else None)
        gate: Deferred[None] = Deferred()
        handled: list[int] = []
        last: Deferred[None] = Deferred()

        async def handle(event: ReceivedEvent) -> None:
            if event.id == 1:
                await gate
            handled.append(event.id)
            if event.id == 2000:
                last.callback(None)

        url = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}"
        ca = self.folder / "ca.pem" if tls else None
        till = Till(reactor, url, "kitchen", KEY, handle=handle, ca=ca, backlog=8)
        read = await self.paused(till)
        self.assertTrue(8 <= read < 40, f"{read} events were read")
        gate.callback(None)
        await last
        self.assertEqual(handled, list(range(1, 2001)))

    def test_a_busy_till_stops_reading(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.gated(tls=False))

    def test_a_busy_till_stops_reading_over_tls(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.gated(tls=True))
