"""Tests of limited log lines: a few are written, and the others are counted."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.security.log_sampler import _MOST_KEYS, LogSampler


class LogSamplerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.sampler = LogSampler(self.clock.seconds)

    def written(self, key: object, count: int) -> list[int]:
        """Log `count` lines. Returns the number of left-out lines of each written line."""
        taken = [self.sampler.take(key) for _ in range(count)]
        return [unsaid for unsaid in taken if unsaid is not None]

    def test_five_are_written_at_once_and_then_one_a_minute_with_the_others_count(self) -> None:
        self.assertEqual(self.written("BAR", 100), [0] * 5)
        self.clock.advance(60)
        self.assertEqual(self.written("BAR", 58), [95])
        self.clock.advance(60)
        self.assertEqual(self.written("BAR", 1), [57])

    def test_each_key_has_lines_of_its_own(self) -> None:
        self.written("BAR", 100)
        self.assertEqual(self.written("KITCHEN", 2), [0, 0])
        self.assertEqual(self.written(None, 1), [0])

    def test_the_keys_that_are_remembered_have_a_bound(self) -> None:
        self.written("BAR", 6)
        for number in range(_MOST_KEYS):
            self.written(number, 1)
        self.assertEqual(len(self.sampler._keys), _MOST_KEYS)
        self.assertEqual(self.written("BAR", 6), [0] * 5)
