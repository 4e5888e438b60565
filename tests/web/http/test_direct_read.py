"""Tests that a direct read gets the same input as Twisted's, and that Twisted ends connections."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from posd.web.http import direct_read as module
from tests.web.http.test_direct_write import TLSCase


class Application(Protocol):
    """Keeps what has come, piece by piece, and why the connection has ended."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.reason: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.reason = reason


class DirectReadTests(TLSCase):
    """With a client in memory."""

    known = True

    def setUp(self) -> None:
        super().setUp()
        self.patch(module, "IS_SUPPORTED", self.known and module.IS_SUPPORTED)
        self.application: Any = Application()
        self.tls.wrappedProtocol = self.application
        self.reads = 0
        recv = self.tls.getHandle().recv

        def count(size: int) -> bytes:
            self.reads += 1
            return bytes(recv(size))

        self.patch(self.tls.getHandle(), "recv", count)

    def deliver(self, data: bytes) -> None:
        self.tls._deliver(data)

    def records(self, *texts: bytes) -> bytes:
        """What the client sends for these texts, a record each."""
        for text in texts:
            self.client.send(text)
        return bytes(self.client.bio_read(1_000_000))

    def test_each_record_is_a_piece(self) -> None:
        self.deliver(self.records(b"one", b"two"))
        self.assertEqual(self.application.pieces, [b"one", b"two"])

    def test_a_record_may_come_byte_by_byte(self) -> None:
        data = self.records(b"one")
        for number in range(len(data)):
            self.deliver(data[number : number + 1])
        self.assertEqual(self.application.pieces, [b"one"])

    def test_the_longest_record_is_one_piece(self) -> None:
        text = bytes(range(256)) * 64
        self.deliver(self.records(text))
        self.assertEqual(self.application.pieces, [text])

    def test_an_ordinary_record_is_read_without_pyopenssl(self) -> None:
        self.deliver(self.records(b"one"))
        self.assertEqual(self.reads == 0, self.known)

    def test_what_openssl_has_to_say_is_sent(self) -> None:
        # An answer to a KeyUpdate, for which pyOpenSSL has no call.
        handle = self.tls.getHandle()
        module._openssl.BIO_write(handle._from_ssl, b"abc", 3)
        self.deliver(self.records(b"one"))
        self.assertEqual(self.socket.buffered, b"abc")

    def test_after_an_abort_nothing_is_delivered(self) -> None:
        records = self.records(b"one", b"two")
        self.tls._aborted = True
        self.deliver(records)
        self.assertEqual(self.application.pieces, [])

    def test_a_client_that_hangs_up_is_answered(self) -> None:
        self.client.shutdown()
        self.deliver(self.client.bio_read(1000))
        self.assertTrue(self.tls._lostTLSConnection)
        self.arrive()
        # The client has got close_notify (RFC 8446 §6.1).
        self.assertRaises(SSL.ZeroReturnError, self.client.recv, 1000)

    def test_what_is_no_record_ends_the_connection_with_the_error(self) -> None:
        self.deliver(self.records(b"one") + b"\x17\x03\x03\x00\x20" + bytes(32))
        self.assertEqual(self.application.pieces, [b"one"])
        self.assertIsInstance(self.tls._reason.value, SSL.Error)
        self.assertTrue(self.tls._reason.value.args[0])
        self.assertEqual(module._openssl.ERR_peek_error(), 0)

    def test_a_connection_that_is_lost_without_close_notify(self) -> None:
        self.deliver(self.records(b"one"))
        self.tls.connectionLost(Failure(ConnectionLost()))
        self.assertIsNotNone(self.application.reason)
        self.application.reason.trap(ConnectionLost)


class KnownTests(SynchronousTestCase):
    """posd calls OpenSSL only where it finds all that it uses."""

    def test_these_versions_are_known(self) -> None:
        self.assertTrue(module.IS_SUPPORTED)

    def test_others_are_not(self) -> None:
        for name in ("_ssl", "_into_ssl", "_from_ssl"):
            connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD))
            self.assertTrue(module.is_supported(TLSMemoryBIOProtocol, connection))
            delattr(connection, name)
            self.assertFalse(module.is_supported(TLSMemoryBIOProtocol, connection), name)
        whole = SSL.Connection(SSL.Context(SSL.TLS_METHOD))
        self.assertFalse(module.is_supported(Protocol, whole))


class OtherLibraryTests(DirectReadTests):
    """The same where posd does not know how OpenSSL is called."""

    known = False
