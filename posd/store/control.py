"""Messages for all nodes: `dinedesk_main.pos_control`. Nodes read them even if a notification is lost."""

from __future__ import annotations

from typing import Final

from posd.database.reconnecting import Executor
from posd.store.key_changes import NEW, KeySnapshot

_MESSAGES_SINCE: Final = f"""
    SELECT pg_current_snapshot()::text, NULL, 0
    UNION ALL
    SELECT NULL, c.what, c.id FROM dinedesk_main.pos_control AS c WHERE {NEW}
     ORDER BY 3
"""


async def read_since(executor: Executor, since: KeySnapshot) -> tuple[KeySnapshot, list[str]]:
    """Return the messages committed since a snapshot, oldest first, and the snapshot for the next call."""
    rows = await executor.query(_MESSAGES_SINCE, {"since": since.text})
    return KeySnapshot(rows[0][0]), [what for _, what, _ in rows[1:]]
