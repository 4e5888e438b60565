"""Nodes and their connections, the progress of terminals, and messages of terminals.

`posd.delivery.presence` writes all of it in bulk: a flush takes a few statements for any number of tills.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from posd.database.reconnecting import Executor, Row
from posd.store import stream
from posd.values import Seq, SessionStart, Tenant, TenantId

_LEASE: Final = """
    INSERT INTO dinedesk_main.pos_nodes (node_id, lease_until)
    VALUES (%(node)s::uuid, now() + %(seconds)s * interval '1 second')
    ON CONFLICT (node_id) DO UPDATE SET lease_until = excluded.lease_until
    RETURNING xmax = 0
"""
# The connections of a dead node are deleted with it (ON DELETE CASCADE). A slow node has a minute to renew
# its lease, so that it need not insert its connections again. Nodes read pos_control within seconds, so rows
# older than ten minutes have been read.
_REMOVE_DEAD_NODES: Final = """
    DELETE FROM dinedesk_main.pos_nodes WHERE lease_until < now() - interval '1 minute';
    DELETE FROM dinedesk_main.pos_control WHERE told_at < now() - interval '10 minutes'
"""
_LEAVE: Final = "DELETE FROM dinedesk_main.pos_nodes WHERE node_id = %s::uuid"
_CONNECTED: Final = """
    INSERT INTO dinedesk_main.pos_connections
        (connection_id, node_id, tenant_id, device_id, connected_at, last_seen_at)
    SELECT c.connection_id, %s::uuid, c.tenant_id, c.device_id, c.connected_at, c.connected_at
      FROM unnest(%s::uuid[], %s::integer[], %s::text[], %s::timestamptz[])
           AS c(connection_id, tenant_id, device_id, connected_at)
    ON CONFLICT (connection_id) DO NOTHING
"""
_UPDATE_CONNECTIONS: Final = """
    UPDATE dinedesk_main.pos_connections AS c
       SET last_seen_at = clock_timestamp() - s.ago * interval '1 second', sent_seq = s.sent_seq
      FROM unnest(%s::uuid[], %s::float8[], %s::bigint[]) AS s(connection_id, ago, sent_seq)
     WHERE c.connection_id = s.connection_id
"""
_DISCONNECTED: Final = """
    DELETE FROM dinedesk_main.pos_connections WHERE connection_id = ANY (%s::uuid[])
"""
# The newest connection that claims a device wins. A message closes older connections, on whichever node they
# are. The last condition treats connections that claim in the same statement as having claimed before.
_CLAIM: Final = """
    WITH w AS (
        SELECT * FROM unnest(%s::uuid[], %s::integer[], %s::text[], %s::timestamptz[])
                      AS w(connection_id, tenant_id, device_id, connected_at)
    ), claimed AS (
        UPDATE dinedesk_main.pos_connections AS c SET claimed_at = clock_timestamp()
          FROM w WHERE c.connection_id = w.connection_id
    )
    SELECT w.connection_id, (c.connected_at, c.connection_id) > (w.connected_at, w.connection_id),
           CASE WHEN (c.connected_at, c.connection_id) < (w.connected_at, w.connection_id) THEN
               dinedesk_main.pos_tell('superseded ' || c.connection_id)
           END
      FROM w JOIN dinedesk_main.pos_connected AS c USING (tenant_id, device_id)
     WHERE c.connection_id <> w.connection_id
       AND (c.connected_at <= w.connected_at OR c.claimed_at IS NOT NULL
            OR c.connection_id = ANY (%s::uuid[]))
"""
# The message names the random connection id: any role can send a notification, but only roles that can read
# pos_connections know these ids.
_DISCONNECT: Final = """
    SELECT c.connection_id IS NOT NULL,
           CASE WHEN c.connection_id IS NOT NULL THEN
               dinedesk_main.pos_tell('disconnect ' || c.connection_id)
           END
      FROM dinedesk_main.pos_devices AS d
      LEFT JOIN dinedesk_main.pos_connected AS c USING (tenant_id, device_id)
     WHERE d.tenant_id = %s AND d.device_id = %s
