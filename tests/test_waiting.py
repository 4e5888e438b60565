"""Tests of timeouts, pauses and the detection of stalled loops."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from posd import waiting
from posd.waiting import AttemptPulse, RoundPauses, with_timeout


class TimeoutTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def test_a_result_and_a_failure_are_passed_on(self) -> None:
        work: Deferred[int] = Deferred()
        waiting = with_timeout(self.clock, 5.0, work)
        self.assertNoResult(waiting)
        work.callback(7)
        self.assertEqual(self.successResultOf(waiting), 7)
        failing: Deferred[int] = Deferred()
        waiting = with_timeout(self.clock, 5.0, failing)
        failing.errback(LookupError("nobody"))
        self.failureResultOf(waiting, LookupError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_work_may_be_a_coroutine(self) -> None:
        async def seven() -> int:
            return 7

        self.assertEqual(self.successResultOf(with_timeout(self.clock, 5.0, seven())), 7)

    def test_after_the_timeout_it_fails_and_the_work_is_cancelled(self) -> None:
        cancelled: list[Deferred[int]] = []
        work: Deferred[int] = Deferred(cancelled.append)
        waiting = with_timeout(self.clock, 5.0, work)
        self.clock.advance(4.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.2)
        self.failureResultOf(waiting, TimeoutError)
        self.assertEqual(cancelled, [work])

    def test_it_does_not_wait_for_work_that_ignores_its_cancellation(self) -> None:
        never: Deferred[int] = Deferred()

        async def stubborn() -> int:
            while True:
                try:
                    return await never
                except CancelledError:
                    await Deferred[int]()

        waiting = with_timeout(self.clock, 5.0, stubborn())
        self.clock.advance(5.0)
        self.failureResultOf(waiting, TimeoutError)

    def test_a_late_result_is_dropped(self) -> None:
        for late in (7, Failure(LookupError("nobody"))):
            release: Deferred[int] = Deferred(lambda _: None)

            async def ignoring(awaited: Deferred[int] = release) -> int:
                try:
                    return await Deferred[int]()
                except CancelledError:
                    return await awaited

            waiting = with_timeout(self.clock, 5.0, ignoring())
            self.clock.advance(5.0)
            self.failureResultOf(waiting, TimeoutError)
            release.callback(late)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_cancelling_it_cancels_the_work(self) -> None:
        cancelled: list[Deferred[int]] = []
        work: Deferred[int] = Deferred(cancelled.append)
        waiting = with_timeout(self.clock, 5.0, work)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual((cancelled, self.clock.getDelayedCalls()), ([work], []))


class PulseTests(SynchronousTestCase):
    def test_a_loop_has_stalled_after_a_minute_without_an_attempt(self) -> None:
        clock = Clock()
        self.patch(waiting, "monotonic", clock.seconds)
        pulse = AttemptPulse()
        clock.advance(60)
        self.assertFalse(pulse.stalled)
        clock.advance(0.1)
        self.assertTrue(pulse.stalled)
        pulse.beat()
        self.assertFalse(pulse.stalled)


class PausesTests(SynchronousTestCase):
    def test_a_pause_lasts_for_its_time_or_until_it_is_ended(self) -> None:
        clock = Clock()
        pauses = RoundPauses(clock)
        short, long = (Deferred.fromCoroutine(pauses.take(seconds)) for seconds in (1.0, 2.0))
        clock.advance(1.0)
        self.assertTrue(self.successResultOf(short))
        pauses.end()
        self.assertFalse(self.successResultOf(long))
        self.assertEqual(clock.getDelayedCalls(), [])
