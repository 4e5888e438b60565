"""Tests of the turns of requests: how many run at the same time, and the order of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import TooManyRequests
from posd.web.http import request_turns as turns
from posd.web.http.request_turns import ALL_WAITING, MOST_WAITING, WAIT_SECONDS, RequestTurns
from tests import stack

AT_ONCE: Final = 4


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        # Enough of them to tell an order; the tests of requests have as many as there are.
        self.patch(turns, "AT_ONCE", AT_ONCE)
        self.counted: list[str] = []
        self.turns = RequestTurns(self.clock, self.counted.append)
        self.begun: list[str] = []
        self.refused: list[str] = []
        self.gives: dict[str, Callable[[], None]] = {}

    def come(self, name: str, group: str = "key") -> None:
        async def work() -> None:
            try:
                self.gives[name] = await self.turns.acquire(group)
            except TooManyRequests:
                self.refused.append(name)
            else:
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
        self.assertEqual((self.turns._held_counts, self.turns._waiting), ({}, {}))
        # One delayed call ends all turns that were held for too long.
        self.clock.advance(0.25)
        self.assertEqual((self.clock.getDelayedCalls(), [*self.turns._held_turns]), ([], []))

    def test_a_thousand_do_not_run_inside_each_other(self) -> None:
        depths: list[int] = []

        async def work() -> None:
            give = await self.turns.acquire("key")
            depths.append(stack.stack_depth())
            give()

        for name in "abcd":
            self.come(name)
        for _ in range(MOST_WAITING):
            Deferred.fromCoroutine(work())
        self.give("a")
        self.assertEqual(len(depths), MOST_WAITING)
        self.assertEqual(len({*depths}), 1)

    def test_those_that_wait_leave_connections_to_others(self) -> None:
        """Each waits on one of the listener's connections for requests, of which there are 2000."""
        for number in range(AT_ONCE + 2000):
            self.come(f"{number}")
        self.assertEqual(len(self.refused), 2000 - MOST_WAITING)
        self.assertEqual(self.counted, ["turn"] * len(self.refused))
        for number in range(1000):
            self.come(f"other {number}", "another key")
        self.come("x", "a third key")
        waiting = sum(map(len, self.turns._waiting.values()))
        self.assertEqual((waiting, self.begun[-1]), (ALL_WAITING, "x"))
        for number in range(AT_ONCE + 10):
            self.come(f"few {number}", "a fourth key")
        self.assertNotIn("few 13", self.refused)

    def test_one_that_has_waited_for_five_seconds_is_refused(self) -> None:
        self.patch(turns, "_HOLD_SECONDS", 60)
        for name in "abcdef":
            self.come(name)
        self.clock.advance(4)
        self.come("g")
        self.clock.advance(1)
        self.assertEqual(self.refused, [*"ef"])
        self.give("a")
        self.assertEqual(self.begun, [*"abcdg"])

    def test_a_turn_is_not_lost_that_is_given_in_the_moment_of_the_refusal(self) -> None:
        self.patch(turns, "_HOLD_SECONDS", WAIT_SECONDS)
        for name in "abcdef":
            self.come(name)
        self.clock.advance(WAIT_SECONDS)
        self.clock.advance(0)
        self.assertEqual(self.refused, [*"ef"])
        self.assertEqual(
            (self.turns._held_counts, self.turns._waiting, self.turns._count), ({}, {}, 0)
        )