"""
_DEVICE_CURSORS: Final = "SELECT * FROM dinedesk_main.pos_places(%s::integer[], %s::text[])"
# The cursor of a new device begins at the head, so that the till does not print old orders. All nodes lock
# rows in the same order, so that they cannot deadlock.
_REGISTER: Final = """
    WITH w AS (
        SELECT w.tenant_id, w.device_id, w.known,
               count(*) FILTER (WHERE NOT w.known) OVER (PARTITION BY w.tenant_id ORDER BY w.device_id)
                   AS number
          FROM unnest(%s::integer[], %s::text[], %s::boolean[]) AS w(tenant_id, device_id, known)
    ), held AS (
        SELECT d.tenant_id, count(*) AS devices FROM dinedesk_main.pos_devices AS d
         WHERE d.tenant_id IN (SELECT w.tenant_id FROM w) GROUP BY d.tenant_id
    ), device AS (
        INSERT INTO dinedesk_main.pos_devices (tenant_id, device_id, last_seen_at)
        SELECT w.tenant_id, w.device_id, now() FROM w LEFT JOIN held USING (tenant_id)
         WHERE w.known OR coalesce(held.devices, 0) + w.number <= %s
         ORDER BY w.tenant_id, w.device_id
        ON CONFLICT (tenant_id, device_id) DO UPDATE SET last_seen_at = now()
        RETURNING tenant_id, device_id
    )
    INSERT INTO dinedesk_main.pos_cursors (tenant_id, device_id, acked_seq, stream_id)
    SELECT device.tenant_id, device.device_id, h.last_seq, h.stream_id
      FROM device JOIN dinedesk_main.pos_heads AS h USING (tenant_id)
    ON CONFLICT (tenant_id, device_id) DO UPDATE SET acked_seq = pos_cursors.acked_seq
    RETURNING tenant_id, device_id, acked_seq
"""
# A nack that is older than the event at its position is about an event that a failover has lost. A nack that
# is older than a replay must not keep the event out of the replay.
_REFUSED: Final = """
    SELECT w.device_id, n.seq
      FROM unnest(%s::text[], %s::bigint[]) AS w(device_id, acked_seq)
      JOIN dinedesk_main.pos_cursors AS c ON c.tenant_id = %s AND c.device_id = w.device_id
      JOIN dinedesk_main.pos_nacks AS n
        ON n.tenant_id = c.tenant_id AND n.device_id = w.device_id AND n.seq > w.acked_seq
      JOIN dinedesk_main.pos_events AS e ON e.tenant_id = n.tenant_id AND e.seq = n.seq
     WHERE n.created_at >= greatest(e.created_at, c.replayed_at)
"""
# `acknowledged` counts only events that had not been pruned. Positions of an earlier stream_id are valid up
# to the end of that name: later events are lost, and their positions belong to other events now.
_PROGRESS: Final = """
    UPDATE dinedesk_main.pos_heads AS h
       SET sent_seq = greatest(h.sent_seq, least(p.sent, h.last_seq)),
           received_seq = greatest(h.received_seq, least(p.received, h.last_seq)),
           acknowledged = h.acknowledged
               + greatest(0, least(p.received, h.last_seq) - greatest(h.received_seq, h.pruned_seq))
      FROM (SELECT w.tenant_id, max(least(w.sent, s.seq)) AS sent, max(least(w.received, s.seq)) AS received
              FROM unnest(%s::integer[], %s::uuid[], %s::bigint[], %s::bigint[])
                   AS w(tenant_id, stream_id, sent, received)
              JOIN dinedesk_main.pos_heads AS o USING (tenant_id)
              LEFT JOIN dinedesk_main.pos_stream_epochs AS e
                ON e.tenant_id = w.tenant_id AND e.stream_id = w.stream_id AND w.stream_id <> o.stream_id
             CROSS JOIN LATERAL (SELECT CASE WHEN w.stream_id = o.stream_id THEN o.last_seq
                                             ELSE coalesce(e.ended_seq, 0) END) AS s(seq)
             GROUP BY w.tenant_id ORDER BY w.tenant_id) AS p
     WHERE h.tenant_id = p.tenant_id
       AND (h.sent_seq < least(p.sent, h.last_seq) OR h.received_seq < least(p.received, h.last_seq))
"""
_ON_OTHER_NODES: Final = """
    SELECT c.tenant_id, count(*) FROM dinedesk_main.pos_connected AS c
     WHERE c.tenant_id = ANY (%s) AND c.node_id <> %s::uuid GROUP BY c.tenant_id
