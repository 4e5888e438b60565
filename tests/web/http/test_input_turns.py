"""What clients send waits for its turn: a little in each turn of the reactor, and nothing of it is lost."""

from __future__ import annotations

import contextlib
import gc
import socket
import weakref
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

from attrs import define, field
from OpenSSL import SSL
from twisted.internet import reactor as global_reactor
from twisted.internet.address import IPv4Address
from twisted.internet.base import DelayedCall
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.tcp import Server
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from posd.config.model import TLSConfig
from posd.security.handshakes import HandshakeRates
from posd.security.private_ca import make
from posd.security.server_tls import ServerTLS
from posd.web.http.direct_write import direct_write
from posd.web.http.input_turns import (
    InputTurns,
    PacedPlain,
    PacedPlainFactory,
    PacedTLS,
    PacedTLSFactory,
)
from posd.web.http.site import BoundedSite
from posd.web.http.tls_endpoint import SniffingTransport
from tests.web.http.test_site import Echo

reactor: Any = global_reactor


@define(eq=False)
class Connection:
    """What waits, and takes a while for each piece of what has come."""

    name: str
    went_on: list[str]
    spend: Callable[[], None]
    bucket_key: str = "192.0.2.1"
    owner: object | None = None
    begins_handshake: bool = False
    pieces: int = 1
    aborted: bool = False

    def process_next(self) -> bool:
        self.went_on.append(self.name)
        self.begins_handshake = False
        self.pieces -= 1
        self.spend()
        return self.pieces > 0

    def abortConnection(self) -> None:
        self.aborted = True


