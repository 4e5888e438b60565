"""Tests of the refusal log: it counts every refusal, limits its lines, and logs no secret."""

from __future__ import annotations

from typing import Any, cast

from attrs import define
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from posd.web.http.http_request import HTTPRequest
from posd.web.http.refusal_log import RefusalLog


@define
class Caller:
    """The part of a request that the log uses."""

    address: str
    operation: str = "GET /ws/pos/{tenant}"


class StrangersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.codes: list[str] = []
        self.refusal_log = RefusalLog(self.clock.seconds, self.codes.append)

    def refuse(self, address: str, slug: str = "kitchen", times: int = 1) -> list[dict[str, Any]]:
        """Refuse a till from an address. Return the lines that were logged."""
        with capturedLogs() as logged:
            for _ in range(times):
                call = cast(HTTPRequest, Caller(address))
                self.refusal_log.handshake_refused(call, slug, 401, "unauthorized")
        return [*logged]

    def test_a_line_says_who_wanted_what_and_what_was_answered(self) -> None:
        (line,) = self.refuse("192.0.2.7")
        said = {
            name: line[name]
            for name in ("operation", "tenant", "address", "status", "code", "unsaid")
        }
        self.assertEqual(
            said,
            {
                "operation": "GET /ws/pos/{tenant}",
                "tenant": "kitchen",
                "address": "192.0.2.7",
                "status": 401,
                "code": "unauthorized",
                "unsaid": 0,
            },
        )

    def test_what_can_be_no_tenants_name_is_not_repeated(self) -> None:
        (line,) = self.refuse("192.0.2.7", slug="pos_0123456789abcdef")
        self.assertEqual(line["tenant"], "")

    def test_an_address_gets_a_few_lines_and_then_one_a_minute(self) -> None:
        self.assertEqual(len(self.refuse("192.0.2.7", times=100)), 5)
        self.clock.advance(60)
        (line,) = self.refuse("192.0.2.7", times=2)
        self.assertEqual(line["unsaid"], 95)
        self.assertEqual(len(self.codes), 102)

    def test_addresses_of_one_network_are_one(self) -> None:
        lines = [line for n in range(20) for line in self.refuse(f"2001:db8::{n:x}")]
        self.assertEqual(len(lines), 5)

    def test_whoever_has_many_addresses_does_not_fill_the_journal_either(self) -> None:
        lines = [line for n in range(200) for line in self.refuse(f"198.51.100.{n}")]
        self.assertEqual(len(lines), 50)
        self.clock.advance(10)
        lines = [line for n in range(200) for line in self.refuse(f"203.0.113.{n}")]
        self.assertEqual(len(lines), 10)
        self.assertEqual(sum(line["unsaid"] for line in lines), 150)

    def test_one_who_is_noisy_takes_no_line_from_another(self) -> None:
        self.refuse("192.0.2.7", times=1000)
        self.assertEqual(len(self.refuse("192.0.2.8")), 1)
