"""Tests of the age of database timestamps on a machine with another clock."""

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

    def compare(self, sent_at: float, database_time: float, received_at: float) -> None:
        self.clock.compare(1_000_000 + sent_at, at(database_time), 1_000_000 + received_at)

    def test_without_a_comparison_the_clocks_are_taken_for_one(self) -> None:
        self.assertIsNone(self.clock.offset)
        self.assertEqual(self.clock.seconds_since(at(-3)), 3.0)

    def test_the_age_includes_the_offset_of_a_clock_that_is_ahead(self) -> None:
        self.compare(sent_at=0.0, database_time=60.5, received_at=1.0)
        self.assertEqual(self.clock.offset, 60.0)
        self.assertEqual(self.clock.seconds_since(at(59)), 1.0)

    def test_the_shortest_of_the_last_round_trips_counts(self) -> None:
        self.compare(sent_at=0.0, database_time=5.0, received_at=4.0)
        self.compare(sent_at=5.0, database_time=7.25, received_at=5.5)
        self.compare(sent_at=9.0, database_time=13.0, received_at=11.0)
        self.assertEqual(self.clock.offset, 2.0)
        for _ in range(12):
            self.compare(sent_at=20.0, database_time=24.0, received_at=22.0)
        self.assertEqual(self.clock.offset, 3.0)

    def test_nothing_is_younger_than_now(self) -> None:
        self.assertEqual(self.clock.seconds_since(at(2)), 0.0)

    def test_a_comparison_during_a_set_back_clock_is_ignored(self) -> None:
        self.compare(sent_at=10.0, database_time=10.0, received_at=3.0)
        self.assertIsNone(self.clock.offset)
