"""The state of tenants' streams and terminals, for operators."""

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
# pos_connections has sent_seq 0 until the first flush after a connection was made: the position is unknown.
# A device has two connections for the moment in which one supersedes the other. Only the newer is shown.
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
# Events and unsequenced entries are read separately, each from the end of its index. Positions have no gaps,
# so the last ten are found without a sort.
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
    """The state of one tenant's stream. `undelivered` counts events that no terminal has acknowledged.

    `waiting` is the number of outbox rows of the tenant, `waiting_since` the time of the oldest one.
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
    """The state of one terminal, connected or not.

    `device_id` is None for a connection that names no device. `connected_since` and `node`, the node of the
    connection, are None for a terminal that is not connected. `acked` is None if there is no cursor. A
    `legacy` terminal has never acknowledged an event, and its cursor follows the positions sent, so `behind`
    (in events) is None.
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
    """The number of events of a type in the last 24 hours, and the time of the last one."""

    type: str
    count: int
    last: datetime


@frozen
class RecentEntry:
    """One of the latest entries of the log; `seq` is None for an entry that is not sent to tills."""

    seq: Seq | None
    type: str
    status: str
    created_at: datetime


@frozen
class StreamReport:
    """The state of one tenant, on all nodes."""

    last_seq: Seq
    undelivered: int
    terminals: list[TerminalStanding]
    day: list[EventTally]
    recent: list[RecentEntry]


async def tenant_report(executor: Executor, tenant: Tenant) -> StreamReport | None:
    """Return the state of one tenant; None if the tenant was deleted."""
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
    """Return the state of the streams of all tenants."""
    return {
        tenant_id: StreamStanding(
            tenant_id, UUID(str(stream)), last, missing, tills, waiting or 0, since
        )
        for tenant_id, stream, last, missing, tills, waiting, since in await executor.query(
            _STREAMS
        )
    }


async def terminal_standings(executor: Executor, tenant_id: TenantId) -> list[TerminalStanding]:
    """Return a tenant's terminals, connected ones first, then by device id."""
    return [
        TerminalStanding(*row) for row in await executor.query(_TERMINALS, {"tenant": tenant_id})
    ]


async def count_failed(executor: Executor, tenant: Tenant) -> int:
    """Count the events of the last 24 hours that failed or that a terminal has refused."""
    rows = await executor.query(_FAILED, {"tenant": tenant.id})
    return int(rows[0][0])
