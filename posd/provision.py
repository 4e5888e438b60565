"""Make tenants, bring their schemas up to date, and put the hooks on a shop's own tables.

Plain blocking code for `posctl`, like `migrations`, whose files it applies. A tenant's SQL has four
placeholders in psql's notation (`:"schema"`, `:'schema'`, `:"hook_role"`, `:tenant_id`); they are
filled in wherever they stand, function bodies included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import psycopg2
from attrs import frozen
from psycopg2.extensions import connection as Connection  # noqa: N812

from posd.errors import SchemaError
from posd.migrations import (
    MAIN,
    administration,
    apply,
    check_main,
    hooks,
    line,
    record,
    transaction,
)
from posd.values import Tenant

REQUIRED_COLUMNS: Final = {
    "orders": ("id", "status", "total_amount", "created_at"),
    "order_items": ("id", "order_id", "name", "price", "quantity"),
}
"""What a shop's own tables must have to be hooked; every other column is used where it is there."""


@frozen
class Report:
    """What one `migrate` did: schemas by name, those that failed with the reason."""

    updated: tuple[str, ...]
    current: tuple[str, ...]
    failed: Mapping[str, str]


def migrate(
    connection: Connection, progress: Callable[[str, int, int], None] = lambda *_: None
) -> Report:
    """Bring the main schema and then every tenant's to this posd's version.

    A tenant that fails leaves the others updated. `progress` is called with a schema's name, its
    number and how many there are. Raises `SchemaError` if the main schema fails, if it is newer
    than this posd, or if another migration is running.
    """
    updated: list[str] = []
    current: list[str] = []
    failed: dict[str, str] = {}
    with administration(connection):
        (updated if apply(connection, MAIN, "main", str) else current).append(MAIN)
        tenants = list(_tenants(connection))
        for number, tenant in enumerate(tenants, 1):
            progress(tenant.schema, number, len(tenants))
            try:
                changed = _prepare(connection, tenant)
            except (psycopg2.Error, SchemaError) as error:
                failed[tenant.schema] = line(error)
            else:
                (updated if changed else current).append(tenant.schema)
    return Report(tuple(updated), tuple(current), failed)


def add_tenant(
    connection: Connection, slug: str, name: str, *, currency: str, timezone: str
) -> Tenant:
    """Make a tenant: its row, its role, its schema, and the hooks where the tables are posd's own.

    Raises `SchemaError` with a sentence for an existing or malformed slug, and when the main schema
    does not fit. What is left half done by a crash is finished by `migrate`.
    """
    schema = f"dinedesk_{slug.replace('-', '_')}"
    with administration(connection):
        check_main(connection)
        with connection.cursor() as cursor:
            try:
                cursor.execute(
                    f"INSERT INTO {MAIN}.tenants (slug, name, schema_name, currency, timezone)"
                    " VALUES (%s, %s, %s, %s, %s) RETURNING id",
                    (slug, name, schema, currency, timezone),
                )
            except psycopg2.errors.UniqueViolation as error:
                raise SchemaError(f"there is a tenant {slug!r} already") from error
            except psycopg2.errors.CheckViolation as error:
                raise SchemaError(f"not a usable tenant: {line(error)}") from error
            tenant = Tenant(cursor.fetchone()[0], slug, name, schema, currency, timezone)
        _prepare(connection, tenant)
    return tenant


def adopt(connection: Connection, slug: str) -> None:
    """Put the hooks on the shop's existing `orders` and `order_items`.

    Raises `SchemaError` with the columns that are missing, or with the exact GRANTs to make.
    """
    with administration(connection):
        tenant = next((t for t in _tenants(connection) if t.slug == slug), None)
        if tenant is None:
            raise SchemaError(f"there is no tenant {slug!r}")
        try:
            with transaction(connection) as cursor:
                _hook(cursor, tenant)
        except psycopg2.errors.InsufficientPrivilege as error:
            raise SchemaError(
                f"posd_owner lacks rights ({line(error)}). As the owner of the tables:\n"
                + _grants(tenant)
            ) from error


