"""One run for all who wait: what it is asked, whom it answers, and that the stack stays flat."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database.coalescing import Coalescer, fail_all
from posd.errors import Busy, StatementFailed, Unavailable
from tests.database.test_checkout import stack_depth

_CROWD = 2000


class CoalescerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.runs: list[list[int]] = []
        self.gates: list[Deferred[None]] | None = []
        self.bad: set[int] = set()
        self.trouble: Exception | None = None
        self.coalescer: Coalescer[int, str] = Coalescer(
            self.clock, self.work, most=_CROWD, seconds=5.0
        )

    async def work(self, keys: Sequence[int]) -> Mapping[int, str]:
        self.runs.append(list(keys))
        if self.gates is not None:
            gate: Deferred[None] = Deferred()
            self.gates.append(gate)
            await gate
        if self.trouble is not None:
            raise self.trouble
        if self.bad & {*keys}:
            raise StatementFailed("bad", "22021")
        return {key: f"<{key}>" for key in keys}

    def open_gate(self) -> None:
        assert self.gates is not None
        self.gates.pop(0).callback(None)

    def test_who_asks_during_a_run_is_in_the_next_one(self) -> None:
        first = self.coalescer.ask(1)
        later = [self.coalescer.ask(each) for each in (1, 2, 2)]
        self.assertEqual((self.runs, self.coalescer.waiting), ([[1]], 2))
        self.open_gate()
        self.assertEqual(self.successResultOf(first), "<1>")
        for each in later:
            self.assertNoResult(each)
        self.open_gate()
        self.assertEqual([self.successResultOf(each) for each in later], ["<1>", "<2>", "<2>"])
        self.assertEqual((self.runs, self.coalescer.running), ([[1], [1, 2]], False))

    def test_what_is_gathered_is_one_run(self) -> None:
        self.gates = None
        with self.coalescer.gathering():
            asked = [self.coalescer.ask(each) for each in (1, 2, 3)]
            self.assertEqual(self.runs, [])
        self.assertEqual([self.successResultOf(each) for each in asked], ["<1>", "<2>", "<3>"])
        self.assertEqual(self.runs, [[1, 2, 3]])

    def test_what_is_gathered_during_a_run_is_in_the_next_one(self) -> None:
        first = self.coalescer.ask(1)
        with self.coalescer.gathering():
            later = [self.coalescer.ask(each) for each in (2, 3)]
            self.open_gate()
        self.open_gate()
        self.assertEqual(self.successResultOf(first), "<1>")
        self.assertEqual([self.successResultOf(each) for each in later], ["<2>", "<3>"])
        self.assertEqual(self.runs, [[1], [2, 3]])

    def test_a_run_takes_no_more_than_it_may(self) -> None:
        small = Coalescer(self.clock, self.work, most=2, seconds=5.0)
        for each in (1, 2, 3, 4):
            small.ask(each)
        for _ in range(3):
            self.open_gate()
        self.assertEqual(self.runs, [[1], [2, 3], [4]])

    def test_nobody_waits_for_longer_than_it_may(self) -> None:
        first = self.coalescer.ask(1)
        self.clock.advance(5.0)
        self.failureResultOf(first, Busy)
        second = self.coalescer.ask(2)
        self.open_gate()
        self.open_gate()
        self.assertEqual(self.successResultOf(second), "<2>")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_run_that_fails_is_told_to_all_and_the_next_is_made(self) -> None:
        self.gates, self.trouble = None, Unavailable("away")
        self.failureResultOf(self.coalescer.ask(1), Unavailable)
        self.trouble = None
        self.assertEqual(self.successResultOf(self.coalescer.ask(1)), "<1>")

    def test_a_key_at_fault_fails_alone(self) -> None:
        first = self.coalescer.ask(0)
        asked = {key: self.coalescer.ask(key) for key in range(1, 100)}
        self.bad = {17, 60}
        assert self.gates is not None
        gates, self.gates = self.gates, None
        gates[0].callback(None)
        self.successResultOf(first)
        for key, answer in asked.items():
            if key in self.bad:
                self.failureResultOf(answer, StatementFailed)
            else:
                self.assertEqual(self.successResultOf(answer), f"<{key}>")
        self.assertLess(len(self.runs), 40)

    def test_what_is_no_keys_fault_is_not_tried_for_each(self) -> None:
        first = self.coalescer.ask(0)
        second, third = self.coalescer.ask(1), self.coalescer.ask(2)
        self.open_gate()
        self.trouble = StatementFailed("permission denied", "42501")
        self.open_gate()
        self.successResultOf(first)
        for each in (second, third):
            self.failureResultOf(each, StatementFailed)
        self.assertEqual(self.runs, [[0], [1, 2]])

    def test_thousands_that_ask_again_at_once_are_answered_on_a_flat_stack(self) -> None:
        depths: set[int] = set()

        async def ask_twice(key: int) -> str:
            await self.coalescer.ask(key)
            depths.add(stack_depth())
            answer = await self.coalescer.ask(key)
            depths.add(stack_depth())
            return answer

        crowd = [Deferred.fromCoroutine(ask_twice(key)) for key in range(_CROWD)]
        assert self.gates is not None
        # What is asked for from now on is answered at once.
        gates, self.gates = self.gates, None
        gates[0].callback(None)
        for key, each in enumerate(crowd):
            self.assertEqual(self.successResultOf(each), f"<{key}>")
        self.assertLess(max(depths), sys.getrecursionlimit() // 4)
        self.assertLessEqual(len(self.runs), 4)

    def test_an_exception_that_is_told_to_thousands_has_the_frames_of_one(self) -> None:
        error = Unavailable("away")

        async def wait(waiter: Deferred[None]) -> None:
            await waiter

        waiters: list[Deferred[None]] = [Deferred() for _ in range(_CROWD)]
        crowd = [Deferred.fromCoroutine(wait(each)) for each in waiters]
        fail_all(waiters, error)
        for each in crowd:
            self.failureResultOf(each, Unavailable)
        frames, traceback = 0, error.__traceback__
        while traceback is not None:
            frames, traceback = frames + 1, traceback.tb_next
        self.assertLess(frames, 10)
