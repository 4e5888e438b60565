"""Loads on posd's memory and on its thread are bounded, and another tenant is not affected."""

from __future__ import annotations

import json
import select
from collections.abc import Sequence
from typing import Final

from tests.integration.hostile_case import HostileCase
from tests.integration.peer import TEXT, Peer, frame, request
from tests.integration.wire_case import until

MEBIBYTE: Final = 1024 * 1024
_ORDERS: Final = 24
_NOTES: Final = "x" * 50_000
"""Each is in an order twice, under two names."""
_CROWD: Final = 120


class UnreadAnswerTests(HostileCase):
    """A tenant with two MiB of open orders, and clients that request them and do not read."""

    # Unlimited, because the rate must not bound these answers.
    configuration = HostileCase.configuration + '\nbytes_per_second_per_credential = "1GiB"'

    def setUp(self) -> None:
        super().setUp()
        for number in range(_ORDERS):
            self.publish({"orderId": f"L-{number}", "notes": _NOTES}, "new_order")
        count = f"SELECT 1 FROM {self.schema}.pos_orders"
        self.wait_for(count, _ORDERS)
        self.path = f"/api/{self.slug}/orders/pending?limit=500"

    def deaf(self, key: str) -> Peer:
        """Return a client that has read the beginning of its answer."""
        peer = Peer.dial(self.posd, receive_buffer=16 * 1024)
        self.addCleanup(peer.close)
        peer.send(request("GET", self.path, [("X-API-Key", key)]))
        peer.receive(1)
        return peer

    def test_they_are_bounded_in_memory_and_in_time(self) -> None:
        neighbour, before = self.neighbours_till(), self.memory()
        crowd = [self.deaf(self.key) for _ in range(_CROWD)]
        self.assert_served(neighbour)
        # Of 120 MiB of answers only 16, and the buffers of TLS and TCP.
        self.assertLess(self.memory() - before, 75)
        answer = self.ask("GET", self.path, key=self.make_key())
        self.assertEqual(answer.status, 200)
        self.assertLessEqual(len(answer.body), MEBIBYTE)
        self.assertTrue(answer.json["hasMore"])
        # First those that were given up, and in the end all.
        until(lambda: gone(crowd) >= _CROWD - 30, "the oldest gave way")
        until(lambda: gone(crowd) == _CROWD, "nobody is waited for", seconds=60)
        self.assert_served(neighbour)
        # This does not wait for the garbage collector.
        self.assertLess(self.memory() - before, 50)

    def test_a_client_that_reads_slowly_gets_all_of_it(self) -> None:
        slow = self.deaf(self.key)
        for _ in range(10):
            self.deaf(self.make_key())
        answer = slow.answer()
        self.assertEqual((answer.status, answer.json["count"]), (200, 10))


def gone(peers: Sequence[Peer]) -> int:
    """Return how many connections posd has closed. Nothing is read."""
    poll = select.poll()
    for peer in peers:
        poll.register(peer.socket.fileno(), select.POLLRDHUP)
    return len(poll.poll(0))


class HostileTextTests(HostileCase):
    """Texts that are expensive to parse, with valid keys: each is answered, and others are served."""

    def texts(self, size: int) -> list[bytes]:
        """Return JSON objects of about so many bytes."""
        units = (b"1e399", b"1e9", b"{}", b"[]", b"9" * 400, b'{"a":[{}]}', b"[" * 30 + b"]" * 30)
        filled = [b",".join([unit] * ((size - 60) // (len(unit) + 1))) for unit in units]
        padded = b",".join([b"1e9".ljust(11)] * ((size - 60) // 12))
        return [
            *(
                b'{"type":"x","reportDate":"2026-11-22","data":[%b]}' % each
                for each in (*filled, padded)
            ),
            b'{"a":' + b"9" * (size - 8) + b"}",
            b"[" * size,
        ]

    def test_a_mebibyte_as_a_report(self) -> None:
        neighbour, before = self.neighbours_till(), self.memory()
        statuses = []
        for text in self.texts(MEBIBYTE):
            answer = self.ask("POST", f"/api/{self.slug}/reports/daily", text, key=self.make_key())
            statuses.append(answer.status)
            self.assert_served(neighbour, rounds=1)
        # Only the one with few enough values is a report.
        self.assertEqual(statuses.count(200), 1)
        self.assertEqual({*statuses}, {200, 400})
        self.assertLess(self.memory() - before, 150)

    def test_where_one_small_object_is_taken_no_more_is_read(self) -> None:
        body = self.texts(MEBIBYTE)[0]
        for path in (
            "heartbeat",
            "events/ack",
            "orders/received",
            "orders/print",
            "loyalty/+447700900123/add",
        ):
            with self.peer() as peer:
                head = request(
                    "POST", f"/api/{self.slug}/{path}", [("Content-Length", str(len(body)))]
                )
                peer.send(head)
                self.assert_refused(peer.answer(), 413, "too_large")

    def test_messages_of_a_till(self) -> None:
        neighbour = self.neighbours_till()
        for text in self.texts(60_000):
            till = self.till(self.make_key())
            for _ in range(5):
                till.send(frame(TEXT, text))
            self.assert_served(neighbour, rounds=1)
            self.assert_alive(till)

    def test_what_is_said_of_a_number_is_said_by_name(self) -> None:
        till = self.till()
        till.send(frame(TEXT, b'{"type":"ping","id":1e399}'))
        error = till.message()
        self.assertEqual((error["type"], error["code"]), ("error", "invalid_message"))
        self.assertIn("40 digits", error["message"])
        body = json.dumps({"reportDate": "2026-11-22"}).encode()[:-1] + b',"totalSales":1e399}'
        answer = self.ask("POST", f"/api/{self.slug}/reports/daily", body, key=self.key)
        self.assert_refused(answer, 422, "invalid_amount")
