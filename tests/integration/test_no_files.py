"""No request, till or scrape reads a file, and a lack of descriptors causes no error."""

from __future__ import annotations

import http.client
import json
import resource
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.harness import ROOT, Shop
from tests.integration.peer import Peer, request
from tests.integration.shared import shared
from tests.integration.test_every_endpoint import IN_BOTH, Called, Scene
from tests.integration.wire import Till
from tests.integration.wire_case import until

_AUDITED: Final = ROOT / "tests/integration/audited"
_PROCESS: Final = "'/proc/self/"
"""Prometheus' metrics of the process come from the kernel, at each scrape."""


@shared
def audited(stack: ExitStack, purpose: str) -> tuple[Scene, Path, int]:
    """Two shops, the file where their daemon writes down what it opens, and its size after the start.

    Each purpose has a daemon of its own.
    """
    shop = Shop.open(["kitchen", "grill"])
    stack.callback(shop.close)
    # What is loaded when it is first needed differs from shop to shop.
    shop.query(
        "UPDATE dinedesk_main.tenants SET timezone = 'Asia/Tokyo', default_region = 'JP', currency = 'BHD'"
        " WHERE slug = 'grill'"
    )
    path = shop.folder / "audit"
    environ = {"PYTHONPATH": f"{_AUDITED}:{ROOT}", "POSD_AUDIT": str(path)}
    posd = shop.start("[limits]\nfailed_auth_per_minute = 100000\n", environ=environ)
    began = path.stat().st_size
    return Scene(shop, posd), path, began


class NoFilesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.scene, self.path, self.began = audited("files")
        self.posd = self.scene.posd

    def opened(self) -> list[str]:
        """Return the files opened since the start."""
        with self.path.open("rb") as file:
            file.seek(self.began)
            lines = file.read().decode().splitlines()
        return [line for line in lines if _PROCESS not in line]

    def test_the_start_reads_files(self) -> None:
        """Otherwise the other tests would prove nothing."""
        self.assertGreater(self.began, 1000)
        self.assertIn("zoneinfo/Asia/Tokyo", self.path.read_text())

    def test_no_operation_opens_a_file(self) -> None:
        for slug in ("kitchen", "grill"):
            for called in self.scene.operations:
                for kind in sorted(called.kinds) or ["nobody"]:
                    self.scene.ask(called, slug, IN_BOTH, self.scene.keys[slug].get(kind))
        self.assertEqual(self.opened(), [])

    def test_nothing_that_is_refused_opens_a_file(self) -> None:
        for called in self.scene.operations:
            self.scene.ask(called, "kitchen", IN_BOTH, "wrong")
        for raw in (
            b"nonsense\r\n\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            request("GET", "/nowhere"),
            request("PUT", "/metrics"),
            request("POST", "/api/kitchen/events", {"X-API-Key": "wrong"}, b"{"),
            request("POST", "/broadcast", {"Content-Length": str(10**9)}),
        ):
            with closing(Peer.dial(self.posd)) as peer:
                peer.send(raw)
                peer.answer()
        with closing(Peer.dial(self.posd, bare=True)) as peer:
            peer.send(request("GET", "/health/live"))
            peer.answer()
        self.assertEqual(self.opened(), [])

    def test_no_body_is_put_into_a_file(self) -> None:
        key = self.scene.keys["kitchen"]["platform"]
        event = json.dumps({"type": "note", "data": {"text": "x" * 110_000}}).encode()
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
        with closing(Peer.dial(self.posd)) as peer:
            answer = peer.ask("POST", "/api/kitchen/events", {"X-API-Key": key}, event)
            self.assertEqual(answer.status, 201)
            headers = {"X-API-Key": key, "Transfer-Encoding": "chunked"}
            peer.send(request("POST", "/api/kitchen/events", headers) + chunks)
            self.assertEqual(peer.answer().status, 201)
        self.assertEqual(self.opened(), [])

    def test_no_telephone_number_and_no_moment_opens_a_file(self) -> None:
        key = self.scene.keys["kitchen"]["platform"]
        for phone in ("+81312345678", "+8821612345678", "+16502530000", "+682 21 234", "0"):
            for _ in range(2):
                order = {
                    "orderId": f"P-{phone}",
                    "totalAmount": 1,
                    "customerPhone": phone,
                    "scheduledTime": "2026-12-24T19:30:00",
                }
                self.posd.request("POST", "/api/kitchen/orders", order, key=key)
            path = f"/api/kitchen/loyalty/{phone.replace(' ', '%20')}/points"
            self.posd.request("GET", path, key=key)
        self.assertEqual(self.opened(), [])

    def test_no_till_opens_a_file(self) -> None:
        key = self.scene.keys["kitchen"]["device"]
        till = Till.dial(self.posd, "/ws/pos/kitchen?last_event_id=0", {"X-API-Key": key})
        for message in (
            {"type": "ack", "id": till.connected["lastEventId"]},
            {"type": "nack", "id": 1, "reason": "no paper"},
            {"type": "print", "orderId": "A-1", "status": "printed"},
            {"type": "print", "orderId": "A-1", "status": "failed", "reason": "jam"},
            {"type": "heartbeat"},
            {"type": "nonsense"},
        ):
            till.send(message)
        till.send({"type": "ping", "id": 1})
        while till.receive()["type"] != "pong":
            pass
        till.hang_up()
        until(lambda: "device=front" in self.posd.log(), "its end is logged")
        self.assertEqual(self.opened(), [])


