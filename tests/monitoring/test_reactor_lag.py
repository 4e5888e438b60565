"""Tests of the measured delay of the reactor."""

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

    def test_without_a_delay_zero_is_reported(self) -> None:
        self.clock.advance(0.5)
        self.clock.advance(0.5)
        self.assertEqual(self.late, [0.0, 0.0])

    def test_a_blocked_reactor_reports_one_delay(self) -> None:
        self.clock.advance(2.25)
        self.clock.advance(0.25)
        self.assertEqual(self.late, [1.75, 0.0])

    def test_a_failing_check_is_logged_and_repeated(self) -> None:
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

    def test_a_stopped_service_reports_nothing(self) -> None:
        self.lag.stopService()
        self.clock.advance(5)
        self.assertEqual(self.late, [])
