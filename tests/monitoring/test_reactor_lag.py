"""How late the reactor is."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.monitoring.reactor_lag import ReactorLag


class LagTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.late: list[float] = []
        self.lag = ReactorLag(self.clock, self.late.append)
        self.lag.startService()

    def test_a_reactor_that_is_in_time_is_not_late(self) -> None:
        self.clock.advance(0.5)
        self.clock.advance(0.5)
        self.assertEqual(self.late, [0.0, 0.0])

    def test_one_that_was_held_up_is_late_once_and_then_in_time_again(self) -> None:
        self.clock.advance(2.25)
        self.clock.advance(0.25)
        self.assertEqual(self.late, [1.75, 0.0])

    def test_a_look_that_fails_is_logged_and_is_not_the_last(self) -> None:
        late: list[float] = []

        def fails_once(seconds: float) -> None:
            late.append(seconds)
            if len(late) == 1:
                raise RuntimeError("no room for a number")

        lag = ReactorLag(self.clock, fails_once)
        lag.startService()
        self.clock.pump([0.5, 0.5])
        self.assertEqual(late, [0.0, 0.0])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_it_looks_no_more_when_it_was_stopped(self) -> None:
        self.lag.stopService()
        self.clock.advance(5)
        self.assertEqual(self.late, [])
