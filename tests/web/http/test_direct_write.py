"""Tests that direct writes are sent at once and in order, and by Twisted if that is not possible."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from errno import EBADF
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from attrs import define
from OpenSSL import SSL
from twisted.internet import reactor as global_reactor
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
    wrapClientTLS,
)
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.protocols.tls import BufferingTLSTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from posd.config.model import TLSConfig
from posd.security.client_tls import client_context
from posd.security.handshakes import HandshakeRates
from posd.security.private_ca import make
from posd.security.server_tls import ServerTLS
from posd.web.http import direct_write as module
from posd.web.http.direct_write import DirectSocket, DirectTLS, direct_write
from posd.web.http.input_turns import InputTurns
from posd.web.http.paced_input import PacedPlainFactory, PacedTLSFactory
from posd.web.http.sockets import limit_buffers, socket_transport

reactor: Any = global_reactor


@define
class Kernel:
    """The file descriptor's end: takes as many bytes as a test allows."""

    takes: int | OSError = 1_000_000
    sent: bytes = b""

    def send(self, data: bytes) -> int:
        if isinstance(self.takes, OSError):
            raise self.takes
        taken = data[: self.takes]
        self.sent += taken
        return len(taken)


class Socket(Connection):
    """A transport of Twisted's that has no reactor: what it buffers stays there."""

    connected = 1

    def __init__(self) -> None:
        FileDescriptor.__init__(self, reactor)
        self.socket: Any = Kernel()

    @property
    def buffered(self) -> bytes:
        return b"".join([self.dataBuffer, *self._tempDataBuffer])

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 1)

    def startWriting(self) -> None:
        """The reactor does not know it."""


class SocketTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.socket = Socket()
        self.kernel: Kernel = self.socket.socket
        self.write = direct_write(self.socket)

    def test_what_is_written_has_been_sent(self) -> None:
        self.write(b"one ")
        self.write(b"two")
        self.assertEqual((self.kernel.sent, self.socket.buffered), (b"one two", b""))

    def test_what_the_kernel_does_not_take_waits(self) -> None:
        self.kernel.takes = 3
        self.write(b"one two")
        self.assertEqual((self.kernel.sent, self.socket.buffered), (b"one", b" two"))

    def test_nothing_overtakes_what_waits(self) -> None:
        self.kernel.takes = 3
        self.write(b"one ")
        self.kernel.takes = 1_000
        self.write(b"two")
        self.assertEqual((self.kernel.sent, self.socket.buffered), (b"one", b" two"))
        self.socket.dataBuffer, self.socket._tempDataBuffer, self.socket._tempDataLen = b"x", [], 0
        self.write(b"three")
        self.assertEqual(self.socket.buffered, b"xthree")

    def test_a_full_or_broken_socket_is_left_to_twisted(self) -> None:
        for error in (BlockingIOError(), ConnectionResetError()):
            self.kernel.takes = error
            self.write(b"one ")
        self.assertEqual((self.kernel.sent, self.socket.buffered), (b"", b"one one "))

    def test_too_much_that_waits_pauses_the_producer(self) -> None:
        paused: list[bool] = []

        @implementer(IPushProducer)
        class Producer:
            def pauseProducing(self) -> None:
                paused.append(True)

            def resumeProducing(self) -> None:
                """Nothing more comes."""

            def stopProducing(self) -> None:
                """Nothing more comes."""

        self.socket.registerProducer(Producer(), True)
        self.write(b"x" * 1_000_000)
        self.assertEqual(paused, [])
        self.kernel.takes = 0
        self.write(b"x" * 1_000_000)
        self.assertEqual(paused, [True])

    def test_after_the_connection_is_lost_nothing_is_sent(self) -> None:
        self.socket.connected, self.kernel.takes = 0, OSError(EBADF, "it is closed")
        self.write(b"one")
        self.assertEqual((self.kernel.sent, self.socket.buffered), (b"", b""))


