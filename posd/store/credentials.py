"""API keys: look up the principal of a key by its hash, and create, list and revoke keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from attrs import frozen

from posd.database.reconnecting import Executor
from posd.store import tenants
from posd.values import KeyKind, Principal, Tenant, TenantId

_FIND: Final = "SELECT * FROM dinedesk_main.pos_credentials(%s::text[], %s::bytea[], %s::text[])"
_FIND_KEY: Final = f"""
    SELECT k.id, k.kind, k.device_id, {tenants.COLUMNS}
      FROM dinedesk_main.pos_api_keys AS k LEFT JOIN dinedesk_main.tenants AS t ON t.id = k.tenant_id
     WHERE k.key_sha256 = %s AND k.revoked_at IS NULL AND t.is_active IS NOT false
       AND k.not_before <= now() AND (k.expires_at IS NULL OR k.expires_at > now())
     ORDER BY k.tenant_id NULLS FIRST LIMIT 1
"""
_INVALID: Final = """
    SELECT used.id FROM unnest(%s::integer[]) AS used(id)
     WHERE NOT EXISTS (
        SELECT FROM dinedesk_main.pos_api_keys AS k
          LEFT JOIN dinedesk_main.tenants AS t ON t.id = k.tenant_id
         WHERE k.id = used.id AND k.revoked_at IS NULL
           AND (k.expires_at IS NULL OR k.expires_at > now()) AND t.is_active IS NOT false)
"""
_DISABLED: Final = """
    SELECT d.tenant_id, d.device_id FROM dinedesk_main.pos_devices AS d
     WHERE NOT d.is_active AND d.tenant_id = ANY (%s)
"""
_TOUCH: Final = """
    UPDATE dinedesk_main.pos_api_keys SET last_used_at = now() WHERE id = ANY (%s)
"""
_CREATE: Final = """
    INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, device_id, key_sha256, preview, expires_at)
    VALUES (%s, %s, %s, %s, %s, now() + %s) RETURNING id, expires_at
"""
_LIST: Final = """
    SELECT k.id, t.slug, k.kind, k.device_id, k.preview, k.weak, k.not_before, k.expires_at,
           k.revoked_at, k.last_used_at, clock_timestamp()
      FROM dinedesk_main.pos_api_keys AS k LEFT JOIN dinedesk_main.tenants AS t ON t.id = k.tenant_id
     WHERE (%(slug)s::text IS NULL OR t.slug = %(slug)s) AND k.id > %(after)s
     ORDER BY t.slug NULLS FIRST, k.id LIMIT %(most)s
"""
_REVOKE: Final = """
    UPDATE dinedesk_main.pos_api_keys SET revoked_at = now()
     WHERE id = %s AND revoked_at IS NULL RETURNING id
"""
_REVOKE_OF: Final = """
    UPDATE dinedesk_main.pos_api_keys SET revoked_at = coalesce(revoked_at, now())
     WHERE id = %s AND tenant_id = %s RETURNING revoked_at
"""


@frozen
class CredentialQuery:
    """A look-up of a key for one tenant: slug, SHA-256 of the key, and the device that the client names."""

    slug: str
    sha256: bytes
    device_id: str | None


@frozen
class Credential:
    """A key that is valid for one tenant.

    `seconds` is the remaining validity by the database's clock; None for a key that does not expire.
    `device_has_key` and `device_active` describe the device that the key or the client names. `applied`
    lists the migrations of the tenant's schema.
    """

    principal: Principal
    tenant: Tenant
    seconds: float | None
    device_has_key: bool
    device_active: bool
    applied: Sequence[str]


@frozen
class CreatedKey:
    """The id of a new key and the time at which it expires."""

    id: int
    expires_at: datetime | None


@frozen
class ListedKey:
    """A key in an operator's list; `slug` is None for a key of all tenants.

    `now` is the time of the query by the database's clock, which decides whether the key is valid.
    """

    id: int
    slug: str | None
    kind: KeyKind
    device_id: str | None
    preview: str
    weak: bool
    not_before: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    now: datetime

    @property
    def state(self) -> str:
        """Return `valid`, `revoked`, `expired` or `not yet valid`."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= self.now:
            return "expired"
        return "valid" if self.not_before <= self.now else "not yet valid"


