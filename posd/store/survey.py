"""A survey of all tenants for the metrics, read by several short statements."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from attrs import field, frozen

from posd.database.reconnecting import Executor, Row

# Tenants per statement. The function counts rows of each tenant, so this bounds the time of a statement.
_PORTION: Final = 100
_SURVEY: Final = """
    SELECT tenant_id, slug, published, acknowledged, expired, undelivered, outbox_rows, oldest_outbox,
           waiting, oldest_unacked, unprinted, oldest_unprinted, prints
      FROM dinedesk_main.pos_survey(%s, %s, %s)
"""


@frozen
class ShopSurvey:
    """Counts of a tenant's events and orders. Ages are in seconds; the age is 0 if there is no such row.

    `waiting` is the number of events that no terminal has acknowledged. `prints` is true if the tenant's
    tills report printed orders.
    """

    waiting: int
    oldest_unacked: float
    unprinted: int
    oldest_unprinted: float
    prints: bool


@frozen
class TenantSurveyRow:
    """One tenant: counters of its head, its outbox rows, and `shop`, the counts of its events and orders."""

    slug: str
    published: int
    acknowledged: int
    expired: int
    undelivered: int
    outbox_rows: int
    oldest_outbox: float
    shop: ShopSurvey = field(kw_only=True)


async def survey_tenants(
    executor: Executor, most: int, final: Collection[str]
) -> list[TenantSurveyRow]:
    """Return a row for each of the first `most` active tenants, by id.

    An order in a `final` status does not count as unprinted.
    """
    surveyed: list[TenantSurveyRow] = []
    beyond, portion = 0, _PORTION
    while portion == _PORTION and len(surveyed) < most:
        wanted = min(_PORTION, most - len(surveyed))
        rows = await executor.query(_SURVEY, (beyond, wanted, sorted(final)))
        portion = len(rows)
        for row in rows:
            beyond = row[0]
            head: Row = row[1:8]
            shop: Row = row[8:]
            surveyed.append(TenantSurveyRow(*head, shop=ShopSurvey(*shop)))
    return surveyed
