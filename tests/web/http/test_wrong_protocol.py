"""Tests of the recognition of protocols by their first bytes, and of the log for operators."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from posd.web.http.wrong_protocol import (
    LONGEST_OPENING,
    KnownProtocol,
    WrongProtocols,
    detect_protocol,
)


class RecognitionTests(SynchronousTestCase):
    def test_protocols_are_told_by_their_first_bytes(self) -> None:
        for opening, spoken in (
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00", KnownProtocol.TLS),
            (b"PROXY TCP4 192.0.2.1", KnownProtocol.PROXY),
            (b"PROXY UNKNOWN\r\n", KnownProtocol.PROXY),
            (b"\r\n\r\n\x00\r\nQUIT\n!\x11\x00\x0c", KnownProtocol.PROXY),
            (b"GET / HTTP/1.1\r\n", KnownProtocol.HTTP),
            (b"OPTIONS * HTTP/1.0\r\n", KnownProtocol.HTTP),
            (b"POST http://posd/", KnownProtocol.HTTP),
        ):
            self.assertIs(detect_protocol(opening), spoken, opening)
            self.assertIs(detect_protocol(opening[:LONGEST_OPENING]), spoken, opening)

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
            self.assertIsNone(detect_protocol(opening), opening)


class LogTests(SynchronousTestCase):
    def test_a_line_says_what_was_spoken_where_and_what_to_do(self) -> None:
        log = WrongProtocols(Clock().seconds)
        for spoken, remedy in (
            (KnownProtocol.HTTP, "https://"),
            (KnownProtocol.TLS, "tls = true"),
            (KnownProtocol.PROXY, "X-Forwarded-For"),
        ):
            with capturedLogs() as events:
                log.log_connection(spoken, _transport("192.0.2.7"))
            line = formatEvent(events[0])
            for word in (spoken.value, "port 9010", "address=192.0.2.7", remedy, "unsaid=0"):
                self.assertIn(word, line)

    def test_a_client_that_tries_again_and_again_fills_no_journal(self) -> None:
        clock = Clock()
        log = WrongProtocols(clock.seconds)
        with capturedLogs() as events:
            for _ in range(600):
                clock.advance(0.1)
                log.log_connection(KnownProtocol.TLS, _transport("192.0.2.7"))
        self.assertLess(len(events), 10)
        clock.advance(60)
        with capturedLogs() as events:
            log.log_connection(KnownProtocol.TLS, _transport("192.0.2.7"))
        self.assertGreater(events[0]["unsaid"], 500)


def _transport(address: str) -> StringTransport:
    return StringTransport(
        hostAddress=IPv4Address("TCP", "192.0.2.1", 9010),
        peerAddress=IPv4Address("TCP", address, 4711),
    )
