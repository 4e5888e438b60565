"""What nodes are told at once, whether or not a notification arrives: `dinedesk_main.pos_control`."""

from __future__ import annotations

from typing import Final

from posd.database.link import Session
from posd.store.key_changes import NEW, Snapshot

_TOLD: Final = f"""
    SELECT pg_current_snapshot()::text, NULL, 0
    UNION ALL
    SELECT NULL, c.what, c.id FROM dinedesk_main.pos_control AS c WHERE {NEW}
     ORDER BY 3
"""


async def told(session: Session, since: Snapshot) -> tuple[Snapshot, list[str]]:
    """What was committed since a snapshot, oldest first, and the present snapshot to go on from."""
    rows = await session.query(_TOLD, {"since": since.text})
    return Snapshot(rows[0][0]), [what for _, what, _ in rows[1:]]
