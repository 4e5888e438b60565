"""What a handshake leaves in a connection's buffers is freed, and nothing that is still in them is lost."""

from __future__ import annotations

import contextlib
from typing import Any

from OpenSSL import SSL
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from posd.web.http import tls_memory as module
from posd.web.http.tls_memory import renew_buffers
from tests.web.http.test_direct_write import Socket
from tests.web.http.test_direct_write import _Factory as TLSFactory


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class BufferTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.socket = Socket()
        self.tls: Any = TLSFactory(self.mktemp(), Factory.forProtocol(Echo)).buildProtocol(None)
        self.tls.makeConnection(self.socket)
        self.client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        self.client.set_connect_state()
        for _ in range(3):
            with contextlib.suppress(SSL.WantReadError):
                self.client.do_handshake()
            self.exchange()

    def exchange(self) -> bytes:
        """Carry what both ends have said to the other one; what the client has got."""
        with contextlib.suppress(SSL.WantReadError):
            self.tls._deliver(self.client.bio_read(65536))
        data, self.socket.dataBuffer = self.socket.buffered, b""
        self.socket._tempDataBuffer.clear()
        self.socket._tempDataLen = 0
        if data:
            self.client.bio_write(data)
        with contextlib.suppress(SSL.WantReadError):
            return bytes(self.client.recv(65536))
        return b""

    def say(self, data: bytes) -> bytes:
        self.client.send(data)
        return self.exchange()

    def test_both_buffers_are_new_and_the_connection_goes_on(self) -> None:
        before = self.tls.getHandle()._into_ssl, self.tls.getHandle()._from_ssl
        self.assertEqual(self.say(b"one"), b"one")
        self.assertTrue(renew_buffers(self.tls))
        after = self.tls.getHandle()._into_ssl, self.tls.getHandle()._from_ssl
        self.assertFalse({*before} & {*after})
        self.assertEqual(self.say(b"two"), b"two")

    def test_it_ends_as_any_other(self) -> None:
        renew_buffers(self.tls)
        self.client.shutdown()
        with contextlib.suppress(SSL.ZeroReturnError):
            self.exchange()
        self.assertEqual(self.client.get_shutdown(), SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)

    def test_what_is_in_a_buffer_is_not_lost(self) -> None:
        self.client.send(b"one")
        self.tls.getHandle().bio_write(self.client.bio_read(65536))
        self.assertFalse(renew_buffers(self.tls))
        self.tls._flushReceiveBIO()
        self.assertEqual(self.exchange(), b"one")
        self.tls.getHandle().send(b"two")
        self.assertFalse(renew_buffers(self.tls))

    def test_a_connection_without_tls_has_none(self) -> None:
        self.assertFalse(renew_buffers(StringTransport()))

    def test_other_libraries_are_left_alone(self) -> None:
        for name in ("_into_ssl", "_from_ssl"):
            patch = self.patch(self.tls.getHandle(), name, None)
            self.assertFalse(renew_buffers(self.tls))
            patch.restore()
        del self.tls.getHandle()._ssl
        self.assertFalse(renew_buffers(self.tls))

    def test_so_is_an_openssl_that_cannot_be_called(self) -> None:
        self.assertIsNotNone(module._kind)
        self.patch(module, "_CALLED", ("SSL_set_buffers",))
        self.assertIsNone(module._kind_of_buffer())
        self.patch(module, "_kind", None)
        self.assertFalse(renew_buffers(self.tls))
