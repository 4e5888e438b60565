"""Ages of what the database has dated, on a machine with another clock."""

from __future__ import annotations

from datetime import UTC, datetime

from twisted.trial.unittest import SynchronousTestCase

from posd.monitoring.database_clock import DatabaseClock


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(1_000_000 + seconds, UTC)


class DatabaseClockTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 1_000_000.0
        self.clock = DatabaseClock(lambda: self.now)

    def compare(self, asked: float, said: float, heard: float) -> None:
        self.clock.compare(1_000_000 + asked, at(said), 1_000_000 + heard)

    def test_without_a_comparison_the_clocks_are_taken_for_one(self) -> None:
        self.assertIsNone(self.clock.offset)
        self.assertEqual(self.clock.since(at(-3)), 3.0)

    def test_what_a_database_dated_whose_clock_is_ahead_is_older_than_it_looks(self) -> None:
        self.compare(asked=0.0, said=60.5, heard=1.0)
        self.assertEqual(self.clock.offset, 60.0)
        self.assertEqual(self.clock.since(at(59)), 1.0)

    def test_the_shortest_of_the_last_round_trips_counts(self) -> None:
        self.compare(asked=0.0, said=5.0, heard=4.0)
        self.compare(asked=5.0, said=7.25, heard=5.5)
        self.compare(asked=9.0, said=13.0, heard=11.0)
        self.assertEqual(self.clock.offset, 2.0)
        for _ in range(12):
            self.compare(asked=20.0, said=24.0, heard=22.0)
        self.assertEqual(self.clock.offset, 3.0)

    def test_nothing_is_younger_than_now(self) -> None:
        self.assertEqual(self.clock.since(at(2)), 0.0)

    def test_a_clock_that_was_set_back_meanwhile_compares_nothing(self) -> None:
        self.compare(asked=10.0, said=10.0, heard=3.0)
        self.assertIsNone(self.clock.offset)