"""
_COUNTS: Final = """
    SELECT t.slug, count(*) FROM dinedesk_main.pos_connected AS c
      JOIN dinedesk_main.tenants AS t ON t.id = c.tenant_id GROUP BY t.slug ORDER BY t.slug
"""
# All nodes lock rows in the same order, so that they cannot deadlock. The first nack of a terminal for an
# event is kept.
_NACKS: Final = """
    INSERT INTO dinedesk_main.pos_nacks (tenant_id, seq, device_id, reason)
    SELECT h.tenant_id, n.seq, n.device_id, n.reason
      FROM unnest(%s::integer[], %s::bigint[], %s::text[], %s::text[], %s::uuid[]) WITH ORDINALITY
           AS n(tenant_id, seq, device_id, reason, stream_id, number)
      JOIN dinedesk_main.pos_heads AS h USING (tenant_id)
      LEFT JOIN dinedesk_main.pos_stream_epochs AS e
        ON e.tenant_id = n.tenant_id AND e.stream_id = n.stream_id
     WHERE h.stream_id = n.stream_id OR n.seq <= e.ended_seq
     ORDER BY h.tenant_id, n.seq, n.device_id, n.number
    ON CONFLICT (tenant_id, seq, device_id) DO NOTHING
"""
_INSERT_MESSAGES: Final = """
    INSERT INTO dinedesk_main.pos_unsequenced (tenant_id, event_type, event_data, device_id)
    SELECT s.* FROM unnest(%s::integer[], %s::text[], %s::json[], %s::text[]) AS s
"""


NODE_KNOWN: Final = "pos_connections_node_id_fkey"
"""The foreign key to the node's row. That row is lost in a crash of PostgreSQL or a failover."""

Connection = tuple[UUID, TenantId, str | None, datetime]
"""A connection of a terminal: id, tenant, device, time of connecting."""

Place = tuple[TenantId, str | None]
"""A terminal: tenant, device."""


async def renew_lease(executor: Executor, node_id: UUID, seconds: float) -> bool:
    """Renew the lease of this node, and delete nodes with expired leases.

    Return True if the node had no row. Its connections have no rows then either.
    """
    rows = await executor.query(_LEASE, {"node": str(node_id), "seconds": seconds})
    await executor.execute(_REMOVE_DEAD_NODES)
    return bool(rows[0][0])


async def remove_node(executor: Executor, node_id: UUID) -> None:
    """Delete a node and its connections."""
    await executor.execute(_LEAVE, (str(node_id),))


async def insert_connections(
    executor: Executor, node_id: UUID, connections: Sequence[Connection]
) -> None:
    """Insert connections. Violates the constraint `NODE_KNOWN` if the node has no row."""
    await executor.execute(_CONNECTED, (str(node_id), *_connection_columns(connections)))


def _connection_columns(connections: Sequence[Connection]) -> tuple[list[object], ...]:
    ids, tenants, devices, since = zip(*connections, strict=True)
    return [str(each) for each in ids], list(tenants), list(devices), list(since)


async def update_connections(
    executor: Executor, sightings: Sequence[tuple[UUID, float, Seq]]
) -> None:
    """Update connections: id, seconds since the terminal's last message, position of the last event sent."""
    ids, ago, sent = zip(*sightings, strict=True)
    await executor.execute(
        _UPDATE_CONNECTIONS, ([str(each) for each in ids], list(ago), list(sent))
    )


async def delete_connections(executor: Executor, ids: Iterable[UUID]) -> None:
    """Delete connections."""
    await executor.execute(_DISCONNECTED, ([str(each) for each in ids],))


async def claim_devices(executor: Executor, connections: Sequence[Connection]) -> set[UUID]:
    """Claim the devices of these connections, and have older connections of the devices closed on all nodes.

    Returns the connections that have lost: a newer connection has claimed the device.
    """
    columns = _connection_columns(connections)
    rows = await executor.query(_CLAIM, (*columns, columns[0]))
    return {UUID(connection_id) for connection_id, newer, _ in rows if newer}


async def request_disconnect(executor: Executor, tenant_id: TenantId, device_id: str) -> int | None:
    """Have a device's connections closed on all nodes. Return their number; None for an unknown device."""
    rows = await executor.query(_DISCONNECT, (tenant_id, device_id))
    return sum(connected for connected, _ in rows) if rows else None


