"""What the database knows of every tenant, as metrics; asked no more often than it can be borne.

A scrape that comes soon after another one gets the same numbers. However many tenants there are and
whoever scrapes, the database spends one part in fifty of a core's time on it, at the most.
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
"""Of how many tenants there are series, so that a scrape and its storage stay bounded."""
_MINIMUM_PAUSE: Final = 10.0
_COST_FACTOR: Final = 50
_WAIT_SECONDS: Final = 30.0
"""How long a scrape waits for the database; scrapers give up before that."""

ReadTenants = Callable[[int], Awaitable[Sequence[TenantSurveyRow]]]


class TenantSurvey:
    """Asks `read` for so many tenants. `wall_clock` is the time of day, for how old the numbers are.

    What goes wrong is logged when it begins, and not with every scrape.
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
        """The metrics; what cannot be read now is left out. Scrapes at the same time share one look."""
        try:
            await self._coalescer.ask(None)
        except (Unavailable, StatementFailed) as error:
            self._read_at = None
            if not self._is_failing:
                self._is_failing = True
                self._log.warn(
                    "metrics of tenants are left out, they cannot be read: {error}",
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
            "posd_survey_timestamp_seconds", "When the tenants were looked at last.", value=at
        ),
        GaugeMetricFamily(
            "posd_tenants", "Active tenants that were looked at.", value=len(tenants)
        ),
    ]


def _tenant_metrics(tenants: Sequence[TenantSurveyRow]) -> list[Metric]:
    """What is known of each tenant."""
    families = _Families()
    for each in tenants:
        families.add("posd_stream_last_id", "The last event.", each.slug, each.published)
        families.add(
            "posd_undelivered", "Events no terminal has acknowledged.", each.slug, each.undelivered
        )
        families.add(
            "posd_outbox_rows",
            "What is published and has no position.",
            each.slug,
            each.outbox_rows,
        )
        families.add(
            "posd_outbox_oldest_seconds",
            "How long the oldest of it has waited.",
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
        families.add("posd_stream_events", "What became of events.", slug, count, state)
    families.add(
        "posd_stream_imbalance",
        "Events that were published and are neither acknowledged, waiting nor expired. Not 0: some are lost.",
        slug,
        tenant.published - tenant.acknowledged - shop.waiting - tenant.expired,
    )
    families.add(
        "posd_oldest_unacked_seconds",
        "How long the oldest event has waited that no terminal has acknowledged.",
        slug,
        shop.oldest_unacked,
    )
    families.add(
        "posd_orders_unprinted",
        "Orders of the last day that are to be made and that no till has printed.",
        slug,
        shop.unprinted,
    )
    families.add(
        "posd_orders_unprinted_oldest_seconds",
        "How long the oldest of these has waited.",
        slug,
        shop.oldest_unprinted,
    )
    families.add(
        "posd_tills_print", "1 if tills of this shop say what they have printed.", slug, shop.prints
    )


class _Families:
    """Families of gauges by tenant, and by state where there are states."""

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
