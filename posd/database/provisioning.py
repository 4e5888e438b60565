"""Create tenants, migrate their schemas, and install the hooks on a shop's own tables.

Blocking code for `posctl`. The SQL files of a tenant contain placeholders in psql's notation (`:"schema"`,
`:"hook_role"`, `:"note_role"`, `:shop` and `:tenant_id`). They are replaced everywhere in the file, also in
the bodies of functions.

posd_owner owns a tenant's schema, even if the shop owns tables in it: the owner of a schema can drop every
object in it, and posd's tables must be protected.

The sessions here belong to a superuser or to a member of posd_owner. They therefore read only the system
catalogs, never the rows of a shop's tables: a view, policy or type of the shop would run the shop's functions
with the rights of the session. `adopting` reads rows with the rights of the tenant's reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg2
from attrs import frozen
from psycopg2.extensions import connection as Connection  # noqa: N812

from posd.database import adoption_rules as adoption
from posd.database import shop_tables
from posd.database.adoption_rules import AdoptionOptions, AdoptionRefused
from posd.database.migrations import (
    MAIN,
    OWNER,
    administer,
    apply_pending,
    check_bootstrapped,
    check_main,
    first_line,
    hooks_migration,
    record_migration,
    store_tenant_files,
    transaction,
)
from posd.database.shop_tables import REQUIRED_COLUMNS, ShopTable
from posd.errors import SchemaError
from posd.events.money import is_currency
from posd.events.phones import is_region
from posd.events.regions import DEFAULT, region_of
from posd.values import TENANT_RULES, Tenant


@frozen
class MigrationReport:
    """The result of `migrate`: names of schemas, and for each failed schema the reason."""

    updated: tuple[str, ...]
    current: tuple[str, ...]
    failed: Mapping[str, str]


def migrate(
    connection: Connection, progress: Callable[[str, int, int], None] = lambda *_: None
) -> MigrationReport:
    """Migrate the main schema and then the schema of every tenant to this posd's version.

    A failed tenant does not prevent the migration of other tenants. `progress` is called with the name of a
    schema, its number, and the number of schemas. Raises `SchemaError` if the main schema fails, if it is
    newer than this posd, or if another migration is running.
    """
    updated: list[str] = []
    current: list[str] = []
    failed: dict[str, str] = {}
    with administer(connection):
        check_bootstrapped(connection)
        try:
            changed = apply_pending(connection, MAIN, "main", str)
            store_tenant_files(connection)
        except psycopg2.Error as error:
            raise SchemaError(f"{MAIN}: {first_line(error)}") from error
        (updated if changed else current).append(MAIN)
        tenants = list(_tenants(connection))
        for number, tenant in enumerate(tenants, 1):
            progress(tenant.schema, number, len(tenants))
            try:
                changed = _prepare(connection, tenant)
            except (psycopg2.Error, SchemaError) as error:
                if connection.closed:
                    raise
                failed[tenant.schema] = (
                    first_line(error) if isinstance(error, psycopg2.Error) else str(error)
                )
            else:
                (updated if changed else current).append(tenant.schema)
    return MigrationReport(tuple(updated), tuple(current), failed)


def add_tenant(
    connection: Connection,
    slug: str,
    name: str,
    *,
    currency: str,
    timezone: str,
    region: str | None = None,
) -> Tenant:
    """Create a tenant: its row, roles and schema, and the hooks if posd owns the tables.

    `region` (ISO 3166) is the country of telephone numbers without a country code. If it is None, the region
    of the time zone is used. Raises `SchemaError` for an existing or malformed slug, for an unknown currency,
    region or time zone, and for an unsupported version of the main schema. `migrate` completes a tenant
    whose creation was interrupted by a crash.
    """
    schema = f"dinedesk_{slug.replace('-', '_')}"
    if not is_currency(currency):
        raise SchemaError(
            f"{currency!r} is not a currency: write the three capital letters of ISO 4217, such as GBP"
        )
    region = region or region_of(timezone) or DEFAULT
    if not is_region(region):
        raise SchemaError(
            f"{region!r} is not a country with telephone numbers: write two letters, such as GB"
        )
    with administer(connection):
        check_main(connection)
        with connection.cursor() as cursor:
            _check_owner(cursor, schema)
            try:
                cursor.execute(
                    f"INSERT INTO {MAIN}.tenants"
                    " (slug, name, schema_name, currency, timezone, default_region)"
                    " VALUES (%s, %s, %s, %s, %s, %s) RETURNING id, timezone",
                    (slug, name, schema, currency, timezone, region),
                )
            except psycopg2.errors.UniqueViolation as error:
                raise SchemaError(f"the tenant {slug!r} exists already") from error
            except psycopg2.errors.CheckViolation as error:
                broken = error.diag.constraint_name
                if broken == "tenants_timezone_known":
                    raise SchemaError(f"there is no time zone {timezone!r}") from error
                raise SchemaError(
                    TENANT_RULES.get(broken, f"the tenant is not valid: {first_line(error)}")
                ) from error
            tenant_id, zone = cursor.fetchone()
            tenant = Tenant(tenant_id, slug, name, schema, currency, zone, region)
        try:
            _prepare(connection, tenant)
        except psycopg2.Error as error:
            raise SchemaError(
                f"the tenant {slug!r} was created, but its schema is not ready ({first_line(error)});"
                " `posctl migrate` tries again"
            ) from error
    return tenant


def fill_placeholders(text: str, tenant: Tenant) -> str:
    """Replace the placeholders of a tenant's SQL. Identifiers are quoted."""
    values = {
        ':"schema"': _quoted(tenant.schema),
        ':"hook_role"': _quoted(reader_role(tenant)),
        ':"note_role"': _quoted(hook_owner_role(tenant)),
        ":shop": name_suffix(tenant),
        ":tenant_id": str(tenant.id),
    }
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text


