"""Replays that operators request: stored with the terminal's cursor until the terminal connects."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

from attrs import frozen

from posd.database.reconnecting import Executor
from posd.values import Seq, Tenant, TenantId

_WHERE: Final = """
    SELECT h.stream_id::text, h.last_seq, h.pruned_seq, d.first_acked_at IS NULL, c.acked_seq,
           (SELECT count(*) FROM dinedesk_main.pos_connected AS n
             WHERE n.tenant_id = d.tenant_id AND n.device_id = d.device_id)
      FROM dinedesk_main.pos_heads AS h
      JOIN dinedesk_main.pos_devices AS d ON d.tenant_id = h.tenant_id
      LEFT JOIN dinedesk_main.pos_cursors AS c ON c.tenant_id = d.tenant_id AND c.device_id = d.device_id
     WHERE d.tenant_id = %s AND d.device_id = %s
"""
_DEVICES: Final = "SELECT device_id FROM dinedesk_main.pos_devices WHERE tenant_id = %s ORDER BY 1"
# OFFSET 0 makes PostgreSQL read the young events by the index pos_events_by_age. Without it PostgreSQL scans
# the log by position from the beginning, because it does not know that young events are at the end.
_SINCE: Final = """
    SELECT min(y.seq) FROM (
        SELECT e.seq FROM dinedesk_main.pos_events AS e
         WHERE e.tenant_id = %s AND e.created_at >= %s OFFSET 0) AS y
"""
_BETWEEN: Final = """
    SELECT count(*), count(*) FILTER (WHERE event_type = 'new_order')
      FROM dinedesk_main.pos_events WHERE tenant_id = %s AND seq > %s AND seq <= %s
"""
# The message makes nodes disconnect the terminal, so that it connects again and gets the replay.
_REQUEST: Final = """
    WITH wished AS (
        UPDATE dinedesk_main.pos_cursors AS c SET replay_after = %(after)s
          FROM dinedesk_main.pos_heads AS h
         WHERE c.tenant_id = %(tenant)s AND c.device_id = %(device)s AND h.tenant_id = c.tenant_id
           AND h.stream_id = %(stream)s::uuid
           AND %(after)s >= h.pruned_seq AND %(after)s < c.acked_seq
        RETURNING c.tenant_id
    )
    SELECT dinedesk_main.pos_tell('tenant ' || tenant_id) FROM wished
"""
_REQUESTED: Final = """
    SELECT tenant_id, device_id FROM dinedesk_main.pos_cursors
     WHERE replay_after IS NOT NULL AND tenant_id = ANY (%s)
"""
_REWIND: Final = """
    UPDATE dinedesk_main.pos_cursors
       SET acked_seq = least(acked_seq, replay_after), replay_after = NULL, replayed_at = clock_timestamp()
     WHERE tenant_id = %s AND device_id = %s AND replay_after IS NOT NULL
"""


@frozen
class TerminalPosition:
    """A terminal's cursor and its stream, whose events up to `pruned_seq` have been deleted.

    `acked` is None if the terminal has never connected. A `legacy` terminal has never acknowledged an event.
    `connected` is the number of its connections.
    """

    stream_id: UUID
    last_seq: Seq
    pruned_seq: Seq
    legacy: bool
    acked: Seq | None
    connected: int


async def terminal_position(
    executor: Executor, tenant: Tenant, device_id: str
) -> TerminalPosition | None:
    """Return the position of a terminal; None if the tenant has no such terminal."""
    rows = await executor.query(_WHERE, (tenant.id, device_id))
    return TerminalPosition(UUID(rows[0][0]), *rows[0][1:]) if rows else None


async def device_ids(executor: Executor, tenant: Tenant) -> list[str]:
    """Return the device ids of a tenant's terminals."""
    return [name for (name,) in await executor.query(_DEVICES, (tenant.id,))]


async def first_event_since(executor: Executor, tenant: Tenant, when: datetime) -> Seq | None:
    """Return the position of the first event stored at or after a time; None if there is none."""
    ((seq,),) = await executor.query(_SINCE, (tenant.id, when))
    return None if seq is None else int(seq)


async def count_between(
    executor: Executor, tenant: Tenant, after: Seq, last: Seq
) -> tuple[int, int]:
    """Return the number of events, and of `new_order` events, with positions above `after` up to `last`."""
    ((events, orders),) = await executor.query(_BETWEEN, (tenant.id, after, last))
    return events, orders


async def request_replay(
    executor: Executor, tenant: Tenant, device_id: str, stream_id: UUID, after: Seq
) -> bool:
    """Request that a terminal is sent the events after a position again when it connects the next time.

    Connected terminals are disconnected. Return False if the replay is impossible: events have been deleted,
    the terminal has not acknowledged the position, or the stream has another name.
    """
    values = {"tenant": tenant.id, "device": device_id, "stream": str(stream_id), "after": after}
    return bool(await executor.query(_REQUEST, values))


async def requested_replays(
    executor: Executor, ids: Iterable[TenantId]
) -> set[tuple[TenantId, str]]:
    """Return the terminals of these tenants with a requested replay."""
    return {(row[0], row[1]) for row in await executor.query(_REQUESTED, (list(ids),))}


async def rewind_cursor(executor: Executor, tenant_id: TenantId, device_id: str) -> None:
    """Move the cursor of a terminal that has connected back to the start of its requested replay."""
    await executor.execute(_REWIND, (tenant_id, device_id))