class NoDescriptorTests(SynchronousTestCase):
    """Without a free descriptor, connections stay open, and what is not possible is answered with 503."""

    def setUp(self) -> None:
        self.scene, _, _ = audited("descriptors")
        self.posd = self.scene.posd
        self.connection = http.client.HTTPSConnection(
            "localhost", self.posd.port, timeout=300, context=self.posd.tls()
        )
        self.addCleanup(self.connection.close)
        self.assertEqual(self.ask("GET", "/health/live"), 200)
        self.logged = len(self.posd.log())

    def ask(self, method: str, path: str, body: object = None, key: str | None = None) -> int:
        """Send a request on an open connection. Return the status."""
        headers = {} if key is None else {"X-API-Key": key}
        data = None if body is None else json.dumps(body)
        self.connection.request(method, path, data, headers)
        answer = self.connection.getresponse()
        answer.read()
        return answer.status

    @contextmanager
    def none_left(self) -> Iterator[None]:
        """Use all free descriptors."""
        before = resource.prlimit(self.posd.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.posd.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            yield
        finally:
            resource.prlimit(self.posd.pid, resource.RLIMIT_NOFILE, before)

    def assert_no_fault(self) -> None:
        for word in ("Traceback", "Unhandled", "#critical", "request {id} failed"):
            self.assertNotIn(word, self.posd.log()[self.logged :])

    def asked(self, called: Called) -> Any:
        """Return the status of an operation, with a suitable key."""
        kind = sorted(called.kinds)[-1] if called.kinds else None
        key = None if kind is None else self.scene.keys["kitchen"][kind]
        body = None if called.method in ("GET", "DELETE") else called.example
        return self.ask(called.method, called.address("kitchen", IN_BOTH), body, key)

    def test_every_operation_is_answered_on_connections_that_stand(self) -> None:
        with self.none_left():
            for called in self.scene.operations:
                if not called.path.endswith("/stream"):
                    with self.subTest(operation=called.name):
                        self.assertLess(self.asked(called), 500)
        self.assert_no_fault()

    def test_without_a_connection_to_the_database_it_is_503_until_there_is_one(self) -> None:
        balance = "/api/kitchen/gift-cards/CARD-1/balance"
        key = self.scene.keys["kitchen"]["platform"]
        with self.none_left():
            self.scene.shop.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            until(lambda: self.ask("GET", "/health/ready") == 503, "the database is away")
            self.assertEqual(self.ask("GET", balance, key=key), 503)
        until(lambda: self.ask("GET", "/health/ready") == 200, "the database is back")
        self.assertEqual(self.ask("GET", balance, key=key), 200)
        self.assert_no_fault()

    def test_a_client_that_finds_no_place_is_served_when_there_is_one(self) -> None:
        with self.none_left():
            for _ in range(20):
                Peer.dial(self.posd, bare=True).close()
            self.assertEqual(self.ask("GET", "/health/live"), 200)
        until(lambda: self.posd.request("GET", "/health/live").status == 200, "there is a place")
        self.assertLess(len(self.posd.log()) - self.logged, 20_000)
