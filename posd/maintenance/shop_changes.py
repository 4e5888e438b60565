"""Find changes of a shop's tables since `posctl adopt`, for `posctl doctor` and `posctl audit`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from posd.database import adoption_rules as adoption
from posd.database import shop_tables
from posd.database.adoption_rules import TableFinding
from posd.database.provisioning import reader_role
from posd.database.reconnecting import Querier
from posd.events.timezones import zone
from posd.store import adoptions
from posd.values import Tenant

_ORDERS: Final = 20
_MIN_ORDERS: Final = 3
_TOLERANCE: Final = timedelta(minutes=5)
_MIN_OFFSET: Final = timedelta(minutes=30)


async def table_changes(executor: Querier, tenant: Tenant) -> list[TableFinding]:
    """Return the changes since the tables were adopted; an empty list if they were never adopted.

    Reads only the system catalog.
    """
    kept = await adoptions.find(executor, tenant)
    if kept is None:
        return []
    role = reader_role(tenant)
    tables = await shop_tables.load_tables(executor, tenant, role)
    return adoption.changes_since_adoption(tenant, kept.tables, tables, role)


async def better_timestamps_option(executor: Querier, tenant: Tenant) -> str | None:
    """Return the value of `--timestamps` that fits the orders, or None if the chosen value may be right."""
    kept = await adoptions.find(executor, tenant)
    if kept is None or kept.timestamps is None:
        return None
    if kept.tables.get("orders", {}).get("created_at") != "timestamp without time zone":
        return None
    orders = await adoptions.publication_times(executor, tenant, _ORDERS)
    return judge_timestamps(orders, tenant.timezone, kept.timestamps)


def judge_timestamps(
    orders: Sequence[tuple[datetime, datetime]], timezone: str, timestamps: str
) -> str | None:
    """Return the value of `--timestamps` that fits the orders, or None if `timestamps` may be right.

    `orders` are pairs: when the order was created and when it was published. If every difference is about
    the UTC offset of the time zone, `created_at` was read in the wrong time zone.
    """
    if len(orders) < _MIN_ORDERS:
        return None
    for made, published in orders:
        away = published.astimezone(zone(timezone)).utcoffset() or timedelta(0)
        expected = away if timestamps == "local" else -away
        if abs(expected) < _MIN_OFFSET or abs(published - made - expected) > _TOLERANCE:
            return None
    return "utc" if timestamps == "local" else "local"
