"""How every tenant and its terminals stand: what operators ask, and nobody else."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from attrs import frozen

from posd.database.reconnecting import Executor
from posd.store import schema
from posd.values import Seq, Tenant, TenantId

_STREAMS: Final = """
    SELECT h.tenant_id, h.stream_id, h.last_seq, h.last_seq - greatest(h.received_seq, h.pruned_seq),
           (SELECT count(*) FROM dinedesk_main.pos_connected AS c WHERE c.tenant_id = h.tenant_id),
           o.count, o.oldest
      FROM dinedesk_main.pos_heads AS h
      LEFT JOIN (SELECT tenant_id, count(*), min(created_at) AS oldest
                   FROM dinedesk_main.pos_outbox GROUP BY tenant_id) AS o USING (tenant_id)
"""
# The books have 0 until a connection is looked after for the first time: not known yet.
# A device that is connected twice, for the moment in which one supersedes the other, is there once.
_TERMINALS: Final = """
    SELECT coalesce(d.device_id, c.device_id), c.connected_at, greatest(c.last_seen_at, d.last_seen_at),
           nullif(c.sent_seq, 0), a.acked_seq,
           CASE WHEN d.first_acked_at IS NOT NULL THEN h.last_seq - a.acked_seq END,
           d.first_acked_at IS NULL, d.device_name, coalesce(d.has_key, false), coalesce(d.is_active, true),
           d.app_version, d.first_acked_at, c.node_id::text
      FROM dinedesk_main.pos_heads AS h
      JOIN (SELECT * FROM dinedesk_main.pos_devices WHERE tenant_id = %(tenant)s) AS d
           FULL JOIN (SELECT DISTINCT ON (coalesce(device_id, connection_id::text)) *
                        FROM dinedesk_main.pos_connected WHERE tenant_id = %(tenant)s
                       ORDER BY coalesce(device_id, connection_id::text), connected_at DESC) AS c
           ON c.device_id = d.device_id
        ON h.tenant_id = %(tenant)s
      LEFT JOIN dinedesk_main.pos_cursors AS a ON a.tenant_id = h.tenant_id AND a.device_id = d.device_id
     ORDER BY c.connected_at IS NULL, 1 NULLS LAST, c.connected_at
"""
_FAILED: Final = """
    SELECT (SELECT count(*) FROM dinedesk_main.pos_unsequenced
             WHERE tenant_id = %(tenant)s AND failure IS NOT NULL
               AND created_at > now() - interval '24 hours')
         + (SELECT count(DISTINCT seq) FROM dinedesk_main.pos_nacks
             WHERE tenant_id = %(tenant)s AND created_at > now() - interval '24 hours')
"""


_STREAM: Final = """
    SELECT last_seq, last_seq - greatest(received_seq, pruned_seq)
      FROM dinedesk_main.pos_heads WHERE tenant_id = %s
"""
_DAY: Final = """
    SELECT event_type, count(*), max(created_at)
      FROM (SELECT event_type, created_at FROM dinedesk_main.pos_events WHERE tenant_id = %(tenant)s
            UNION ALL
            SELECT event_type, created_at FROM dinedesk_main.pos_unsequenced
             WHERE tenant_id = %(tenant)s) AS log
     WHERE created_at > now() - interval '24 hours' GROUP BY event_type ORDER BY event_type
"""
# Events and the rest apart, each read from the end of its index. Positions are gapless, so the last ten are
# known without a sort.
_RECENT: Final = """
    SELECT seq, event_type, status, created_at
      FROM (SELECT id, seq, event_type, status, created_at FROM {schema}.pos_sync_logs
             WHERE seq > (SELECT last_seq - 10 FROM dinedesk_main.pos_heads WHERE tenant_id = %(tenant)s)
            UNION ALL
            (SELECT id, NULL, event_type, CASE WHEN failure IS NULL THEN 'received' ELSE 'failed' END,
                    created_at
               FROM dinedesk_main.pos_unsequenced
              WHERE tenant_id = %(tenant)s ORDER BY id DESC LIMIT 10)) AS latest
     ORDER BY id DESC LIMIT 10
"""


@frozen
class StreamStanding:
    """One tenant's stream: `undelivered` events no terminal has acknowledged yet.

    `waiting` counts what is published and not numbered yet, `waiting_since` is the oldest of it.
    """

    tenant_id: TenantId
    stream_id: UUID
    last_seq: Seq
    undelivered: int
    connected: int
    waiting: int
    waiting_since: datetime | None


@frozen
class TerminalStanding:
    """One terminal, connected or not.

    `device_id` is None for a connected one without a name; `connected_since` for one that is not
    connected. `acked` is None where there is no cursor. A `legacy` terminal has never acknowledged
    anything; its cursor follows the head, so for it `behind`, in events, is None too. `node` is the
    posd that a connected one is connected to.
    """

    device_id: str | None
    connected_since: datetime | None
    last_seen: datetime | None
    sent: Seq | None
    acked: Seq | None
    behind: int | None
    legacy: bool
    name: str | None
    has_key: bool
    is_active: bool
    app_version: str | None
    first_acked_at: datetime | None
    node: str | None


@frozen
class EventTally:
    """How many events of a type there were in the last 24 hours, and when the last one was."""

    type: str
    count: int
    last: datetime


@frozen
class RecentEntry:
    """One of the latest entries of the log; `seq` is None for what was not for tills."""

    seq: Seq | None
    type: str
    status: str
    created_at: datetime


@frozen
class StreamReport:
    """How one tenant stands, on all nodes."""

    last_seq: Seq
    undelivered: int
    terminals: list[TerminalStanding]
    day: list[EventTally]
    recent: list[RecentEntry]


async def tenant_report(executor: Executor, tenant: Tenant) -> StreamReport | None:
    """How one tenant stands; None if there is no such tenant any more."""
    rows = await executor.query(_STREAM, (tenant.id,))
    if not rows:
        return None
    ((last_seq, undelivered),) = rows
    recent = await executor.query(_RECENT.format(schema=schema(tenant)), {"tenant": tenant.id})
    return StreamReport(
        last_seq,
        undelivered,
        await terminal_standings(executor, tenant.id),
        [EventTally(*row) for row in await executor.query(_DAY, {"tenant": tenant.id})],
        [RecentEntry(*row) for row in recent],
    )


async def stream_standings(executor: Executor) -> dict[TenantId, StreamStanding]:
    """Every tenant's stream."""
    return {
        tenant_id: StreamStanding(
            tenant_id, UUID(str(stream)), last, missing, tills, waiting or 0, since
        )
        for tenant_id, stream, last, missing, tills, waiting, since in await executor.query(
            _STREAMS
        )
    }


async def terminal_standings(executor: Executor, tenant_id: TenantId) -> list[TerminalStanding]:
    """A tenant's terminals: those that are connected first, then by name."""
    return [
        TerminalStanding(*row) for row in await executor.query(_TERMINALS, {"tenant": tenant_id})
    ]


async def count_failed(executor: Executor, tenant: Tenant) -> int:
    """How many events of the last 24 hours could not be published, or not be used by a terminal."""
    rows = await executor.query(_FAILED, {"tenant": tenant.id})
    return int(rows[0][0])
