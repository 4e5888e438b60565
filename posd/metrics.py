"""What Prometheus reads of this node: whether its parts are there, its tills, and where streams are.

All of it is asked for when it is scraped. What the database knows is left out while it is away.
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
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from posd import __version__
from posd.errors import StatementFailed, Unavailable
from posd.values import Seq

MOST_TENANTS: Final = 1000
"""Of how many tenants there are series, so that a scrape and its storage stay bounded."""
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

Stream = tuple[str, Seq, int]
"""A tenant's slug, its last event, and how many no terminal has acknowledged."""


@frozen(eq=False)
class _Read(Collector):
    """What was read for one scrape."""

    families: Sequence[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


@define(eq=False)
class Metrics:
    """`up` has questions by the names of their metrics; `streams` reads of so many tenants at most."""

    up: Mapping[str, Callable[[], bool]]
    connections: Callable[[], Mapping[str, int]]
    canary: Callable[[], float | None]
    streams: Callable[[int], Awaitable[Sequence[Stream]]]
    _process: CollectorRegistry = field(factory=CollectorRegistry, init=False)

    def __attrs_post_init__(self) -> None:
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)

    async def text(self) -> bytes:
        """All metrics, as Prometheus reads them."""
        read = CollectorRegistry()
        read.register(_Read([*self._of_node(), *await self._of_streams()]))
        return generate_latest(read) + generate_latest(self._process)

    def _of_node(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("posd_build_info", "Which posd this is.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        for name, there in self.up.items():
            yield GaugeMetricFamily(f"posd_{name}", "1 if so, else 0.", value=there())
        seconds = self.canary()
        if seconds is not None:
            about = "How long the last notification to ourselves took."
            yield GaugeMetricFamily("posd_feed_canary_seconds", about, value=seconds)
        tills = GaugeMetricFamily("posd_connections", "Tills on this node.", labels=["tenant"])
        for slug, count in sorted(self.connections().items())[:MOST_TENANTS]:
            tills.add_metric([slug], count)
        yield tills

    async def _of_streams(self) -> list[Metric]:
        """A scrape tells what is known, even if the database tells nothing."""
        try:
            streams = await self.streams(MOST_TENANTS)
        except (Unavailable, StatementFailed):
            return []
        last = GaugeMetricFamily("posd_stream_last_id", "The last event.", labels=["tenant"])
        waiting = GaugeMetricFamily(
            "posd_undelivered", "Events that no terminal has acknowledged.", labels=["tenant"]
        )
        for slug, seq, undelivered in streams:
            last.add_metric([slug], seq)
            waiting.add_metric([slug], undelivered)
        return [last, waiting]
