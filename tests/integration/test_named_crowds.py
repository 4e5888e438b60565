"""Many tills with device ids at once: all are accepted, and their messages are stored, in bounded time."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from posd.testing.postgres import test_server
from tests.integration.crowd import Crowd
from tests.integration.harness import Daemon, Shop, free_port
from tests.integration.postgres_proxy import Proxy
from tests.integration.wire_case import until

_TILLS: Final = 2000
_SHOPS: Final = 4
"""A shop may have 1,000 devices."""
_BOUND: Final = 240.0
"""Seconds in which all of them must have finished, on any test machine."""
_LIMITS: Final = """
[limits]
connections_per_tenant = 2000
publish_per_second_per_tenant = 100000
"""


class NamedCrowdCase(SynchronousTestCase):
    """Shops with 2,000 tills with device ids, and PostgreSQL behind a proxy."""

    def setUp(self) -> None:
        # The socket of a till counts in this process and in the daemon, which inherits the limit.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        self.slugs = [f"shop-{number}" for number in range(_SHOPS)]
        self.server = test_server().another()
        self.addCleanup(self.server.stop)
        self.shop = Shop.open(self.slugs, server=self.server)
        self.addCleanup(self.shop.close)
        self.keys = {slug: self.shop.key(slug=slug) for slug in self.slugs}
        self.proxy = Proxy(self.server.folder)
        self.proxy.start()
        self.addCleanup(self.proxy.stop)

    def start(self, *, port: int | None = None, plain: int | None = None) -> Daemon:
        self.plain = plain or free_port()
        endpoint = f"tcp:port={self.plain}:interface=127.0.0.1"
        listener = f'[[listen]]\nname = "plain"\nendpoint = "{endpoint}"\n'
        return self.shop.start(_LIMITS + listener, dsn=self.proxy.dsn("posd"), port=port)

    def tills(self, count: int, shops: int = _SHOPS) -> Iterator[tuple[str, Mapping[str, str]]]:
        for number in range(count):
            slug = self.slugs[number % shops]
            headers = {"X-API-Key": self.keys[slug], "X-Device-ID": f"till-{number}"}
            yield f"/ws/pos/{slug}", headers

    def gather(self, posd: Daemon, count: int = _TILLS, shops: int = _SHOPS) -> Crowd:
        """Connect so many tills with device ids at once."""
        tills = list(self.tills(count, shops))
        crowd = Crowd.gather(posd, tills, at_once=count, plain=self.plain, patience=_BOUND)
        self.addCleanup(crowd.close)
        return crowd

    def timed(self, what: str, posd: Daemon, count: int = _TILLS) -> Crowd:
        began = time.monotonic()
        crowd = self.gather(posd, count)
        seconds = time.monotonic() - began
        refusals = sum(member.refusals for member in crowd.members)
        print(f"crowd: {count} named tills in, {what}: {seconds:.1f} s, {refusals} refusals")
        self.assertLess(seconds, _BOUND)
        return crowd

    def assert_all_in_the_books(self, count: int) -> None:
        counted = "SELECT count(*) FROM dinedesk_main.pos_connected WHERE device_id IS NOT NULL"
        until(lambda: self.shop.query(counted) == [(count,)], f"{count} are in the books", _BOUND)

    def assert_all_claimed(self, count: int) -> None:
        counted = "SELECT count(*) FROM dinedesk_main.pos_connected WHERE claimed_at IS NOT NULL"
        until(lambda: self.shop.query(counted) == [(count,)], f"{count} have claimed", _BOUND)

    def assert_in_order(self, posd: Daemon) -> None:
        self.assertEqual(posd.request("GET", "/health/ready").status, 200)
        for sign in ("Traceback", "RecursionError", "Unhandled", "#critical"):
            self.assertNotIn(sign, posd.log())
        self.assertEqual(posd.stop(), 0)


class ConnectingTests(NamedCrowdCase):
    def test_two_thousand_named_tills_at_once(self) -> None:
        posd = self.start()
        crowd = self.timed("quiet database, new devices", posd)
        self.assert_all_in_the_books(_TILLS)
        crowd.say(b'{"type":"ping"}')
        self.assert_all_claimed(_TILLS)
        # All at once again, like a restart of posd.
        self.assertEqual(posd.stop(60), 0)
        again = self.start(port=posd.port, plain=self.plain)
        crowd = self.timed("posd just restarted", again)
        crowd.say(b'{"type":"ping"}')
        self.assert_all_claimed(_TILLS)
        self.assert_in_order(again)

    def test_a_thousand_named_tills_while_postgresql_is_slow(self) -> None:
        posd = self.start()
        self.proxy.delay = 0.02
        crowd = self.timed("20 ms a statement", posd, 1000)
        crowd.say(b'{"type":"ping"}')
        self.assert_all_claimed(1000)
        self.proxy.delay = 0.0
        self.assert_in_order(posd)


class AcknowledgingTests(NamedCrowdCase):
    def test_a_thousand_tills_acknowledge_one_event(self) -> None:
        posd = self.start()
        crowd = self.gather(posd, 1000, 1)
        # Earlier connections are stored by then, so the claims of all come in one iteration.
        self.assert_all_in_the_books(1000)
        (slug, *_) = self.slugs
        self.shop.publish(slug, "note", {})
        until(lambda: all(each.messages == 2 for each in crowd.members), "all have it", _BOUND)
        crowd.say(b'{"type":"ack","id":1}')
        acked = "SELECT count(*) FROM dinedesk_main.pos_cursors AS c JOIN dinedesk_main.pos_devices"
        acked += " USING (tenant_id, device_id) WHERE acked_seq = 1 AND first_acked_at IS NOT NULL"
        until(lambda: self.shop.query(acked) == [(1000,)], "all cursors are written", _BOUND)
        self.assert_all_claimed(1000)
        self.assert_in_order(posd)


class CutTests(NamedCrowdCase):
    def test_a_shop_whose_calls_wait_while_connections_are_cut_is_served_afterwards(self) -> None:
        posd = self.start()
        slug = self.slugs[0]
        path = f"/api/{slug}/orders/pending"
        # posd processes only two requests of one key at once, so each call has a key of its own. Several
        # requests for the same page are one read, so each asks for another page.
        keys = [self.shop.key("device", slug, f"POS_{number}") for number in range(150)]

        def call(key: str = self.keys[slug], limit: int = 50) -> int:
            page = f"{path}?limit={limit}"
            return posd.request("GET", page, key=key, patience=_BOUND).status

        self.assertEqual(call(), 200)
        with (
            ThreadPoolExecutor(150) as beside,
            closing(self.shop.connect()) as locked,
            locked.cursor() as cursor,
        ):
            cursor.execute(f"BEGIN; LOCK TABLE dinedesk_{slug.replace('-', '_')}.pos_orders")
            calls = [beside.submit(call, each, number) for number, each in enumerate(keys, 1)]
            until(lambda: self.queued(posd) >= 140, "the calls wait", _BOUND)
            self.proxy.cut()
            answers = [each.result() for each in calls]
            cursor.execute("ROLLBACK")
        self.assertEqual({*answers} - {503}, set())
        self.proxy.mend()
        posd.wait_ready()
        self.assertEqual([call() for _ in range(5)], [200] * 5)
        self.assert_in_order(posd)

    def queued(self, posd: Daemon) -> int:
        """Return how many calls wait for the shop's share of the pool."""
        key = self.shop.key("admin", None)
        text = posd.request("GET", "/metrics", key=key).content.decode()
        (line,) = [
            each for each in text.splitlines() if each.startswith("posd_database_pool_held_back ")
        ]
        return int(float(line.split()[1]))
