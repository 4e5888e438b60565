"""What has changed in a shop's tables since `posctl adopt`: for the doctor and the audit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from posd.database import adoption, shop_tables
from posd.database.adoption import Finding
from posd.database.link import Reader
from posd.database.provisioning import hook_role
from posd.events.timezones import zone
from posd.store import adoptions
from posd.values import Tenant

_ORDERS: Final = 20
_FEWEST: Final = 3
_NEAR: Final = timedelta(minutes=5)
_FAR: Final = timedelta(minutes=30)


async def changes(session: Reader, tenant: Tenant) -> list[Finding]:
    """What is not any more as it was when the tables were adopted; nothing if they never were.

    Only the system catalog is read.
    """
    kept = await adoptions.kept(session, tenant)
    if kept is None:
        return []
    role = hook_role(tenant)
    tables = await shop_tables.read(session, tenant, role)
    return adoption.changes(tenant, kept.tables, tables, role)


async def other_clock(session: Reader, tenant: Tenant) -> str | None:
    """The value of `--timestamps` that seems to be right, if the other one was chosen; None otherwise."""
    kept = await adoptions.kept(session, tenant)
    if kept is None or kept.timestamps is None:
        return None
    if kept.tables.get("orders", {}).get("created_at") != "timestamp without time zone":
        return None
    orders = await adoptions.published(session, tenant, _ORDERS)
    return judged(orders, tenant.timezone, kept.timestamps)


def judged(
    orders: Sequence[tuple[datetime, datetime]], timezone: str, timestamps: str
) -> str | None:
    """As `other_clock`, of orders that were made and published at these times.

    If each order was published as long after it was made as the time zone is away from UTC, its time was
    read by the wrong clock.
    """
    if len(orders) < _FEWEST:
        return None
    for made, published in orders:
        away = published.astimezone(zone(timezone)).utcoffset() or timedelta(0)
        expected = away if timestamps == "local" else -away
        if abs(expected) < _FAR or abs(published - made - expected) > _NEAR:
            return None
    return "utc" if timestamps == "local" else "local"
