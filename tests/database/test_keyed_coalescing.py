"""What callers of a group ask at once: one run for each group, and nothing left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database import keyed_coalescing as gathering
from posd.database.keyed_coalescing import KeyedCoalescer
from posd.errors import Busy, Unavailable


class GatheringTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.runs: list[tuple[str, list[int]]] = []
        self.gates: dict[str, list[Deferred[None]]] = {}
        self.trouble: Exception | None = None
        self.clock = Clock()
        self.gathering: KeyedCoalescer[str, int, str] = KeyedCoalescer(self.clock, self.work)

    async def work(self, group: str, keys: Sequence[int]) -> Mapping[int, str]:
        self.runs.append((group, [*keys]))
        gate: Deferred[None] = Deferred()
        self.gates.setdefault(group, []).append(gate)
        await gate
        if self.trouble is not None:
            raise self.trouble
        return {key: f"{group}{key}" for key in keys}

    def open_gate(self, group: str) -> None:
        self.gates[group].pop(0).callback(None)
        # Ten are answered in one turn of the reactor.
        self.clock.pump([0] * 20)

    def test_a_group_has_one_run_at_a_time_and_waits_for_no_other(self) -> None:
        first, *others = [self.gathering.ask("a", key) for key in (1, 2, 3)]
        other = self.gathering.ask("b", 1)
        self.assertEqual(self.runs, [("a", [1]), ("b", [1])])
        self.open_gate("b")
        self.assertEqual(self.successResultOf(other), "b1")
        self.open_gate("a")
        self.assertEqual(self.successResultOf(first), "a1")
        self.assertEqual(self.runs[2:], [("a", [2, 3])])
        self.open_gate("a")
        self.assertEqual([self.successResultOf(each) for each in others], ["a2", "a3"])

    def test_a_group_in_which_nobody_waits_is_forgotten(self) -> None:
        for trouble in (None, Unavailable("away")):
            self.trouble = trouble
            asked = self.gathering.ask("a", 1)
            self.assertTrue(self.gathering.is_asked("a"))
            self.open_gate("a")
            self.assertEqual((self.gathering._groups, self.gathering.is_asked("a")), ({}, False))
            if trouble is not None:
                self.assertIs(self.failureResultOf(asked).value, trouble)

    def test_a_run_has_a_hundred_keys_at_most(self) -> None:
        asked = [self.gathering.ask("a", key) for key in range(1 + gathering.MAX_KEYS + 1)]
        for _ in range(3):
            self.open_gate("a")
        self.assertEqual([len(keys) for _, keys in self.runs], [1, gathering.MAX_KEYS, 1])
        self.assertEqual([self.successResultOf(each) for each in asked][-1], "a101")

    def test_of_a_group_so_many_wait_and_no_more(self) -> None:
        for key in range(1 + gathering.MAX_WAITING):
            self.gathering.ask("a", key).addErrback(lambda failure: None)
        with self.assertRaises(Busy):
            self.gathering.ask("a", -1)
        self.gathering.ask("b", -1)
