"""Over real sockets, with and without TLS: back-pressure reaches the outbox, and nobody hangs.

In memory a transport has enough when a test says so; here it has when a till does not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    connectProtocol,
    wrapClientTLS,
)
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource

from posd.config.model import TLSConfig
from posd.database.pool import Pool
from posd.delivery.hub import Hub
from posd.delivery.session import Session, SessionState
from posd.security.client_tls import client_context
from posd.security.handshakes import HandshakeRates
from posd.security.private_ca import make
from posd.security.request_rates import RequestRates
from posd.security.server_tls import ServerTLS
from posd.store import stream
from posd.values import GOING_AWAY
from posd.web import websocket as ws
from posd.web.http.input_turns import InputTurns
from posd.web.http.site import BoundedSite
from posd.web.http.tls_endpoint import PlainEndpoint, TLSEndpoint
from posd.web.websocket import TillFactory
from tests.delivery_case import CLOSE, TEXT, frames_in, said, session_start, terminal
from tests.hub_case import FakeProgressStore, Store, wake
from tests.socket_case import UPGRADE, Upgrades, masked

reactor: Any = global_reactor

# The buffers of both kernels take a good deal of it, but never all.
_EVENTS: Final = 300
_EVENT_BYTES: Final = 100_000
_MOST_ON_ITS_WAY: Final = 200
_OUTBOX_BYTES: Final = 256 * 1024


class Till(Protocol):
    """The till's end of a connection, which reads or does not read."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.received = bytearray()
        self.lost: Deferred[BaseException | None] = Deferred()

    def connectionMade(self) -> None:
        self.write(self.request)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(reason.value)

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    @property
    def socket(self) -> Any:
        return self.transport

    @property
    def frames(self) -> Iterator[tuple[int, bytes]]:
        return frames_in(bytes(self.received).partition(b"\r\n\r\n")[2])


class NetworkCase(TestCase):
    """A node with one till, connected by a real socket."""

    timeout = 300
    tls: ClassVar[bool] = False
    request: ClassVar[bytes] = UPGRADE % b""

    async def setUp(self) -> None:  # type: ignore[override]
        self.store = Store()
        self.log = self.store.log
        for name, found in (
            ("load_heads", self.store.find_heads),
            ("events_after", self.store.find_events),
            ("load_pages", self.store.find_pages),
        ):
            self.patch(stream, name, found)
        self.hub = Hub(
            reactor,
            Pool(reactor, "", size=1, statement_timeout=5),
            FakeProgressStore(),
            heartbeat=30,
            send_queue_bytes=_OUTBOX_BYTES,
            send_queue_total=10 * _OUTBOX_BYTES,
        )
        await self.connect(BoundedSite(self.door(), reactor, most_channels=10))
        await self.until(lambda: b"connected" in self.till.received)
        (connection,) = self.hub._registry
        self.session: Session = connection.session
        self.transport: Any = connection.transport

    def door(self) -> Resource:
        """Return the site that the till's request is sent to."""
        rates = RequestRates(50, 1024 * 1024, 200, reactor.seconds)
        upgrades = Upgrades(TillFactory(self.hub, rates, reactor))
        upgrades.next.append((terminal(), session_start(10)))
        return upgrades

    async def connect(self, site: BoundedSite) -> None:
        server: Any = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        turns = InputTurns(reactor, HandshakeRates(reactor.seconds))
        if self.tls:
            made = make(Path(self.mktemp()), ["localhost"])
            files = TLSConfig(
                certificate=str(made.certificate_path), private_key=str(made.key_path)
            )
            server = TLSEndpoint(ServerTLS(files), server, turns)
        else:
            server = PlainEndpoint(server, turns)
        port = await server.listen(site)
        self.addCleanup(port.stopListening)
        client: Any = HostnameEndpoint(reactor, b"127.0.0.1", port.getHost().port)
        if self.tls:
            client = wrapClientTLS(client_context("localhost", made.ca_path), client)
        await self.dial(client)

    async def dial(self, client: Any) -> None:
        self.till: Till = await connectProtocol(client, Till(self.request))
        self.addCleanup(self.hang_up)

    async def hang_up(self) -> None:
        if not self.till.lost.called:
            self.till.socket.abortConnection()
            await self.till.lost
        await self.until(lambda: len(self.hub) == 0)

    async def until(self, happened: Callable[[], object]) -> None:
        while not happened():
            await deferLater(reactor, 0.005)

    async def publish_until(self, happened: Callable[[], object]) -> None:
        """Publish one event in each turn of the reactor."""
        for _ in range(_EVENTS):
            if happened():
                return
            wake(self.hub, 7, self.log.commit(size=_EVENT_BYTES))
            await deferLater(reactor, 0)
        self.fail("the till takes everything without reading")

    async def stall(self) -> None:
        """Stop the till's reading, and publish more than all buffers hold."""
        self.till.socket.pauseProducing()
        await self.publish_until(lambda: self.session.state is SessionState.CATCHING_UP)


