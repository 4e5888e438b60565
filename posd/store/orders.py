"""posd's own record of each order: what was last published of it, and how far it is on paper."""

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
# What is said of the earlier order goes: by posd's record it is printed.
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
# A row for each terminal that has said something of the order, or one without.
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
    """Where an order stands among the open ones: its time in UTC, as PostgreSQL has it, and its id."""

    created_at: str
    order_id: str


@frozen
class OpenOrder:
    """An order that is still to be made; the snapshot is JSON text."""

    order_id: str
    snapshot: str
    print_status: str


@frozen
class PendingQuery:
    """Which open orders: those changed `since` then that stand `after` a place, so many and so much."""

    limit: int
    most_bytes: int
    since: datetime | None = None
    after: PendingPosition | None = None


@frozen
class PendingPage:
    """Open orders, the oldest first, and the position in the stream at which that is how it was.

    `next` is the place of the last one, if there are more.
    """

    orders: Sequence[OpenOrder]
    next: PendingPosition | None
    last_seq: Seq
    stream_id: UUID


@frozen
class OrderReporter:
    """What one terminal has said about an order, and when it first did."""

    device_id: str
    received_at: datetime
    accepted_at: datetime | None
    printed_at: datetime | None
    failed_at: datetime | None


@frozen
class OrderRecord:
    """All that is known of an order; the snapshot is JSON text."""

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
    """Note what a till says of an order; its print status now, None if there is no such order."""
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
    """Forget how far the earlier order of this id came: the one of `snapshot` takes its place."""
    values = {"tenant": tenant_id, "order": order_id, "snapshot": snapshot}
    await executor.execute(_BEGIN_ANEW, values)


async def find_order(executor: Executor, tenant: Tenant, order_id: str) -> OrderRecord | None:
    """An order and what terminals have said about it."""
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
    """Orders that are neither printed nor in a final status: the first one whatever its size."""
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
    """Up to where what tills said about orders confirms everything, where that is news."""
    rows = await executor.query(_CONFIRMED, (list(ids), sorted(final)))
    return {(tenant_id, UUID(stream_id)): seq for tenant_id, stream_id, seq in rows}


async def update_print_status(executor: Executor, ids: Iterable[TenantId]) -> None:
    """Note of these tenants' orders what was sent and what was acknowledged meanwhile."""
    await executor.execute(_MARK, (list(ids),))
