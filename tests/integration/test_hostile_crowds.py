"""Connections that are slow, silent, too many or without TLS are closed, and no till waits for them."""

from __future__ import annotations

import itertools
import resource
import select
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Final

from attrs import define, field
from OpenSSL import SSL

from tests.integration.harness import Daemon
from tests.integration.hostile_case import HostileCase
from tests.integration.peer import Peer, handshake, request
from tests.integration.wire_case import until

_CROWD: Final = 2200
"""More than posd has places for connections that are no till's."""
_LONGEST: Final = 300.0
"""Seconds until a connection that brings nothing must be gone. posd gives it twenty, by its own clock."""


@define(eq=False)
class Crowd:
    """Many TCP connections without data."""

    daemon: Daemon
    _sockets: dict[int, socket.socket] = field(init=False, factory=dict)

    def gather(self, count: int) -> None:
        for _ in range(count):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", self.daemon.port))
            self._sockets[one.fileno()] = one

    def count(self) -> int:
        """Return how many are still open, after a fifth of a second."""
        poll = select.poll()
        for number in self._sockets:
            poll.register(number, select.POLLIN)
        for number, _ in poll.poll(200):
            # Nothing is sent to them, so this is the end.
            self._sockets.pop(number).close()
        return len(self._sockets)

    def leave(self) -> None:
        for one in self._sockets.values():
            one.close()


class CrowdTests(HostileCase):
    def test_whoever_brings_nothing_is_cut_off_and_nobody_waits_meanwhile(self) -> None:
        neighbour = self.neighbours_till()
        slow = {name: (peer, drip) for name, peer, drip in self.slow_ones()}
        crowd = self.crowd()
        began = time.monotonic()
        ends: dict[str, float] = {}
        let_in = 0
        while len(ends) <= len(slow):
            now = time.monotonic() - began
            self.assertLess(now, _LONGEST, f"still there: {slow.keys() - ends.keys()}")
            for name, (peer, drip) in slow.items():
                if name not in ends and self.is_gone(peer, next(drip)):
                    ends[name] = now
            if "crowd" not in ends and crowd.count() == 0:
                ends["crowd"] = now
            self.assert_served(neighbour, rounds=1)
            if not 1 < now % 5 < 2:
                continue
            self.till().close()
            self.assertEqual(self.ask("GET", "/health/live").status, 200)
            let_in += crowd.count() > 0
        # A new client is let in beside the crowd, and does not wait until that is cut off.
        self.assertGreater(let_in, 0)
        until(lambda: self.open_files() < 60, "sockets are closed")

    def slow_ones(self) -> Iterator[tuple[str, Peer, Iterator[bytes]]]:
        """Return peers and their data, which they send slowly."""
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        live = request("GET", "/health/live")
        upgrade = request("GET", f"/ws/pos/{self.slug}", [*handshake(), ("X-API-Key", self.key)])
        body = request("POST", "/broadcast", (), b"x" * 1000)[:-1000]
        yield "no TLS", self.peer(bare=True), _drip(b"")
        yield "half a hello", self.peer(bare=True), _drip(hello)
        yield "no request", self.peer(), _drip(b"")
        yield "a slow request", self.peer(), _drip(live)
        yield "a slow upgrade", self.peer(), _drip(upgrade)
        yield "a slow body", self.said(body), _drip(b"x" * 200)
        yield "slow chunks", self.said(_CHUNKED), _drip(b"1\r\nx\r\n" * 50)
        yield "no body", self.said(body), _drip(b"")
        second = self.said(live)
        self.assertEqual(second.answer().status, 200)
        yield "a slow second request", second, _drip(live)
        closing = self.said(live.replace(b"Host", b"Connection: close\r\nHost"))
        self.assertEqual(closing.answer().status, 200)
        yield "who does not hang up", closing, _drip(b"x" * 200)

    def said(self, data: bytes) -> Peer:
        peer = self.peer()
        peer.send(data)
        return peer

    def is_gone(self, peer: Peer, said: bytes) -> bool:
        peer.send(said)
        return peer.is_cut_off()

    def crowd(self) -> Crowd:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        crowd = Crowd(self.posd)
        self.addCleanup(crowd.leave)
        # The daemon has the limit of its start.
        crowd.gather(min(_CROWD, soft - 300))
        return crowd

    def test_requests_without_end_delay_nobody(self) -> None:
        neighbour = self.neighbours_till()
        before = self.memory()
        flood = request("GET", "/health/live") * 1000
        for peer in [self.peer() for _ in range(10)]:
            peer.send_endlessly(itertools.repeat(flood, 20), 1.0, stalled=0.1)
            self.assert_served(neighbour, rounds=1)
        self.assertLess(self.memory() - before, 16)

    def test_more_connections_than_a_tenant_may_have(self) -> None:
        device = {"X-Device-ID": "till-1"}
        inside = [self.till(headers=device) for _ in range(4)]
        refused = self.try_handshake(self.key, headers=device)
        self.assert_refused(refused, 429, "too_many_connections")
        self.assertIn("retry-after", refused.headers)
        inside[0].close()
        until(lambda: self.try_handshake(self.key, headers=device).status == 101, "a place is free")


