"""Cursors: the position up to which a terminal has acknowledged events, moved in bulk.

A cursor is a position, so it belongs to a `stream_id` (`posd.store.epochs`). After the stream has been
renamed, the cursor stays valid up to the last event that both names share. `posd.delivery.presence` calls
these functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from posd.database.reconnecting import Executor
from posd.values import Seq, StreamName, TenantId

# If a device was sent events of an earlier `stream_id` that the present stream does not have, the device must
# reload: its cursor's stream_id becomes NULL. A device whose cursor has a later `stream_id` has reloaded
# already, and a node may report it again long after that.
#
# The database may have lost the device's first acknowledgement, and would treat the device as a legacy
# terminal. So `first_acked_at` is set again.
_MARK_ASTRAY: Final = """
    WITH astray AS (
        UPDATE dinedesk_main.pos_cursors AS c SET stream_id = NULL
          FROM unnest(%s::integer[], %s::text[], %s::uuid[], %s::bigint[], %s::boolean[])
               AS a(tenant_id, device_id, stream_id, seq, spoke)
          JOIN dinedesk_main.pos_heads AS h USING (tenant_id)
         WHERE c.tenant_id = a.tenant_id AND c.device_id = a.device_id
           AND a.stream_id <> h.stream_id AND c.stream_id <> h.stream_id
           AND a.seq > coalesce((SELECT e.ended_seq FROM dinedesk_main.pos_stream_epochs AS e
                                  WHERE e.tenant_id = a.tenant_id AND e.stream_id = a.stream_id), -1)
           AND NOT EXISTS (SELECT FROM dinedesk_main.pos_stream_epochs AS said
                             JOIN dinedesk_main.pos_stream_epochs AS sent USING (tenant_id)
                            WHERE said.tenant_id = c.tenant_id AND said.stream_id = c.stream_id
                              AND sent.stream_id = a.stream_id AND said.began_at > sent.began_at)
        RETURNING a.tenant_id, a.device_id, a.spoke
    )
    UPDATE dinedesk_main.pos_devices AS d SET first_acked_at = now()
      FROM astray AS a
     WHERE d.tenant_id = a.tenant_id AND d.device_id = a.device_id AND a.spoke AND d.first_acked_at IS NULL
"""
# Flushes of several nodes may arrive in any order: a cursor never moves backwards, and never beyond the end
# of its `stream_id`. An acknowledgement in an earlier `stream_id` is valid up to the end of that name. Two
# acknowledgements do move a cursor back: the first one of a legacy device, because its cursor was only set
# to the positions sent; and the first one in the present `stream_id` of a device whose cursor is not valid
# in it.
_ADVANCE: Final = """
    WITH a AS (
        SELECT DISTINCT ON (a.tenant_id, a.device_id) a.tenant_id, a.device_id, a.seq, h.stream_id,
               a.stream_id = h.stream_id AS present
          FROM unnest(%s::integer[], %s::text[], %s::uuid[], %s::bigint[])
               AS a(tenant_id, device_id, stream_id, seq)
          JOIN dinedesk_main.pos_heads AS h USING (tenant_id)
          LEFT JOIN dinedesk_main.pos_stream_epochs AS e
            ON e.tenant_id = a.tenant_id AND e.stream_id = a.stream_id
         WHERE a.seq <= CASE WHEN a.stream_id = h.stream_id THEN h.last_seq ELSE e.ended_seq END
         ORDER BY a.tenant_id, a.device_id, present DESC, a.seq DESC
    ), moved AS (
        UPDATE dinedesk_main.pos_cursors AS c
           SET acked_seq = CASE WHEN d.first_acked_at IS NOT NULL
                                 AND (c.stream_id = a.stream_id OR NOT a.present
                                      OR c.acked_seq <= (SELECT e.ended_seq
                                                           FROM dinedesk_main.pos_stream_epochs AS e
                                                          WHERE e.tenant_id = c.tenant_id
                                                            AND e.stream_id = c.stream_id))
                                THEN greatest(c.acked_seq, a.seq) ELSE a.seq END,
               stream_id = CASE WHEN a.present THEN a.stream_id ELSE c.stream_id END,
               acked_at = now()
          FROM a JOIN dinedesk_main.pos_devices AS d USING (tenant_id, device_id)
         WHERE c.tenant_id = a.tenant_id AND c.device_id = a.device_id
           AND (c.acked_seq < a.seq OR d.first_acked_at IS NULL
                OR (a.present AND c.stream_id IS DISTINCT FROM a.stream_id))
    )
    UPDATE dinedesk_main.pos_devices AS d
       SET first_acked_at = coalesce(d.first_acked_at, now()), last_seen_at = now()
      FROM a WHERE d.tenant_id = a.tenant_id AND d.device_id = a.device_id
    RETURNING a.tenant_id, a.stream_id, a.seq
"""
_FOLLOW: Final = """
    UPDATE dinedesk_main.pos_cursors AS c SET acked_seq = a.seq, stream_id = a.stream_id, acked_at = now()
      FROM unnest(%s::integer[], %s::text[], %s::uuid[], %s::bigint[])
           AS a(tenant_id, device_id, stream_id, seq)
      JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = a.tenant_id AND h.stream_id = a.stream_id
      JOIN dinedesk_main.pos_devices AS d ON d.tenant_id = a.tenant_id AND d.device_id = a.device_id
     WHERE c.tenant_id = a.tenant_id AND c.device_id = a.device_id
       AND (c.acked_seq < a.seq OR c.stream_id IS DISTINCT FROM a.stream_id)
       AND d.first_acked_at IS NULL AND a.seq <= h.last_seq
"""

Move = tuple[TenantId, str, UUID, Seq]
"""An acknowledgement: tenant, device, `stream_id`, position."""
Reached = tuple[TenantId, str, UUID, Seq, bool]
"""The position up to which a device was sent a stream, and whether it has ever acknowledged an event."""


async def advance(executor: Executor, acks: Sequence[Move]) -> list[tuple[StreamName, Seq]]:
    """Move cursors forward. The terminals are no longer legacy terminals.

    Returns the acknowledged positions that are valid in the present stream, with its `stream_id`. A position
    beyond the end of its `stream_id` is ignored, because the database has lost that event.
    """
    rows = await executor.query(_ADVANCE, _columns(acks))
    return [((tenant_id, UUID(stream_id)), seq) for tenant_id, stream_id, seq in rows]


async def mark_astray(executor: Executor, sent: Sequence[Reached]) -> None:
    """Mark the cursors of terminals that were sent events which the present stream does not have.

    These terminals get a resync when they connect again.
    """
    has_acknowledged = [each[4] for each in sent]
    await executor.execute(_MARK_ASTRAY, (*_columns([each[:4] for each in sent]), has_acknowledged))


async def advance_legacy(executor: Executor, follows: Sequence[Move]) -> None:
    """Move the cursors of legacy terminals to the position of the last event sent."""
    await executor.execute(_FOLLOW, _columns(follows))


def _columns(moves: Sequence[Move]) -> tuple[list[object], ...]:
    tenants, devices, streams, positions = zip(*moves, strict=True)
    return list(tenants), list(devices), [str(each) for each in streams], list(positions)
