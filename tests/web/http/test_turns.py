"""Who may be worked on at once, and in which order the others follow."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.web.http.turns import Turns


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.turns = Turns(self.clock)
        self.begun: list[str] = []
        self.gives: dict[str, Callable[[], None]] = {}

    def come(self, name: str, who: str = "key") -> None:
        async def work() -> None:
            self.gives[name] = await self.turns.take(who)
            self.begun.append(name)

        Deferred.fromCoroutine(work())

    def give(self, name: str) -> None:
        self.gives[name]()
        self.clock.advance(0)

    def test_four_at_once_and_then_in_their_order(self) -> None:
        for name in "abcdef":
            self.come(name)
        self.assertEqual(self.begun, [*"abcd"])
        self.give("c")
        self.give("c")
        self.assertEqual(self.begun, [*"abcde"])
        self.give("a")
        self.assertEqual(self.begun, [*"abcdef"])

    def test_others_do_not_wait_for_them(self) -> None:
        for name in "abcdef":
            self.come(name)
        self.come("x", "another key")
        self.assertEqual(self.begun, [*"abcdx"])

    def test_one_that_takes_long_does_not_hold_the_others_up(self) -> None:
        for name in "abcdef":
            self.come(name)
        self.clock.advance(0.25)
        self.clock.advance(0)
        self.assertEqual(self.begun, [*"abcdef"])
        for name in "abcdef":
            self.give(name)
        for name in "ghijkl":
            self.come(name)
        self.assertEqual(self.begun, [*"abcdefghij"])

    def test_nothing_is_kept_of_who_is_done(self) -> None:
        for name in "abcdef":
            self.come(name)
        for name in "abcdef":
            self.give(name)
        self.assertEqual((self.turns._held, self.turns._waiting), ({}, {}))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_two_thousand_do_not_run_inside_each_other(self) -> None:
        depths: list[int] = []

        async def work() -> None:
            give = await self.turns.take("key")
            depths.append(len(inspect.stack(0)))
            give()

        for name in "abcd":
            self.come(name)
        for _ in range(2000):
            Deferred.fromCoroutine(work())
        self.give("a")
        self.assertEqual(len(depths), 2000)
        self.assertEqual(len({*depths}), 1)
