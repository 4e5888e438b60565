"""Tests of the metrics text, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client.core import Metric
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from posd import __version__
from posd.config.model import Config, DatabaseConfig
from posd.daemon.wiring import Application
from posd.monitoring.counters import Counters
from posd.monitoring.exposition import READING_HELP, MetricsExposition
from posd.monitoring.tenant_survey import MOST_TENANTS
from tests.scrapes import Series, read_samples


async def nothing() -> Sequence[Metric]:
    return []


class MetricsTests(SynchronousTestCase):
    def scraped(self, **more: Any) -> dict[Series, float]:
        """Return the values by name and labels."""
        self.counters = Counters()
        default: dict[str, Any] = {
            "readings": {"database_up": lambda: True, "ready": lambda: False},
            "counted": self.counters.registry,
            "connections": lambda: {"kitchen": 2},
            "survey": nothing,
        }
        metrics = MetricsExposition(**(default | more))
        return read_samples(self.successResultOf(Deferred.fromCoroutine(metrics.text())).decode())

    def test_it_has_the_node_and_its_tills(self) -> None:
        found = self.scraped()
        for series, value in (
            (("posd_build_info", __version__), 1),
            (("posd_database_up",), 1),
            (("posd_ready",), 0),
            (("posd_connections", "kitchen"), 2),
        ):
            self.assertEqual(found[series], value, series)

    def test_it_has_what_was_counted(self) -> None:
        self.assertEqual(self.scraped()["posd_events_failed_total",], 0)

    def test_there_are_no_created_series(self) -> None:
        self.assertEqual([name for name, *_ in self.scraped() if name.endswith("_created")], [])

    def test_it_has_the_process_and_its_garbage(self) -> None:
        found = self.scraped()
        self.assertIn(("python_gc_collections_total", "0"), found)
        self.assertGreater(found["process_resident_memory_bytes",], 0)

    def test_a_gauge_without_a_value_is_left_out(self) -> None:
        found = self.scraped(readings={"feed_canary_seconds": lambda: None})
        self.assertNotIn(("posd_feed_canary_seconds",), found)

    def test_growing_readings_are_counters(self) -> None:
        found = self.scraped(readings={"feed_missed": lambda: 3})
        self.assertEqual(found["posd_feed_missed_total",], 3)

    def test_there_are_series_of_so_many_tenants_only(self) -> None:
        many = {f"shop-{number}": 1 for number in range(MOST_TENANTS + 5)}
        found = self.scraped(connections=lambda: many)
        self.assertEqual(sum(name == "posd_connections" for name, *_ in found), MOST_TENANTS)

    def test_all_described_gauges_are_read(self) -> None:
        parts = Application(
            MemoryReactorClock(), Config(database=DatabaseConfig(dsn="dbname=posd"))
        )
        self.assertEqual(parts.metrics().readings.keys(), READING_HELP.keys())