class TCPTests(NetworkCase):
    async def test_a_till_that_stops_reading_costs_its_outbox_and_misses_nothing(self) -> None:
        await self.stall()
        for _ in range(50):
            wake(self.hub, 7, self.log.commit(size=_EVENT_BYTES))
            await deferLater(reactor, 0)
        self.assertLessEqual(self.session.send_queue.held, _OUTBOX_BYTES)
        self.assertLess(self.session.send_queue.written, _MOST_ON_ITS_WAY)
        self.assertIsNotNone(self.session.send_queue.stalled_since)
        self.till.socket.resumeProducing()
        await self.until(lambda: self.session.state is SessionState.LIVE)
        wake(self.hub, 7, self.log.commit())
        last = b'{"n":%d' % self.log.last
        await self.until(lambda: last in self.till.received[-10_000:])
        texts = [payload for opcode, payload in self.till.frames if opcode == TEXT]
        heads = [text[:40] for text in texts[1:]]
        wanted = [b'"id":%d,' % seq for seq in range(11, self.log.last + 1)]
        self.assertEqual(len(heads), len(wanted))
        self.assertTrue(all(seq in head for seq, head in zip(wanted, heads, strict=True)))

    async def test_one_that_stalls_when_it_is_closed_is_aborted(self) -> None:
        self.patch(ws, "_CLOSE_SECONDS", 0.1)
        await self.stall()
        self.session.end(GOING_AWAY)
        await self.until(lambda: len(self.hub) == 0)

    async def test_one_that_stalls_and_closes_by_itself_is_aborted(self) -> None:
        self.patch(ws, "_CLOSE_SECONDS", 0.1)
        await self.stall()
        self.till.write(masked(CLOSE, b"\x03\xe8"))
        await self.until(lambda: len(self.hub) == 0)

    async def test_one_that_stalls_when_it_is_dropped_is_aborted(self) -> None:
        self.patch(ws, "_CLOSE_SECONDS", 0.1)
        await self.stall()
        self.transport.drop(abort=False)
        await self.until(lambda: len(self.hub) == 0)

    async def test_one_that_is_silent_is_aborted_at_once(self) -> None:
        await self.stall()
        self.transport.drop(abort=True)
        await self.until(lambda: len(self.hub) == 0)

    async def test_one_that_answers_the_close_frame_sees_a_clean_end(self) -> None:
        self.session.end(GOING_AWAY)
        await self.until(lambda: CLOSE in {opcode for opcode, _ in self.till.frames})
        self.till.write(masked(CLOSE, b"\x03\xe9"))
        self.assertIsInstance(await self.till.lost, ConnectionDone)

    async def test_small_messages_go_out_at_once(self) -> None:
        self.assertTrue(self.transport.transport.getTcpNoDelay())

    async def test_what_a_till_says_is_answered(self) -> None:
        self.till.write(masked(TEXT, b'{"type":"ping","id":7}'))
        await self.until(lambda: b"pong" in self.till.received)
        messages = said(bytes(self.till.received).partition(b"\r\n\r\n")[2])
        self.assertEqual(messages[-1]["echo"], 7)


class TLSTests(TCPTests):
    """The same with TLS, whose transport has buffers of its own."""

    tls = True


class UnixTests(NetworkCase):
    """A local proxy may connect by a unix socket, which does not have the options of TCP."""

    async def connect(self, site: BoundedSite) -> None:
        path = f"{self.mktemp()[-60:].replace('/', '-')}.sock"
        port = await UNIXServerEndpoint(reactor, path).listen(site)
        self.addCleanup(port.stopListening)
        await self.dial(UNIXClientEndpoint(reactor, path))

    async def test_a_till_is_greeted_and_sent_what_is_new(self) -> None:
        wake(self.hub, 7, self.log.commit())
        await self.until(lambda: b'"id":11' in self.till.received)
