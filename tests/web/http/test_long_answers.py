"""Tests of long answers: written as the client reads, aborted if it does not, and bounded in all."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Request

from posd.errors import TooManyRequests
from posd.security.request_rates import RateAccount
from posd.web.http import long_answers as unsent
from posd.web.http.channel import BoundedChannel
from posd.web.http.http_request import HTTPRequest, ListenerContext
from posd.web.http.long_answers import (
    MOST_BYTES,
    MOST_BYTES_OF_ONE,
    PATIENCE_SECONDS,
    LongAnswer,
    UnsentAnswers,
)
from posd.web.http.responses import Endpoint, PreparedText, Response
from posd.web.http.site import BoundedSite

MEBIBYTE = 1024 * 1024


class Socket(StringTransport):
    """A connection whose client takes `room` bytes and then reads no more."""

    aborted = False
    room = 64 * 1024

    def write(self, data: bytes) -> None:
        super().write(data)
        self.room -= len(data)
        if self.room <= 0 and self.producerState != "paused":
            self.producerState = "paused"
            cast(Any, self.producer).pauseProducing()

    def take(self, count: int) -> None:
        """The client reads so many bytes more."""
        self.room = count
        self.producerState = "producing"
        cast(Any, self.producer).resumeProducing()

    def abortConnection(self) -> None:
        self.aborted = True


class Gate:
    """Knows the keys that begin with `pos_`. Implements `posd.web.http.bounded_request.RequestCharges`."""

    def account(self, request: Request, path: bytes) -> RateAccount | None:
        key = request.requestHeaders.getRawHeaders("X-API-Key", [""])[0]
        return RateAccount(((key, 1),)) if key.startswith("pos_") else None

    def charge(self, request: Request, who: RateAccount | None, path: bytes, size: int) -> None:
        """Everybody may ask as much as they like."""

    def charge_more(self, who: RateAccount | None, size: int) -> TooManyRequests | None:
        return None

    def is_proxy(self, peer: str) -> bool:
        return False


class UnsentCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.charged: list[tuple[object, int]] = []
        self.unsent = UnsentAnswers(
            self.clock, lambda who, size: self.charged.append((who.shared_scope, size))
        )
        self.size = MEBIBYTE
        resource = Endpoint(ListenerContext(unsent=self.unsent), GET=self.answer)
        self.site = BoundedSite(resource, self.clock, most_channels=1000, rate_gate=Gate())
        self.channels: dict[Socket, BoundedChannel] = {}

    async def answer(self, call: HTTPRequest) -> Response:
        return PreparedText({}, text=b"x" * self.size)

    def ask(self, key: str = "pos_one", room: int = 64 * 1024, method: bytes = b"GET") -> Socket:
        channel = cast(BoundedChannel, self.site.buildProtocol(cast(Any, None)))
        socket = Socket()
        socket.room = room
        self.channels[socket] = channel
        channel.makeConnection(socket)
        channel.dataReceived(
            b"%b / HTTP/1.1\r\nHost: localhost\r\nX-API-Key: %b\r\n\r\n" % (method, key.encode())
        )
        return socket

    def body(self, socket: Socket) -> int:
        return len(socket.value().partition(b"\r\n\r\n")[2])

    def drop(self, socket: Socket) -> None:
        self.channels[socket].connectionLost(Failure(ConnectionDone()))


class LongAnswerTests(UnsentCase):
    def test_it_is_charged_to_the_credential(self) -> None:
        self.ask()
        self.ask("stranger")
        self.size = 1000
        self.ask()
        self.assertEqual(self.charged, [("pos_one", MEBIBYTE)])

    def test_it_is_written_as_the_client_takes_it(self) -> None:
        socket = self.ask()
        self.assertLess(self.body(socket), 128 * 1024)
        self.assertEqual(self.unsent.total, MEBIBYTE)
        while self.body(socket) < MEBIBYTE:
            self.clock.advance(PATIENCE_SECONDS - 1)
            before = self.body(socket)
            socket.take(50_000)
            self.assertLess(self.body(socket) - before, 100_000)
        self.assertEqual((self.body(socket), self.unsent.total), (MEBIBYTE, 0))
        self.assertFalse(socket.aborted)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_then_the_connection_serves_the_next_request(self) -> None:
        socket = self.ask(room=2 * MEBIBYTE)
        self.assertEqual(self.body(socket), MEBIBYTE)
        self.size = 5
        socket.clear()
        self.channels[socket].dataReceived(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertEqual(self.body(socket), 5)

    def test_a_client_that_takes_nothing_is_disconnected(self) -> None:
        socket = self.ask()
        with capturedLogs() as logged:
            self.clock.advance(PATIENCE_SECONDS - 1)
            self.assertFalse(socket.aborted)
            self.clock.advance(1)
        self.assertTrue(socket.aborted)
        self.assertEqual(self.unsent.total, 0)
        (line,) = (event for event in logged if "given up" in (event["log_format"] or ""))
        self.assertEqual((line["size"], line["why"]), (MEBIBYTE, "the client does not read it"))
        self.drop(socket)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_that_leaves_is_forgotten(self) -> None:
        self.drop(self.ask())
        self.assertEqual((self.unsent.total, self.unsent._answers, self.unsent._bytes), (0, {}, {}))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_was_written_or_given_up_is_freed_at_once(self) -> None:
        """A request and its producer refer to each other: else it would wait for the garbage collector."""
        made: list[LongAnswer] = []
        begin = LongAnswer.begin

        def note(answer: LongAnswer) -> None:
            made.append(answer)
            begin(answer)

        self.patch(LongAnswer, "begin", note)
        self.ask(room=2 * MEBIBYTE)
        self.drop(self.ask())
        self.ask()
        self.clock.advance(PATIENCE_SECONDS)
        self.assertEqual([each._body for each in made], [b""] * 3)

    def test_a_short_answer_and_one_to_head_are_not_counted(self) -> None:
        socket = self.ask(method=b"HEAD")
        self.assertEqual((self.body(socket), self.unsent.total), (0, 0))
        self.size = unsent.LONG
        socket = self.ask(room=1)
        self.assertEqual((self.body(socket), self.unsent.total), (unsent.LONG, 0))


class BoundTests(UnsentCase):
    def test_what_answers_to_one_key_hold_is_bounded(self) -> None:
        other = self.ask("pos_two")
        sockets = [self.ask() for _ in range(40)]
        self.assertEqual(self.unsent.total, MOST_BYTES_OF_ONE + MEBIBYTE)
        kept = MOST_BYTES_OF_ONE // MEBIBYTE
        self.assertEqual([each.aborted for each in sockets], [True] * (40 - kept) + [False] * kept)
        self.assertFalse(other.aborted)

    def test_a_stranger_is_one_however_many_keys_it_makes_up(self) -> None:
        """Else an answer to a till would be the one that holds most, and be given up."""
        till = [self.ask() for _ in range(2)]
        for number in range(200):
            self.ask(f"made up {number}")
        self.assertEqual(self.unsent.total, MOST_BYTES_OF_ONE + 2 * MEBIBYTE)
        self.assertFalse(any(each.aborted for each in till))

    def test_what_all_hold_is_bounded_at_the_cost_of_who_holds_most(self) -> None:
        small = [self.ask(f"pos_till_{number}") for number in range(30)]
        for number in range(6):
            for _ in range(16):
                self.ask(f"pos_flood_{number}")
        self.assertLessEqual(self.unsent.total, MOST_BYTES)
        self.assertFalse(any(each.aborted for each in small))

    def test_lines_about_it_are_few(self) -> None:
        with capturedLogs() as logged:
            for _ in range(200):
                self.ask()
        self.assertLess(
            len([each for each in logged if "given up" in (each["log_format"] or "")]), 10
        )
