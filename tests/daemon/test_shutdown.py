"""Tests of the time limits of a shutdown."""

from __future__ import annotations

import threading

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from posd.daemon import service
from posd.daemon.shutdown import Shutdown


class StoppingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.stopping = Shutdown(self.clock, 30.0)

    def begin(self, name: str, seconds: float, ending: Deferred[None] | None) -> Deferred[None]:
        return Deferred.fromCoroutine(self.stopping.stop_part(name, seconds, lambda: ending))

    def test_a_shutdown_waits_for_a_part(self) -> None:
        ending: Deferred[None] = Deferred()
        part = self.begin("the feed", 5.0, ending)
        self.assertNoResult(part)
        ending.callback(None)
        self.successResultOf(part)
        self.successResultOf(self.begin("lag", 5.0, None))
        self.successResultOf(self.begin("presence", 5.0, succeed(None)))
        self.assertEqual((self.stopping.unfinished, self.clock.getDelayedCalls()), ([], []))

    def test_a_part_above_its_time_limit_is_named_and_left(self) -> None:
        part = self.begin("the feed", 5.0, Deferred(lambda _: None))
        with capturedLogs() as logs:
            self.clock.advance(5.0)
        self.successResultOf(part)
        self.assertEqual(self.stopping.unfinished, ["the feed"])
        (line,) = (each for each in logs if each["log_level"] == LogLevel.error)
        self.assertEqual((line["name"], line["seconds"]), ("the feed", 5.0))

    def test_a_failing_part_does_not_stop_the_shutdown(self) -> None:
        part = self.begin("the feed", 5.0, Deferred())
        failing: Deferred[None] = Deferred()
        failing.errback(LookupError("as wanted"))
        self.successResultOf(self.begin("presence", 5.0, failing))
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        self.clock.advance(5.0)
        self.successResultOf(part)

    def test_all_together_have_their_time_and_no_more(self) -> None:
        for number in range(20):
            part = self.begin(f"part {number}", 5.0, Deferred(lambda _: None))
            while not part.called:
                self.clock.advance(0.5)
        self.assertEqual(len(self.stopping.unfinished), 20)
        # Six parts have five seconds; the others are stopped with the minimum time.
        self.assertEqual(self.clock.seconds(), 30.0 + 14 * 0.5)
        self.assertLess(self.clock.seconds(), service._FORCED_EXIT_SECONDS)

    def test_a_process_that_does_not_end_is_killed(self) -> None:
        ended = threading.Event()
        statuses: list[int] = []

        def exit_now(status: int) -> None:
            statuses.append(status)
            ended.set()

        part = self.begin("the feed", 5.0, Deferred())
        with capturedLogs() as logs:
            self.stopping.exit_forcibly_after(0.01, 70, exit_now)
            self.assertTrue(ended.wait(300))
        self.assertEqual(statuses, [70])
        (line,) = (each for each in logs if each["log_level"] == LogLevel.critical)
        self.assertEqual(line["name"], "the feed")
        self.clock.advance(5.0)
        self.successResultOf(part)
