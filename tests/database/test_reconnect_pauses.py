"""When links try again, by a clock that stands still."""

from __future__ import annotations

import random

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database.reconnect_pauses import ReconnectPauses


class RetriesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.retries = ReconnectPauses(self.clock)
        # The longest pauses; `fraction` says which part of them is taken.
        self.fraction = 1.0
        self.patch(random, "uniform", lambda least, most: most * self.fraction)

    def test_pauses_double_up_to_two_seconds(self) -> None:
        for failures, seconds in ((1, 0.1), (2, 0.2), (3, 0.4), (5, 1.6), (6, 2.0), (10**6, 2.0)):
            with self.subTest(failures=failures):
                pause = self.retries.pause(failures)
                self.clock.advance(0.99 * seconds)
                self.assertNoResult(pause)
                self.clock.advance(0.02 * seconds)
                self.successResultOf(pause)

    def test_when_one_has_connected_the_others_try_soon(self) -> None:
        long = [self.retries.pause(9) for _ in range(3)]
        self.clock.advance(1.0)
        self.retries.succeeded()
        self.clock.advance(0.099)
        self.assertNoResult(long[0])
        self.clock.advance(0.002)
        for each in long:
            self.successResultOf(each)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_but_none_waits_longer_for_that_nor_at_once(self) -> None:
        """A server that ends every connection as soon as it has one is not asked in a loop without pauses."""
        self.fraction = 0.5
        pause = self.retries.pause(1)
        self.clock.advance(0.04)
        self.retries.succeeded()
        self.assertNoResult(pause)
        self.clock.advance(0.011)
        self.successResultOf(pause)

    def test_a_link_that_stops_waits_no_more(self) -> None:
        pause, other = self.retries.pause(9), self.retries.pause(9)
        pause.cancel()
        self.failureResultOf(pause, CancelledError)
        self.retries.succeeded()
        self.clock.advance(0.1)
        self.successResultOf(other)