class OtherTransportTests(SynchronousTestCase):
    """Transports of which posd does not know enough are written to as usual."""

    def warnings(self, transport: Any) -> list[str]:
        """Write to it; what is logged."""
        told: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            told.append(event["log_format"])

        self.patch(module, "_reported_transports", set())
        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        for _ in range(2):
            self.assertEqual(direct_write(transport), transport.write)
        return told

    def test_one_without_a_socket(self) -> None:
        self.assertEqual(self.warnings(StringTransport()), [])

    def test_a_socket_that_buffers_in_another_way_is_logged_once(self) -> None:
        for name, value in (("_tempDataLen", None), ("dataBuffer", [])):
            socket = Socket()
            setattr(socket, name, value)
            self.assertEqual(len(self.warnings(socket)), 1)

    def test_so_is_tls_that_buffers_in_another_way(self) -> None:
        aggregating = BufferingTLSTransport(_Factory(self.mktemp()), Protocol())
        aggregating.makeConnection(Socket())
        self.assertEqual(len(self.warnings(aggregating)), 1)

    def test_so_are_other_libraries(self) -> None:
        tls: Any = _Factory(self.mktemp()).buildProtocol(None)
        tls.makeConnection(Socket())
        for change in (
            partial(self.patch, tls.getHandle(), "_ssl", None),
            partial(self.patch, tls.getHandle(), "_from_ssl", None),
            partial(self.patch, module, "_REQUIRED_FUNCTIONS", ("SSL_written",)),
        ):
            self.assertIsInstance(getattr(direct_write(tls), "__self__", None), DirectTLS)
            patch = change()
            self.assertEqual(len(self.warnings(tls)), 1)
            patch.restore()


class _Factory(PacedTLSFactory):
    """Makes connections with TLS as the daemon has them, with a certificate in a new folder."""

    def __init__(self, folder: str, wrapped: Any = None) -> None:
        made = make(Path(folder), ["localhost"])
        tls = ServerTLS(TLSConfig(str(made.certificate_path), str(made.key_path)))
        turns = InputTurns(reactor, HandshakeRates(reactor.seconds))
        super().__init__(tls, wrapped or Factory.forProtocol(Protocol), turns)
        self.authority = made.ca_path


class TLSCase(SynchronousTestCase):
    """With a client in memory that reads what the kernel took, and then what Twisted has buffered."""

    def setUp(self) -> None:
        self.socket = Socket()
        self.kernel: Kernel = self.socket.socket
        self.tls: Any = _Factory(self.mktemp()).buildProtocol(None)
        self.socket.protocol = self.tls
        self.tls.makeConnection(self.socket)
        self.client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        self.client.set_connect_state()
        for _ in range(3):
            with contextlib.suppress(SSL.WantReadError):
                self.client.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                self.tls._deliver(self.client.bio_read(65536))
            self.arrive()
        self.write = direct_write(self.tls)
        self.writer: Any = getattr(self.write, "__self__", None)

    def arrive(self) -> None:
        """What has left the transport, by the kernel or by Twisted, comes to the client."""
        data, self.kernel.sent = self.kernel.sent + self.socket.buffered, b""
        self.socket.dataBuffer, self.socket._tempDataLen = b"", 0
        self.socket._tempDataBuffer.clear()
        if data:
            self.client.bio_write(data)

    def read(self) -> bytes:
        """What the client has got by now, as far as one record goes."""
        self.arrive()
        with contextlib.suppress(SSL.WantReadError):
            return bytes(self.client.recv(1_000_000))
        return b""


class TLSTests(TLSCase):
    def test_what_is_written_has_been_sent(self) -> None:
        self.write(b"one ")
        self.write(b"two")
        self.assertEqual(self.socket.buffered, b"")
        self.assertEqual(self.read() + self.read(), b"one two")

    def test_no_function_of_python_is_called_but_write(self) -> None:
        """It runs for each till and event, like the loop of `Channel._give`."""
        called: list[str] = []
        self.write(b"one ")

        def note(frame: FrameType, event: str, argument: object) -> None:
            if event == "call":
                called.append(frame.f_code.co_name)

        # In place of the kernel of these tests, which is written in Python.
        self.writer._to_kernel = len
        sys.setprofile(note)
        try:
            self.write(b"two")
        finally:
            sys.setprofile(None)
        self.assertEqual(called, ["write"])

    def test_what_is_longer_than_a_record_is_sent_in_several(self) -> None:
        data = bytes(range(256)) * 200
        self.write(data)
        self.assertEqual(self.socket.buffered, b"")
        self.assertEqual(b"".join(self.read() for _ in range(4)), data)

    def test_what_does_not_fit_into_the_kernel_is_encrypted_by_twisted(self) -> None:
        self.kernel.takes = 100
        data = bytes(range(256)) * 200
        self.write(data)
        self.assertEqual(len(self.kernel.sent), 100)
        self.assertEqual(b"".join(self.read() for _ in range(4)), data)

    def test_nothing_overtakes_what_waits(self) -> None:
        self.kernel.takes = 10
        self.write(b"one ")
        self.kernel.takes = 1_000
        self.write(b"two ")
        self.assertEqual(len(self.kernel.sent), 10)
        self.assertEqual(self.read() + self.read(), b"one two ")

    def test_what_openssl_refuses_leaves_no_error_for_the_next_connection(self) -> None:
        self.tls.loseConnection()
        self.arrive()
        self.write(b"one ")
        self.assertEqual((self.kernel.sent, self.socket.buffered), (b"", b""))
        self.assertEqual(module._openssl.ERR_peek_error(), 0)


