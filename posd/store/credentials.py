"""Credentials: from a key's hash to whom it speaks for, and the operator's handling of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from attrs import frozen

from posd.link import Session
from posd.store import tenants
from posd.values import KeyKind, Principal, Tenant

# One statement whether tenant and key are there or not, so that one answer takes one time. A key
# of a tenant and the same key of all tenants can both exist; the narrower one speaks.
_FIND: Final = f"""
    SELECT k.id, k.kind, k.device_id, k.tenant_id IS NULL, k.expires_at,
           coalesce(d.has_key, false), coalesce(d.is_active, true),
           (SELECT array_agg(v.file) FROM dinedesk_main.schema_versions AS v
             WHERE v.schema_name = t.schema_name), {tenants.COLUMNS}
      FROM dinedesk_main.pos_api_keys AS k
      JOIN dinedesk_main.tenants AS t ON t.slug = %(slug)s AND t.is_active
       AND (k.tenant_id = t.id OR k.tenant_id IS NULL)
      LEFT JOIN dinedesk_main.pos_devices AS d
        ON d.tenant_id = t.id AND d.device_id = coalesce(k.device_id, %(device)s)
     WHERE k.key_sha256 = %(sha256)s AND k.revoked_at IS NULL
       AND k.not_before <= now() AND (k.expires_at IS NULL OR k.expires_at > now())
     ORDER BY k.tenant_id NULLS LAST LIMIT 1
"""
_FIND_GLOBAL: Final = """
    SELECT k.id, k.kind FROM dinedesk_main.pos_api_keys AS k
     WHERE k.key_sha256 = %s AND k.tenant_id IS NULL AND k.revoked_at IS NULL
       AND k.not_before <= now() AND (k.expires_at IS NULL OR k.expires_at > now())
"""
_KNOWN: Final = """
    SELECT k.id FROM dinedesk_main.pos_api_keys AS k
     WHERE k.key_sha256 = %s AND k.revoked_at IS NULL
       AND k.not_before <= now() AND (k.expires_at IS NULL OR k.expires_at > now())
     LIMIT 1
"""
_ENDED: Final = """
    SELECT used.id FROM unnest(%s::integer[]) AS used(id)
     WHERE NOT EXISTS (
        SELECT FROM dinedesk_main.pos_api_keys AS k
          LEFT JOIN dinedesk_main.tenants AS t ON t.id = k.tenant_id
         WHERE k.id = used.id AND k.revoked_at IS NULL
           AND (k.expires_at IS NULL OR k.expires_at > now()) AND t.is_active IS NOT false)
"""
_TOUCH: Final = """
    UPDATE dinedesk_main.pos_api_keys SET last_used_at = now() WHERE id = ANY (%s)
"""
_CREATE: Final = """
    INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, device_id, key_sha256, preview, expires_at)
    VALUES (%s, %s, %s, %s, %s, now() + %s) RETURNING id
"""
_LIST: Final = """
    SELECT k.id, t.slug, k.kind, k.device_id, k.preview, k.weak, k.not_before, k.expires_at,
           k.revoked_at, k.last_used_at
      FROM dinedesk_main.pos_api_keys AS k LEFT JOIN dinedesk_main.tenants AS t ON t.id = k.tenant_id
     WHERE %(slug)s::text IS NULL OR t.slug = %(slug)s ORDER BY t.slug NULLS FIRST, k.id
"""
_REVOKE: Final = """
    UPDATE dinedesk_main.pos_api_keys SET revoked_at = now()
     WHERE id = %s AND revoked_at IS NULL RETURNING id
"""


@frozen
class Credential:
    """A valid key at one tenant's door.

    `device_has_key` and `device_active` are about the device that the key or the caller names;
    `applied` are the migrations of the tenant's schema.
    """

    principal: Principal
    tenant: Tenant
    expires_at: datetime | None
    device_has_key: bool
    device_active: bool
    applied: Sequence[str]


@frozen
class Listed:
    """A key in an operator's list; `slug` is None for a key of all tenants."""

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


async def find(
    session: Session, slug: str, sha256: bytes, device_id: str | None
) -> Credential | None:
    """What a key opens at this tenant; None for all that does not fit, without saying why."""
    rows = await session.query(_FIND, {"slug": slug, "sha256": sha256, "device": device_id})
    if not rows:
        return None
    key_id, kind, device, everywhere, expires_at, has_key, active, applied, *columns = rows[0]
    tenant = tenants.load(tuple(columns))
    principal = Principal(key_id, KeyKind(kind), None if everywhere else tenant, device)
    return Credential(principal, tenant, expires_at, has_key, active, applied or ())


async def find_global(session: Session, sha256: bytes) -> Principal | None:
    """A key of all tenants, where no tenant is named."""
    rows = await session.query(_FIND_GLOBAL, (sha256,))
    return Principal(rows[0][0], KeyKind(rows[0][1]), None) if rows else None


async def known(session: Session, sha256: bytes) -> int | None:
    """The id of a valid key of anybody."""
    rows = await session.query(_KNOWN, (sha256,))
    return int(rows[0][0]) if rows else None


async def ended(session: Session, ids: Iterable[int]) -> set[int]:
    """Those of these keys that are valid no more: revoked, expired or gone, or their tenant is."""
    return {row[0] for row in await session.query(_ENDED, (list(ids),))}


async def touch(session: Session, ids: Iterable[int]) -> None:
    """Note that these keys were used."""
    await session.execute(_TOUCH, (list(ids),))


async def create(
    session: Session,
    tenant: Tenant | None,
    kind: KeyKind,
    device_id: str | None,
    sha256: bytes,
    preview: str,
    lifetime: timedelta | None,
) -> int:
    """Store a new key's hash; its id. Without a tenant it is a key of all tenants.

    The database refuses kinds that lack tenant or device.
    """
    tenant_id = None if tenant is None else tenant.id
    values = (tenant_id, kind.value, device_id, sha256, preview, lifetime)
    rows = await session.query(_CREATE, values)
    return int(rows[0][0])


async def everyone(session: Session, slug: str | None = None) -> list[Listed]:
    """All keys, or those of one tenant."""
    rows = await session.query(_LIST, {"slug": slug})
    return [Listed(row[0], row[1], KeyKind(row[2]), *row[3:]) for row in rows]


async def revoke(session: Session, key_id: int) -> bool:
    """Revoke a key at once; False if there is no such valid key."""
    return bool(await session.query(_REVOKE, (key_id,)))
