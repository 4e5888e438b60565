"""Export a tenant's rows of the shared tables: the log, the nacks and the orders."""

from __future__ import annotations

from typing import Final

from posd.database.reconnecting import Querier
from posd.values import Tenant

BATCH: Final = 500

_ROWS: Final = {
    "pos_events": """
        SELECT json_build_object('table', 'pos_events', 'row', row_to_json(t))::text, t.seq, ''
          FROM dinedesk_main.pos_events AS t
         WHERE t.tenant_id = %(tenant)s AND t.seq > %(key)s::bigint
         ORDER BY t.seq LIMIT %(limit)s
    """,
    "pos_unsequenced": """
        SELECT json_build_object('table', 'pos_unsequenced', 'row', row_to_json(t))::text, t.id, ''
          FROM dinedesk_main.pos_unsequenced AS t
         WHERE t.tenant_id = %(tenant)s AND t.id > %(key)s::bigint
         ORDER BY t.id LIMIT %(limit)s
    """,
    "pos_nacks": """
        SELECT json_build_object('table', 'pos_nacks', 'row', row_to_json(t))::text, t.seq, t.device_id
          FROM dinedesk_main.pos_nacks AS t
         WHERE t.tenant_id = %(tenant)s AND (t.seq, t.device_id) > (%(key)s::bigint, %(device)s)
         ORDER BY t.seq, t.device_id LIMIT %(limit)s
    """,
    "pos_orders": """
        SELECT json_build_object('table', 'pos_orders', 'row', row_to_json(t))::text, t.order_id, ''
          FROM dinedesk_main.pos_orders AS t
         WHERE t.tenant_id = %(tenant)s AND t.order_id > %(key)s::text
         ORDER BY t.order_id LIMIT %(limit)s
    """,
    "pos_order_terminals": """
        SELECT json_build_object('table', 'pos_order_terminals', 'row', row_to_json(t))::text,
               t.order_id, t.device_id
          FROM dinedesk_main.pos_order_terminals AS t
         WHERE t.tenant_id = %(tenant)s AND (t.order_id, t.device_id) > (%(key)s::text, %(device)s)
         ORDER BY t.order_id, t.device_id LIMIT %(limit)s
    """,
}
TABLES: Final = tuple(_ROWS)

Key = tuple[object, str]
"""The key of a row within its tenant and table."""
_FIRST: Final[dict[str, Key]] = {
    # A till may send a nack for any number, so a position here may be negative.
    "pos_nacks": ("-9223372036854775808", ""),
    "pos_orders": ("", ""),
    "pos_order_terminals": ("", ""),
}


async def next_rows(
    executor: Querier, tenant: Tenant, table: str, after: Key | None = None
) -> tuple[list[str], Key | None]:
    """Return the next `BATCH` rows of one of `TABLES` as JSON texts, and `after` for the next call.

    PostgreSQL writes the texts: they contain `json` columns as they are stored.
    """
    key, device = after or _FIRST.get(table, (0, ""))
    values = {"tenant": tenant.id, "key": key, "device": device, "limit": BATCH}
    found = await executor.query(_ROWS[table], values)
    return [row[0] for row in found], (found[-1][1], found[-1][2]) if found else None
