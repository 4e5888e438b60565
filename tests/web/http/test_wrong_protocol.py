"""What is spoken on a connection, by its first bytes, and what an operator is told of it."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from posd.web.http.wrong_protocol import LONGEST_OPENING, Spoken, WrongProtocols, recognise


class RecognitionTests(SynchronousTestCase):
    def test_protocols_are_told_by_their_first_bytes(self) -> None:
        for opening, spoken in (
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00", Spoken.TLS),
            (b"PROXY TCP4 192.0.2.1", Spoken.PROXY),
            (b"PROXY UNKNOWN\r\n", Spoken.PROXY),
            (b"\r\n\r\n\x00\r\nQUIT\n!\x11\x00\x0c", Spoken.PROXY),
            (b"GET / HTTP/1.1\r\n", Spoken.HTTP),
            (b"OPTIONS * HTTP/1.0\r\n", Spoken.HTTP),
            (b"POST http://posd/", Spoken.HTTP),
        ):
            self.assertIs(recognise(opening), spoken, opening)
            self.assertIs(recognise(opening[:LONGEST_OPENING]), spoken, opening)

    def test_what_is_none_of_them_or_too_short(self) -> None:
        for opening in (
            b"",
            b"\x16",
            b"PROXY",
            b"\r\n\r\n",
            b"GET ",
            b"SSH-2.0-a",
            b"\x15\x03\x01",
        ):
            self.assertIsNone(recognise(opening), opening)


class LogTests(SynchronousTestCase):
    def test_a_line_says_what_was_spoken_where_and_what_to_do(self) -> None:
        log = WrongProtocols(Clock().seconds)
        for spoken, remedy in (
            (Spoken.HTTP, "https://"),
            (Spoken.TLS, "tls = true"),
            (Spoken.PROXY, "X-Forwarded-For"),
        ):
            with capturedLogs() as events:
                log.noticed(spoken, _transport("192.0.2.7"))
            line = formatEvent(events[0])
            for word in (spoken.value, "port 9010", "address=192.0.2.7", remedy, "unsaid=0"):
                self.assertIn(word, line)

    def test_a_client_that_tries_again_and_again_fills_no_journal(self) -> None:
        clock = Clock()
        log = WrongProtocols(clock.seconds)
        with capturedLogs() as events:
            for _ in range(600):
                clock.advance(0.1)
                log.noticed(Spoken.TLS, _transport("192.0.2.7"))
        self.assertLess(len(events), 10)
        clock.advance(60)
        with capturedLogs() as events:
            log.noticed(Spoken.TLS, _transport("192.0.2.7"))
        self.assertGreater(events[0]["unsaid"], 500)


def _transport(address: str) -> StringTransport:
    return StringTransport(
        hostAddress=IPv4Address("TCP", "192.0.2.1", 9010),
        peerAddress=IPv4Address("TCP", address, 4711),
    )