async def load_session_starts(
    executor: Executor, requested: Sequence[Place], most_devices: int
) -> dict[Place, SessionStart]:
    """Return the positions from which terminals continue. Devices that were never seen are registered.

    `load_refused_events` returns the refused events separately. A terminal is missing from the result if its
    tenant was deleted, or has `most_devices` devices already.
    """
    tenants, devices = zip(*requested, strict=True)
    rows = await executor.query(_DEVICE_CURSORS, (list(tenants), list(devices)))
    new = {
        (tenant_id, device_id): known
        for tenant_id, device_id, *_, known, _, acked, _, _, _ in rows
        if device_id is not None and (not known or acked is None)
    }
    cursors: dict[Place, Seq] = {}
    if new:
        columns = [*zip(*new, strict=True), tuple(new.values())]
        values = (*map(list, columns), most_devices)
        cursors = {(row[0], row[1]): row[2] for row in await executor.query(_REGISTER, values)}
    return {
        (row[0], row[1]): _session_start(row, cursors.get((row[0], row[1])))
        for row in rows
        if (row[0], row[1]) not in new or (row[0], row[1]) in cursors
    }


def _session_start(row: Row, registered: Seq | None) -> SessionStart:
    tenant_id, device_id, stream_id, last_seq, pruned_seq, at, *of_device = row
    _, acked_before, acked, recalled, astray, renamed_ago = of_device
    head = stream.load_head((tenant_id, stream_id, last_seq, pruned_seq))
    legacy = device_id is not None and not acked_before
    if registered is not None:
        # The device is new: its cursor was created at the head of the present stream.
        acked, astray, renamed_ago = registered, False, None
    return SessionStart(
        *(head, acked, legacy, at), recalled=recalled, astray=astray, renamed_ago=renamed_ago
    )


async def load_refused_events(
    executor: Executor, tenant: Tenant, cursors: Sequence[tuple[str, Seq]]
) -> dict[str, frozenset[Seq]]:
    """Return the positions above their cursors that devices have refused, by device."""
    devices, acked = zip(*cursors, strict=True)
    values = (list(devices), list(acked), tenant.id)
    found: dict[str, set[Seq]] = {device: set() for device in devices}
    for device, seq in await executor.query(_REFUSED, values):
        found[device].add(seq)
    return {device: frozenset(seqs) for device, seqs in found.items()}


async def update_progress(
    executor: Executor, heads: Sequence[tuple[TenantId, UUID, Seq, Seq]]
) -> None:
    """Update heads: tenant, `stream_id`, highest position sent to a till, highest position acknowledged."""
    tenants, streams, sent, received = zip(*heads, strict=True)
    names = [str(each) for each in streams]
    await executor.execute(_PROGRESS, (list(tenants), names, list(sent), list(received)))


async def insert_nacks(
    executor: Executor, refused: Sequence[tuple[TenantId, Seq, str, str, UUID]]
) -> None:
    """Store nacks: tenant, position, device, reason, `stream_id`.

    A nack is dropped if its position is beyond the end of its `stream_id`: no event, or another event, has
    that position now.
    """
    tenants, seqs, devices, reasons, streams = zip(*refused, strict=True)
    columns = list(tenants), list(seqs), list(devices), list(reasons)
    await executor.execute(_NACKS, (*columns, [str(each) for each in streams]))


async def insert_messages(
    executor: Executor, messages: Sequence[tuple[TenantId, str, str, str | None]]
) -> None:
    """Store messages of terminals: tenant, event type, JSON text, device."""
    columns = tuple(list(column) for column in zip(*messages, strict=True))
    await executor.execute(_INSERT_MESSAGES, columns)


async def count_on_other_nodes(
    executor: Executor, node_id: UUID, ids: Iterable[TenantId]
) -> dict[TenantId, int]:
    """Return the number of connections on other nodes, for those of these tenants that have any."""
    return dict(await executor.query(_ON_OTHER_NODES, (list(ids), str(node_id))))


async def count_by_tenant(executor: Executor) -> list[tuple[str, int]]:
    """Return pairs of slug and number of connections on all nodes, for tenants that have any."""
    return [(slug, count) for slug, count in await executor.query(_COUNTS)]
