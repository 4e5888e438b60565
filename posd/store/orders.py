"""posd's record of each order: its last published snapshot, and its print state."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from attrs import frozen

from posd.database.reconnecting import Executor
from posd.errors import NotFound
from posd.events.print_status import PrintReport, ReportedStatus, before
from posd.values import PrintStatus, Seq, StreamName, Tenant, TenantId

_NOTE: Final = """
    SELECT dinedesk_main.pos_note_report(
        %(tenant)s, %(order)s, %(device)s, %(at)s::timestamptz, %(accepted)s, %(printed)s, %(failed)s,
        %(paid)s, %(status)s, %(reason)s, %(before)s)
"""
# The reports about the earlier order are deleted. By posd's record that order is printed.
_BEGIN_ANEW: Final = """
    WITH gone AS (
        DELETE FROM dinedesk_main.pos_order_terminals WHERE tenant_id = %(tenant)s AND order_id = %(order)s
    )
    UPDATE dinedesk_main.pos_orders
       SET created_at = coalesce((%(snapshot)s::json ->> 'createdAt')::timestamptz, now()),
           first_seq = NULL, pushed_at = NULL, received_at = NULL, accepted_at = NULL, printed_at = NULL,
           paid_at = NULL, device_id = NULL, print_status = 'pending', print_reason = NULL
     WHERE tenant_id = %(tenant)s AND order_id = %(order)s
"""
# One row per terminal that has reported about the order, or one row without a terminal.
_ONE: Final = """
    SELECT o.order_id, o.snapshot::text, o.print_status, o.pushed_at, o.received_at, o.accepted_at,
           o.printed_at, o.paid_at, t.device_id, t.received_at, t.accepted_at, t.printed_at, t.failed_at
      FROM dinedesk_main.pos_orders AS o
      LEFT JOIN dinedesk_main.pos_order_terminals AS t USING (tenant_id, order_id)
     WHERE o.tenant_id = %s AND o.order_id = %s ORDER BY t.received_at, t.device_id
"""
_OPEN: Final = """
    SELECT o.last_seq, o.stream_id, o.order_id, o.snapshot, o.print_status, o.place
      FROM dinedesk_main.pos_open_orders(%(tenant)s, %(since)s, %(from)s::timestamp AT TIME ZONE 'UTC',
                                         %(after)s, %(limit)s, %(bytes)s) AS o
"""
_CONFIRMED: Final = """
    SELECT c.tenant_id, h.stream_id, c.seq
      FROM dinedesk_main.pos_confirmed(%s::integer[], %s::text[]) AS c
      JOIN dinedesk_main.pos_heads AS h USING (tenant_id)
"""
_MARK: Final = "SELECT dinedesk_main.pos_mark_orders(%s::integer[])"


@frozen
class PendingPosition:
    """The sort key of an open order: `created_at` in UTC, in PostgreSQL's text format, and the order id."""

    created_at: str
    order_id: str


@frozen
class OpenOrder:
    """An order that is still to be prepared; the snapshot is JSON text."""

    order_id: str
    snapshot: str
    print_status: str


@frozen
class PendingQuery:
    """A query for a page of open orders.

    The page has orders that have changed since the time `since` and have a sort key above `after`. It has
    at most `limit` orders and `most_bytes` bytes, but at least one order.
    """

    limit: int
    most_bytes: int
    since: datetime | None = None
    after: PendingPosition | None = None


@frozen
class PendingPage:
    """A page of open orders, oldest first, with the position of the stream that it corresponds to.

    `next` is the sort key of the page's last order if there are more orders.
    """

    orders: Sequence[OpenOrder]
    next: PendingPosition | None
    last_seq: Seq
    stream_id: UUID


@frozen
class OrderReporter:
    """The times at which one terminal received, accepted, printed or failed an order."""

    device_id: str
    received_at: datetime
    accepted_at: datetime | None
    printed_at: datetime | None
    failed_at: datetime | None


@frozen
class OrderRecord:
    """An order with its print state and reports; the snapshot is JSON text."""

    order_id: str
    snapshot: str
    print_status: PrintStatus
    pushed_at: datetime | None
    received_at: datetime | None
    accepted_at: datetime | None
    printed_at: datetime | None
    paid_at: datetime | None
    terminals: Sequence[OrderReporter]


async def record_report(
    executor: Executor, tenant: Tenant, report: PrintReport, device_id: str | None
) -> PrintStatus | None:
    """Store a till's report about an order. Return the new print status; None for an unknown order."""
    values = {
        "tenant": tenant.id,
        "order": report.order_id,
        "device": device_id,
        "at": report.at,
        "reason": report.reason,
        "status": report.status.value,
        "before": [each.value for each in before(report.status)],
        "accepted": report.said is ReportedStatus.ACCEPTED,
        "printed": report.said is ReportedStatus.PRINTED,
        "failed": report.said is ReportedStatus.FAILED,
        "paid": report.said is ReportedStatus.PAID,
    }
    ((status,),) = await executor.query(_NOTE, values)
    return None if status is None else PrintStatus(status)


async def replace_order(
    executor: Executor, tenant_id: TenantId, order_id: str, snapshot: str
) -> None:
    """Reset the print state of an order whose id is used for a new order, which `snapshot` describes."""
    values = {"tenant": tenant_id, "order": order_id, "snapshot": snapshot}
    await executor.execute(_BEGIN_ANEW, values)


async def find_order(executor: Executor, tenant: Tenant, order_id: str) -> OrderRecord | None:
    """Return an order with the reports of terminals; None for an unknown order."""
    rows = await executor.query(_ONE, (tenant.id, order_id))
    if not rows:
        return None
    found, snapshot, status, pushed, received, accepted, printed, paid = rows[0][:8]
    said = [OrderReporter(*row[8:]) for row in rows if row[8] is not None]
    times = (pushed, received, accepted, printed, paid)
    return OrderRecord(found, snapshot, PrintStatus(status), *times, said)


async def pending_orders(
    executor: Executor, tenant: Tenant, requested: PendingQuery
) -> PendingPage:
    """Return a page of the orders that are neither printed nor in a final status.

    The page has at least one order, whatever its size. Raises `NotFound` (`unknown_tenant`).
    """
    place = requested.after or PendingPosition("-infinity", "")
    values = {
        "tenant": tenant.id,
        "since": requested.since,
        "from": place.created_at,
        "after": place.order_id,
        "limit": requested.limit,
        "bytes": requested.most_bytes,
    }
    rows = await executor.query(_OPEN, values)
    if not rows:
        raise NotFound("This tenant was deleted.", code="unknown_tenant")
    (last_seq, stream_id, *_), *rest = rows
    found = [OpenOrder(*row[2:5]) for row in rest if row[3] is not None]
    further = None
    if len(found) < len(rest):
        further = PendingPosition(rest[-1][5], found[-1].order_id)
    return PendingPage(found, further, last_seq, UUID(stream_id))


async def confirmed_positions(
    executor: Executor, ids: Iterable[TenantId], final: Collection[str]
) -> dict[StreamName, Seq]:
    """Return positions up to which reports about orders show that tills have received all events.

    Only positions above the acknowledged ones are returned. `final` lists the final order statuses.
    """
    rows = await executor.query(_CONFIRMED, (list(ids), sorted(final)))
    return {(tenant_id, UUID(stream_id)): seq for tenant_id, stream_id, seq in rows}


async def update_print_status(executor: Executor, ids: Iterable[TenantId]) -> None:
    """Update the print status of orders whose events were sent or acknowledged since the last call."""
    await executor.execute(_MARK, (list(ids),))