class Client(Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class NetworkTests(TestCase):
    """On the transports that the daemon has. They fail where Twisted has other transports than posd knows."""

    timeout = 300
    tls: ClassVar[bool] = False
    expected: ClassVar[type[DirectSocket]] = DirectSocket

    async def setUp(self) -> None:  # type: ignore[override]
        self.accepted: list[Any] = []
        server = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        factory: Any = Factory.forProtocol(self.accept)
        if self.tls:
            factory = _Factory(self.mktemp(), factory)
        else:
            turns = InputTurns(reactor, HandshakeRates(reactor.seconds))
            factory = PacedPlainFactory(factory, turns)
        port = await server.listen(factory)
        self.addCleanup(port.stopListening)
        endpoint: Any = HostnameEndpoint(reactor, b"127.0.0.1", port.getHost().port)
        if self.tls:
            endpoint = wrapClientTLS(client_context("localhost", factory.authority), endpoint)
        self.client = await connectProtocol(endpoint, Client())
        self.addCleanup(self.hang_up)
        # The server has the connection when something has come, and then the handshake is over.
        self.client.transport.write(b"hello")
        await self.until(lambda: self.accepted and self.accepted[0].received)
        self.transport = self.accepted[0].transport
        limit_buffers(self.transport)
        self.write = direct_write(self.transport)
        self.writer: Any = getattr(self.write, "__self__", None)

    @property
    def waits(self) -> bool:
        """Whether Twisted has something to send."""
        socket = socket_transport(self.transport)
        return bool(socket.dataBuffer or socket._tempDataBuffer)

    def accept(self) -> Client:
        client = Client()
        self.accepted.append(client)
        return client

    async def hang_up(self) -> None:
        if not self.client.lost.called:
            self.client.transport.abortConnection()
            await self.client.lost
        await self.until(lambda: self.accepted[0].lost.called)

    async def until(self, happened: Callable[[], object]) -> None:
        while not happened():
            await deferLater(reactor, 0.005)

    async def test_twisted_has_what_is_used_of_it(self) -> None:
        self.assertIs(type(self.writer), self.expected)
        self.write(b"one")
        self.assertFalse(self.waits)
        await self.until(lambda: self.client.received == b"one")

    async def test_everything_arrives_in_order_however_slowly_it_is_read(self) -> None:
        socket = self.client.transport
        socket.pauseProducing()
        written = bytearray()
        for number in range(400):
            piece = b"%d," % number * (1 + number % 7 * 1000)
            written += piece
            # Autobahn and twisted.web write to the same transport.
            (self.transport.write if number % 50 == 49 else self.write)(piece)
            if number == 300:
                self.assertTrue(self.waits)
                socket.resumeProducing()
            if number % 10 == 0:
                await deferLater(reactor, 0)
        await self.until(lambda: len(self.client.received) >= len(written))
        self.assertEqual(bytes(self.client.received), bytes(written))
        # What waited has left, and the next message is sent at once again.
        self.write(b"last")
        self.assertFalse(self.waits)

    async def test_who_has_left_is_written_to_in_vain(self) -> None:
        self.client.transport.abortConnection()
        await self.client.lost
        self.write(b"one")
        await self.until(lambda: self.accepted[0].lost.called)
        self.write(b"two")


class TLSNetworkTests(NetworkTests):
    tls = True
    expected = DirectTLS
