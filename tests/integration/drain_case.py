"""SIGTERM while tills are connected and shops publish: the order of the disconnections, and no loss."""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any, ClassVar, Final
from unittest import SkipTest

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from tests.integration.crowd import Crowd, Member
from tests.integration.harness import Daemon, Shop
from tests.integration.peer import HungUp, Peer
from tests.integration.wire import WAIT, Till
from tests.integration.wire_case import until

_TENANTS: Final = 20
_PUBLISHERS: Final = 4
_PACE: Final = 0.05
_OF_THE_TEST: Final = 500
"""Descriptors that the test needs in addition to those of the tills."""


@define(eq=False)
class Publisher:
    """A platform that publishes one event after the other on one connection until posd closes it.

    `answered` has the positions of the answers with 201, by published text.
    """

    daemon: Daemon
    slug: str
    key: str
    answered: dict[str, int] = field(factory=dict)
    refusals: list[int] = field(factory=list)

    def work(self) -> None:
        """Publish until posd closes the connection."""
        number = 0
        with Peer.dial(self.daemon) as peer, suppress(HungUp, OSError):
            while True:
                number += 1
                mark = f"{self.slug}-{number}"
                answer = peer.ask(
                    "POST",
                    f"/api/{self.slug}/events",
                    {"X-API-Key": self.key, "Content-Type": "application/json"},
                    json.dumps({"type": "note", "data": {"mark": mark}}).encode(),
                )
                if answer.status == 201:
                    self.answered[mark] = int(answer.json["id"])
                else:
                    self.refusals.append(answer.status)
                time.sleep(_PACE)


class DrainCase(SynchronousTestCase):
    """A daemon with many tills. A quarter of them are of the kind without positions."""

    tills: ClassVar[int]
    configuration: ClassVar[str] = "[limits]\npublish_per_second_per_tenant = 100000"

    def setUp(self) -> None:
        _make_room_for(self.tills)
        self.slugs = [f"shop-{number}" for number in range(_TENANTS)]
        self.shop = Shop.open(self.slugs)
        self.addCleanup(self.shop.close)
        self.keys = {slug: self.shop.key(slug=slug) for slug in self.slugs}

    def crowd(self, daemon: Daemon) -> Crowd:
        crowd = Crowd.gather(daemon, list(self.places()))
        self.addCleanup(crowd.close)
        return crowd

    def places(self) -> Iterator[tuple[str, Mapping[str, str]]]:
        for number in range(self.tills):
            slug = self.slugs[number % _TENANTS]
            # A till that names a position uses positions. The others receive new events only.
            query = "" if number % 4 == 0 else "?last_event_id=0"
            yield f"/ws/pos/{slug}{query}", {"X-API-Key": self.keys[slug]}

    def drain(self) -> Mapping[str, Any]:
        """Connect all tills, stop the daemon during publishing, and start another one.

        Assert what does not depend on the number of tills. Return the times.
        """
        began = time.monotonic()
        daemon = self.shop.start(self.configuration)
        crowd = self.crowd(daemon)
        connected = time.monotonic() - began
        publishers = [
            Publisher(daemon, slug, self.shop.key("platform", slug))
            for slug in self.slugs[:_PUBLISHERS]
        ]
        with ThreadPoolExecutor(_PUBLISHERS) as beside:
            working = [beside.submit(each.work) for each in publishers]
            until(lambda: all(each.answered for each in publishers), "everybody publishes", 60)
            before = sum(len(each.answered) for each in publishers)
            stopped = time.monotonic()
            daemon.terminate()
            until(lambda: any(each.code for each in crowd.members), "the first one is told", 60)
            self.assert_deaf(daemon)
            status = daemon.process.wait(120)
            ended = time.monotonic()
            crowd.ended()
            for each in working:
                each.result(WAIT)
        log = daemon.log()
        self.assertEqual(status, 0, log[-2000:])
        for words in ("Traceback", "Unhandled", "#error]", "#critical]"):
            self.assertNotIn(words, log)
        self.assert_told(crowd.members)
        during = sum(len(each.answered) for each in publishers) - before
        self.assertGreater(during, 0, "somebody was served during the drain")
        self.assert_kept(publishers)
        told = [each.told_at - stopped for each in crowd.members]
        return {
            "tills": len(crowd.members),
            "connected_seconds": round(connected, 1),
            "first_told_seconds": round(min(told), 2),
            "last_told_seconds": round(max(told), 2),
            "exit_seconds": round(ended - stopped, 2),
            "published_before_and_during": [before, during],
        }

    def assert_deaf(self, daemon: Daemon) -> None:
        """Assert that no new connection is accepted."""
        self.assertRaises(ConnectionRefusedError, Peer.dial, daemon, bare=True)

    def assert_told(self, members: Sequence[Member]) -> None:
        """Assert that tills are told to reconnect. Deployed tills are disconnected last."""
        plain = [each for each in members if "?" not in each.path]
        others = [each for each in members if "?" in each.path]
        self.assertEqual(Counter(each.code for each in plain), {1006: len(plain)})
        self.assertEqual(Counter(each.code for each in others), {1001: len(others)})
        times = sorted(each.told_at for each in others)
        # A batch may have the last of these and the first of those.
        self.assertGreater(min(each.told_at for each in plain), times[int(len(times) * 0.9)])
        # In batches, with pauses of at least an eighth of a second.
        pauses = [later - earlier for earlier, later in pairwise(times) if later - earlier > 0.1]
        self.assertGreater(len(pauses), 5)

    def assert_kept(self, publishers: list[Publisher]) -> None:
        """Assert that the next posd delivers every event that was answered with 201, once and in order."""
        after = self.shop.start(self.configuration)
        for each in publishers:
            head = max(each.answered.values())
            headers = {"X-API-Key": self.keys[each.slug]}
            till = Till.dial(after, f"/ws/pos/{each.slug}?last_event_id=0", headers)
            self.addCleanup(till.hang_up)
            received = {
                message["data"]["mark"]: message["id"] for message in till.take(head, seconds=120)
            }
            self.assertEqual(
                {mark: received.get(mark) for mark in each.answered}, each.answered, each.slug
            )
            self.assertEqual(len(received), head)
            self.assertEqual({*each.refusals} - {503}, set())
        self.assertEqual(after.stop(), 0)


def _make_room_for(tills: int) -> None:
    """Raise the limit of open files, here and so in the daemon, as its unit does with LimitNOFILE=."""
    wanted = tills + _OF_THE_TEST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        raise SkipTest(f"not run: {wanted} open files are needed, and {hard} are allowed")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
