"""Who is connected where, how far each terminal has come, and what terminals said.

All of it is written in bulk, a few statements a flush for any number of tills (`posd.delivery.presence`).
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
# With a dead node its connections go (ON DELETE CASCADE). A minute's grace keeps a node that was only
# slow from having to write them anew. Nodes have read what they were told long before.
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
# Of a device's connections the newest that claims it wins; older ones are told, whichever node
# they are on. Connections that claim in one statement see each other, as those that claimed before.
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
# The connection is named, which nobody can guess who cannot read the books: a notification is anybody's.
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
# A device that was never seen begins at the head: nobody prints last month's orders. In one order
# everywhere, so that two nodes do not wait for each other.
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
# A nack that is older than the event of its number was about another one, which a failover has lost; one that
# is older than a replay is what the replay is to mend.
_REFUSED: Final = """
    SELECT w.device_id, n.seq
      FROM unnest(%s::text[], %s::bigint[]) AS w(device_id, acked_seq)
      JOIN dinedesk_main.pos_cursors AS c ON c.tenant_id = %s AND c.device_id = w.device_id
      JOIN dinedesk_main.pos_nacks AS n
        ON n.tenant_id = c.tenant_id AND n.device_id = w.device_id AND n.seq > w.acked_seq
      JOIN dinedesk_main.pos_events AS e ON e.tenant_id = n.tenant_id AND e.seq = n.seq
     WHERE n.created_at >= greatest(e.created_at, c.replayed_at)
"""
# Of the events that `received_seq` passes those count that were still there to be acknowledged. What is said
# of an earlier name is true of the present one as far as both have the same events: what came later is lost,
# and its position is another event's by now.
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
# In one order everywhere, so that two nodes do not wait for each other. Of a terminal's words about an event
# the first one stays.
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
"""The constraint that a node's row is there. It is gone after a crash of PostgreSQL or a failover."""

Connection = tuple[UUID, TenantId, str | None, datetime]
"""A connection of a terminal: id, tenant, device, since when."""

Place = tuple[TenantId, str | None]
"""A terminal as its cursor names it: tenant, device."""


async def renew_lease(executor: Executor, node_id: UUID, seconds: float) -> bool:
    """Renew this node's claim to be alive, and bury the nodes that have not done so.

    True: the books did not know the node, so they know none of its connections either.
    """
    rows = await executor.query(_LEASE, {"node": str(node_id), "seconds": seconds})
    await executor.execute(_REMOVE_DEAD_NODES)
    return bool(rows[0][0])


async def remove_node(executor: Executor, node_id: UUID) -> None:
    """Take a node and its connections out of the books at once."""
    await executor.execute(_LEAVE, (str(node_id),))


async def insert_connections(
    executor: Executor, node_id: UUID, connections: Sequence[Connection]
) -> None:
    """Enter connections. Fails on the constraint `NODE_KNOWN` if the node has no lease."""
    await executor.execute(_CONNECTED, (str(node_id), *_connection_columns(connections)))


def _connection_columns(connections: Sequence[Connection]) -> tuple[list[object], ...]:
    ids, tenants, devices, since = zip(*connections, strict=True)
    return [str(each) for each in ids], list(tenants), list(devices), list(since)


async def update_connections(
    executor: Executor, sightings: Sequence[tuple[UUID, float, Seq]]
) -> None:
    """Renew what is known of connections: id, how many seconds ago it was last heard of, up to where
    events were sent."""
    ids, ago, sent = zip(*sightings, strict=True)
    await executor.execute(
        _UPDATE_CONNECTIONS, ([str(each) for each in ids], list(ago), list(sent))
    )


async def delete_connections(executor: Executor, ids: Iterable[UUID]) -> None:
    """Take connections out of the books."""
    await executor.execute(_DISCONNECTED, ([str(each) for each in ids],))


async def claim_devices(executor: Executor, connections: Sequence[Connection]) -> set[UUID]:
    """Make each connection its device's one live connection; older ones are told on every node.

    Returns those that are not: a newer connection has claimed the device.
    """
    columns = _connection_columns(connections)
    rows = await executor.query(_CLAIM, (*columns, columns[0]))
    return {UUID(connection_id) for connection_id, newer, _ in rows if newer}


async def request_disconnect(executor: Executor, tenant_id: TenantId, device_id: str) -> int | None:
    """Have a device's connections closed on every node; how many. None if there is no such device."""
    rows = await executor.query(_DISCONNECT, (tenant_id, device_id))
    return sum(connected for connected, _ in rows) if rows else None


async def load_session_starts(
    executor: Executor, requested: Sequence[Place], most_devices: int
) -> dict[Place, SessionStart]:
    """Where terminals stand, registering devices that were never seen.

    Without what they refused, which `load_refused_events` tells. A terminal is missing if its tenant is
    gone, or has too many devices to take another one.
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
        # It begins now, with the present stream.
        acked, astray, renamed_ago = registered, False, None
    return SessionStart(
        *(head, acked, legacy, at), recalled=recalled, astray=astray, renamed_ago=renamed_ago
    )


async def load_refused_events(
    executor: Executor, tenant: Tenant, cursors: Sequence[tuple[str, Seq]]
) -> dict[str, frozenset[Seq]]:
    """What devices have refused after their cursors, by device."""
    devices, acked = zip(*cursors, strict=True)
    values = (list(devices), list(acked), tenant.id)
    found: dict[str, set[Seq]] = {device: set() for device in devices}
    for device, seq in await executor.query(_REFUSED, values):
        found[device].add(seq)
    return {device: frozenset(seqs) for device, seqs in found.items()}


async def update_progress(
    executor: Executor, heads: Sequence[tuple[TenantId, UUID, Seq, Seq]]
) -> None:
    """Note how far the best till of each tenant is: tenant, name of the stream, sent, received."""
    tenants, streams, sent, received = zip(*heads, strict=True)
    names = [str(each) for each in streams]
    await executor.execute(_PROGRESS, (list(tenants), names, list(sent), list(received)))


async def insert_nacks(
    executor: Executor, refused: Sequence[tuple[TenantId, Seq, str, str, UUID]]
) -> None:
    """Note events that terminals could not process: tenant, position, device, reason, history.

    In another history than the stream's the position is no event's, or another one's.
    """
    tenants, seqs, devices, reasons, streams = zip(*refused, strict=True)
    columns = list(tenants), list(seqs), list(devices), list(reasons)
    await executor.execute(_NACKS, (*columns, [str(each) for each in streams]))


async def insert_messages(
    executor: Executor, messages: Sequence[tuple[TenantId, str, str, str | None]]
) -> None:
    """Log what terminals said: tenant, event type, JSON text, device."""
    columns = tuple(list(column) for column in zip(*messages, strict=True))
    await executor.execute(_INSERT_MESSAGES, columns)


async def count_on_other_nodes(
    executor: Executor, node_id: UUID, ids: Iterable[TenantId]
) -> dict[TenantId, int]:
    """How many connections each of these tenants has on other nodes than this, if any."""
    return dict(await executor.query(_ON_OTHER_NODES, (list(ids), str(node_id))))


async def count_by_tenant(executor: Executor) -> list[tuple[str, int]]:
    """How many connections each tenant has that has any, on all nodes."""
    return [(slug, count) for slug, count in await executor.query(_COUNTS)]
