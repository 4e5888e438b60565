"""Tests of the health checks of load balancers."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from posd.config.model import Config, DatabaseConfig
from posd.daemon.wiring import Application
from posd.monitoring.health import Health
from posd.web.api.health import HealthEndpoints
from posd.web.http.dispatch import Dispatcher
from posd.web.http.operations import Request
from posd.web.http.responses import Response


async def nobody() -> list[tuple[str, int]]:
    return []


class ReadyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.there = {"database": True, "feed": True, "notifications": True}
        self.health = Health(
            {name: lambda name=name: self.there[name] for name in ("database", "feed")},  # type: ignore[misc]
            {"notifications": lambda: self.there["notifications"]},
        )

    def ready(self) -> Response:
        endpoints = HealthEndpoints(self.health, cast(Dispatcher, None), nobody)
        return self.successResultOf(
            Deferred.fromCoroutine(endpoints.ready(cast("Request[Any]", None)))
        )

    def test_a_node_that_has_everything_is_ready(self) -> None:
        answer = self.ready()
        self.assertEqual((answer.status, answer.body), (200, {"status": "ok"}))

    def test_one_that_lacks_a_part_says_which_and_when_to_ask_again(self) -> None:
        self.there["feed"] = False
        answer = self.ready()
        self.assertEqual(answer.status, 503)
        self.assertEqual(answer.body, {"status": "unavailable", "missing": ["feed"]})
        self.assertIn("Retry-After", answer.headers)

    def test_one_that_does_without_something_is_ready_and_says_so(self) -> None:
        self.there["notifications"] = False
        answer = self.ready()
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.body, {"status": "ok", "degraded": ["notifications"]})


class StartTests(SynchronousTestCase):
    def test_a_posd_is_not_ready_before_it_listens_and_knows_that_the_schema_fits(self) -> None:
        parts = Application(
            MemoryReactorClock(), Config(database=DatabaseConfig(dsn="dbname=posd"))
        )
        self.assertLessEqual({"listeners", "schema"}, {*parts.health.missing()})
        parts.listening = True
        self.assertNotIn("listeners", parts.health.missing())
        parts.schema_fits = True
        self.assertNotIn("schema", parts.health.missing())
        # No connection of theirs is there, since nothing was started.
        self.assertEqual(parts.health.degraded(), ["readers"])

    def test_one_whose_books_cannot_be_written_for_half_a_minute_is_not_ready(self) -> None:
        reactor = MemoryReactorClock()
        parts = Application(reactor, Config(database=DatabaseConfig(dsn="dbname=posd")))
        parts.presence.startService()
        self.addCleanup(parts.presence.stopService)
        reactor.pump([1.0] * 30)
        self.assertNotIn("books", parts.health.missing())
        reactor.pump([1.0] * 10)
        self.assertIn("books", parts.health.missing())

    def test_what_stands_still_degrades_and_does_not_end_readiness(self) -> None:
        parts = Application(
            MemoryReactorClock(), Config(database=DatabaseConfig(dsn="dbname=posd"))
        )
        before = parts.health.missing()
        parts.feed.outbox_seconds = 61.0
        self.assertEqual(parts.health.degraded(), ["outbox", "readers"])
        parts.sequencer._request_quarantine.exclude(1)
        self.assertEqual(parts.health.degraded(), ["outbox", "readers", "tenants"])
        self.assertEqual(parts.health.missing(), before)
