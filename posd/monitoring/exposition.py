"""The metrics of a node in the format of Prometheus: counters, gauges, and the survey of tenants.

Gauges are read at each scrape. Metrics of the survey are left out while the database cannot be reached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from attrs import define, field, frozen
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from posd import __version__
from posd.monitoring.tenant_survey import MOST_TENANTS

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

READING_HELP: Final[Mapping[str, str]] = {
    "database_up": "1 if the pool has a connection to the database and has not stalled.",
    "feed_up": "1 if the feed is connected to the database and has not stalled.",
    "sequencer_up": "1 if the sequencer is connected to the database and has not stalled.",
    "doorman": "1 if this node is the doorman, which takes orders out of the outbox.",
    "readers_up": "1 if a connection for reading shops' own tables is open.",
    "ready": "1 if the node is ready to serve tills and platforms.",
    "draining": "1 while the node disconnects its tills before it stops.",
    "connections_open": "Open connections of tills, and waiting polls.",
    "connections_limit": "limits.connections.",
    "send_queue_bytes": "Bytes that wait in memory for tills.",
    "send_queue_limit_bytes": "limits.send_queue_total.",
    "publications_waiting": "Requests to publish that wait for their transaction.",
    "tenants_left_out": "Tenants in quarantine, because their tables failed.",
    "database_pool_idle": "Idle connections of the pool.",
    "database_pool_busy": "Connections of the pool that are in use.",
    "database_pool_down": "Connections of the pool that are not open.",
    "database_pool_waiting": "Statements that wait for a connection of the pool.",
    "database_pool_held_back": "Statements that wait because their tenant already uses two connections.",
    "database_clock_offset_seconds": "Seconds by which the database's clock is ahead of this machine's.",
    "feed_canary_seconds": "Delay of the last notification that the feed sent to itself.",
    "feed_missed": "Notifications that the feed sent to itself and did not receive.",
    "tls_certificate_expiry_seconds": "Seconds until the certificate expires.",
    "tls_certificate_lifetime_seconds": "Total validity of the certificate in seconds.",
    "reload_failed": "1 if the last new configuration or certificate was unusable; the old one is in force.",
}
"""The gauges of a node, and their help texts."""
_COUNTER_NAMES: Final = frozenset(("feed_missed",))


@frozen(eq=False)
class _ScrapeReadings(Collector):
    """The metrics of one scrape."""

    families: Sequence[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


@define(eq=False)
class MetricsExposition:
    """Collects all metrics of a node.

    `readings` returns the gauges, or None for a gauge without a value. `counted` has the counters.
    `connections` returns the number of connected tills by tenant. `survey` reads metrics from the database.
    """

    readings: Mapping[str, Callable[[], float | None]]
    counted: CollectorRegistry
    connections: Callable[[], Mapping[str, int]]
    survey: Callable[[], Awaitable[Sequence[Metric]]]
    _process: CollectorRegistry = field(factory=CollectorRegistry, init=False)

    def __attrs_post_init__(self) -> None:
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)

    async def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        read = CollectorRegistry()
        surveyed = await self.survey()
        read.register(
            _ScrapeReadings(
                [*self._node_metrics(), *_without_created(self.counted.collect()), *surveyed]
            )
        )
        return generate_latest(read) + generate_latest(self._process)

    def _node_metrics(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("posd_build_info", "The version of posd.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        for name, measure in self.readings.items():
            value = measure()
            if value is not None:
                family = CounterMetricFamily if name in _COUNTER_NAMES else GaugeMetricFamily
                yield family(f"posd_{name}", READING_HELP[name], value=value)
        tills = GaugeMetricFamily("posd_connections", "Connected tills.", labels=["tenant"])
        for slug, count in sorted(self.connections().items())[:MOST_TENANTS]:
            tills.add_metric([slug], count)
        yield tills


def _without_created(families: Iterable[Metric]) -> Iterator[Metric]:
    """Leave out the `_created` series. `process_start_time_seconds` has the same information."""
    for family in families:
        family.samples = [each for each in family.samples if not each.name.endswith("_created")]
        yield family
