"""A loop without attempts fails readiness and the watchdog. A loop whose attempts fail does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from posd import waiting
from posd.config.model import Config, DatabaseConfig
from posd.daemon import readiness
from posd.daemon.service import Daemon
from posd.daemon.wiring import Application
from posd.database.connection import DatabaseConnection
from posd.database.reconnect_pauses import ReconnectPauses
from posd.errors import Unavailable
from tests.sequencer_case import publication


class StalledTests(SynchronousTestCase):
    """All parts with a Clock, and connections that the test controls."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.patch(waiting, "monotonic", self.clock.seconds)
        self.opening: Callable[[], Deferred[None]] = self.refused
        self.running: Callable[[], Deferred[list[Any]]] = lambda: succeed([])
        test = self

        async def open_(connection: DatabaseConnection, dsn: str) -> None:
            await test.opening()
            connection._open = True

        async def run(connection: DatabaseConnection, *_: object, **__: object) -> list[Any]:
            return await test.running()

        self.patch(DatabaseConnection, "open", open_)
        self.patch(DatabaseConnection, "run", run)
        self.parts = Application(self.clock, Config(database=DatabaseConfig(dsn="dbname=posd")))
        self.patch(self.parts.numbering, "_prepare", None)
        self.patch(self.parts.feed._cache, "refresh", self.nothing)
        for work in ("_poll", "_send_canary", "_read_changes"):
            self.patch(self.parts.feed, work, self.nothing)

    async def nothing(self) -> None:
        """A round of the feed."""

    def refused(self) -> Deferred[None]:
        failed: Deferred[None] = Deferred()
        failed.errback(Unavailable("connection refused"))
        return failed

    def start(self) -> None:
        for part in (self.parts.database, self.parts.numbering, self.parts.sequencer):
            part.startService()
            self.addCleanup(part.stopService)
        self.parts.feed.startService()
        self.addCleanup(self.parts.feed.stopService)

    def minutes(self, count: float) -> None:
        for _ in range(int(count * 240)):
            self.clock.advance(0.25)

    def test_failing_attempts_are_not_a_stall(self) -> None:
        self.start()
        self.minutes(5)
        self.assertEqual(readiness.stalled(self.parts), [])
        self.assertIn("feed", self.parts.health.missing())

    def test_a_database_that_never_answers_is_not_a_stall(self) -> None:
        self.opening = Deferred
        self.start()
        self.minutes(5)
        self.assertEqual(readiness.stalled(self.parts), [])

    def test_parts_without_attempts_to_connect_are_stalled(self) -> None:
        # As it was when an error in drop() left the loop waiting.
        self.patch(ReconnectPauses, "pause", lambda *_: Deferred())
        self.start()
        self.minutes(0.9)
        self.assertEqual(readiness.stalled(self.parts), [])
        self.minutes(0.2)
        self.assertEqual(readiness.stalled(self.parts), ["database", "feed", "sequencer"])

    def test_a_feed_without_polls_is_stalled(self) -> None:
        self.opening = lambda: succeed(None)
        self.start()
        self.assertTrue(self.parts.feed.up)
        self.patch(waiting, "deferLater", lambda *_: Deferred())
        self.minutes(1.2)
        self.assertEqual(readiness.stalled(self.parts), ["feed"])
        self.assertIn("feed", self.parts.health.missing())

    def test_a_round_of_the_feed_that_never_ends_is_given_up(self) -> None:
        self.opening = lambda: succeed(None)
        rounds: list[Deferred[None]] = []

        async def never(*_: object) -> None:
            # A round that ignores its cancellation.
            rounds.append(Deferred(lambda _: None))
            await rounds[-1]

        self.patch(self.parts.feed, "_poll", never)
        with capturedLogs() as logs:
            self.start()
            self.minutes(3)
        self.assertGreater(len(rounds), 3)
        self.assertEqual(readiness.stalled(self.parts), [])
        told = [e for e in logs if "a round of the feed" in str(e["log_format"])]
        self.assertEqual({each["log_level"] for each in told}, {LogLevel.error})

    def test_a_sequencer_with_an_endless_transaction_is_stalled(self) -> None:
        self.opening = lambda: succeed(None)
        self.start()
        never: Deferred[Any] = Deferred()
        self.patch(self.parts.numbering, "transaction", lambda *_: never)
        published = Deferred.fromCoroutine(self.parts.sequencer.publish(publication(("note", {}))))
        self.minutes(0.9)
        self.assertEqual(readiness.stalled(self.parts), [])
        self.minutes(0.2)
        self.assertEqual(readiness.stalled(self.parts), ["sequencer"])
        self.assertIn("sequencer", self.parts.health.missing())
        never.errback(Unavailable("at last"))
        self.failureResultOf(published, Unavailable)
        self.assertEqual(readiness.stalled(self.parts), [])

    def test_the_daemon_logs_a_stall_once_and_does_not_notify_the_watchdog(self) -> None:
        daemon = Daemon.__new__(Daemon)
        daemon._application, daemon._stalled, daemon._watchdog = self.parts, [], None
        daemon._reactor, daemon._stalled_since = self.clock, None
        self.patch(ReconnectPauses, "pause", lambda *_: Deferred())
        self.start()
        self.assertTrue(daemon._is_alive())
        self.minutes(1.1)
        daemon._log_stalled()
        self.minutes(0.1)
        with capturedLogs() as logs:
            daemon._log_stalled()
            daemon._log_stalled()
        self.assertFalse(daemon._is_alive())
        (line,) = (each for each in logs if each["log_level"] == LogLevel.critical)
        self.assertEqual(line["parts"], "database, feed, sequencer")
        self.assertEqual(line["remedy"], "restart posd")
        daemon._stalled, daemon._watchdog = [], Service()
        with capturedLogs() as logs:
            daemon._log_stalled()
        self.assertEqual([each["remedy"] for each in logs], ["systemd restarts posd"])

    def test_a_suspended_machine_is_not_a_stall(self) -> None:
        daemon = Daemon.__new__(Daemon)
        daemon._application, daemon._stalled, daemon._watchdog = self.parts, [], None
        daemon._reactor, daemon._stalled_since = self.clock, None
        self.opening = lambda: succeed(None)
        self.start()
        # No code runs during the suspension.
        self.clock.rightNow += 70
        with capturedLogs() as logs:
            self.assertEqual(readiness.stalled(self.parts), ["feed"])
            for _ in range(40):
                daemon._log_stalled()
                self.assertTrue(daemon._is_alive())
                self.clock.advance(0.25)
        self.assertEqual([each for each in logs if each["log_level"] == LogLevel.critical], [])
