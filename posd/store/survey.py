"""How all tenants stand, for the metrics: asked in portions, each of them short."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from attrs import field, frozen

from posd.database.reconnecting import Executor, Row

# Each tenant is counted by itself, so this bounds how long one statement runs.
_PORTION: Final = 100
_SURVEY: Final = """
    SELECT tenant_id, slug, published, acknowledged, expired, undelivered, outbox_rows, oldest_outbox,
           waiting, oldest_unacked, unprinted, oldest_unprinted, prints
      FROM dinedesk_main.pos_survey(%s, %s, %s)
"""


@frozen
class ShopSurvey:
    """What is counted in a tenant's log and orders. Ages are in seconds, 0 where there is nothing.

    `waiting` counts the events that no terminal has acknowledged; `prints`: its tills say so when
    they have printed an order.
    """

    waiting: int
    oldest_unacked: float
    unprinted: int
    oldest_unprinted: float
    prints: bool


@frozen
class TenantSurveyRow:
    """One tenant: its head, what waits in the outbox, and `shop`, which is counted in its log and orders."""

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
    """How the first `most` active tenants stand; orders in a `final` status need not be printed."""
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
