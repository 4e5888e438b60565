"""What is older than it is kept for: which tenants have any, and having it deleted batch by batch.

posd has no right to delete events; `sql/main/010_retention.sql` does it.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final
from uuid import UUID

from attrs import asdict, frozen

from posd.database.reconnecting import Executor
from posd.values import Tenant, TenantId

BATCH: Final = 500
"""Rows in one transaction: some milliseconds."""

_CUTOFF: Final = "SELECT now() - %s * interval '1 second'"
# By night a tenant's turn comes earlier, so that it comes then. Nights are those of the shop.
_DUE: Final = """
    SELECT h.tenant_id, now() - %(keep)s * interval '1 second'
      FROM dinedesk_main.pos_heads AS h JOIN dinedesk_main.tenants AS t ON t.id = h.tenant_id
     WHERE h.pruned_before < now() - (%(keep)s + CASE
               WHEN extract(hour FROM now() AT TIME ZONE t.timezone) = ANY (%(night)s) THEN %(early)s
               ELSE %(late)s END) * interval '1 second'
     ORDER BY h.pruned_before
"""
_LEASE: Final = """
    INSERT INTO dinedesk_main.pos_pruning AS p (node_id, lease_until)
    VALUES (%(node)s::uuid, now() + %(seconds)s * interval '1 second')
    ON CONFLICT (singleton) DO UPDATE SET node_id = excluded.node_id, lease_until = excluded.lease_until
     WHERE p.node_id = excluded.node_id OR p.lease_until < now()
    RETURNING true
"""
_LEAVE: Final = """
    UPDATE dinedesk_main.pos_pruning SET lease_until = now() WHERE node_id = %s::uuid
"""
_PRUNE: Final = "SELECT * FROM dinedesk_main.pos_prune(%s, %s, %s::text[], %s)"
_PRUNE_ANSWERS: Final = "SELECT dinedesk_main.pos_prune_answers(%s, %s)"
# As pos_prune() and pos_prune_answers() would take them, if nothing else happened.
_WOULD_GO: Final = """
    WITH head AS (
        SELECT h.received_seq, h.pruned_seq,
               coalesce((SELECT max(e.seq) FROM dinedesk_main.pos_events AS e
                          WHERE e.tenant_id = h.tenant_id AND e.seq > h.pruned_seq
                            AND e.seq < coalesce((SELECT min(y.seq) FROM dinedesk_main.pos_events AS y
                                                   WHERE y.tenant_id = h.tenant_id
                                                     AND y.seq > h.pruned_seq AND y.created_at >= %(before)s),
                                                 9223372036854775807)), h.pruned_seq) AS floor
          FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = %(tenant)s
    )
    SELECT (SELECT count(*) FROM dinedesk_main.pos_events AS e
             WHERE e.tenant_id = %(tenant)s AND e.seq > head.pruned_seq AND e.seq <= head.floor),
           (SELECT count(*) FROM dinedesk_main.pos_events AS e
             WHERE e.tenant_id = %(tenant)s
               AND e.seq > greatest(head.pruned_seq, head.received_seq) AND e.seq <= head.floor),
           (SELECT count(*) FROM dinedesk_main.pos_unsequenced AS u
             WHERE u.tenant_id = %(tenant)s AND u.created_at < %(before)s),
           (SELECT count(*) FROM dinedesk_main.pos_nacks AS n
             WHERE n.tenant_id = %(tenant)s AND n.seq <= head.floor AND n.created_at < %(before)s),
           (SELECT count(*) FROM dinedesk_main.pos_orders AS k
             WHERE k.tenant_id = %(tenant)s AND k.created_at < %(before)s AND k.updated_at < %(before)s
               AND coalesce(k.last_seq, 0) <= head.floor
               AND CASE WHEN k.status = ANY (%(final)s) THEN k.updated_at < now() - interval '1 day'
                        ELSE k.updated_at < now() - interval '30 days'
                         AND coalesce((k.snapshot ->> 'scheduledFor')::timestamptz < %(before)s, true) END)
      FROM head
