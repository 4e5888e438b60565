"""Code in shops' own tables delays no other shop and gets no further rights.

Three shops do random hostile actions while another shop sells. Each seed is a day. `POSD_TEST_SEEDS` is
the number of days, and `POSD_TEST_SEED` the first seed. `POSD_PG_BIN` names the programs of another
PostgreSQL.
"""

from __future__ import annotations

import os
import random
import time
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from posd.testing.postgres import test_server
from tests.integration.harness import Daemon, Shop
from tests.integration.shop_mischief import Mischief
from tests.integration.wire import Till

LONGEST: Final = 2.0
"""Seconds from a commit to the till, in addition to those of a slow machine."""
SECONDS: Final = 2.5
"""Seconds for which the shops are hostile."""


class HostileShopTests(SynchronousTestCase):
    timeout = 600

    def setUp(self) -> None:
        # Its log is looked into.
        self.server = test_server().server or test_server().another()
        if self.server is not test_server().server:
            self.addCleanup(self.server.stop)

    def test_nobody_else_waits_and_nothing_has_more_rights(self) -> None:
        first = int(os.environ.get("POSD_TEST_SEED", "1"))
        for seed in range(first, first + int(os.environ.get("POSD_TEST_SEEDS", "1"))):
            with self.subTest(seed=seed):
                self.one_day(seed)

    def one_day(self, seed: int) -> None:
        shared = self.server is test_server().server
        scene = Shop.open(["good"], server=None if shared else self.server)
        try:
            self.siege(scene, random.Random(seed), seed)
        finally:
            scene.close()

    def siege(self, scene: Shop, dice: random.Random, seed: int) -> None:
        evil = [
            Mischief(scene, slug, random.Random(dice.random())) for slug in ("evil", "vile", "foul")
        ]
        for each in evil:
            each.open()
        posd = scene.start()
        key = scene.key("platform", "good")
        till = Till.dial(posd, "/ws/pos/good", {"X-API-Key": scene.key(slug="good")})
        try:
            quiet = max(self.sell(scene, posd, key, till, dice) for _ in range(4))
            for each in evil:
                each.start()
            began, waits = time.monotonic(), []
            while time.monotonic() - began < SECONDS:
                waits.append(self.sell(scene, posd, key, till, dice))
                time.sleep(dice.random() * 0.1)
        finally:
            for each in evil:
                each.stop()
            till.hang_up()
        done = {each.slug: each.acts for each in evil}
        if os.environ.get("POSD_TEST_SEEDS"):
            print(
                f"seed {seed}: quiet {quiet:.3f} s, longest {max(waits):.3f} s, {len(waits)} sales,"
                f" {sum(len(each.acts) for each in evil)} acts"
            )
        self.assertLess(max(waits), LONGEST + 2 * quiet, f"seed {seed}: {waits} {done}")
        self.assertNotIn("tenant good cannot be", posd.log(), f"seed {seed}")
        log = self.server.log()
        for each in evil:
            told = [
                line for line in log.splitlines() if each.mark in line and "STATEMENT" not in line
            ]
            self.assertEqual(told, [], f"seed {seed}: {done}")
        self.assertIsNone(posd.process.poll())
        ((head, events),) = scene.query(
            "SELECT h.last_seq, (SELECT count(*) FROM dinedesk_good.pos_events)"
            "  FROM dinedesk_main.pos_heads AS h JOIN dinedesk_main.tenants AS t ON t.id = h.tenant_id"
            " WHERE t.slug = 'good'"
        )
        self.assertEqual((head, events), (4 + len(waits), 4 + len(waits)))

    def sell(self, scene: Shop, posd: Daemon, key: str, till: Till, dice: random.Random) -> float:
        """Return the seconds from the commit of an event, by any way, until the till has it."""
        mark = str(dice.random())
        road = dice.choice(("hook", "sql", "rest"))
        began = time.monotonic()
        if road == "hook":
            scene.order("good", name=mark)
        elif road == "sql":
            scene.publish("good", "note", {"mark": mark})
        else:
            body = {"type": "note", "data": {"mark": mark}}
            reply = posd.request("POST", "/api/good/events", body, key=key)
            self.assertEqual(reply.status, 201, reply)
        while True:
            message = till.receive(30)
            if mark in (message["data"].get("mark"), message["data"].get("customerName")):
                return time.monotonic() - began
