"""Metrics of tenants that are read from the database, at a limited cost.

A scrape soon after another one gets the same values. The survey uses at most a fiftieth of one core of the
database server, for any number of tenants and scrapers.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database.coalescing import Coalescer
from posd.errors import StatementFailed, Unavailable
from posd.store.survey import ShopSurvey, TenantSurveyRow

MOST_TENANTS: Final = 1000
"""The most tenants with series, which limits the size of a scrape and of its storage."""
_MINIMUM_PAUSE: Final = 10.0
_COST_FACTOR: Final = 50
_WAIT_SECONDS: Final = 30.0
"""How long a scrape waits for the database. Scrapers time out earlier."""

ReadTenants = Callable[[int], Awaitable[Sequence[TenantSurveyRow]]]


class TenantSurvey:
    """Reads the metrics of tenants with `read`, whose argument is the largest number of tenants.

    `wall_clock` dates the values, in seconds since 1970. An error is logged when it begins, and not at
    every scrape.
    """

    _log = Logger()

    def __init__(
        self, read: ReadTenants, clock: IReactorTime, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._read = read
        self._clock = clock
        self._wall_clock = wall_clock
        self._coalescer: Coalescer[None, None] = Coalescer(
            clock, self._read_if_due, seconds=_WAIT_SECONDS
        )
        self._rows: Sequence[TenantSurveyRow] = ()
        self._next_read_at = 0.0
        self._read_at: float | None = None
        self._is_failing = False

    async def families(self) -> list[Metric]:
        """Return the metrics, or none if they cannot be read now. Concurrent scrapes share one read."""
        try:
            await self._coalescer.ask(None)
        except (Unavailable, StatementFailed) as error:
            self._read_at = None
            if not self._is_failing:
                self._is_failing = True
                self._log.warn(
                    "metrics of tenants cannot be read and are left out: {error}",
                    error=str(error),
                )
        return (
            []
            if self._read_at is None
            else [*_survey_metrics(self._rows, self._read_at), *_tenant_metrics(self._rows)]
        )

    async def _read_if_due(self, keys: Sequence[None]) -> Mapping[None, None]:
        if self._read_at is None or self._clock.seconds() >= self._next_read_at:
            await self._read_rows()
        return {None: None}

    async def _read_rows(self) -> None:
        began = self._clock.seconds()
        self._rows = await self._read(MOST_TENANTS)
        now = self._clock.seconds()
        self._next_read_at, self._read_at = (
            now + max(_MINIMUM_PAUSE, _COST_FACTOR * (now - began)),
            self._wall_clock(),
        )
        self._is_failing = False


def _survey_metrics(tenants: Sequence[TenantSurveyRow], at: float) -> list[Metric]:
    return [
        GaugeMetricFamily(
            "posd_survey_timestamp_seconds", "Time of the last survey of tenants.", value=at
        ),
        GaugeMetricFamily("posd_tenants", "Active tenants in the last survey.", value=len(tenants)),
    ]


def _tenant_metrics(tenants: Sequence[TenantSurveyRow]) -> list[Metric]:
    """Return the metrics of all tenants."""
    families = _Families()
    for each in tenants:
        families.add("posd_stream_last_id", "Id of the last event.", each.slug, each.published)
        families.add(
            "posd_undelivered",
            "Events that no terminal has acknowledged.",
            each.slug,
            each.undelivered,
        )
        families.add(
            "posd_outbox_rows",
            "Rows of the outbox that have no position yet.",
            each.slug,
            each.outbox_rows,
        )
        families.add(
            "posd_outbox_oldest_seconds",
            "Age of the oldest row of the outbox in seconds.",
            each.slug,
            each.oldest_outbox,
        )
        _add_shop_metrics(families, each, each.shop)
    return families.all


def _add_shop_metrics(families: _Families, tenant: TenantSurveyRow, shop: ShopSurvey) -> None:
    slug = tenant.slug
    for state, count in (
        ("acknowledged", tenant.acknowledged),
        ("waiting", shop.waiting),
        ("expired", tenant.expired),
    ):
        families.add("posd_stream_events", "Published events by state.", slug, count, state)
    families.add(
        "posd_stream_imbalance",
        "Published events that are neither acknowledged, waiting nor expired. Not 0: events are lost.",
        slug,
        tenant.published - tenant.acknowledged - shop.waiting - tenant.expired,
    )
    families.add(
        "posd_oldest_unacked_seconds",
        "Age of the oldest event that no terminal has acknowledged, in seconds.",
        slug,
        shop.oldest_unacked,
    )
    families.add(
        "posd_orders_unprinted",
        "Orders of the last day that must be prepared and that no till has printed.",
        slug,
        shop.unprinted,
    )
    families.add(
        "posd_orders_unprinted_oldest_seconds",
        "Age of the oldest unprinted order in seconds.",
        slug,
        shop.oldest_unprinted,
    )
    families.add(
        "posd_tills_print", "1 if tills of this shop report printed orders.", slug, shop.prints
    )


class _Families:
    """Families of gauges with the label `tenant`, and `state` if a state is given."""

    def __init__(self) -> None:
        self._families: dict[str, GaugeMetricFamily] = {}

    def add(self, name: str, documentation: str, slug: str, value: float, *state: str) -> None:
        family = self._families.get(name)
        if family is None:
            labels = ["tenant", "state"] if state else ["tenant"]
            family = self._families[name] = GaugeMetricFamily(name, documentation, labels=labels)
        family.add_metric([slug, *state], value)

    @property
    def all(self) -> list[Metric]:
        return [*self._families.values()]
