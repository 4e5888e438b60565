"""Tenants: who there is, and whether a tenant's schema is one that this posd can work with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import frozen

from posd.link import Row, Session
from posd.values import Tenant, TenantId

COLUMNS: Final = "t.id, t.slug, t.name, t.schema_name, t.currency, t.timezone, t.default_region"

_BY_SLUG: Final = f"""
    SELECT {COLUMNS} FROM dinedesk_main.tenants AS t WHERE t.slug = %s AND t.is_active
"""
_BY_ID: Final = f"SELECT {COLUMNS} FROM dinedesk_main.tenants AS t WHERE t.id = ANY (%s)"
_ALL: Final = f"SELECT {COLUMNS}, t.is_active FROM dinedesk_main.tenants AS t ORDER BY t.slug"
_APPLIED: Final = "SELECT file FROM dinedesk_main.schema_versions WHERE schema_name = %s"


@frozen
class Listed:
    """A tenant in an operator's list."""

    tenant: Tenant
    is_active: bool


def load(row: Row) -> Tenant:
    """A tenant from `COLUMNS`."""
    return Tenant(*row[:7])


async def by_slug(session: Session, slug: str) -> Tenant | None:
    """An active tenant."""
    rows = await session.query(_BY_SLUG, (slug,))
    return load(rows[0]) if rows else None


async def by_id(session: Session, ids: Iterable[TenantId]) -> dict[TenantId, Tenant]:
    """The tenants of these ids, without those that are gone."""
    return {row[0]: load(row) for row in await session.query(_BY_ID, (list(ids),))}


async def everyone(session: Session) -> list[Listed]:
    """All tenants by slug, disabled ones too."""
    return [Listed(load(row), row[7]) for row in await session.query(_ALL)]


async def applied(session: Session, schema_name: str) -> list[str]:
    """The migrations that a schema has, for `migrations.misfit`."""
    return [row[0] for row in await session.query(_APPLIED, (schema_name,))]
