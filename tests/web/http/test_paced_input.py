"""Tests of connections whose input takes turns: order, pauses, the end of a connection, handshakes."""

from __future__ import annotations

import contextlib
import gc
import socket
import weakref
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

from attrs import define, field
from OpenSSL import SSL
from twisted.internet import reactor as global_reactor
from twisted.internet.address import IPv4Address
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
from posd.web.http.input_turns import InputTurns
from posd.web.http.paced_input import PacedPlain, PacedPlainFactory, PacedTLS, PacedTLSFactory
from posd.web.http.site import BoundedSite
from posd.web.http.tls_endpoint import SniffingTransport
from tests.web.http.test_input_turns import Connection, turn
from tests.web.http.test_site import Echo

reactor: Any = global_reactor


@define(eq=False)
class Said(Protocol):
    """A protocol that stores its input."""

    data: bytearray = field(factory=bytearray)
    lost: bool = False

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True


class PacedCase(SynchronousTestCase):
    """A client at 192.0.2.1, and a clock that only `use_up` advances."""

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
        """Let another connection use all the time of this turn of the reactor."""

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

    def test_input_is_processed_at_once_while_time_is_left(self) -> None:
        self.protocol.dataReceived(b"first")
        self.assertEqual(bytes(self.said.data), b"first")
        self.assertEqual(self.transport.producerState, "producing")

    def test_input_keeps_its_order_and_reading_pauses_while_it_waits(self) -> None:
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

    def test_long_input_is_processed_in_pieces(self) -> None:
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

    def test_a_paused_protocol_gets_no_input_until_it_resumes(self) -> None:
        self.protocol.pauseProducing()
        self.protocol.dataReceived(b"first")
        self.turn()
        self.assertEqual((bytes(self.said.data), self.transport.producerState), (b"", "paused"))
        self.protocol.resumeProducing()
        self.assertEqual(bytes(self.said.data), b"first")
        self.assertEqual(self.transport.producerState, "producing")

    def test_reading_pauses_while_the_first_bytes_wait(self) -> None:
        """Otherwise a thousand clients that never stop sending would fill the memory."""
        for size in (2049, 65536):
            self.setUp()
            self.use_up()
            self.protocol.dataReceived(bytes(size))
            self.assertEqual(self.transport.producerState, "paused")
            self.turn()
            self.assertEqual(len(self.said.data), size)
            self.assertEqual(self.transport.producerState, "producing")

    def test_a_protocol_that_fails_is_told_of_the_end_of_its_connection(self) -> None:
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

    def test_no_input_is_processed_after_an_abort(self) -> None:
        self.protocol.dataReceived(b"first")
        self.use_up()
        self.protocol.dataReceived(b"second")
        self.patch(self.transport, "abortConnection", lambda: None)
        self.protocol.abortConnection()
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.turn()
        self.assertEqual((bytes(self.said.data), self.said.lost), (b"first", True))

    def test_a_connection_that_was_upgraded_while_its_end_waited_is_closed(self) -> None:
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

    def test_with_the_proxy_protocol_the_address_is_that_of_the_client(self) -> None:
        outer = HAProxyWrappingFactory(PacedPlainFactory(self.wrapped, self.turns))
        connection: Any = outer.buildProtocol(self.peer)
        connection.makeConnection(self.transport)
        connection.dataReceived(b"PROXY TCP4 198.51.100.7 192.0.2.9 5 6\r\nfirst")
        self.assertEqual(connection.wrappedProtocol.bucket_key, "198.51.100.7")
        self.assertEqual(bytes(self.said.data), b"first")

    def test_the_loss_is_reported_after_the_input(self) -> None:
        self.protocol.dataReceived(b"first ")
        self.use_up()
        self.protocol.dataReceived(b"last")
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertFalse(self.said.lost)
        self.turn()
        self.assertEqual((bytes(self.said.data), self.said.lost), (b"first last", True))

    def test_losses_of_many_connections_take_turns(self) -> None:
        self.protocol.dataReceived(b"first")
        self.use_up()
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertFalse(self.said.lost)
        self.turn()
        self.assertTrue(self.said.lost)

    def test_the_end_of_a_half_is_reported_after_the_input(self) -> None:
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

    def test_a_protocol_without_half_close_is_told_that_the_connection_is_lost(self) -> None:
        lost: list[Failure] = []
        self.transport.connectionLost = lost.append  # type: ignore[attr-defined]
        self.protocol.readConnectionLost()
        self.assertTrue(lost[0].check(ConnectionDone))

    def test_the_loss_of_a_connection_without_input_is_reported_at_once(self) -> None:
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
        """Pass the server's bytes to the client. Return the client's next bytes."""
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
        """Otherwise unknown clients would delay the tills that use the same proxy."""
        self.assertTrue(self.protocol.begins_handshake)
        self.factory.proxies = [ip_network("192.0.2.0/24")]
        self.assertFalse(self.connection().begins_handshake)

    def test_the_handshake_of_a_client_with_a_valid_key_is_not_counted(self) -> None:
        while not self.turns._handshakes.begin("192.0.2.1"):
            pass
        self.protocol.set_owner(1)
        self.protocol.set_owner(2)
        self.assertEqual(self.protocol.owner, 2)
        self.assertEqual(self.turns._handshakes.begin("192.0.2.1"), 0)
        self.assertGreater(self.turns._handshakes.begin("192.0.2.1"), 0)

    def test_a_client_that_disconnects_before_its_turn_is_forgotten(self) -> None:
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

    def test_a_client_that_sends_too_much_before_its_handshake_is_aborted(self) -> None:
        self.use_up()
        self.protocol.dataReceived(bytes(65537))
        self.assertTrue(self.transport.disconnecting or self.transport.disconnected)
        self.turn()
        self.assertEqual(bytes(self.said.data), b"")

    def test_a_connection_that_ends_after_its_handshake_leaves_no_cycle(self) -> None:
        """Otherwise a full garbage collection stops all connections after a thousand of them have ended."""
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

    def test_a_connection_without_input_leaves_no_cycle(self) -> None:
        """A load balancer that checks only whether the port is open sends nothing."""
        self.patch(self.factory, "protocol", SniffingTransport)
        self.protocol = self.connection()
        kept = weakref.ref(self.protocol)
        gc.disable()
        self.addCleanup(gc.enable)
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.said.transport = None
        del self.protocol
        self.assertIsNone(kept())

    def test_the_interfaces_of_connections_are_declared_once(self) -> None:
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
        """Let `data` wait until the socket is closed, and then process it."""
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

    def test_the_request_of_a_lost_connection_is_carried_out(self) -> None:
        resource = Echo()
        site = BoundedSite(resource, self.clock, most_channels=1)
        with capturedLogs() as events:
            self.receive(b"GET / HTTP/1.1\r\nHost: posd\r\n\r\n", site)
        self.assertEqual((resource.taken, events, site.open_channels), (1, [], 0))

    def test_a_direct_write_to_a_lost_connection_is_discarded(self) -> None:
        class Answering(Protocol):
            def dataReceived(self, data: bytes) -> None:
                direct_write(self.transport)(data)
                said.append(data)

        said: list[bytes] = []
        with capturedLogs() as events:
            self.receive(b"abc", Factory.forProtocol(Answering))
        self.assertEqual((said, events), ([b"a", b"bc"], []))