class NoTLSTests(HostileCase):
    """Data that is not TLS 1.2 or newer gets no answer."""

    def assert_no_answer(self, data: bytes) -> None:
        peer = self.peer(bare=True)
        peer.send(data)
        said = peer.rest(5.0)
        # At most a TLS alert.
        self.assertIn(said[:1], (b"", b"\x15"))
        self.assertLess(len(said), 32)

    def test_noise(self) -> None:
        for data in (
            bytes(1000),
            b"\xff" * 1000,
            b"SSH-2.0-x\r\n" * 20,
            b"\x16\x03\x03\xff\xff" * 50,
        ):
            self.assert_no_answer(data)

    def test_cipher_suites_without_authentication(self) -> None:
        for suite in (
            "ECDHE+AES+SHA256",
            "ECDHE+AES+SHA1",
            "ALL:!AESGCM:!AESCCM:!CHACHA20:!ARIAGCM:!aNULL",
        ):
            context = self.posd.tls()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(suite)
            with self.assertRaises(ssl.SSLError) as caught:
                Peer.dial(self.posd, context=context)
            self.assertIn("ALERT_HANDSHAKE_FAILURE", str(caught.exception))
        logged = "it shares no cipher suite with posd; tls.legacy_ciphers allows older ones"
        until(lambda: logged in self.posd.log()[self._logged :], "it is logged")

    def test_older_versions(self) -> None:
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            context = self.posd.tls()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = context.maximum_version = version
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            with self.assertRaises(ssl.SSLError) as caught:
                Peer.dial(self.posd, context=context)
            self.assertIn("ALERT_PROTOCOL_VERSION", str(caught.exception))

    def test_http_2_is_not_spoken(self) -> None:
        context = self.posd.tls()
        context.set_alpn_protocols(["h2"])
        with self.assertRaises(ssl.SSLError):
            Peer.dial(self.posd, context=context)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with Peer.dial(self.posd, context=context) as peer:
            assert isinstance(peer.socket, ssl.SSLSocket)
            self.assertEqual(peer.socket.selected_alpn_protocol(), "http/1.1")

    def test_nobody_negotiates_twice(self) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        with socket.create_connection(("127.0.0.1", self.posd.port), 10.0) as plain:
            # pyOpenSSL needs a blocking socket without a timeout of Python's.
            plain.setblocking(True)
            connection = SSL.Connection(context, plain)
            connection.set_connect_state()
            connection.do_handshake()
            connection.renegotiate()
            with self.assertRaises(SSL.Error):
                connection.do_handshake()
                connection.sendall(request("GET", "/health/live"))
                connection.recv(1)

    def test_any_name_gets_the_one_certificate(self) -> None:
        """posd ignores the requested name (RFC 6066 §3), so it can be anything."""
        seen = set()
        for name in (None, b"localhost", b"example.org", b"192.0.2.1", b"\xff\x01;'", b"a." * 127):
            with self.subTest(name=name), Peer.dial(self.posd, bare=True) as peer:
                peer.socket.setblocking(True)
                connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), peer.socket)
                if name is not None:
                    connection.set_tlsext_host_name(name)
                connection.set_connect_state()
                connection.do_handshake()
                certificate = connection.get_peer_certificate(as_cryptography=True)
                assert certificate is not None
                seen.add(certificate.serial_number)
                connection.sendall(request("GET", "/health/live"))
                self.assertTrue(connection.recv(1000).startswith(b"HTTP/1.1 200 OK"))
        self.assertEqual(len(seen), 1)

    def test_a_request_in_records_of_one_byte_is_a_request(self) -> None:
        peer = self.peer()
        for byte in request("GET", "/health/live"):
            peer.send(bytes((byte,)))
        self.assertEqual(peer.answer().status, 200)

    def test_a_connection_that_is_torn_off_in_the_middle(self) -> None:
        neighbour = self.neighbours_till()
        upgrade = request("GET", f"/ws/pos/{self.slug}", [*handshake(), ("X-API-Key", self.key)])
        for end in (1, len(upgrade) // 2, len(upgrade)):
            for how in _TEARS:
                peer = self.peer()
                peer.send(upgrade[:end])
                how(peer)
        self.assert_served(neighbour)
        counted = "SELECT count(*) FROM dinedesk_main.pos_connected JOIN dinedesk_main.tenants"
        mine = f"{counted} AS t ON t.id = tenant_id WHERE t.slug = '{self.slug}'"
        until(lambda: self.shop.query(mine) == [(0,)], "nobody is left")
        self.assertEqual(self.try_handshake(self.key).status, 101)


_CHUNKED: Final = b"POST /broadcast HTTP/1.1\r\nHost: posd\r\nTransfer-Encoding: chunked\r\n\r\n"


def _drip(data: bytes) -> Iterator[bytes]:
    """Yield a byte every half a second, and then nothing."""
    due = time.monotonic()
    for byte in data:
        while time.monotonic() < due:
            yield b""
        due += 0.5
        yield bytes((byte,))
    while True:
        yield b""


def _reset(peer: Peer) -> None:
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    peer.close()


_TEARS: Final[tuple[Callable[[Peer], None], ...]] = (Peer.close, _reset, Peer.end)
