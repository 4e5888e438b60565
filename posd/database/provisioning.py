"""Make tenants, bring their schemas up to date, and put the hooks on a shop's own tables.

Plain blocking code for `posctl`, like `migrations`, whose files it applies. A tenant's SQL has
placeholders in psql's notation (`:"schema"`, `:"hook_role"`, `:"note_role"`, `:shop` and `:tenant_id`); they
are replaced everywhere in the file, also in the bodies of functions.

A tenant's schema belongs to posd_owner, even where the shop's own tables in it do not: the owner of a schema
can drop what is in it, posd's tables included.

Sessions here belong to a superuser or to a member of posd_owner, so they read nothing in a shop's tables,
only what the system catalogs say of them. A view, a policy or a type of the shop's would run the shop's
functions with the rights of that session. `adopting` reads them with the rights of the tenant's reader.
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
    """What one `migrate` did: schemas by name, those that failed with the reason."""

    updated: tuple[str, ...]
    current: tuple[str, ...]
    failed: Mapping[str, str]


def migrate(
    connection: Connection, progress: Callable[[str, int, int], None] = lambda *_: None
) -> MigrationReport:
    """Bring the main schema and then every tenant's to this posd's version.

    A tenant that fails leaves the others updated. `progress` is called with a schema's name, its
    number and how many there are. Raises `SchemaError` if the main schema fails, if it is newer
    than this posd, or if another migration is running.
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
    """Make a tenant: its row, its role, its schema, and the hooks where the tables are posd's own.

    `region` (ISO 3166) is where telephone numbers without a country code are of; that of the time zone
    where it is None. Raises `SchemaError` with a sentence for an existing or malformed slug, for a
    currency or a region that there is not, and when the main schema does not fit. What is left half
    done by a crash is finished by `migrate`.
    """
    schema = f"dinedesk_{slug.replace('-', '_')}"
    if not is_currency(currency):
        raise SchemaError(
            f"{currency!r} is no currency: write the three capital letters of ISO 4217, such as GBP"
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
                raise SchemaError(f"there is a tenant {slug!r} already") from error
            except psycopg2.errors.CheckViolation as error:
                broken = error.diag.constraint_name
                if broken == "tenants_timezone_known":
                    raise SchemaError(f"there is no time zone {timezone!r}") from error
                raise SchemaError(
                    TENANT_RULES.get(broken, f"not a usable tenant: {first_line(error)}")
                ) from error
            tenant_id, zone = cursor.fetchone()
            tenant = Tenant(tenant_id, slug, name, schema, currency, zone, region)
        try:
            _prepare(connection, tenant)
        except psycopg2.Error as error:
            raise SchemaError(
                f"the tenant {slug!r} is entered, but its schema is not ready ({first_line(error)});"
                " `posctl migrate` tries again"
            ) from error
    return tenant


def fill_placeholders(text: str, tenant: Tenant) -> str:
    """Fill in the placeholders of a tenant's SQL. Names are quoted as PostgreSQL quotes them."""
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
    """The tenant of this slug. Raises `SchemaError` if there is none."""
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
    """Role, schema, migrations, hooks: whatever of it is missing. Returns whether any was."""
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
    """Refuse a schema that is not posd_owner's, with the statements that make it so."""
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
    """Whether hooks are to be put on the shop's tables, if it has both.

    Never yet hooked: if posd made the tables. Hooked before: if the hooks are outdated, or are gone
    because a table was made anew.
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
    """What the operator chose when the tables were adopted; nothing if they were not."""
    cursor.execute(
        f"SELECT condition, timestamps, unique_ids FROM {MAIN}.pos_adoptions WHERE tenant_id = %s",
        (tenant.id,),
    )
    row = cursor.fetchone()
    return AdoptionOptions() if row is None else AdoptionOptions(*row)


def shop_tables_of(cursor: Any, tenant: Tenant) -> dict[str, ShopTable]:
    """The shop's `orders` and `order_items`, as far as there are any."""
    cursor.execute(shop_tables.READ, {"schema": tenant.schema, "role": reader_role(tenant)})
    return shop_tables.tables_from_rows(cursor.fetchall())


def install_hooks(cursor: Any, tenant: Tenant, choices: AdoptionOptions) -> None:
    """Put the hooks on, in the caller's transaction, or raise `AdoptionRefused`."""
    tables = shop_tables_of(cursor, tenant)
    adoption.check_columns(tenant, tables)
    found = adoption.refusals(tenant, tables, choices, reader_role(tenant))
    if found:
        raise AdoptionRefused(tenant, found)
    cursor.execute(fill_placeholders(hooks_migration().text, tenant))
    record_migration(cursor, tenant.schema, hooks_migration())


def reader_role(tenant: Tenant) -> str:
    """The role that owns the function which reads a tenant's orders, and may read its tables."""
    return f"posd_hook_{name_suffix(tenant)}"


def hook_owner_role(tenant: Tenant) -> str:
    """The role that owns a tenant's hooks, and may do nothing but enqueue for it."""
    return f"posd_note_{name_suffix(tenant)}"


def name_suffix(tenant: Tenant) -> str:
    """What the names of a tenant's roles and functions end in."""
    return tenant.schema.removeprefix("dinedesk_")


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
