"""Rows of ledgers that hooks have noted in the outbox. The sequencer reads them after the commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from posd.database.reconnecting import Executor
from posd.errors import returned
from posd.values import TenantId

Noted = tuple[TenantId, str, str]
"""A tenant, the kind of row (see `posd.events.ledger_movements.KINDS`), and the key of the row."""

_STATES: Final = """
    SELECT tenant_id, kind, key, content::text, failure
      FROM dinedesk_main.pos_movement_states(%s::integer[], %s::text[], %s::text[])
"""


async def load_rows(
    executor: Executor, notes: Sequence[Noted]
) -> tuple[dict[Noted, str], dict[TenantId, str]]:
    """Return the rows that exist as JSON texts; and for tenants whose ledgers cannot be read, the reason."""
    rows = await executor.query(_STATES, tuple(list(column) for column in zip(*notes, strict=True)))
    found = {row[:3]: row[3] for row in rows if row[4] is None}
    return found, {row[0]: returned(row[4]) for row in rows if row[4] is not None}
