"""Every till receives exactly the events committed after its position: in order, each once per connection.

The test uses a real PostgreSQL, two nodes on one database, writers of all kinds and isolation levels,
with rollbacks, and tills that come and go. It prints its seed, so that a failure can be repeated.
"""

from __future__ import annotations

import itertools
import os

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.harness import Daemon, Shop
from tests.integration.load import HOOK, REST, SQL, Load
from tests.integration.wire_case import running

_numbers = itertools.count(1)
_LIMITS = "[limits]\npublish_per_second_per_tenant = 100000"
_SEED = os.environ.get("POSD_TEST_SEED")


class DeliveryTests(SynchronousTestCase):
    """The same property under different loads."""

    def setUp(self) -> None:
        self.shop, first = running(_LIMITS)
        self.nodes = [first, self.second(self.shop)]
        self.slug = f"shop-{next(_numbers)}"
        self.shop.add_tenant(self.slug)

    def second(self, shop: Shop) -> Daemon:
        posd = shop.start(_LIMITS)
        self.addCleanup(posd.kill)
        return posd

    def holds(self, writers: int, tills: int, roads: tuple[str, ...], most: int) -> None:
        load = Load(self.shop, self.slug, self.nodes, **({"seed": int(_SEED)} if _SEED else {}))
        print(f"delivery: {writers} writers, {tills} tills, seed {load.seed}")
        self.addCleanup(load.abort)
        load.start(writers, tills, roads=roads, most=most, stays=0.6)
        load.written()
        faults = load.finish()
        self.assertEqual(faults, [], f"seed {load.seed}")
        committed = sum(len(writer.committed) for writer in load.writers)
        self.assertEqual(load.head(), committed)
        self.assertGreater(committed, writers * most * 0.6)
        self.assertGreater(sum(len(rover.visits) for rover in load.rovers), 2 * tills)

    def test_with_writers_on_every_road_at_once(self) -> None:
        self.holds(8, 8, (SQL, HOOK, REST), 100)

    def test_with_orders_of_the_shops_own_rows(self) -> None:
        self.holds(8, 4, (HOOK,), 120)

    def test_with_a_platform_that_calls_both_nodes(self) -> None:
        self.holds(8, 4, (REST,), 60)
