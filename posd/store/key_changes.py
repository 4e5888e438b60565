"""The keys that may be valid, for `posd.security.key_index`: all keys in pages, then changes.

Rows store the transaction that last changed them (`sql/main/001_tenants.sql`). A reader keeps the snapshot
of its last query, and reads the rows whose transaction is visible in the present snapshot but not in that
one. So no change is missed, also if transactions commit in another order than they began.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from posd.database.reconnecting import Executor, Row
from posd.values import KeyKind, TenantId

_SNAPSHOT: Final = "SELECT pg_current_snapshot()::text"
# A key with `not_before` in the future is included: it becomes valid without a change of its row.
_VALID: Final = "k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())"
_KEYS: Final = f"""
    SELECT k.id, k.key_sha256, k.tenant_id, k.kind, {_VALID} FROM dinedesk_main.pos_api_keys AS k
     WHERE k.id > %s AND {_VALID} ORDER BY k.id LIMIT %s
"""
_TENANTS: Final = "SELECT t.slug, t.id, t.is_active FROM dinedesk_main.tenants AS t"
# The last condition matters after a restore only: a dump contains transaction ids of another cluster, which
# may be in the future here.
NEW: Final = """
    changed_in >= pg_snapshot_xmin(%(since)s::pg_snapshot)
    AND NOT pg_visible_in_snapshot(changed_in, %(since)s::pg_snapshot)
    AND pg_visible_in_snapshot(changed_in, pg_current_snapshot())
"""
_CHANGES: Final = f"""
    SELECT 'snapshot', pg_current_snapshot()::text, NULL::integer, NULL::bytea, NULL::integer, NULL, true
    UNION ALL
    SELECT 'key', NULL, k.id, k.key_sha256, k.tenant_id, k.kind, {_VALID}
      FROM dinedesk_main.pos_api_keys AS k WHERE {NEW}
    UNION ALL
    SELECT 'tenant', NULL, t.id, NULL, NULL, t.slug, t.is_active
      FROM dinedesk_main.tenants AS t WHERE {NEW}
"""


@frozen
class KeySnapshot:
    """A `pg_snapshot` in PostgreSQL's text format: `xmin:xmax:list`."""

    text: str

    def is_after(self, other: KeySnapshot) -> bool:
        """Return True if this snapshot is not older than `other`. A restored database has older snapshots."""
        return self._next >= other._next

    @property
    def _next(self) -> int:
        return int(self.text.split(":")[1])


@frozen
class StoredKey:
    """A key's row. `tenant_id` is None for a key of all tenants."""

    id: int
    sha256: bytes
    tenant_id: TenantId | None
    kind: KeyKind
    valid: bool


@frozen
class StoredTenant:
    """A tenant's row."""

    slug: str
    id: TenantId
    active: bool


@frozen
class KeyChanges:
    """The changed keys and tenants, and the snapshot for the next call of `load_changes`."""

    snapshot: KeySnapshot
    keys: Sequence[StoredKey]
    tenants: Sequence[StoredTenant]


async def current_snapshot(executor: Executor) -> KeySnapshot:
    """Return the present snapshot. Take it before the first page of keys, and read changes since it."""
    return KeySnapshot((await executor.query(_SNAPSHOT))[0][0])


async def load_keys(executor: Executor, after: int, limit: int) -> list[StoredKey]:
    """Return up to `limit` keys that may be valid with ids above `after`, by id."""
    return [_key(row) for row in await executor.query(_KEYS, (after, limit))]


async def load_tenants(executor: Executor) -> list[StoredTenant]:
    """Return all tenants, including disabled ones."""
    return [StoredTenant(*row) for row in await executor.query(_TENANTS)]


async def load_changes(executor: Executor, since: KeySnapshot) -> KeyChanges:
    """Return the keys and tenants that were changed since a snapshot, read by one statement."""
    rows = await executor.query(_CHANGES, {"since": since.text})
    now = next(KeySnapshot(row[1]) for row in rows if row[0] == "snapshot")
    keys = [_key((*row[2:5], row[5], row[6])) for row in rows if row[0] == "key"]
    found = [StoredTenant(row[5], row[2], row[6]) for row in rows if row[0] == "tenant"]
    return KeyChanges(now, keys, found)


def _key(row: Row) -> StoredKey:
    key_id, sha256, tenant_id, kind, valid = row
    return StoredKey(key_id, bytes(sha256), tenant_id, KeyKind(kind), valid)
