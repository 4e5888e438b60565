"""posd's own record of each order: so far, how its printing went."""

from __future__ import annotations

from typing import Final

from posd.link import Session
from posd.store import schema
from posd.values import PrintStatus, Tenant

# Never backwards: `printed` is final, `failed` may still become `printed`. A repetition changes
# nothing, not even the time.
_PRINT: Final = """
    UPDATE {schema}.pos_orders
       SET print_status = %(status)s, print_reason = %(reason)s, device_id = coalesce(%(device)s, device_id),
           printed_at = CASE WHEN %(status)s = 'printed' THEN now() ELSE printed_at END
     WHERE order_id = %(order)s AND print_status <> 'printed' AND print_status <> %(status)s
    RETURNING print_status
"""
_KNOWN: Final = "SELECT print_status FROM {schema}.pos_orders WHERE order_id = %s"


async def print_result(
    session: Session,
    tenant: Tenant,
    order_id: str,
    status: PrintStatus,
    device_id: str | None,
    reason: str | None,
) -> PrintStatus | None:
    """Note how printing an order went; its print status now, None if there is no such order."""
    name = schema(tenant)
    rows = await session.query(
        _PRINT.format(schema=name),
        {"status": status.value, "reason": reason, "device": device_id, "order": order_id},
    )
    rows = rows or await session.query(_KNOWN.format(schema=name), (order_id,))
    return PrintStatus(rows[0][0]) if rows else None