def fill(text: str, tenant: Tenant, **more: str) -> str:
    """Fill in the placeholders of a tenant's SQL. Names are quoted as PostgreSQL quotes them."""
    values = {
        ':"schema"': _quoted(tenant.schema),
        ":'schema'": f"'{tenant.schema}'",
        ':"hook_role"': _quoted(_hook_role(tenant)),
        ":tenant_id": str(tenant.id),
    } | {f":{name}": value for name, value in more.items()}
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text


def _tenants(connection: Connection) -> Iterator[Tenant]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, slug, name, schema_name, currency, timezone, default_region"
            f" FROM {MAIN}.tenants ORDER BY id"
        )
        for row in cursor.fetchall():
            yield Tenant(*row)


def _prepare(connection: Connection, tenant: Tenant) -> bool:
    """Role, schema, migrations, hooks: whatever of it is missing. Returns whether any was."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (_hook_role(tenant),))
        if cursor.fetchone() is None:
            cursor.execute(f"CREATE ROLE {_quoted(_hook_role(tenant))} NOLOGIN")
        cursor.execute("SELECT pg_has_role(%s, 'MEMBER')", (_hook_role(tenant),))
        if not cursor.fetchone()[0]:
            cursor.execute(f"GRANT {_quoted(_hook_role(tenant))} TO posd_owner")
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(tenant.schema)}")
    changed = apply(connection, tenant.schema, "tenant", lambda text: fill(text, tenant))
    with transaction(connection) as cursor:
        if _hooks_wanted(cursor, tenant):
            _hook(cursor, tenant)
            changed = True
        if changed:
            cursor.execute("SELECT pg_notify('posd_control', %s)", (f"tenant {tenant.id}",))
    return changed


def _hooks_wanted(cursor: Any, tenant: Tenant) -> bool:
    """Hooks are put on tables that posd made, and renewed wherever they stand and are outdated."""
    cursor.execute(
        f"SELECT checksum FROM {MAIN}.schema_versions WHERE schema_name = %s AND file = %s",
        (tenant.schema, hooks().file),
    )
    row = cursor.fetchone()
    if row is not None:
        return bool(row[0] != hooks().checksum)
    cursor.execute(
        "SELECT bool_and(pg_get_userbyid(relowner) = 'posd_owner') FROM pg_class"
        " WHERE relnamespace = %s::regnamespace AND relname IN ('orders', 'order_items')",
        (_quoted(tenant.schema),),
    )
    return bool(cursor.fetchone()[0])


def _hook(cursor: Any, tenant: Tenant) -> None:
    cursor.execute(
        "SELECT table_name::text, column_name::text, format_type(a.atttypid, a.atttypmod)"
        "  FROM information_schema.columns AS c JOIN pg_attribute AS a"
        "    ON a.attrelid = format('%%I.%%I', table_schema, table_name)::regclass"
        "   AND a.attname = column_name"
        " WHERE table_schema = %s AND table_name IN ('orders', 'order_items')",
        (tenant.schema,),
    )
    found = {(table, column): kind for table, column, kind in cursor}
    missing = [
        f"{table}.{column}"
        for table, columns in REQUIRED_COLUMNS.items()
        for column in columns
        if (table, column) not in found
    ]
    if missing:
        raise SchemaError(f"{tenant.schema} lacks the columns {', '.join(missing)}")
    cursor.execute(fill(hooks().text, tenant, order_id_type=found["orders", "id"]))
    record(cursor, tenant.schema, hooks())


def _grants(tenant: Tenant) -> str:
    schema = _quoted(tenant.schema)
    return (
        f"GRANT USAGE, CREATE ON SCHEMA {schema} TO posd_owner;\n"
        f"GRANT SELECT, TRIGGER ON {schema}.orders, {schema}.order_items TO posd_owner;\n"
        f"GRANT SELECT ON {schema}.orders, {schema}.order_items TO {_quoted(_hook_role(tenant))};"
    )


def _hook_role(tenant: Tenant) -> str:
    return tenant.schema.replace("dinedesk_", "posd_hook_", 1)


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
