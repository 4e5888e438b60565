"""A tenant's rows of the tables of all tenants, written out: the log, refusals, orders."""

from __future__ import annotations

from typing import Final

from posd.database.link import Reader
from posd.values import Tenant

BATCH: Final = 500

TABLES: Final = {
    "pos_events": ("seq",),
    "pos_unsequenced": ("id",),
    "pos_nacks": ("seq", "device_id"),
    "pos_orders": ("order_id",),
    "pos_order_terminals": ("order_id", "device_id"),
}
"""By table its key within a tenant, in whose order the rows come."""

_ROWS: Final = """
    SELECT json_build_object('table', %(table)s, 'row', row_to_json(t))::text, {key}
      FROM dinedesk_main.{table} AS t
     WHERE tenant_id = %(tenant)s AND (%(after)s::text[] IS NULL OR ({key}) > ({after}))
     ORDER BY {key} LIMIT %(limit)s
"""
_TYPES: Final = {"seq": "bigint", "id": "bigint"}

Key = list[str]


async def rows(
    session: Reader, tenant: Tenant, table: str, after: Key | None = None
) -> tuple[list[str], Key | None]:
    """The next rows of one of `TABLES`, each as a JSON text, and the key to read on from.

    The texts are as PostgreSQL writes them: a `json` column stands in them as it is stored.
    """
    columns = TABLES[table]
    key = ", ".join(columns)
    places = ", ".join(
        f"(%(after)s::text[])[{number}]::{_TYPES.get(column, 'text')}"
        for number, column in enumerate(columns, 1)
    )
    statement = _ROWS.format(key=key, table=table, after=places)
    values = {"table": table, "tenant": tenant.id, "after": after, "limit": BATCH}
    found = await session.query(statement, values)
    return [row[0] for row in found], [str(each) for each in found[-1][1:]] if found else None
