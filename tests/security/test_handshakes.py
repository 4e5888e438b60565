"""Handshakes wait for their turns: a few at a time, each address in its turn, and nothing of them is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

from attrs import define, field
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from posd.config.model import TLS
from posd.security.handshakes import HandshakeQueue, PacedTLS, PacedTLSFactory
from posd.security.private_ca import make
from posd.security.server_tls import ServerTLS


@define(eq=False)
class Connection:
    """What waits, and takes a while when it goes on."""

    name: str
    went_on: list[str]
    spend: Callable[[], None]
    counts: bool = True

    def go_on(self) -> None:
        self.went_on.append(self.name)
        self.spend()


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.now = 0.0
        self.patch(self.clock, "seconds", lambda: self.now)
        self.turns = HandshakeQueue(self.clock)
        self.went_on: list[str] = []

    def wait(self, name: str, where: str, seconds: float = 0.001, *, counts: bool = True) -> None:
        def spend() -> None:
            self.now += seconds

        self.turns.wait(cast(PacedTLS, Connection(name, self.went_on, spend, counts)), where)

    def turn(self) -> list[str]:
        """What went on in one turn of the reactor."""
        self.went_on.clear()
        (call,) = cast("list[Any]", self.clock.getDelayedCalls())
        self.clock.calls.remove(call)
        call.func(*call.args)
        return [*self.went_on]

    def test_some_milliseconds_of_them_in_one_turn(self) -> None:
        for number in range(10):
            self.wait(str(number), "a")
        self.assertEqual([self.turn() for _ in range(3)], [[*"01"], [*"23"], [*"45"]])
        self.assertEqual([self.turn() for _ in range(2)], [[*"67"], [*"89"]])
        self.assertEqual((len(self.turns), self.clock.getDelayedCalls()), (0, []))

    def test_one_that_takes_long_is_alone_in_its_turn(self) -> None:
        for number in range(2):
            self.wait(str(number), "a", 1.0)
        self.assertEqual([self.turn(), self.turn()], [["0"], ["1"]])

    def test_addresses_take_turns(self) -> None:
        for number in range(1000):
            self.wait(f"flood {number}", "a")
        self.wait("till", "b")
        self.wait("another", "b")
        self.assertEqual(self.turn() + self.turn(), ["flood 0", "till", "flood 1", "another"])

    def test_an_address_that_begins_too_many_waits_and_no_other_one(self) -> None:
        for number in range(2010):
            self.wait(str(number), "192.0.2.1", 0.0)
        self.wait("till", "192.0.2.2", 0.0)
        self.assertEqual(len(self.turn()), 2001)
        self.assertEqual((len(self.turns), "till" in self.went_on), (10, True))
        # What has begun goes on when it is its turn, and who comes meanwhile comes after the others.
        self.wait("last", "192.0.2.1", 0.0)
        self.now += 0.1
        self.assertEqual(self.turn(), [])
        self.assertEqual(len(self.turn()), 5)
        for _ in range(6):
            self.turns.known("192.0.2.1")
        self.now += 0.02
        self.assertEqual(self.turn(), [])
        self.assertEqual(self.turn()[-1], "last")
        self.assertEqual(len(self.turns), 0)

    def test_the_second_part_of_a_handshake_is_not_counted(self) -> None:
        for number in range(5000):
            self.wait(str(number), "a", 0.0, counts=False)
        self.assertEqual(len(self.turn()), 5000)


@define(eq=False)
class Said(Protocol):
    """Keeps what was said to it."""

    data: bytearray = field(factory=bytearray)
    lost: bool = False

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True


class PacedTLSTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = self.mktemp()
        made = make(Path(folder), ["localhost"])
        self.clock = Clock()
        self.turns = HandshakeQueue(self.clock)
        self.said = Said()
        server = ServerTLS(TLS(str(made.certificate_path), str(made.key_path)))
        wrapped = Factory.forProtocol(lambda: self.said)
        self.factory = PacedTLSFactory(server, wrapped, self.turns)
        peer = IPv4Address("TCP", "192.0.2.1", 1)
        self.protocol = self.factory.buildProtocol(peer)
        assert isinstance(self.protocol, PacedTLS)
        self.transport = StringTransport(peerAddress=peer)
        self.protocol.makeConnection(self.transport)
        self.client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        self.client.set_connect_state()
        self.client.set_alpn_protos([b"http/1.1"])

    def flight(self) -> bytes:
        """What the client says next, having read what the server said."""
        if self.transport.value():
            self.client.bio_write(self.transport.value())
            self.transport.clear()
        with contextlib.suppress(SSL.WantReadError):
            self.client.do_handshake()
        return self.client.bio_read(65536)

    def test_nothing_is_done_before_its_turn_and_after_the_handshake_all_at_once(self) -> None:
        hello = self.flight()
        self.protocol.dataReceived(hello[:100])
        self.protocol.dataReceived(hello[100:])
        self.assertEqual(self.transport.value(), b"")
        self.assertEqual(len(self.turns), 1)
        self.clock.advance(0)
        self.assertNotEqual(self.transport.value(), b"")
        finished = self.flight()
        self.client.send(b"first")
        self.protocol.dataReceived(finished + self.client.bio_read(65536))
        self.assertEqual(bytes(self.said.data), b"")
        self.clock.advance(0)
        self.assertEqual(bytes(self.said.data), b"first")
        self.client.send(b"second")
        self.protocol.dataReceived(self.client.bio_read(65536))
        self.assertEqual(bytes(self.said.data), b"firstsecond")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_proxy_is_not_charged(self) -> None:
        """Strangers who come through it would hold up the tills that do too."""
        self.assertTrue(self.protocol.counts)
        self.factory.proxies = [ip_network("192.0.2.0/24")]
        proxied = self.factory.buildProtocol(self.transport.getPeer())
        assert isinstance(proxied, PacedTLS)
        proxied.makeConnection(StringTransport(peerAddress=self.transport.getPeer()))
        self.assertFalse(proxied.counts)

    def test_one_that_leaves_before_its_turn_is_forgotten(self) -> None:
        self.protocol.dataReceived(self.flight())
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertTrue(self.said.lost)
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_request_that_came_with_the_end_is_carried_out(self) -> None:
        self.protocol.dataReceived(self.flight())
        self.clock.advance(0)
        finished = self.flight()
        self.client.send(b"request")
        self.protocol.dataReceived(finished + self.client.bio_read(65536))
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(bytes(self.said.data), b"request")
        self.clock.advance(0)

    def test_one_that_says_too_much_before_its_turn_is_cut_off(self) -> None:
        self.protocol.dataReceived(bytes(65537))
        self.assertTrue(self.transport.disconnected)
        self.clock.advance(0)
        self.assertEqual(bytes(self.said.data), b"")