async def find(executor: Executor, queries: Sequence[CredentialQuery]) -> list[Credential | None]:
    """Look up several keys in one statement.

    The result has one element per query: None if the key is not valid for the tenant. It does not say why,
    so that the answer to a client cannot say it either.
    """
    columns = zip(*((each.slug, each.sha256, each.device_id) for each in queries), strict=True)
    found: list[Credential | None] = [None] * len(queries)
    for number, *row in await executor.query(_FIND, tuple(list(column) for column in columns)):
        key_id, kind, device, everywhere, seconds, has_key, active, applied, *of_tenant = row
        tenant = tenants.load_tenant(tuple(of_tenant))
        principal = Principal(key_id, KeyKind(kind), None if everywhere else tenant, device)
        found[number - 1] = Credential(
            principal, tenant, seconds, has_key, active, tuple(applied or ())
        )
    return found


async def find_key(executor: Executor, sha256: bytes) -> Principal | None:
    """Look up a key when the URL names no tenant. A key for all tenants wins over a tenant's own key."""
    rows = await executor.query(_FIND_KEY, (sha256,))
    if not rows:
        return None
    key_id, kind, device, *columns = rows[0]
    tenant = None if columns[0] is None else tenants.load_tenant(tuple(columns))
    return Principal(key_id, KeyKind(kind), tenant, device)


async def invalid_keys(executor: Executor, ids: Iterable[int]) -> set[int]:
    """Return the ids of keys that are revoked, expired or deleted, or whose tenant is disabled."""
    return {row[0] for row in await executor.query(_INVALID, (list(ids),))}


async def disabled_devices(
    executor: Executor, ids: Iterable[TenantId]
) -> set[tuple[TenantId, str]]:
    """Return the disabled devices of these tenants."""
    return {(row[0], row[1]) for row in await executor.query(_DISABLED, (list(ids),))}


async def record_use(executor: Executor, ids: Iterable[int]) -> None:
    """Set `last_used_at` of these keys to now."""
    await executor.execute(_TOUCH, (list(ids),))


async def create(
    executor: Executor,
    tenant: Tenant | None,
    kind: KeyKind,
    device_id: str | None,
    sha256: bytes,
    preview: str,
    lifetime: timedelta | None,
) -> CreatedKey:
    """Store the hash of a new key. A key without a tenant is a key of all tenants.

    A constraint rejects a kind of key that lacks its tenant or device.
    """
    tenant_id = None if tenant is None else tenant.id
    values = (tenant_id, kind.value, device_id, sha256, preview, lifetime)
    return CreatedKey(*(await executor.query(_CREATE, values))[0])


async def list_keys(
    executor: Executor, slug: str | None = None, *, after: int = 0, most: int | None = None
) -> list[ListedKey]:
    """Return up to `most` keys with ids above `after`, of all tenants or of the tenant `slug`."""
    rows = await executor.query(_LIST, {"slug": slug, "after": after, "most": most})
    return [ListedKey(row[0], row[1], KeyKind(row[2]), *row[3:]) for row in rows]


async def revoke(executor: Executor, key_id: int) -> bool:
    """Revoke a key. Return False if there is no such key or it is revoked already."""
    return bool(await executor.query(_REVOKE, (key_id,)))


async def revoke_tenant_key(
    executor: Executor, tenant_id: TenantId, key_id: int
) -> datetime | None:
    """Revoke a tenant's key. Return the time of its revocation; None if the tenant has no such key."""
    rows = await executor.query(_REVOKE_OF, (key_id, tenant_id))
    return rows[0][0] if rows else None
