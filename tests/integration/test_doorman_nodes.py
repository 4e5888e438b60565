"""Two daemons on one database: one is the doorman, and the other takes over if it ends or hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.harness import Daemon, Shop
from tests.integration.wire import Till

_SECONDS = 300.0
ASLEEP = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND (classid, objid) = (7097, 10)"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class TakingOverTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.shop = Shop.open()
        self.addCleanup(self.shop.close)
        self.admin = self.shop.key("admin", None)

    def start(self) -> tuple[Daemon, Daemon]:
        """Start the doorman, and another node with a till."""
        doorman = self.shop.start()
        self.until(lambda: self.is_doorman(doorman), "the first node is the doorman")
        other = self.shop.start()
        self.till = Till.dial(other, "/ws/pos/kitchen", {"X-API-Key": self.shop.key()})
        self.addCleanup(self.till.hang_up)
        self.assertFalse(self.is_doorman(other))
        return doorman, other

    def is_doorman(self, node: Daemon) -> bool:
        metrics = node.request("GET", "/metrics", key=self.admin).content.decode()
        return "\nposd_doorman 1.0" in metrics

    def until(self, happened: Callable[[], bool], what: str) -> None:
        ends = time.monotonic() + _SECONDS
        while not happened():
            self.assertLess(time.monotonic(), ends, what)
            time.sleep(0.02)

    def came(self) -> None:
        """Assert that a new order reaches the till."""
        order_id = self.shop.order()
        message = self.till.receive(_SECONDS)
        while message["type"] != "new_order":
            message = self.till.receive(_SECONDS)
        self.assertEqual(str(message["data"]["orderId"]), str(order_id))

    def test_the_other_one_takes_over_from_one_that_is_killed_in_its_sleep_or_stopped(self) -> None:
        doorman, other = self.start()
        self.came()
        self.until(lambda: bool(self.shop.query(ASLEEP)[0][0]), "it is asleep")
        doorman.kill()
        self.came()
        self.assertTrue(self.is_doorman(other))
        third = self.shop.start()
        stopping = other.process
        self.till.hang_up()
        self.till = Till.dial(third, "/ws/pos/kitchen", {"X-API-Key": self.shop.key()})
        self.assertFalse(self.is_doorman(third))
        os.kill(stopping.pid, signal.SIGTERM)
        self.until(lambda: self.is_doorman(third), "the third one has the lease")
        self.assertIn("this node is the doorman", third.log())
        self.came()

    def test_one_that_hangs_loses_the_lease_and_knows_it_when_it_goes_on(self) -> None:
        doorman, other = self.start()
        os.kill(doorman.pid, signal.SIGSTOP)
        self.addCleanup(os.kill, doorman.pid, signal.SIGCONT)
        self.came()
        self.assertTrue(self.is_doorman(other))
        os.kill(doorman.pid, signal.SIGCONT)
        self.until(lambda: not self.is_doorman(doorman), "it knows that it lost the lease")
        self.came()
        self.assertIn("this node is not the doorman any more", doorman.log())
