"""posd's own record of each order: what was last published of it, and how far it is on paper."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from attrs import frozen

from posd.database.link import Session
from posd.errors import NotFound
from posd.events.print_status import Report, Said, before
from posd.values import PrintStatus, Seq, StreamName, Tenant, TenantId

# Each time is that of the first report, and none is in the future. What tells nothing new writes nothing.
# `report` is one row so that all of the statement means the same moment.
_NOTE: Final = """
    WITH report AS (
        SELECT least(coalesce(%(at)s::timestamptz, now()), now()) AS at
    ), said AS (
        INSERT INTO dinedesk_main.pos_order_terminals AS t
            (tenant_id, order_id, device_id, received_at, accepted_at, printed_at, failed_at)
        SELECT o.tenant_id, o.order_id, %(device)s, r.at, CASE WHEN %(accepted)s THEN r.at END,
               CASE WHEN %(printed)s THEN r.at END, CASE WHEN %(failed)s THEN r.at END
          FROM dinedesk_main.pos_orders AS o CROSS JOIN report AS r
         WHERE o.tenant_id = %(tenant)s AND o.order_id = %(order)s AND %(device)s IS NOT NULL
        ON CONFLICT (tenant_id, order_id, device_id) DO UPDATE
           SET accepted_at = coalesce(t.accepted_at, excluded.accepted_at),
               printed_at = coalesce(t.printed_at, excluded.printed_at),
               failed_at = coalesce(t.failed_at, excluded.failed_at)
         WHERE (t.accepted_at IS NULL AND excluded.accepted_at IS NOT NULL)
            OR (t.printed_at IS NULL AND excluded.printed_at IS NOT NULL)
            OR (t.failed_at IS NULL AND excluded.failed_at IS NOT NULL)
    )
    UPDATE dinedesk_main.pos_orders AS o
       SET received_at = coalesce(o.received_at, r.at),
           accepted_at = CASE WHEN %(accepted)s THEN coalesce(o.accepted_at, r.at) ELSE o.accepted_at END,
           printed_at = CASE WHEN %(printed)s THEN coalesce(o.printed_at, r.at) ELSE o.printed_at END,
           paid_at = CASE WHEN %(paid)s THEN coalesce(o.paid_at, r.at) ELSE o.paid_at END,
           print_status = CASE WHEN o.print_status = ANY (%(before)s) THEN %(status)s ELSE o.print_status END,
           print_reason = CASE WHEN o.print_status = ANY (%(before)s) THEN %(reason)s ELSE o.print_reason END,
           device_id = CASE WHEN o.print_status = ANY (%(before)s) THEN coalesce(%(device)s, o.device_id)
                            ELSE coalesce(o.device_id, %(device)s) END
      FROM report AS r
     WHERE o.tenant_id = %(tenant)s AND o.order_id = %(order)s
       AND (o.print_status = ANY (%(before)s) OR o.received_at IS NULL
            OR (%(accepted)s AND o.accepted_at IS NULL) OR (%(paid)s AND o.paid_at IS NULL))
    RETURNING o.print_status
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
_KNOWN: Final = """
    SELECT print_status FROM dinedesk_main.pos_orders WHERE tenant_id = %s AND order_id = %s
"""
_ONE: Final = """
    SELECT o.order_id, o.snapshot::text, o.print_status, o.pushed_at, o.received_at, o.accepted_at,
           o.printed_at, o.paid_at
      FROM dinedesk_main.pos_orders AS o WHERE o.tenant_id = %s AND o.order_id = %s
"""
_TERMINALS: Final = """
    SELECT device_id, received_at, accepted_at, printed_at, failed_at
      FROM dinedesk_main.pos_order_terminals
     WHERE tenant_id = %s AND order_id = %s ORDER BY received_at, device_id
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
class Open:
    """An order that is still to be made; the snapshot is JSON text."""

    order_id: str
    snapshot: str
    print_status: str


@frozen
class Wanted:
    """Which open orders: those changed `since` then that stand `after` a place, so many and so much."""

    limit: int
    most_bytes: int
    since: datetime | None = None
    after: PendingPosition | None = None


@frozen
class Page:
    """Open orders, the oldest first, and the position in the stream at which that is how it was.

    `next` is the place of the last one, if there are more.
    """

    orders: Sequence[Open]
    next: PendingPosition | None
    last_seq: Seq
    stream_id: UUID


@frozen
class Reporter:
    """What one terminal has said about an order, and when it first did."""

    device_id: str
    received_at: datetime
    accepted_at: datetime | None
    printed_at: datetime | None
    failed_at: datetime | None


@frozen
class Kept:
    """All that is known of an order; the snapshot is JSON text."""

    order_id: str
    snapshot: str
    print_status: PrintStatus
    pushed_at: datetime | None
    received_at: datetime | None
    accepted_at: datetime | None
    printed_at: datetime | None
    paid_at: datetime | None
    terminals: Sequence[Reporter]


async def note(
    session: Session, tenant: Tenant, report: Report, device_id: str | None
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
        "accepted": report.said is Said.ACCEPTED,
        "printed": report.said is Said.PRINTED,
        "failed": report.said is Said.FAILED,
        "paid": report.said is Said.PAID,
    }
    rows = await session.query(_NOTE, values)
    rows = rows or await session.query(_KNOWN, (tenant.id, report.order_id))
    return PrintStatus(rows[0][0]) if rows else None


async def begin_anew(session: Session, tenant_id: TenantId, order_id: str, snapshot: str) -> None:
    """Forget how far the earlier order of this id came: the one of `snapshot` takes its place."""
    values = {"tenant": tenant_id, "order": order_id, "snapshot": snapshot}
    await session.execute(_BEGIN_ANEW, values)


async def one(session: Session, tenant: Tenant, order_id: str) -> Kept | None:
    """An order and what terminals have said about it."""
    rows = await session.query(_ONE, (tenant.id, order_id))
    if not rows:
        return None
    ((found, snapshot, status, pushed, received, accepted, printed, paid),) = rows
    said = await session.query(_TERMINALS, (tenant.id, order_id))
    return Kept(
        found,
        snapshot,
        PrintStatus(status),
        pushed,
        received,
        accepted,
        printed,
        paid,
        [Reporter(*row) for row in said],
    )


async def still_open(session: Session, tenant: Tenant, wanted: Wanted) -> Page:
    """Orders that are neither printed nor in a final status: the first one whatever its size."""
    place = wanted.after or PendingPosition("-infinity", "")
    values = {
        "tenant": tenant.id,
        "since": wanted.since,
        "from": place.created_at,
        "after": place.order_id,
        "limit": wanted.limit,
        "bytes": wanted.most_bytes,
    }
    rows = await session.query(_OPEN, values)
    if not rows:
        raise NotFound("This tenant was deleted.", code="unknown_tenant")
    (last_seq, stream_id, *_), *rest = rows
    found = [Open(*row[2:5]) for row in rest if row[3] is not None]
    further = None
    if len(found) < len(rest):
        further = PendingPosition(rest[-1][5], found[-1].order_id)
    return Page(found, further, last_seq, UUID(stream_id))


async def confirmed(
    session: Session, ids: Iterable[TenantId], final: Collection[str]
) -> dict[StreamName, Seq]:
    """Up to where what tills said about orders confirms everything, where that is news."""
    rows = await session.query(_CONFIRMED, (list(ids), sorted(final)))
    return {(tenant_id, UUID(stream_id)): seq for tenant_id, stream_id, seq in rows}


async def mark(session: Session, ids: Iterable[TenantId]) -> None:
    """Note of these tenants' orders what was sent and what was acknowledged meanwhile."""
    await session.execute(_MARK, (list(ids),))
