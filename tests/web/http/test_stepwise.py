"""Tests of computations in steps: the reactor runs between steps, and the result is returned."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, Cooperator
from twisted.trial.unittest import SynchronousTestCase

from posd.web.http import stepwise as pieces
from posd.web.http.stepwise import run_in_steps


class PiecesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.done: list[str] = []

        def one_step() -> Callable[[], bool]:
            return lambda: True

        def later(tick: Callable[[], None]) -> Any:
            return self.clock.callLater(1, tick)

        self.patch(pieces, "_cooperator", Cooperator(one_step, later))
        self.patch(pieces, "_TOGETHER_SECONDS", 0.0)

    def work(self, name: str, steps: int) -> Generator[None, None, str]:
        for _ in range(steps):
            self.done.append(name)
            yield
        return name * 2

    def turn(self) -> None:
        self.clock.advance(1)

    def test_between_two_steps_the_reactor_has_a_turn(self) -> None:
        outcome = Deferred.fromCoroutine(run_in_steps(self.work("a", 3)))
        for steps in range(1, 4):
            self.turn()
            self.assertEqual(self.done, ["a"] * steps)
            self.assertNoResult(outcome)
        self.turn()
        self.assertEqual(self.successResultOf(outcome), "aa")

    def test_short_steps_follow_each_other(self) -> None:
        self.patch(pieces, "_TOGETHER_SECONDS", 60.0)
        outcome = Deferred.fromCoroutine(run_in_steps(self.work("a", 100)))
        self.assertEqual(self.done, [])
        self.turn()
        self.assertEqual(len(self.done), 100)
        self.assertEqual(self.successResultOf(outcome), "aa")

    def test_those_who_work_take_turns(self) -> None:
        Deferred.fromCoroutine(run_in_steps(self.work("a", 2)))
        Deferred.fromCoroutine(run_in_steps(self.work("b", 2)))
        for _ in range(4):
            self.turn()
        self.assertEqual(sorted(self.done[:2]), ["a", "b"])
        self.assertEqual(sorted(self.done), ["a", "a", "b", "b"])

    def test_what_it_raises_is_raised(self) -> None:
        def work() -> Generator[None, None, str]:
            yield
            raise LookupError("gone")

        outcome = Deferred.fromCoroutine(run_in_steps(work()))
        self.turn()
        self.turn()
        self.failureResultOf(outcome, LookupError)
