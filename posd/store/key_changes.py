"""The keys that may be valid, for `posd.security.key_index`: all of them in pages, then what has changed.

A change is found by the transaction that made it (`sql/main/001_tenants.sql`). A reader keeps the
snapshot of its last reading, and reads the rows whose transaction that snapshot did not see and the present
one sees. No change is passed over, in whichever order transactions commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from posd.database.reconnecting import Executor, Row
from posd.values import KeyKind, TenantId

_SNAPSHOT: Final = "SELECT pg_current_snapshot()::text"
# A key that is not valid yet is one that may be.
_VALID: Final = "k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())"
_KEYS: Final = f"""
    SELECT k.id, k.key_sha256, k.tenant_id, k.kind, {_VALID} FROM dinedesk_main.pos_api_keys AS k
     WHERE k.id > %s AND {_VALID} ORDER BY k.id LIMIT %s
"""
_TENANTS: Final = "SELECT t.slug, t.id, t.is_active FROM dinedesk_main.tenants AS t"
# Transactions that the present snapshot does not see have no rows here, but a restored dump brings the
# numbers of another cluster's transactions.
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
    """What was committed at a moment, as PostgreSQL writes it: `xmin:xmax:list`."""

    text: str

    def is_after(self, other: KeySnapshot) -> bool:
        """Whether it is not of an earlier time; a database that was set back gives such."""
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
    """What has changed up to `current_snapshot`."""

    snapshot: KeySnapshot
    keys: Sequence[StoredKey]
    tenants: Sequence[StoredTenant]


async def current_snapshot(executor: Executor) -> KeySnapshot:
    """The present one: taken before the first page, it is where changes are read from."""
    return KeySnapshot((await executor.query(_SNAPSHOT))[0][0])


async def load_keys(executor: Executor, after: int, limit: int) -> list[StoredKey]:
    """Up to `limit` keys that may be valid, by id, after that id."""
    return [_key(row) for row in await executor.query(_KEYS, (after, limit))]


async def load_tenants(executor: Executor) -> list[StoredTenant]:
    """All tenants, disabled ones too."""
    return [StoredTenant(*row) for row in await executor.query(_TENANTS)]


async def load_changes(executor: Executor, since: KeySnapshot) -> KeyChanges:
    """What has been written since a snapshot, by one statement."""
    rows = await executor.query(_CHANGES, {"since": since.text})
    now = next(KeySnapshot(row[1]) for row in rows if row[0] == "snapshot")
    keys = [_key((*row[2:5], row[5], row[6])) for row in rows if row[0] == "key"]
    found = [StoredTenant(row[5], row[2], row[6]) for row in rows if row[0] == "tenant"]
    return KeyChanges(now, keys, found)


def _key(row: Row) -> StoredKey:
    key_id, sha256, tenant_id, kind, valid = row
    return StoredKey(key_id, bytes(sha256), tenant_id, KeyKind(kind), valid)