def find_tenant(connection: Connection, slug: str) -> Tenant:
    """Return the tenant with this slug. Raises `SchemaError` if there is none."""
    tenant = next((t for t in _tenants(connection) if t.slug == slug), None)
    if tenant is None:
        raise SchemaError(f"there is no tenant {slug!r}")
    return tenant


def _tenants(connection: Connection) -> Iterator[Tenant]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, slug, name, schema_name, currency, timezone, default_region"
            f" FROM {MAIN}.tenants ORDER BY id"
        )
        for row in cursor.fetchall():
            yield Tenant(*row)


def _prepare(connection: Connection, tenant: Tenant) -> bool:
    """Create or update the roles, schema and hooks of a tenant. Return whether anything was changed."""
    with connection.cursor() as cursor:
        _check_owner(cursor, tenant.schema)
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(tenant.schema)}")
        cursor.execute(f"SELECT {MAIN}.pos_make_roles(%s)", (name_suffix(tenant),))
    changed = apply_pending(
        connection, tenant.schema, "tenant", lambda text: fill_placeholders(text, tenant)
    )
    with transaction(connection) as cursor:
        if _hooks_wanted(cursor, tenant):
            install_hooks(cursor, tenant, stored_options(cursor, tenant))
            changed = True
        if changed:
            cursor.execute(f"SELECT {MAIN}.pos_tell(%s)", (f"tenant {tenant.id}",))
    return changed


def _check_owner(cursor: Any, schema: str) -> None:
    """Raise `SchemaError`, with the statements that help, if posd_owner does not own the schema."""
    cursor.execute(
        "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = %s", (schema,)
    )
    row = cursor.fetchone()
    if row is not None and row[0] != OWNER:
        name, owner = _quoted(schema), _quoted(row[0])
        raise SchemaError(
            f"the schema {schema} belongs to {row[0]} and not to {OWNER}. As a superuser:\n"
            f"ALTER SCHEMA {name} OWNER TO {OWNER};\n"
            f"GRANT USAGE, CREATE ON SCHEMA {name} TO {owner};"
        )


def _hooks_wanted(cursor: Any, tenant: Tenant) -> bool:
    """Return whether hooks must be installed on the shop's tables. Both tables must exist.

    If the tables were never hooked, the answer is whether posd owns them. If they were hooked, the answer is
    whether the hooks are outdated, or missing because a table was created again.
    """
    cursor.execute(
        f"SELECT checksum FROM {MAIN}.schema_versions WHERE schema_name = %s AND file = %s",
        (tenant.schema, hooks_migration().file),
    )
    row = cursor.fetchone()
    tables = shop_tables_of(cursor, tenant)
    if tables.keys() != REQUIRED_COLUMNS.keys():
        return False
    if row is None:
        return all(table.owner == OWNER for table in tables.values())
    return row[0] != hooks_migration().checksum or not all(
        table.is_hooked for table in tables.values()
    )


def stored_options(cursor: Any, tenant: Tenant) -> AdoptionOptions:
    """Return the options with which the tables were adopted; empty options if they never were."""
    cursor.execute(
        f"SELECT condition, timestamps, unique_ids FROM {MAIN}.pos_adoptions WHERE tenant_id = %s",
        (tenant.id,),
    )
    row = cursor.fetchone()
    return AdoptionOptions() if row is None else AdoptionOptions(*row)


def shop_tables_of(cursor: Any, tenant: Tenant) -> dict[str, ShopTable]:
    """Return the shop's `orders` and `order_items` by name, as far as they exist."""
    cursor.execute(shop_tables.READ, {"schema": tenant.schema, "role": reader_role(tenant)})
    return shop_tables.tables_from_rows(cursor.fetchall())


def install_hooks(cursor: Any, tenant: Tenant, choices: AdoptionOptions) -> None:
    """Install the hooks in the caller's transaction. Raises `AdoptionRefused`."""
    tables = shop_tables_of(cursor, tenant)
    adoption.check_columns(tenant, tables)
    found = adoption.refusals(tenant, tables, choices, reader_role(tenant))
    if found:
        raise AdoptionRefused(tenant, found)
    cursor.execute(fill_placeholders(hooks_migration().text, tenant))
    record_migration(cursor, tenant.schema, hooks_migration())


def reader_role(tenant: Tenant) -> str:
    """Return the role that owns the function that reads a tenant's orders. It may read the shop's tables."""
    return f"posd_hook_{name_suffix(tenant)}"


def hook_owner_role(tenant: Tenant) -> str:
    """Return the role that owns a tenant's hooks. It may only write to the tenant's outbox."""
    return f"posd_note_{name_suffix(tenant)}"


def name_suffix(tenant: Tenant) -> str:
    """Return the suffix of the names of a tenant's roles and functions."""
    return tenant.schema.removeprefix("dinedesk_")


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
