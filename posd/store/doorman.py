"""The lease of the doorman, the only node that takes rows out of the outbox (`sql/main/006_doorman.sql`)."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from attrs import frozen

from posd.database.reconnecting import Executor, Querier

_CLAIM: Final = "SELECT dinedesk_main.pos_claim_lease(%s::uuid, %s)"
# A node may release the lease on another connection than the one on which it renewed it, so the node id is
# compared and not backend_pid.
_LEAVE: Final = """
    UPDATE dinedesk_main.pos_doorman
       SET node_id = NULL, lease_until = clock_timestamp(), backend_pid = NULL WHERE node_id = %s::uuid
"""
_PRESENT: Final = """
    SELECT d.node_id, d.host, d.since FROM dinedesk_main.pos_doorman AS d
     WHERE d.node_id IS NOT NULL AND d.lease_until > clock_timestamp()
"""


@frozen
class DoormanLease:
    """The node that is the doorman, the name of its host, and the time at which it got the lease."""

    node_id: UUID
    host: str
    since: datetime


async def claim(executor: Executor, node_id: UUID, host: str) -> int | None:
    """Take or renew the lease for five seconds. Return its fence, or None if another node has it."""
    rows = await executor.query(_CLAIM, (str(node_id), host))
    return None if rows[0][0] is None else int(rows[0][0])


async def release(executor: Executor, node_id: UUID) -> None:
    """Release the lease if this node has it, so that the next node need not wait until it expires."""
    await executor.execute(_LEAVE, (str(node_id),))


async def current_lease(executor: Querier) -> DoormanLease | None:
    """Return the present lease; None if no node has renewed it in the last five seconds."""
    rows = await executor.query(_PRESENT)
    return DoormanLease(UUID(rows[0][0]), rows[0][1], rows[0][2]) if rows else None
