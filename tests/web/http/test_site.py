"""Tests of the HTTP site: deadlines, refusals, and the limit of connections."""

from __future__ import annotations

import json
import tempfile
from typing import cast

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from posd.web.http import bounded_request
from posd.web.http import channel as channel_module
from posd.web.http.bounded_request import BODY_BYTES, MOST_UNFINISHED_BYTES, BoundedRequest
from posd.web.http.channel import BoundedChannel
from posd.web.http.site import BoundedSite
from posd.web.http.wrong_protocol import HINTS, KnownProtocol

_GET = b"GET / HTTP/1.1\r\nHost: posd\r\n\r\n"
_POST = b"POST / HTTP/1.1\r\nHost: posd\r\n"


class Echo(Resource):
    """Answers with the length of the body. If `waiting` is a list, it collects requests without an answer."""

    isLeaf = True
    waiting: list[Request] | None = None
    taken = 0

    def render(self, request: Request) -> bytes | int:
        self.taken += 1
        if self.waiting is not None:
            self.waiting.append(request)
            return NOT_DONE_YET
        assert request.content is not None
        return b"%d" % len(request.content.read())


class HalfClosedTests(SynchronousTestCase):
    """Clients that close their half of a connection (RFC 9112 §6.3)."""

    def setUp(self) -> None:
        self.resource = Echo()
        self.resource.waiting = []
        self.site = BoundedSite(self.resource, Clock(), most_channels=1)
        self.channel = cast(
            BoundedChannel, self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        )
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)

    def test_a_request_that_came_whole_is_answered_and_is_the_last(self) -> None:
        self.channel.dataReceived(_GET)
        self.channel.readConnectionLost()
        self.assertFalse(self.transport.disconnecting)
        assert self.resource.waiting
        self.resource.waiting[0].write(b"done")
        self.resource.waiting[0].finish()
        self.assertIn(b"done", self.transport.value())
        self.assertTrue(self.transport.disconnecting)

    def test_where_none_or_half_of_one_came_there_is_nothing_to_wait_for(self) -> None:
        self.channel.dataReceived(_GET[:-2])
        self.channel.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)

    def test_a_stream_and_a_poll_are_over(self) -> None:
        self.channel.dataReceived(_GET)
        self.channel.detach_request(lambda: None)
        self.channel.readConnectionLost()
        self.assertTrue(self.transport.disconnected)

    def test_so_is_a_handshake(self) -> None:
        self.channel.dataReceived(_GET[:-2] + b"Upgrade: websocket\r\n\r\n")
        self.channel.readConnectionLost()
        self.assertTrue(self.transport.disconnected)


