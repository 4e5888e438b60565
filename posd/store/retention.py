"""Pruning: find the tenants with rows older than their retention, and delete these rows in batches.

posd has no privilege to delete events. The functions of `sql/main/010_retention.sql` do it.
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
"""The number of rows that a transaction deletes. It takes a few milliseconds."""

_CUTOFF: Final = "SELECT now() - %s * interval '1 second'"
# At night, in the shop's time zone, a tenant is due earlier (`early`), so that most pruning happens at night.
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
# The rows that pos_prune() would delete if nothing else changed. Keep the conditions equal to its conditions.
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
    """The numbers of pruned rows. `expired` counts those of the `events` that no till had acknowledged."""

    events: int = 0
    expired: int = 0
    messages: int = 0
    nacks: int = 0
    orders: int = 0

    @property
    def rows(self) -> int:
        """The total number of rows."""
        return self.events + self.messages + self.nacks + self.orders

    def __add__(self, other: PrunedCounts) -> PrunedCounts:
        mine, others = asdict(self), asdict(other)
        return PrunedCounts(**{name: mine[name] + others[name] for name in mine})

    def __bool__(self) -> bool:
        return self.rows > 0


@frozen
class DueTenant:
    """A tenant that is due for pruning, and the time before which rows are deleted."""

    tenant_id: TenantId
    before: datetime


async def cutoff_time(executor: Executor, seconds: float) -> datetime:
    """Return the time so many seconds ago, by the database's clock, which also dates events."""
    ((when,),) = await executor.query(_CUTOFF, (seconds,))
    assert isinstance(when, datetime)
    return when


async def due_tenants(
    executor: Executor, keep: float, *, early: float, late: float, night: Collection[int]
) -> list[DueTenant]:
    """Return tenants that were last pruned up to a time more than `keep` plus `late` seconds ago.

    In the hours of the `night`, `early` applies in place of `late`. The longest overdue tenant comes first.
    """
    values = {"keep": keep, "early": early, "late": late, "night": sorted(night)}
    return [DueTenant(*row) for row in await executor.query(_DUE, values)]


async def renew_lease(executor: Executor, node_id: UUID, seconds: float) -> bool:
    """Take or renew the pruning lease for so many seconds. Return False if another node has it."""
    rows = await executor.query(_LEASE, {"node": str(node_id), "seconds": seconds})
    return bool(rows)


async def release_lease(executor: Executor, node_id: UUID) -> None:
    """Release the pruning lease."""
    await executor.execute(_LEAVE, (str(node_id),))


async def prune(
    executor: Executor,
    tenant_id: TenantId,
    before: datetime,
    final: Collection[str],
    at_most: int | None = None,
) -> tuple[PrunedCounts, bool]:
    """Delete one batch of rows older than `before`. Return their numbers, and True if none are left.

    A batch has `at_most` rows of a table, or `BATCH`. `final` lists the final statuses of orders.
    """
    rows = await executor.query(_PRUNE, (tenant_id, before, sorted(final), at_most or BATCH))
    if not rows:
        return PrunedCounts(), True
    ((*counts, done),) = rows
    return PrunedCounts(*counts), done


async def prune_answers(executor: Executor, before: datetime) -> int:
    """Delete one batch of stored answers older than `before`, of all tenants. Return their number."""
    ((count,),) = await executor.query(_PRUNE_ANSWERS, (before, BATCH))
    return int(count)


async def prune_deleted(executor: Executor) -> int:
    """Delete one batch of rows of deleted tenants. Return their number."""
    ((count,),) = await executor.query(_PRUNE_DELETED, (BATCH,))
    return int(count)


async def count_prunable(
    executor: Executor, tenant: Tenant, before: datetime, final: Collection[str]
) -> PrunedCounts:
    """Count the rows of a tenant that repeated calls of `prune` would delete."""
    values = {"tenant": tenant.id, "before": before, "final": sorted(final)}
    rows = await executor.query(_WOULD_GO, values)
    return PrunedCounts(*rows[0]) if rows else PrunedCounts()


async def count_prunable_answers(executor: Executor, before: datetime) -> int:
    """Count the stored answers that repeated calls of `prune_answers` would delete."""
    ((count,),) = await executor.query(_ANSWERS_THAT_WOULD_GO, (before,))
    return int(count)