def turn(clock: Clock) -> None:
    """Call what is due now, as a reactor does; what these calls ask for is due in the next turn."""
    for call in cast("list[DelayedCall]", [*clock.getDelayedCalls()]):
        if call.getTime() <= clock.seconds():
            clock.calls.remove(call)
            call.func(*call.args)


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.now = 0.0
        self.patch(self.clock, "seconds", lambda: self.now)
        self.turns = InputTurns(self.clock, HandshakeRates(self.clock.seconds))
        self.went_on: list[str] = []

    def submit(self, name: str, seconds: float = 0.0005, **how: Any) -> Connection:
        def spend() -> None:
            self.now += seconds

        made = Connection(name, self.went_on, spend, **how)
        self.turns.submit(made)
        return made

    def said(self) -> list[str]:
        """What went on since this was asked last."""
        said = [*self.went_on]
        self.went_on.clear()
        return said

    def turn(self) -> list[str]:
        """What goes on in the next turn of the reactor."""
        turn(self.clock)
        return self.said()

    def test_at_once_while_nobody_waits_and_there_is_time(self) -> None:
        for number in range(4):
            self.submit(str(number), owner=1)
        self.assertEqual(self.said(), [*"01"])
        self.assertEqual([self.turn(), self.turn(), self.turn()], [[*"23"], [], []])
        self.submit("4", owner=1)
        self.assertEqual(self.said(), ["4"])
        self.turn()
        self.assertEqual((len(self.turns), self.clock.getDelayedCalls()), (0, []))

    def test_one_that_takes_long_is_alone_in_its_turn(self) -> None:
        for number in range(3):
            self.submit(str(number), 1.0, owner=1)
        self.assertEqual([self.said(), self.turn(), self.turn()], [["0"], ["1"], ["2"]])

    def test_what_one_sends_in_many_pieces_waits_for_others_between_them(self) -> None:
        self.submit("long", owner=1, pieces=6)
        self.submit("short", owner=2)
        self.assertEqual(self.said(), ["long"] * 2)
        self.assertEqual(self.turn(), ["long", "short"])
        self.assertEqual(self.turn() + self.turn(), ["long"] * 3)

    def test_owners_take_turns_however_many_connections_they_have(self) -> None:
        for number in range(100):
            self.submit(f"noise {number}", owner="noisy")
        self.submit("quiet", owner="quiet")
        self.said()
        self.assertEqual(self.turn(), ["noise 2", "quiet"])

    def test_strangers_come_after_owners_but_one_in_each_turn(self) -> None:
        for number in range(6):
            self.submit(f"stranger {number}", bucket_key=f"192.0.2.{number}")
        for number in range(3):
            self.submit(f"till {number}", owner=1)
        self.said()
        self.assertEqual(self.turn(), ["till 0", "till 1", "stranger 2"])
        self.assertEqual(self.turn(), ["till 2", "stranger 3"])

    def test_whom_one_wakes_does_not_run_inside_it(self) -> None:
        def wake() -> None:
            self.submit("woken", owner=2)
            self.went_on.append("waker ends")

        self.turns.submit(Connection("waker", self.went_on, wake, owner=1))
        self.assertEqual(self.said(), ["waker", "waker ends"])
        self.assertEqual(self.turn(), ["woken"])

    def test_one_that_fails_is_closed_and_the_others_go_on(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        failing = Connection("failing", self.went_on, fail, owner=1, pieces=9)
        self.turns.submit(failing)
        self.submit("other", owner=2)
        self.assertEqual((self.said(), failing.aborted), (["failing", "other"], True))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_an_address_that_begins_too_many_handshakes_waits_and_no_other_one(self) -> None:
        for number in range(2010):
            self.submit(str(number), 0.0, begins_handshake=True)
        till = self.submit("till", 0.0, bucket_key="192.0.2.2", begins_handshake=True)
        self.said()
        self.turn()
        self.assertEqual((till.pieces, len(self.turns)), (0, 10))
        # What has begun goes on when it is its turn, and who comes meanwhile comes after the others.
        self.submit("second part", 0.0)
        self.submit("last", 0.0, begins_handshake=True)
        self.assertEqual(self.said() + self.turn(), ["second part"])
        self.now += 0.1
        self.turn()
        self.assertEqual(self.turn(), [str(number) for number in range(2000, 2005)])
        for _ in range(6):
            self.turns.refund_handshake("192.0.2.1")
        self.now += 0.02
        self.turn()
        self.assertEqual(self.turn()[-1], "last")
        self.assertEqual(len(self.turns), 0)

    def test_what_has_begun_does_not_rest_with_what_is_to_begin(self) -> None:
        self.submit("busy", 1.0, owner=1)
        while not self.turns._handshakes.begin("192.0.2.1"):
            pass
        self.submit("hello", begins_handshake=True)
        self.submit("second part")
        self.said()
        self.assertEqual(self.turn(), ["second part"])
        self.assertEqual((self.turn(), len(self.turns)), ([], 1))

    def test_a_handshake_that_waits_is_charged_once(self) -> None:
        self.submit("busy", 1.0, owner=1)
        self.submit("hello", 0.0, begins_handshake=True)
        self.said()
        self.assertEqual(self.turn(), ["hello"])
        charged = 2000
        while not self.turns._handshakes.begin("192.0.2.1"):
            charged -= 1
        self.assertEqual(charged, 1)


@define(eq=False)
class Said(Protocol):
    """Keeps what was said to it."""

    data: bytearray = field(factory=bytearray)
    lost: bool = False

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True


class PacedCase(SynchronousTestCase):
    """A client at 192.0.2.1, in a reactor whose time only passes when it is used up."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.now = 0.0
        self.patch(self.clock, "seconds", lambda: self.now)
        self.turns = InputTurns(self.clock, HandshakeRates(self.clock.seconds))
        self.said = Said()
        self.wrapped = Factory.forProtocol(lambda: self.said)
        self.peer = IPv4Address("TCP", "192.0.2.1", 1)
        self.transport = StringTransport(peerAddress=self.peer)

    def use_up(self) -> None:
        """Let another connection have all the time of this turn of the reactor."""

        def spend() -> None:
            self.now += 1

        self.turns.submit(Connection("busy", [], spend, owner="busy"))

    def turn(self) -> None:
        turn(self.clock)


class PacedPlainTests(PacedCase):
    def setUp(self) -> None:
        super().setUp()
        self.protocol = PacedPlainFactory(self.wrapped, self.turns).buildProtocol(self.peer)
        assert isinstance(self.protocol, PacedPlain)
        self.protocol.makeConnection(self.transport)

    def test_what_comes_while_there_is_time_is_worked_on_at_once(self) -> None:
        self.protocol.dataReceived(b"first")
        self.assertEqual(bytes(self.said.data), b"first")
        self.assertEqual(self.transport.producerState, "producing")

    def test_what_waits_comes_in_its_order_and_a_socket_that_brings_more_is_not_read(self) -> None:
        self.protocol.dataReceived(b"first ")
        self.use_up()
        self.protocol.dataReceived(b"second ")
        self.assertEqual(bytes(self.said.data), b"first ")
        # A client that waits for its answer sends nothing more.
        self.assertEqual(self.transport.producerState, "producing")
        self.protocol.dataReceived(b"third")
        self.assertEqual(self.transport.producerState, "paused")
        self.turn()
        self.assertEqual(bytes(self.said.data), b"first second third")
        self.assertEqual(self.transport.producerState, "producing")

    def test_a_long_one_is_worked_on_in_pieces(self) -> None:
        spent = [0.0]

        def spend(data: bytes) -> None:
            self.now += 1
            spent.append(len(data))

        self.patch(self.said, "dataReceived", spend)
        self.protocol.dataReceived(bytes(5000))
        self.assertEqual(sum(spent), 2048)
        self.turn()
        self.assertEqual(sum(spent), 4096)
        self.turn()
        self.assertEqual(sum(spent), 5000)

    def test_who_wants_nothing_gets_nothing_until_it_says_so(self) -> None:
        self.protocol.pauseProducing()
        self.protocol.dataReceived(b"first")
        self.turn()
        self.assertEqual((bytes(self.said.data), self.transport.producerState), (b"", "paused"))
        self.protocol.resumeProducing()
        self.assertEqual(bytes(self.said.data), b"first")
        self.assertEqual(self.transport.producerState, "producing")

    def test_the_first_bytes_too_are_not_read_on_while_they_wait(self) -> None:
        """Else a thousand clients that send without end would fill the memory."""
        for size in (2049, 65536):
            self.setUp()
            self.use_up()
            self.protocol.dataReceived(bytes(size))
            self.assertEqual(self.transport.producerState, "paused")
            self.turn()
            self.assertEqual(len(self.said.data), size)
            self.assertEqual(self.transport.producerState, "producing")

    def test_whose_input_cannot_be_worked_on_is_told_of_its_end(self) -> None:
        for lost_before in (False, True):
            self.setUp()
            self.patch(self.said, "dataReceived", lambda data: 1 // 0)
            self.patch(self.transport, "abortConnection", lambda: None)
            self.protocol.dataReceived(b"first")
            if lost_before:
                self.protocol._has_begun = True
                self.use_up()
                self.protocol.dataReceived(b"second")
            self.protocol.connectionLost(Failure(ConnectionDone()))
            self.turn()
            self.turn()
            self.assertTrue(self.said.lost)
            self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))

    def test_nothing_is_worked_on_after_it_was_given_up(self) -> None:
        self.protocol.dataReceived(b"first")
        self.use_up()
        self.protocol.dataReceived(b"second")
        self.patch(self.transport, "abortConnection", lambda: None)
        self.protocol.abortConnection()
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.turn()
        self.assertEqual((bytes(self.said.data), self.said.lost), (b"first", True))

    def test_one_that_became_a_websocket_while_its_end_waited_is_over(self) -> None:
        @implementer(IHalfCloseableProtocol)
        class Half(Said):
            def readConnectionLost(self) -> None:
                """Not called here."""

            def writeConnectionLost(self) -> None:
                """Not tried here."""

        self.protocol.wrappedProtocol = Half()
        self.protocol.dataReceived(b"GET")
        self.use_up()
        self.protocol.readConnectionLost()
        self.protocol.wrappedProtocol = self.said
        self.transport.connectionLost = self.protocol.connectionLost  # type: ignore[attr-defined]
        self.turn()
        self.turn()
        self.assertTrue(self.said.lost)

    def test_behind_a_proxy_protocol_it_is_the_place_of_its_client(self) -> None:
        outer = HAProxyWrappingFactory(PacedPlainFactory(self.wrapped, self.turns))
        connection: Any = outer.buildProtocol(self.peer)
        connection.makeConnection(self.transport)
        connection.dataReceived(b"PROXY TCP4 198.51.100.7 192.0.2.9 5 6\r\nfirst")
        self.assertEqual(connection.wrappedProtocol.bucket_key, "198.51.100.7")
        self.assertEqual(bytes(self.said.data), b"first")

    def test_the_end_comes_after_what_came_before_it(self) -> None:
        self.protocol.dataReceived(b"first ")
        self.use_up()
        self.protocol.dataReceived(b"last")
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertFalse(self.said.lost)
        self.turn()
        self.assertEqual((bytes(self.said.data), self.said.lost), (b"first last", True))

    def test_many_ends_take_turns_too(self) -> None:
        self.protocol.dataReceived(b"first")
        self.use_up()
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertFalse(self.said.lost)
        self.turn()
        self.assertTrue(self.said.lost)

    def test_a_client_that_ends_its_half_is_heard_to_the_end_first(self) -> None:
        ended: list[bytes] = []

        @implementer(IHalfCloseableProtocol)
        class Half(Said):
            def readConnectionLost(self) -> None:
                ended.append(bytes(self.data))

            def writeConnectionLost(self) -> None:
                """Not tried here."""

        self.protocol.wrappedProtocol = half = Half()
        self.protocol.dataReceived(b"first ")
        self.use_up()
        self.protocol.dataReceived(b"last")
        self.protocol.readConnectionLost()
        self.assertEqual((ended, half.lost), ([], False))
        self.turn()
        self.assertEqual((ended, half.lost), ([b"first last"], False))

    def test_one_that_knows_of_no_halves_is_told_that_it_is_over(self) -> None:
        lost: list[Failure] = []
        self.transport.connectionLost = lost.append  # type: ignore[attr-defined]
        self.protocol.readConnectionLost()
        self.assertTrue(lost[0].check(ConnectionDone))

    def test_one_that_has_said_nothing_is_gone_at_once(self) -> None:
        self.use_up()
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertTrue(self.said.lost)


class PacedTLSTests(PacedCase):
    def setUp(self) -> None:
        super().setUp()
        made = make(Path(self.mktemp()), ["localhost"])
        server = ServerTLS(TLSConfig(str(made.certificate_path), str(made.key_path)))
        self.factory = PacedTLSFactory(server, self.wrapped, self.turns)
        self.protocol = self.connection()
        self.client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        self.client.set_connect_state()
        self.client.set_alpn_protos([b"http/1.1"])

    def connection(self) -> PacedTLS:
        made = self.factory.buildProtocol(self.peer)
        assert isinstance(made, PacedTLS)
        made.makeConnection(self.transport)
        return made

    def flight(self) -> bytes:
        """What the client says next, having read what the server said."""
        if self.transport.value():
            self.client.bio_write(self.transport.value())
            self.transport.clear()
        with contextlib.suppress(SSL.WantReadError):
            self.client.do_handshake()
        return self.client.bio_read(65536)

    def test_each_part_of_a_handshake_waits_for_its_turn(self) -> None:
        hello = self.flight()
        self.use_up()
        self.protocol.dataReceived(hello[:100])
        self.protocol.dataReceived(hello[100:])
        self.assertEqual((self.transport.value(), len(self.turns)), (b"", 1))
        self.turn()
        self.assertNotEqual(self.transport.value(), b"")
        finished = self.flight()
        self.client.send(b"first")
        self.use_up()
        self.protocol.dataReceived(finished + self.client.bio_read(65536))
        self.assertEqual(bytes(self.said.data), b"")
        self.turn()
        self.assertEqual(bytes(self.said.data), b"first")

    def test_a_handshake_is_charged_once(self) -> None:
        self.protocol.dataReceived(self.flight())
        self.assertFalse(self.protocol.begins_handshake)
        while not self.turns._handshakes.begin("192.0.2.1"):
            pass
        self.protocol.dataReceived(self.flight())
        self.client.send(b"first")
        self.protocol.dataReceived(self.client.bio_read(65536))
        self.assertEqual(bytes(self.said.data), b"first")

    def test_a_proxy_is_not_charged(self) -> None:
        """Strangers who come through it would hold up the tills that do too."""
        self.assertTrue(self.protocol.begins_handshake)
        self.factory.proxies = [ip_network("192.0.2.0/24")]
        self.assertFalse(self.connection().begins_handshake)

    def test_that_of_a_client_with_a_valid_key_is_not_counted(self) -> None:
        while not self.turns._handshakes.begin("192.0.2.1"):
            pass
        self.protocol.set_owner(1)
        self.protocol.set_owner(2)
        self.assertEqual(self.protocol.owner, 2)
        self.assertEqual(self.turns._handshakes.begin("192.0.2.1"), 0)
        self.assertGreater(self.turns._handshakes.begin("192.0.2.1"), 0)

    def test_one_that_leaves_before_its_turn_is_forgotten(self) -> None:
        self.use_up()
        self.protocol.dataReceived(self.flight())
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertTrue(self.said.lost)
        self.turn()
        self.turn()
        self.assertEqual((len(self.turns), self.clock.getDelayedCalls()), (0, []))

    def test_a_request_that_came_with_the_end_is_carried_out(self) -> None:
        self.protocol.dataReceived(self.flight())
        finished = self.flight()
        self.client.send(b"request")
        self.use_up()
        self.protocol.dataReceived(finished + self.client.bio_read(65536))
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.turn()
        self.assertEqual((bytes(self.said.data), self.said.lost), (b"request", True))

    def test_one_that_says_too_much_before_its_turn_is_cut_off(self) -> None:
        self.use_up()
        self.protocol.dataReceived(bytes(65537))
        self.assertTrue(self.transport.disconnecting or self.transport.disconnected)
        self.turn()
        self.assertEqual(bytes(self.said.data), b"")

    def test_one_that_ends_without_a_word_leaves_no_cycle(self) -> None:
        """Else a full collection stops all connections, when a thousand of them have ended."""
        self.protocol.dataReceived(self.flight())
        self.protocol.dataReceived(self.flight())
        kept = [weakref.ref(each) for each in (self.protocol, self.said)]
        gc.disable()
        self.addCleanup(gc.enable)
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.turn()
        del self.protocol, self.said
        self.wrapped.protocol = None
        self.assertEqual([each() for each in kept], [None, None])

    def test_one_that_never_says_a_word_leaves_no_cycle(self) -> None:
        """A balancer that only looks whether the port is open does so."""
        self.patch(self.factory, "protocol", SniffingTransport)
        self.protocol = self.connection()
        kept = weakref.ref(self.protocol)
        gc.disable()
        self.addCleanup(gc.enable)
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.said.transport = None
        del self.protocol
        self.assertIsNone(kept())

    def test_what_is_declared_of_a_connection_is_declared_once(self) -> None:
        first = self.connection()
        declared = first.__provides__
        del first
        gc.collect()
        self.assertIs(self.connection().__provides__, declared)


class LostSocketTests(SynchronousTestCase):
    """A client resets the connection while its request waits for its turn."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.now = 0.0
        self.patch(self.clock, "seconds", lambda: self.now)
        self.turns = InputTurns(self.clock, HandshakeRates(self.clock.seconds))

    def spend(self) -> None:
        self.now += 1.0

    def receive(self, data: bytes, served: Any) -> None:
        """Let `data` wait until the socket is closed, and then have its turn."""
        factory = PacedPlainFactory(served, self.turns)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            self.addCleanup(client.close)
            accepted, place = listening.accept()
        address = IPv4Address("TCP", *place)
        paced = factory.buildProtocol(address)
        transport = Server(accepted, paced, place, cast(Any, None), 0, reactor)
        paced.makeConnection(transport)
        paced.dataReceived(data[:1])
        self.turns.submit(Connection("long", [], self.spend, owner=1))
        paced.dataReceived(data[1:])
        transport.connectionLost(Failure(ConnectionDone()))
        turn(self.clock)
        turn(self.clock)

    def test_its_request_is_carried_out(self) -> None:
        resource = Echo()
        site = BoundedSite(resource, self.clock, most_channels=1)
        with capturedLogs() as events:
            self.receive(b"GET / HTTP/1.1\r\nHost: posd\r\n\r\n", site)
        self.assertEqual((resource.taken, events, site.open_channels), (1, [], 0))

    def test_what_is_answered_directly_goes_nowhere(self) -> None:
        class Answering(Protocol):
            def dataReceived(self, data: bytes) -> None:
                direct_write(self.transport)(data)
                said.append(data)

        said: list[bytes] = []
        with capturedLogs() as events:
            self.receive(b"abc", Factory.forProtocol(Answering))
        self.assertEqual((said, events), ([b"a", b"bc"], []))