class HeldTests(SynchronousTestCase):
    """Tests of long requests of tills: streams and polls."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.resource = Echo()
        self.resource.waiting = []
        self.site = BoundedSite(self.resource, self.clock, most_channels=1)
        self.losses = 0

    def held(self) -> tuple[BoundedChannel, StringTransport]:
        channel = cast(BoundedChannel, self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1)))
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(_GET)
        channel.detach_request(self.lost)
        return channel, transport

    def lost(self) -> None:
        self.losses += 1

    def test_they_are_not_counted_and_have_to_go_for_nobody(self) -> None:
        held = [self.held() for _ in range(3)]
        self.assertEqual(self.site.open_channels, 0)
        self.assertFalse(any(transport.disconnected for _, transport in held))

    def test_they_have_no_deadline(self) -> None:
        _, transport = self.held()
        self.clock.pump([10.0] * 360)
        self.assertFalse(transport.disconnected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_that_the_connection_is_gone_is_told_once(self) -> None:
        channel, _ = self.held()
        channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.losses, 1)
        channel.reattach_request()
        self.assertEqual(self.site.open_channels, 0)

    def test_once_let_go_it_is_a_connection_like_any_other(self) -> None:
        channel, transport = self.held()
        channel.reattach_request()
        self.assertEqual(self.site.open_channels, 1)
        assert self.resource.waiting is not None
        self.resource.waiting[0].finish()
        self.clock.advance(74)
        self.assertFalse(transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(transport.disconnecting)
        channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((self.losses, self.site.open_channels), (0, 0))


class SiteTests(SynchronousTestCase):
    """Connections to a site of which at most three may be open."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.resource = Echo()
        self.site = BoundedSite(self.resource, self.clock, most_channels=3)

    def connect(self) -> tuple[BoundedChannel, StringTransport]:
        channel = self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 4711))
        transport = StringTransport()
        channel = cast(BoundedChannel, channel)
        channel.makeConnection(transport)
        return channel, transport

    def said(self, transport: StringTransport) -> tuple[bytes, bytes]:
        """The status line of the only answer, and its body."""
        head, _, body = transport.value().partition(b"\r\n\r\n")
        self.assertEqual(body.count(b"HTTP/1.1"), 0)
        return head.partition(b"\r\n")[0], body

    def test_a_request_is_answered(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(_POST + b"Content-Length: 5\r\n\r\nnaan!")
        self.assertEqual(self.said(transport), (b"HTTP/1.1 200 OK", b"5"))
        self.assertFalse(transport.disconnecting)

    def test_a_body_can_be_read_when_whoever_sent_it_has_gone(self) -> None:
        self.resource.waiting = []
        for body in (b"naan!", b"x" * BODY_BYTES):
            channel, _ = self.connect()
            channel.dataReceived(_POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            channel.connectionLost(Failure(ConnectionDone()))
            content = self.resource.waiting.pop().content
            assert content is not None
            self.assertEqual(content.read(), body)
            content.close()

    def test_a_first_request_has_twenty_seconds_whatever_comes_meanwhile(self) -> None:
        channel, transport = self.connect()
        for byte in _GET[:-1]:
            channel.dataReceived(bytes((byte,)))
            self.clock.advance(19.9 / len(_GET))
        self.assertFalse(transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(transport.disconnecting)

    def test_every_later_request_has_twenty_seconds_from_its_first_byte(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(_GET)
        self.clock.advance(25)
        for _ in range(19):
            channel.dataReceived(_GET[:1])
            self.clock.advance(1)
        self.assertFalse(transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(transport.disconnecting)

    def test_an_answer_may_take_as_long_as_it_takes(self) -> None:
        self.resource.waiting = []
        channel, transport = self.connect()
        channel.dataReceived(_GET)
        self.clock.advance(300)
        self.assertFalse(transport.disconnecting)
        self.resource.waiting.pop().finish()
        self.assertEqual(self.said(transport)[0], b"HTTP/1.1 200 OK")

    def test_of_requests_that_do_not_wait_for_answers_the_first_is_answered(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(_GET * 1000)
        self.assertEqual(self.said(transport)[0], b"HTTP/1.1 200 OK")
        self.assertEqual(self.resource.taken, 1)
        self.assertTrue(transport.disconnecting)

    def test_a_request_does_not_overtake_one_that_is_still_answered(self) -> None:
        self.resource.waiting = []
        channel, transport = self.connect()
        channel.dataReceived(_GET)
        channel.dataReceived(_GET)
        self.resource.waiting.pop().finish()
        self.assertEqual(self.resource.taken, 1)
        self.assertTrue(transport.disconnecting)

    def test_a_connection_serves_one_request_after_the_other(self) -> None:
        channel, transport = self.connect()
        for _ in range(3):
            channel.dataReceived(_GET)
        self.assertEqual(transport.value().count(b"HTTP/1.1 200 OK"), 3)
        self.assertFalse(transport.disconnecting)

    def test_a_peer_that_does_not_hang_up_is_cut_off(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(_GET.replace(b"Host", b"Connection: close\r\nHost"))
        self.assertTrue(transport.disconnecting)
        self.clock.advance(14)
        channel.dataReceived(_GET)
        self.assertFalse(transport.disconnected)
        self.clock.advance(1)
        self.assertTrue(transport.disconnected)
        channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.site.open_channels, 0)

    def test_what_is_no_http_is_refused_in_json_and_nothing_after_it_is_taken(self) -> None:
        for wrong in (
            b"Nonsense\r\n",
            _POST + b"No colon\r\n",
            _POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            _POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n",
            _POST + b"Content-Length: -2\r\n\r\n",
            _POST + b"Transfer-Encoding: identity\r\n\r\n",
            _POST + b"X-Long: " + bytes(20_000),
            _POST + b"Content-Length: " + b"0" * 20 + b"2\r\n\r\n",
            _POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
            _POST + b"X-Folded: a\r\n b\r\n\r\n",
            _POST + b"X-Folded: a\r\n\tb\r\n\r\n",
            _POST + b" X-First: a\r\n\r\n",
            b"POST / HTTP/1.1\r\n Host: posd\r\n\r\n",
            *(
                _POST + b"X-Control: a%bb\r\n\r\n" % bytes((code,))
                for code in (*range(9), *range(10, 32), 127)
            ),
            b"POST / HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a b\r\n\r\n",
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nnaan!\r\n0\r\n\r\n",
            b"GET example.org:80 HTTP/1.1\r\nHost: posd\r\n\r\n",
            b"GET * HTTP/1.1\r\nHost: posd\r\n\r\n",
            b"GET /#fragment HTTP/1.1\r\nHost: posd\r\n\r\n",
            b"GET nothing HTTP/1.1\r\nHost: posd\r\n\r\n",
        ):
            with self.subTest(wrong=wrong[:60]):
                channel, transport = self.connect()
                channel.dataReceived(wrong)
                channel.dataReceived(b"\r\n\r\n0\r\n\r\n")
                channel.dataReceived(_GET)
                status, body = self.said(transport)
                self.assertEqual(status, b"HTTP/1.1 400 Bad Request")
                self.assertEqual(json.loads(body)["code"], "bad_request")
                self.assertTrue(transport.disconnecting)
                channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.resource.taken, 0)

    def test_who_is_refused_by_the_head_and_does_not_hang_up_is_cut_off(self) -> None:
        for head in (b"GET / HTTP/1.1\r\n\r\n", _POST + b"Content-Length: 9999999\r\n\r\n"):
            channel, transport = self.connect()
            channel.dataReceived(head)
            self.assertFalse(transport.disconnected)
            self.clock.advance(15)
            self.assertTrue(transport.disconnected)

    def test_http_1_0_needs_no_host(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(b"GET / HTTP/1.0\r\n\r\n")
        self.assertEqual(self.said(transport)[0], b"HTTP/1.0 200 OK")

    def test_the_authority_of_an_absolute_target_replaces_the_host(self) -> None:
        self.resource.waiting = []
        channel, _ = self.connect()
        channel.dataReceived(b"GET http://other:80/a?b=c HTTP/1.1\r\nHost: posd\r\n\r\n")
        (request,) = self.resource.waiting
        self.assertEqual(request.requestHeaders.getRawHeaders(b"Host"), [b"other:80"])
        self.assertEqual((request.path, request.args), (b"/a", {b"b": [b"c"]}))

    def test_an_answer_is_sent_directly_until_the_connection_is_left(self) -> None:
        sent: list[bytes] = []
        self.patch(channel_module, "direct_write", lambda transport: sent.append)
        channel, transport = self.connect()
        self.resource.waiting = []
        channel.dataReceived(_GET)
        (request,) = self.resource.waiting
        cast(BoundedRequest, request).begin(b"200 OK", b"Content-Length: 4\r\n", b"ab")
        self.assertTrue(sent[0].startswith(b"HTTP/1.1 200 OK"))
        channel.send(b"c")
        channel.loseConnection()
        channel.send(b"d")
        self.assertEqual((sent[1:], transport.value()), ([b"c"], b"d"))

    def test_a_request_has_what_one_of_twisted_has(self) -> None:
        channel, _ = self.connect()
        ours, theirs = BoundedRequest(channel), Request(channel)
        # This attribute concerns forms, which posd does not parse.
        for name in vars(theirs).keys() - {"_parsePOSTFormSubmission"}:
            mine, value = getattr(ours, name), getattr(theirs, name)
            if name not in ("cookies", "received_cookies"):
                self.assertEqual((name, mine), (name, value))
            self.assertFalse(name.endswith("cookies") and mine)

    def test_an_asterisk_is_a_resource_like_any_other(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(b"OPTIONS * HTTP/1.1\r\nHost: posd\r\n\r\n")
        self.assertEqual(self.said(transport), (b"HTTP/1.1 200 OK", b"0"))

    def test_a_connection_closes_where_any_line_of_connection_says_so(self) -> None:
        for lines, closes in (
            (b"Connection: close\r\n", True),
            (b"Connection: keep-alive, close\r\n", True),
            (b"Connection: Close,TE\r\n", True),
            (b"Connection: keep-alive\r\nConnection: CLOSE\r\n", True),
            (b"Connection: keep-alive\r\n", False),
            (b"Connection: not close\r\n", False),
            (b"Connection:\r\n", False),
        ):
            with self.subTest(lines=lines):
                channel, transport = self.connect()
                channel.dataReceived(_GET[:-2] + lines + b"\r\n")
                self.assertEqual(transport.disconnecting, closes)
                self.assertEqual(b"\r\nConnection: close" in transport.value(), closes)

    def test_who_expects_to_be_told_to_go_on_is_told_so_unless_refused(self) -> None:
        expecting = _POST + b"Expect: 100-Continue\r\nContent-Length: %d\r\n\r\n"
        channel, transport = self.connect()
        channel.dataReceived(expecting % BODY_BYTES)
        self.assertEqual(transport.value(), b"HTTP/1.1 100 Continue\r\n\r\n")
        channel, transport = self.connect()
        channel.dataReceived(expecting % (BODY_BYTES + 1))
        self.assertEqual(self.said(transport)[0], b"HTTP/1.1 413 Content Too Large")

    def test_no_body_opens_a_file(self) -> None:
        self.patch(tempfile, "TemporaryFile", None)
        for head, body in (
            (b"Content-Length: %d\r\n\r\n" % BODY_BYTES, bytes(BODY_BYTES)),
            (b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nnaan!\r\n0\r\n\r\n"),
        ):
            channel, transport = self.connect()
            channel.dataReceived(_POST + head + body)
            self.assertEqual(self.said(transport)[0], b"HTTP/1.1 200 OK")

    def test_an_idle_connection_is_kept_longer_than_proxies_use_it(self) -> None:
        channel, transport = self.connect()
        for _ in range(3):
            channel.dataReceived(_GET)
            self.clock.advance(74)
            self.assertFalse(transport.disconnecting)
        with capturedLogs() as events:
            self.clock.advance(1)
        self.assertTrue(transport.disconnecting)
        self.assertEqual(events, [])

    def test_a_query_of_too_many_parameters_is_refused_before_it_is_read(self) -> None:
        self.patch(bounded_request, "parse_qs", lambda *_: self.fail("it was read"))
        channel, transport = self.connect()
        channel.dataReceived(b"GET /?" + b"a&" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, body = self.said(transport)
        self.assertEqual(status, b"HTTP/1.1 400 Bad Request")
        self.assertEqual(json.loads(body)["code"], "bad_request")
        self.assertEqual(self.resource.taken, 0)

    def test_a_body_that_is_too_large_is_refused_before_it_has_come(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(_POST + b"Content-Length: %d\r\n\r\n" % (BODY_BYTES + 1))
        status, body = self.said(transport)
        self.assertEqual(status, b"HTTP/1.1 413 Content Too Large")
        self.assertEqual(json.loads(body)["code"], "too_large")
        self.assertTrue(transport.disconnecting)

    def test_what_is_refused_here_looks_like_every_other_refusal(self) -> None:
        for wrong in (b"Nonsense\r\n\r\n", _POST + b"Content-Length: 9999999\r\n\r\n"):
            channel, transport = self.connect()
            channel.dataReceived(wrong)
            head, _, body = transport.value().partition(b"\r\n\r\n")
            self.assertIn(b"\r\nCache-Control: no-store", head)
            self.assertIn(b"\r\nServer: posd/", head)
            self.assertEqual([*json.loads(body)], ["success", "error", "code", "requestId"])
            self.assertRegex(json.loads(body)["requestId"], "^[0-9a-f]{16}$")

    def test_a_body_in_chunks_is_refused_when_it_gets_too_large(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(_POST + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for _ in range(BODY_BYTES // 0x10000):
            channel.dataReceived(chunk)
            self.assertEqual(transport.value(), b"")
        channel.dataReceived(b"1\r\n.\r\n0\r\n\r\n")
        self.assertEqual(self.said(transport)[0], b"HTTP/1.1 413 Content Too Large")
        self.assertEqual(self.resource.taken, 0)

    def test_the_largest_body_is_taken(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(_POST + b"Content-Length: %d\r\n\r\n" % BODY_BYTES + bytes(BODY_BYTES))
        self.assertEqual(self.said(transport), (b"HTTP/1.1 200 OK", b"%d" % BODY_BYTES))

    def test_where_there_are_too_many_the_oldest_that_asks_for_nothing_goes(self) -> None:
        self.resource.waiting = []
        asking, other = self.connect(), self.connect()
        asking[0].dataReceived(_GET)
        third, newest = self.connect(), self.connect()
        self.assertEqual(self.site.open_channels, 3)
        gone = [each[1].disconnecting for each in (asking, other, third, newest)]
        self.assertEqual(gone, [False, True, False, False])

    def test_a_connection_that_was_used_is_no_longer_the_oldest(self) -> None:
        proxy, first, second = self.connect(), self.connect(), self.connect()
        proxy[0].dataReceived(_GET)
        self.connect()
        gone = [each[1].disconnecting for each in (proxy, first, second)]
        self.assertEqual(gone, [False, True, False])

    def test_where_all_others_wait_for_answers_the_newest_goes(self) -> None:
        self.resource.waiting = []
        for channel, _ in [self.connect() for _ in range(3)]:
            channel.dataReceived(_GET)
        _, newest = self.connect()
        self.assertTrue(newest.disconnecting)
        self.assertEqual(self.site.open_channels, 3)

    def test_a_connection_that_is_gone_counts_no_more(self) -> None:
        channels = [self.connect()[0] for _ in range(3)]
        for channel in channels:
            channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.site.open_channels, 0)

    def test_an_upgraded_connection_counts_no_more_and_has_all_the_time(self) -> None:
        channel, transport = self.connect()
        channel.left()
        self.clock.advance(1000)
        self.assertFalse(transport.disconnecting)
        self.assertEqual(self.site.open_channels, 0)

    def test_http_2_is_never_offered_nor_spoken(self) -> None:
        self.patch(http, "H2_ENABLED", True)
        self.assertEqual(self.site.acceptableProtocols(), [b"http/1.1"])
        channel, transport = self.connect()
        self.assertIs(type(channel), BoundedChannel)
        channel.dataReceived(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.assertTrue(transport.disconnecting)

    def test_another_protocol_is_refused_at_once_and_noticed(self) -> None:
        log_connection: list[KnownProtocol] = []
        site = BoundedSite(
            self.resource,
            self.clock,
            3,
            on_wrong_protocol=lambda spoken, transport: log_connection.append(spoken),
        )
        self.site = site
        for opening, spoken in (
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", KnownProtocol.TLS),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + _GET, KnownProtocol.PROXY),
            (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + _GET, KnownProtocol.PROXY),
        ):
            channel, transport = self.connect()
            channel.dataReceived(opening)
            channel.dataReceived(_GET)
            status, body = self.said(transport)
            self.assertEqual(status, b"HTTP/1.1 400 Bad Request")
            self.assertEqual(json.loads(body)["error"], HINTS[spoken])
            self.assertTrue(transport.disconnecting)
            channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(
            log_connection, [KnownProtocol.TLS, KnownProtocol.PROXY, KnownProtocol.PROXY]
        )
        self.assertEqual(self.resource.taken, 0)

    def test_a_protocol_is_recognised_however_its_bytes_come(self) -> None:
        channel, transport = self.connect()
        for byte in b"PROXY TCP4 192":
            channel.dataReceived(bytes((byte,)))
        self.assertIn(b"PROXY protocol", self.said(transport)[1])

    def test_later_requests_may_begin_as_they_like(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(_GET)
        channel.dataReceived(b"PROXY / HTTP/1.1\r\nHost: posd\r\n\r\n")
        self.assertEqual(transport.value().count(b"HTTP/1.1 200 OK"), 2)

    def test_nothing_of_a_request_is_logged(self) -> None:
        channel, _ = self.connect()
        with capturedLogs() as events:
            channel.dataReceived(b"GET /?apiKey=pos_secret HTTP/1.1\r\nHost: posd\r\n\r\n")
        self.assertEqual(events, [])


class LongBodyTests(SynchronousTestCase):
    """Tests of long bodies that are not complete."""

    def setUp(self) -> None:
        self.resource = Echo()
        self.site = BoundedSite(self.resource, Clock(), most_channels=1000)

    def begin(self, size: int) -> tuple[BoundedChannel, StringTransport]:
        """Return a request whose body has arrived except for its last byte."""
        channel = cast(
            BoundedChannel, self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 4711))
        )
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(_POST + b"Content-Length: %d\r\n\r\n" % size + bytes(size - 1))
        return channel, transport

    def test_what_they_hold_together_is_bounded(self) -> None:
        room = MOST_UNFINISHED_BYTES // BODY_BYTES
        begun = [self.begin(BODY_BYTES) for _ in range(room + 10)]
        self.assertLessEqual(self.site.bodies.total, MOST_UNFINISHED_BYTES)
        for _, transport in begun[:10]:
            head, _, body = transport.value().partition(b"\r\n\r\n")
            self.assertIn(b"503 Service Unavailable\r\n", head)
            self.assertIn(b"\r\nRetry-After: 1", head)
            self.assertEqual(json.loads(body)["code"], "overloaded")
            self.assertTrue(transport.disconnecting)
        channel, transport = begun[-1]
        channel.dataReceived(b"x")
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 200"))
        self.assertEqual([each.value() for _, each in begun[10:-1]], [b""] * (room - 1))

    def test_one_that_has_come_or_whose_client_has_left_is_not_counted(self) -> None:
        channel, _ = self.begin(BODY_BYTES)
        leaving, _ = self.begin(BODY_BYTES)
        self.assertEqual(self.site.bodies.total, 2 * (BODY_BYTES - 1))
        channel.dataReceived(b"x")
        leaving.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.site.bodies.total, 0)

    def test_a_short_one_gives_way_to_none(self) -> None:
        short = [self.begin(60_000) for _ in range(5)]
        for _ in range(MOST_UNFINISHED_BYTES // BODY_BYTES + 5):
            self.begin(BODY_BYTES)
        for channel, transport in short:
            channel.dataReceived(b"x")
            self.assertTrue(transport.value().startswith(b"HTTP/1.1 200"))
