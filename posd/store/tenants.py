"""Tenants: look up, list and create tenants, and read the migrations of their schemas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from attrs import frozen

from posd.database.reconnecting import Executor, Querier, Row
from posd.errors import BadRequest, Conflict, NotFound, PosdError, StatementFailed, Unavailable
from posd.values import SLUG, TENANT_RULES, Tenant, TenantId

COLUMNS: Final = "t.id, t.slug, t.name, t.schema_name, t.currency, t.timezone, t.default_region"

_BY_SLUG: Final = f"""
    SELECT {COLUMNS} FROM dinedesk_main.tenants AS t WHERE t.slug = %s AND t.is_active
"""
_BY_ID: Final = f"SELECT {COLUMNS} FROM dinedesk_main.tenants AS t WHERE t.id = ANY (%s)"
_ALL: Final = f"SELECT {COLUMNS}, t.is_active FROM dinedesk_main.tenants AS t ORDER BY t.slug"
_APPLIED: Final = "SELECT file FROM dinedesk_main.schema_versions WHERE schema_name = %s"
_OVERVIEW: Final = f"""
    SELECT {COLUMNS}, t.is_active, t.created_at,
           (SELECT array_agg(v.file ORDER BY v.file) FROM dinedesk_main.schema_versions AS v
             WHERE v.schema_name = t.schema_name),
           (SELECT count(*) FROM dinedesk_main.pos_connected AS c WHERE c.tenant_id = t.id)
      FROM dinedesk_main.tenants AS t
     WHERE (%(slug)s::text IS NULL OR t.slug = %(slug)s) AND (%(after)s::text IS NULL OR t.slug > %(after)s)
     ORDER BY t.slug LIMIT %(most)s
"""
_CREATE: Final = "SELECT dinedesk_main.pos_create_tenant(%s, %s, %s, %s, %s)"
_TAKEN: Final = ("tenants_slug_unique", "tenants_schema_unique")
_SCHEMA_IS_THERE: Final = "42P06"
_NOT_PREPARED: Final = "55000"


@frozen
class ListedTenant:
    """A tenant, and whether it is active."""

    tenant: Tenant
    is_active: bool


@frozen
class TenantOverview:
    """A tenant in an operator's list.

    `applied` lists the migrations of its schema; `connected` is the number of its connections on all nodes.
    """

    tenant: Tenant
    is_active: bool
    created_at: datetime
    applied: Sequence[str]
    connected: int


def load_tenant(row: Row) -> Tenant:
    """Return a tenant from a row that begins with `COLUMNS`."""
    return Tenant(*row[:7])


async def by_slug(executor: Querier, slug: str) -> Tenant | None:
    """Return the active tenant with this slug, or None."""
    rows = await executor.query(_BY_SLUG, (slug,))
    return load_tenant(rows[0]) if rows else None


async def by_id(executor: Executor, ids: Iterable[TenantId]) -> dict[TenantId, Tenant]:
    """Return the tenants with these ids. Deleted tenants are left out."""
    return {row[0]: load_tenant(row) for row in await executor.query(_BY_ID, (list(ids),))}


async def list_tenants(executor: Querier) -> list[ListedTenant]:
    """Return all tenants by slug, including disabled ones."""
    return [ListedTenant(load_tenant(row), row[7]) for row in await executor.query(_ALL)]


async def overview(
    executor: Executor,
    slug: str | None = None,
    *,
    after: str | None = None,
    most: int | None = None,
) -> list[TenantOverview]:
    """Return up to `most` tenants with slugs above `after`, by slug, including disabled ones.

    With `slug`, return that tenant only, if it exists.
    """
    values = {"slug": slug, "after": after, "most": most}
    return [
        TenantOverview(load_tenant(row), row[7], row[8], row[9] or (), row[10])
        for row in await executor.query(_OVERVIEW, values)
    ]


async def find_tenant(executor: Executor, slug: str) -> TenantOverview:
    """Return the tenant with this slug, even if disabled. Raises `NotFound` (`unknown_tenant`)."""
    found = await overview(executor, slug) if SLUG.fullmatch(slug) else []
    if not found:
        raise NotFound("There is no such tenant.", code="unknown_tenant")
    return found[0]


async def create(
    executor: Executor, slug: str, name: str, currency: str, timezone: str, default_region: str
) -> TenantOverview:
    """Create a tenant with its schema, roles and functions, in one transaction.

    Raises `BadRequest` (`invalid_field`), `Conflict` (`tenant_exists`, `schema_exists`), and `Unavailable` if
    the database lacks migrations.
    """
    try:
        await executor.query(_CREATE, (slug, name, currency, timezone, default_region))
    except StatementFailed as error:
        raise _refusal(error) from error
    return await find_tenant(executor, slug)


async def applied_migrations(executor: Executor, schema_name: str) -> list[str]:
    """Return the migrations of a schema, for `posd.database.migrations.version_mismatch`."""
    return [row[0] for row in await executor.query(_APPLIED, (schema_name,))]


def _refusal(error: StatementFailed) -> PosdError:
    """Return the error for the client whose tenant could not be created."""
    if error.constraint in _TAKEN:
        return Conflict("There is a tenant of this name already.", code="tenant_exists")
    if error.constraint in TENANT_RULES:
        rule, field = TENANT_RULES[error.constraint], error.constraint.split("_")[1]
        what = f"{rule[0].upper()}{rule[1:]}."
        return BadRequest(what, code="invalid_field", details={"field": field})
    if error.sqlstate == _SCHEMA_IS_THERE:
        return Conflict(
            "There is a schema of this name already. `posctl tenant add` takes it over.",
            code="schema_exists",
        )
    if error.sqlstate == _NOT_PREPARED:
        return Unavailable("No tenants can be made until `posctl migrate` was run.")
    return error
