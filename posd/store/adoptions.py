"""The record of the adoption of a shop's own tables (`sql/main/013_adoptions.sql`)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, cast

from attrs import frozen

from posd.database.reconnecting import Querier
from posd.protocol import jsontext
from posd.store import schema
from posd.values import Tenant

_KEPT: Final = """
    SELECT a.timestamps, a.tables::text FROM dinedesk_main.pos_adoptions AS a WHERE a.tenant_id = %s
"""
_PUBLISHED: Final = """
    SELECT o.created_at, e.created_at
      FROM {schema}.pos_orders AS o JOIN {schema}.pos_events AS e ON e.seq = o.first_seq
     ORDER BY o.first_seq DESC LIMIT %s
"""


@frozen
class AdoptedColumns:
    """The adopted tables of a shop.

    `tables` maps a table to its columns and their types. `timestamps` says how times without a time
    zone are interpreted.
    """

    timestamps: str | None
    tables: Mapping[str, Mapping[str, str]]


async def find(executor: Querier, tenant: Tenant) -> AdoptedColumns | None:
    """Return the record of a tenant's adoption, or None if its tables were never adopted."""
    rows = await executor.query(_KEPT, (tenant.id,))
    if not rows:
        return None
    ((timestamps, tables),) = rows
    return AdoptedColumns(timestamps, cast("dict[str, dict[str, str]]", jsontext.decode(tables)))


async def publication_times(
    executor: Querier, tenant: Tenant, most: int
) -> list[tuple[datetime, datetime]]:
    """Return, for the `most` latest orders, the order's own `created_at` and the time of publication."""
    return [
        (made, told)
        for made, told in await executor.query(_PUBLISHED.format(schema=schema(tenant)), (most,))
    ]
