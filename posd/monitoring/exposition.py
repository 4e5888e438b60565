"""What Prometheus reads of this node: what was counted, what is so now, and how tenants stand.

What is so now is asked for when it is scraped. What the database knows is left out while it is away.
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
    "database_up": "1 if a connection to the database stands and none has given up trying.",
    "feed_up": "1 if the connection that listens stands and the feed goes on looking.",
    "sequencer_up": "1 if the connection that numbers stands and the sequencer goes on.",
    "doorman": "1 if this node is the doorman, which takes orders out of the outbox.",
    "readers_up": "1 if a connection stands on which shops' own tables are read.",
    "ready": "1 if it can take tills and orders.",
    "draining": "1 while tills are sent home, before the end.",
    "connections_open": "Connections of tills, and polls that wait.",
    "connections_limit": "limits.connections.",
    "send_queue_bytes": "What waits in memory for tills that do not read.",
    "send_queue_limit_bytes": "limits.send_queue_total.",
    "publications_waiting": "Requests to publish that wait for their transaction.",
    "tenants_left_out": "Tenants that are left out for a while, since their tables make trouble.",
    "database_pool_idle": "Connections of the pool that nobody uses.",
    "database_pool_busy": "Connections of the pool that are in use.",
    "database_pool_down": "Connections of the pool that do not stand.",
    "database_pool_waiting": "Statements that wait for a connection of the pool.",
    "database_pool_held_back": "Statements that wait since their tenant uses two connections already.",
    "database_clock_offset_seconds": "How far the database's clock is ahead of this machine's.",
    "feed_canary_seconds": "How long the last notification to ourselves took.",
    "feed_missed": "Notifications to ourselves that did not arrive.",
    "tls_certificate_expiry_seconds": "For how long the certificate is still valid.",
    "tls_certificate_lifetime_seconds": "For how long it is valid in all.",
    "reload_failed": "1 while new files cannot be used and the old configuration stays.",
}
"""All that a node is asked when it is scraped, and what it means."""
_COUNTER_NAMES: Final = frozenset(("feed_missed",))


@frozen(eq=False)
class _ScrapeReadings(Collector):
    """What was read for one scrape."""

    families: Sequence[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


@define(eq=False)
class MetricsExposition:
    """`readings` are asked when it is scraped, None where there is nothing to be said.

    `counted` has what was counted, `connections` how many tills each tenant has here, `survey` what the
    database knows.
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
        """All metrics, as Prometheus reads them."""
        read = CollectorRegistry()
        surveyed = await self.survey()
        read.register(
            _ScrapeReadings(
                [*self._node_metrics(), *_without_created(self.counted.collect()), *surveyed]
            )
        )
        return generate_latest(read) + generate_latest(self._process)

    def _node_metrics(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("posd_build_info", "Which posd this is.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        for name, measure in self.readings.items():
            value = measure()
            if value is not None:
                family = CounterMetricFamily if name in _COUNTER_NAMES else GaugeMetricFamily
                yield family(f"posd_{name}", READING_HELP[name], value=value)
        tills = GaugeMetricFamily("posd_connections", "Tills on this node.", labels=["tenant"])
        for slug, count in sorted(self.connections().items())[:MOST_TENANTS]:
            tills.add_metric([slug], count)
        yield tills


def _without_created(families: Iterable[Metric]) -> Iterator[Metric]:
    """Without a series for each that tells since when it is counted: the process tells that."""
    for family in families:
        family.samples = [each for each in family.samples if not each.name.endswith("_created")]
        yield family
