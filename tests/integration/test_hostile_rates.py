"""Rate limits on a running daemon: a client above its rate is delayed, and no other client."""

from __future__ import annotations

import itertools
import re
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from psycopg2.extensions import parse_dsn

from tests.integration.harness import Daemon, Shop
from tests.integration.hostile_case import HostileCase, under_siege
from tests.integration.peer import PING, PONG, TEXT, Answer, Peer, frame, request
from tests.integration.postgres_proxy import Proxy
from tests.integration.shared import shared
from tests.integration.wire_case import until

_NOTE: Final = {"type": "note", "data": {"n": 1}}
_TRIES: Final = 1000
_FOR_A_TENANT: Final = b"dinedesk_main.pos_credentials("
_FOR_ANYBODY: Final = b"ORDER BY k.tenant_id NULLS FIRST"
"""A text in the statement that looks up a key (`posd.store.credentials`)."""


@shared
def watched(stack: ExitStack, configuration: str) -> tuple[Shop, Daemon, Proxy]:
    """A shop, its daemon, and what is between it and PostgreSQL."""
    proxies: list[Proxy] = []

    def way(shop: Shop) -> str:
        database = parse_dsn(shop.dsn)
        proxy = Proxy(Path(database["host"]), watched=(_FOR_A_TENANT, _FOR_ANYBODY))
        proxy.start()
        stack.callback(proxy.stop)
        proxies.append(proxy)
        return proxy.dsn(database["dbname"])

    return *under_siege(stack, configuration, way), proxies[0]


