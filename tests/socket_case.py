"""WebSockets on a site in memory, with the till's end byte by byte."""

from __future__ import annotations

import struct
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from posd.delivery.hub import Admitted
from posd.delivery.session import Session
from posd.security.request_rates import RequestRates
from posd.values import SessionStart, Terminal
from posd.web.http.bounded_request import BoundedRequest
from posd.web.http.channel import BoundedChannel
from posd.web.http.site import BoundedSite
from posd.web.websocket import TillFactory, TillProtocol
from tests.delivery_case import CLOSE, frames_in, said, session_start, terminal
from tests.hub_case import HubCase

UPGRADE = (
    b"GET /ws/pos/kitchen HTTP/1.1\r\nHost: posd.example\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%b\r\n"
)


def masked(opcode: int, payload: bytes = b"", *, final: bool = True, mask: bool = True) -> bytes:
    """Return a client's frame (RFC 6455 §5.2) with a mask of zeros."""
    length, bit = len(payload), 0x80 if mask else 0
    first = (0x80 if final else 0) | opcode
    if length <= 125:
        head = struct.pack("!BB", first, bit | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", first, bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, bit | 127, length)
    return head + (b"\0\0\0\0" if mask else b"") + payload


def text(message: bytes) -> bytes:
    return masked(0x1, message)


class Upgrades(Resource):
    """Upgrades every request to the WebSocket that the test sets."""

    isLeaf = True

    def __init__(self, factory: TillFactory) -> None:
        Resource.__init__(self)
        self.factory = factory
        self.next: list[tuple[Terminal, SessionStart]] = []
        self.left: list[Terminal] = []

    def render(self, request: Request) -> object:
        connecting, session_start = self.next.pop(0)
        channel = cast(BoundedChannel, request.channel)
        admitted = Admitted(connecting, session_start, lambda: self.left.append(connecting))
        self.factory.upgrade(cast(BoundedRequest, request), admitted)
        channel.left()
        return NOT_DONE_YET


class Socket(StringTransport):
    """A till's socket. `protocol` is posd's end."""

    protocol: Any
    no_delay = False
    lost = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def stall(self) -> None:
        """Let the transport pause its producer."""
        assert self.producer is not None
        self.producer.pauseProducing()

    def drain(self) -> None:
        """Let the transport send everything."""
        assert self.producer is not None
        self.producer.resumeProducing()

    def hang_up(self) -> None:
        """Lose the connection."""
        self.lost = True
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.producer = None

    @property
    def upgraded(self) -> bool:
        return b"HTTP/1.1 101 " in self.value()[:13]

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """Return the frames after the handshake."""
        return list(frames_in(self.value().partition(b"\r\n\r\n")[2]))

    @property
    def messages(self) -> list[dict[str, Any]]:
        return said(self.value().partition(b"\r\n\r\n")[2])

    @property
    def ids(self) -> list[int]:
        return [each["id"] for each in self.messages if "data" in each]

    @property
    def close_code(self) -> int | None:
        """Return the code of the Close frame, which must be the last frame."""
        opcode, payload = self.frames[-1]
        return int.from_bytes(payload[:2], "big") if opcode == CLOSE else None


class SocketCase(HubCase):
    """Every request is upgraded without authentication."""

    def setUp(self) -> None:
        super().setUp()
        self.rates = RequestRates(50, 1024 * 1024, 200, self.clock.seconds)
        self.factory = TillFactory(self.hub, self.rates, self.clock)
        self.upgrades = Upgrades(self.factory)
        self.serve(self.upgrades)

    def serve(self, resource: Resource) -> None:
        self.site = BoundedSite(resource, self.clock, most_channels=100)

    def session(self) -> Session:
        """Return the only session."""
        (connection,) = self.hub._registry
        return connection.session

    def dial(self) -> Socket:
        """Open a connection without a handshake."""
        channel = cast(BoundedChannel, self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1)))
        socket = Socket(peerAddress=IPv4Address("TCP", "192.0.2.7", 4711))
        socket.protocol = channel
        channel.makeConnection(socket)
        return socket

    def open(
        self, connecting: Terminal | None = None, acked: int | None = None, headers: bytes = b""
    ) -> Socket:
        """Open the connection of a till."""
        self.upgrades.next.append((connecting or terminal(), session_start(self.log.last, acked)))
        socket = self.dial()
        socket.send(UPGRADE % headers)
        self.assertTrue(socket.upgraded, socket.value())
        self.assertIsInstance(socket.protocol, TillProtocol)
        return socket
