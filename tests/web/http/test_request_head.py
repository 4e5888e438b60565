"""Tests that `read_head` reads a head in the same way as twisted.web."""

from __future__ import annotations

from typing import Any, Final, cast
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from posd.web.http import channel as channel_module
from posd.web.http.channel import BoundedChannel
from posd.web.http.deadline import DeadlineTimer
from posd.web.http.request_head import MOST_HEAD_BYTES, read_head
from posd.web.http.site import BoundedSite

_FIRST: Final = b"POST /api/kitchen/events?a=b HTTP/1.1\r\nHost: posd\r\n"


class Kept(Resource):
    """Stores requests, and answers none."""

    isLeaf = True

    def __init__(self) -> None:
        Resource.__init__(self)
        self.requests: list[Request] = []

    def render(self, request: Request) -> int:
        self.requests.append(request)
        return NOT_DONE_YET


def understood(data: bytes) -> object:
    """Return what posd reads from bytes: a refusal, or the requests, and whether another may follow."""
    resource = Kept()
    site = BoundedSite(resource, Clock(), most_channels=1)
    channel = cast(BoundedChannel, site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1)))
    transport = StringTransport()
    channel.makeConnection(transport)
    channel.dataReceived(data)
    said = transport.value().partition(b"\r\n")[0]
    requests = [
        (
            *(each.method, each.uri, each.path, each.args, each.clientproto),
            [*each.requestHeaders.getAllRawHeaders()],
            None if each.content is None else each.content.read(),
        )
        for each in resource.requests
    ]
    return (
        said,
        transport.disconnecting,
        requests,
        channel.persistent,
        b"".join(channel._dataBuffer),
    )


_texts = st.text("aB1 \t:;,-_\"'/\x00\x0b\x7fé", max_size=12).map(
    lambda text: text.encode("latin-1")
)
_names = st.one_of(
    _texts,
    st.sampled_from(
        [
            *(b"Host", b"host", b"Content-Length", b"content-length", b"Transfer-Encoding"),
            *(b"Expect", b"Connection", b"Cookie", b"X-API-Key", b" Host", b"Content-Length "),
        ]
    ),
)
_values = st.one_of(
    _texts,
    st.sampled_from(
        [
            *(b"posd", b"0", b"3", b"+3", b"3, 3", b"0003", b"chunked", b"identity", b"gzip"),
            *(b"close", b"keep-alive", b"100-continue", b"9" * 30, b"\xb2"),
        ]
    ),
)
_ends = st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\r\r\n"])
_lines = st.tuples(_names, st.sampled_from([b":", b": ", b":\t", b" :", b""]), _values, _ends).map(
    b"".join
)
_firsts = st.tuples(
    st.sampled_from([b"GET", b"POST", b"get", b"G(T", b"", b"OPTIONS", b"\r\nGET"]),
    st.sampled_from([b" ", b"  ", b"\t"]),
    st.sampled_from([b"/", b"/a?b=c", b"*", b"http://a/b", b"/a#b", b"a", b"", b"/\xe9", b"/a b"]),
    st.sampled_from([b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b" http/1.1", b""]),
    _ends,
).map(b"".join)


class HeadTests(SynchronousTestCase):
    def line_by_line(self, data: bytes) -> object:
        """Return the result without `read_head`."""
        with patch.object(channel_module, "read_head", lambda data: None):
            return understood(data)

    @given(
        st.one_of(st.just(_FIRST), _firsts),
        st.lists(_lines, max_size=4),
        st.sampled_from([b"\r\n", b"\n", b""]),
        st.sampled_from(
            [b"", b"abc", b"abcGET / HTTP/1.1\r\nHost: posd\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"]
        ),
    )
    def test_it_is_what_twisted_reads(
        self, first: bytes, lines: list[bytes], end: bytes, body: bytes
    ) -> None:
        data = b"".join([first, *lines, end, body])
        self.assertEqual(understood(data), self.line_by_line(data))

    def test_the_heads_of_clients_are_plain(self) -> None:
        for lines in (
            b"",
            b"X-API-Key: pos_1\r\nContent-Type: application/json\r\nContent-Length: 12\r\n",
            b"accept:*/*\r\nuser-agent: curl/8\r\nCONNECTION: \tkeep-alive \r\n",
            b"X-Empty:\r\nX-Latin: \xe9\r\n",
        ):
            head = read_head(_FIRST + lines + b"\r\n")
            assert head is not None, lines
            self.assertEqual(head.size, len(_FIRST + lines) + 2)

    def test_what_decides_where_a_request_ends_is_left_to_twisted_unless_it_is_one_number(
        self,
    ) -> None:
        for lines in (
            b"Transfer-Encoding: chunked\r\n",
            b"transfer-encoding: identity\r\n",
            b"Content-Length: 1\r\nContent-Length: 1\r\n",
            b"Content-Length: +1\r\n",
            b"Content-Length: 1,1\r\n",
            b"Content-Length: \r\n",
            b"Content-Length: 1234567890\r\n",
            b"Content-Length : 1\r\n",
            b"X-Folded: a\r\n b\r\n",
            b"X-Bare: a\nContent-Length: 1\r\n",
            b"X-Bare: a\rb\r\n",
            b"No colon\r\n",
            b": no name\r\n",
            b"X: y\r\n" * 200,
            b"X: " + b"y" * MOST_HEAD_BYTES + b"\r\n",
        ):
            self.assertIsNone(read_head(_FIRST + lines + b"\r\n"), lines[:40])

    def test_one_that_is_not_whole_is_left_to_twisted(self) -> None:
        whole = _FIRST + b"\r\n"
        for size in range(len(whole)):
            self.assertIsNone(read_head(whole[:size]))


class DeadlineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.deadline = DeadlineTimer(self.clock)
        self.late: list[float] = []

    def set(self, seconds: float) -> None:
        self.deadline.set(seconds, lambda: self.late.append(self.clock.seconds()))

    def pass_by(self, seconds: int) -> None:
        for _ in range(10 * seconds):
            self.clock.advance(0.1)

    def test_it_is_called_once_when_the_last_time_has_passed(self) -> None:
        for times in ((20.0,), (20.0, 75.0), (75.0, 20.0), (20.0, 75.0, 15.0)):
            began = self.clock.seconds()
            for seconds in times:
                self.set(seconds)
            self.pass_by(200)
            self.assertAlmostEqual(self.late.pop() - began, times[-1], places=3)
            self.assertEqual(self.late, [])
            self.assertFalse(self.deadline.is_set)

    def test_one_that_is_moved_at_each_request_costs_a_call_in_its_time(self) -> None:
        calls: list[Any] = []
        call_later = self.clock.callLater

        def counted(*call: Any) -> Any:
            calls.append(call)
            return call_later(*call)

        self.patch(self.clock, "callLater", counted)
        for _ in range(1000):
            self.set(20)
            self.clock.advance(0.05)
            self.deadline.clear()
            self.set(75)
            self.clock.advance(0.05)
        self.assertLess(len(calls), 12)
        self.assertEqual(self.late, [])

    def test_a_cleared_one_is_not_called_and_a_stopped_one_leaves_nothing(self) -> None:
        self.set(20)
        self.deadline.clear()
        self.assertFalse(self.deadline.is_set)
        self.pass_by(30)
        self.set(20)
        self.deadline.stop()
        self.assertEqual((self.late, self.clock.getDelayedCalls()), ([], []))