class RatesCase(HostileCase):
    """A key may send one request and 64 KiB per second, with bursts of ten seconds."""

    configuration = (
        "[limits]\nfailed_auth_per_minute = 5\nrequests_per_second_per_credential = 1\n"
        'bytes_per_second_per_credential = "64KiB"\nrequests_per_second_per_address = 1'
    )
    _places = itertools.count(2)

    def setUp(self) -> None:
        super().setUp()
        number = next(self._places)
        self.place = f"127.0.{2 + number // 250}.{2 + number % 250}"

    def besieged(self, configuration: str) -> tuple[Shop, Daemon]:
        """Its database is reached through a proxy."""
        shop, posd, self.proxy = watched(configuration)
        return shop, posd

    @property
    def lookups(self) -> int:
        """Return how many statements have looked up a key."""
        return self.proxy.asked[_FOR_A_TENANT] + self.proxy.asked[_FOR_ANYBODY]

    def flood(self, what: bytes, count: int, peers: int) -> list[Answer]:
        """Return the answers to so many requests on some connections, without pauses."""
        answers: list[Answer] = []

        def ask(peer: Peer, times: int) -> None:
            for _ in range(times):
                peer.send(what)
                answers.append(peer.answer())

        threads = [
            threading.Thread(target=ask, args=(self.peer(source=self.place), count // peers))
            for _ in range(peers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    def refused_after(self, ask: Callable[[], int]) -> int:
        """Return how many requests are answered before the first refusal."""
        return next(count for count in range(_TRIES) if ask() == 429)


class StrangerTests(RatesCase):
    """Clients without a valid key."""

    def try_wrong_keys(self, count: int) -> Counter[int]:
        """Send handshakes with different wrong keys, a few on each connection."""
        statuses: Counter[int] = Counter()
        for number in range(0, count, 20):
            with self.peer(source=self.place) as peer:
                for each in range(number, number + 20):
                    key = [("X-API-Key", f"wrong-{self.place}-{each}")]
                    answer = peer.upgrade(f"/ws/pos/{self.slug}", key)
                    statuses[answer.status] += 1
                    if answer.status == 429:
                        # It is not read for a second now.
                        break
        return statuses

    def test_wrong_keys_cost_no_statement(self) -> None:
        neighbour, before = self.neighbours_till(), self.lookups
        self.assertGreater(before, 0)
        try_wrong_keys = self.try_wrong_keys(4000)
        self.assert_served(neighbour)
        self.assertEqual(try_wrong_keys.keys(), {401, 429})
        self.assertEqual(try_wrong_keys[401], 5)
        for path in ("/broadcast", "/health", f"/api/{self.slug}/events", "/api/admin/tenants"):
            answer = self.ask("POST", path, _NOTE, key=f"wrong-{path}", source="127.0.9.9")
            self.assertIn(answer.status, (401, 405))
        self.assertEqual(self.lookups, before)

    def test_an_address_is_over_its_rate_and_a_valid_key_gets_in_from_there(self) -> None:
        path, key = f"/api/{self.slug}/events", self.make_key("platform")
        self.assertEqual(self.ask("POST", path, _NOTE, key=key).status, 201)
        code = ""
        for _ in range(_TRIES):
            answer = self.ask("POST", path, _NOTE, key="wrong", source=self.place)
            code = str(answer.json["code"])
            if code == "too_many_requests":
                break
        self.assertEqual((answer.status, code), (429, "too_many_requests"))
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        for address in ("/docs", "/health", "/broadcast", "/nothing"):
            # One per second is answered.
            tries = [self.ask("GET", address, source=self.place).status for _ in range(3)]
            self.assertIn(429, tries, address)
        self.assertEqual(self.ask("GET", "/health/ready", source=self.place).status, 200)
        self.assertEqual(self.try_handshake(self.key, source=self.place).status, 101)
        self.assertEqual(self.ask("POST", path, _NOTE, key=key, source=self.place).status, 201)

    def test_a_key_that_was_made_just_now_opens_from_there_too(self) -> None:
        self.try_wrong_keys(400)
        for _ in range(5):
            # Until the notification arrives, the key is unknown.
            key = self.make_key()
            until(
                lambda key=key: self.try_handshake(key, source=self.place).status == 101,  # type: ignore[misc]
                "the new key opens",
            )

    def test_the_log_has_some_lines_of_it(self) -> None:
        before = len(self.posd.log())
        self.try_wrong_keys(2000)
        lines = re.findall(r"not let in: .*", self.posd.log()[before:])
        self.assertTrue(0 < len(lines) < 60, len(lines))


class CredentialTests(RatesCase):
    """Clients with a valid key that send without end."""

    def test_a_flood_of_questions_is_refused_and_others_are_answered(self) -> None:
        neighbour, key = self.neighbours_till(), self.make_key(slug=self.neighbour)
        path = f"/api/{self.slug}/orders/pending"
        answers = self.flood(request("GET", path, [("X-API-Key", self.key)]), 60, peers=20)
        refused = [each for each in answers if each.status != 200]
        # Ten at once, and one per second.
        self.assertGreaterEqual(len(answers) - len(refused), 10)
        self.assertGreaterEqual(len(refused), 20)
        for answer in refused:
            self.assert_refused(answer, 429, "too_many_requests")
            self.assertTrue(1 <= int(answer.headers["retry-after"]) <= 10)
        self.assertEqual(
            self.ask("GET", f"/api/{self.neighbour}/orders/pending", key=key).status, 200
        )
        self.assert_served(neighbour)
        # It also has the rate of a till, and handshakes of tills are counted separately.
        self.assertEqual(self.try_handshake(self.key).status, 101)

    def test_every_face_is_counted(self) -> None:
        device = self.make_key("device", "till-1")
        faces: tuple[tuple[str, str, Any], ...] = (
            ("GET", f"/api/{self.slug}/events?after=0", None),
            ("POST", f"/api/{self.slug}/events/ack", {"id": 0}),
            ("POST", f"/api/{self.slug}/heartbeat", {}),
            ("GET", f"/api/{self.slug}/nothing", None),
            ("DELETE", f"/api/{self.slug}/orders/pending", None),
            ("POST", "/broadcast", {"tenant": self.slug, "event": _NOTE}),
        )
        each = itertools.cycle(faces)

        def ask() -> int:
            method, path, body = next(each)
            return self.ask(method, path, body, key=device).status

        self.assertGreaterEqual(self.refused_after(ask), 10)
        for method, path, body in (*faces, ("GET", f"/api/{self.slug}/events/stream", None)):
            with self.subTest(method=method, path=path):
                tries = [self.ask(method, path, body, key=device) for _ in range(3)]
                refused = [each for each in tries if each.status == 429]
                self.assertNotEqual(refused, [])
                self.assert_refused(refused[0], 429, "too_many_requests")
        self.assertIn(429, [self.try_handshake(device).status for _ in range(3)])

    def test_a_long_body_that_is_too_much_is_read_later_and_the_connection_is_kept(self) -> None:
        key, path = self.make_key("platform"), f"/api/{self.slug}/events"
        # Until the key is known, its requests count against the address.
        self.assertEqual(self.ask("POST", path, _NOTE, key=key).status, 201)
        body = b'{"type":"note","data":{"text":"' + b"x" * 600_000 + b'"}}'
        first = self.ask("POST", path, body, key=key)
        self.assert_refused(first, 413, "event_too_large")
        peer = self.peer()
        for _ in range(2):
            peer.send(request("POST", path, [("X-API-Key", key)], body))
            answer = peer.answer()
            self.assert_refused(answer, 429, "too_many_requests")
            self.assertIn("retry-after", answer.headers)
            self.assertNotIn("connection", answer.headers)


class TillTests(RatesCase):
    """A till that sends without end is read more slowly, and nothing is lost."""

    def test_frames_of_every_kind_slow_it_down(self) -> None:
        neighbour = self.neighbours_till()
        for number, kind in enumerate((frame(PING), frame(PONG), frame(TEXT, b'{"type":"pong"}'))):
            with self.subTest(kind=kind):
                till = self.till(headers={"X-Device-ID": f"till-{number}"})
                # Forty at once, then four per second. Data of one read is accepted.
                till.send(kind * 52 + frame(PING, b"first"))
                _pong(till, b"first", 10.0)
                till.send(frame(PING, b"second"))
                self.assert_served(neighbour)
                with self.assertRaises(TimeoutError):
                    _pong(till, b"second", 0.5)
                _pong(till, b"second", 10.0)

    def test_bytes_slow_it_down(self) -> None:
        till = self.till(headers={"X-Device-ID": "till-1"})
        for number in range(13):
            till.send(frame(TEXT, b'{"type":"note","n":%d,"t":"%b"}' % (number, b"x" * 60_000)))
        till.send(frame(PING, b"done"))
        self.assert_served(self.neighbours_till())
        with self.assertRaises(TimeoutError):
            _pong(till, b"done", 0.5)
        _pong(till, b"done", 20.0)
        logged = f"SELECT (event_data->>'n')::int FROM {self.schema}.pos_sync_logs ORDER BY id"
        rows = self.wait_for(logged, 13)
        self.assertEqual([n for (n,) in rows], [*range(13)])


def _pong(till: Peer, payload: bytes, seconds: float) -> None:
    """Wait for the answer to a ping."""
    while (got := till.frame(seconds)).opcode != PONG or got.payload != payload:
        pass
