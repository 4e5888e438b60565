"""The tests of `broadcaster_case` for each broadcaster, against a real server."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from posd.broadcaster import BlockingBroadcaster, Broadcaster
from tests import broadcaster_case
from tests.broadcaster_case import KEY


class WithTwisted(broadcaster_case.BroadcasterCase):
    def broadcaster(self, url: str, **options: Any) -> Broadcaster:
        made = Broadcaster(reactor, url, KEY, random=lambda: 0.0, **options)
        self.addCleanup(made.close)
        return made

    def constructed(self, url: str, key: str) -> tuple[object, ...]:
        return reactor, url, key

    def call(self, name: str, *arguments: Any, **options: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = getattr(self.made, name)(*arguments, **options)
        return deferred


class Blocking(broadcaster_case.BroadcasterCase):
    def broadcaster(self, url: str, **options: Any) -> BlockingBroadcaster:
        made = BlockingBroadcaster(url, KEY, random=lambda: 0.0, **options)
        self.addCleanup(made.close)
        return made

    def constructed(self, url: str, key: str) -> tuple[object, ...]:
        return url, key

    def call(self, name: str, *arguments: Any, **options: Any) -> Deferred[Any]:
        return deferToThread(getattr(self.made, name), *arguments, **options)

    async def test_a_forked_process_does_not_use_its_parents_connections(self) -> None:
        await self.call("publish", "kitchen", "x", {})
        parent = os.getpid()
        self.patch(os, "getpid", lambda: parent + 1)
        await self.call("publish", "kitchen", "x", {})
        self.assertEqual(len(self.shop.peers), 2)