"""
_PRUNE_DELETED: Final = "SELECT dinedesk_main.pos_prune_deleted(%s)"
_ANSWERS_THAT_WOULD_GO: Final = """
    SELECT count(*) FROM dinedesk_main.idempotency_keys
     WHERE created_at < least(%s::timestamptz, now() - interval '1 day')
"""


@frozen
class PrunedCounts:
    """How much of a tenant was pruned. `expired` are those of the `events` that nobody had acknowledged."""

    events: int = 0
    expired: int = 0
    messages: int = 0
    nacks: int = 0
    orders: int = 0

    @property
    def rows(self) -> int:
        """How many there were in all."""
        return self.events + self.messages + self.nacks + self.orders

    def __add__(self, other: PrunedCounts) -> PrunedCounts:
        mine, others = asdict(self), asdict(other)
        return PrunedCounts(**{name: mine[name] + others[name] for name in mine})

    def __bool__(self) -> bool:
        return self.rows > 0


@frozen
class DueTenant:
    """A tenant that it is time to prune, and up to when."""

    tenant_id: TenantId
    before: datetime


async def cutoff_time(executor: Executor, seconds: float) -> datetime:
    """When it was so long ago, by the clock that events are dated by."""
    ((when,),) = await executor.query(_CUTOFF, (seconds,))
    assert isinstance(when, datetime)
    return when


async def due_tenants(
    executor: Executor, keep: float, *, early: float, late: float, night: Collection[int]
) -> list[DueTenant]:
    """Tenants that have what is older than `keep` seconds by `late` more, the longest overdue first.

    `early` is that in the hours of the `night`.
    """
    values = {"keep": keep, "early": early, "late": late, "night": sorted(night)}
    return [DueTenant(*row) for row in await executor.query(_DUE, values)]


async def renew_lease(executor: Executor, node_id: UUID, seconds: float) -> bool:
    """Be the one node that prunes, for so long; False if another one is."""
    rows = await executor.query(_LEASE, {"node": str(node_id), "seconds": seconds})
    return bool(rows)


async def release_lease(executor: Executor, node_id: UUID) -> None:
    """Be that no longer."""
    await executor.execute(_LEAVE, (str(node_id),))


async def prune(
    executor: Executor,
    tenant_id: TenantId,
    before: datetime,
    final: Collection[str],
    at_most: int | None = None,
) -> tuple[PrunedCounts, bool]:
    """Delete one batch of what is from before then; what, and whether that was all.

    A batch is `at_most` rows of a table, or `BATCH`. `final` are the statuses of orders that are at their
    end.
    """
    rows = await executor.query(_PRUNE, (tenant_id, before, sorted(final), at_most or BATCH))
    if not rows:
        return PrunedCounts(), True
    ((*counts, done),) = rows
    return PrunedCounts(*counts), done


async def prune_answers(executor: Executor, before: datetime) -> int:
    """Delete one batch of stored answers from before then, of all tenants; how many."""
    ((count,),) = await executor.query(_PRUNE_ANSWERS, (before, BATCH))
    return int(count)


async def prune_deleted(executor: Executor) -> int:
    """Delete one batch of rows of tenants that were deleted; how many."""
    ((count,),) = await executor.query(_PRUNE_DELETED, (BATCH,))
    return int(count)


async def count_prunable(
    executor: Executor, tenant: Tenant, before: datetime, final: Collection[str]
) -> PrunedCounts:
    """What `prune` would delete of a tenant by and by."""
    values = {"tenant": tenant.id, "before": before, "final": sorted(final)}
    rows = await executor.query(_WOULD_GO, values)
    return PrunedCounts(*rows[0]) if rows else PrunedCounts()


async def count_prunable_answers(executor: Executor, before: datetime) -> int:
    """How many stored answers `prune_answers` would delete by and by."""
    ((count,),) = await executor.query(_ANSWERS_THAT_WOULD_GO, (before,))
    return int(count)
