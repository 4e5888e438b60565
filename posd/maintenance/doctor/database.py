"""Check that posd can use the database, and that the roles have exactly the rights that posd needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from posd.config.model import Config
from posd.database.migrations import MAIN, OLDEST, hooks_migration
from posd.database.reconnecting import Querier
from posd.database.regions import region_country
from posd.database.shop_readers import SLOTS
from posd.errors import Busy, StatementFailed
from posd.events.timezones import is_zone
from posd.maintenance import audit, shop_changes
from posd.maintenance import schema_diff as structure
from posd.maintenance.doctor import CheckResult, fault, machine, ok, unknown, warning
from posd.store import audit_main, tenants
from posd.store import server_facts as fitness
from posd.store.audit import run_check
from posd.store.server_facts import ConnectionCapacity, DatabaseServer
from posd.values import Tenant

_LINKS: Final = 2 + SLOTS
"""Connections besides the pool's: the sequencer's, the listener's, and those that read shops' tables."""

_REMEDIES: Final = {
    "42P01": "posctl bootstrap, then posctl migrate",  # undefined_table
    "3F000": "posctl bootstrap, then posctl migrate",  # invalid_schema_name
    "42501": "posctl bootstrap, then posctl migrate: they grant missing rights",  # insufficient_privilege
}
_LOG: Final = (
    ("log_min_messages", ("log", "fatal", "panic")),
    ("log_min_error_statement", ("log", "fatal", "panic")),
    ("log_statement", ("none", "ddl")),
    ("log_min_duration_statement", ("-1",)),
)
"""Settings, with the values that keep the parameters of posd's statements out of PostgreSQL's log."""
_RIGHTS: Final = ("rights", "schema", "function")


async def examine(executor: Querier, config: Config | None) -> list[CheckResult]:
    """Check the server, its settings, and the schemas. `config` is None if it cannot be used."""
    asked = datetime.now(UTC)
    server = await fitness.server_facts(executor)
    took = datetime.now(UTC) - asked
    lines = [*_server(server), machine.compare_clocks(asked, server.now, took)]
    lines += _settings(await fitness.session_settings(executor))
    if config is not None:
        lines.append(_room(await fitness.connection_capacity(executor), config))
    if server.may_be_posd is not None:
        lines += await _schemas(executor)
        lines += await _regions(executor)
    return lines


def _server(server: DatabaseServer) -> Iterator[CheckResult]:
    if server.version < OLDEST:
        what = f"PostgreSQL {server.version_text} is too old"
        yield fault("database", what, "upgrade it: posd needs 14 or newer")
    elif server.is_standby:
        what = "the server is a standby, and a standby is read-only"
        yield fault("database", what, "name the primary in database.dsn, or promote this server")
    else:
        yield ok("database", f"PostgreSQL {server.version_text} answers")
    if server.encoding != "UTF8":
        what = f"the encoding of the database is {server.encoding}"
        yield fault(
            "database", what, "create a database with ENCODING 'UTF8', as posctl bootstrap does"
        )
    if server.may_be_posd is None:
        yield fault(
            "database", "there is no role posd", "run posctl bootstrap, then posctl migrate"
        )
    elif not server.may_be_posd:
        what = f"{server.user} may not SET ROLE posd, which the daemon does on each connection"
        yield fault("rights", what, f"GRANT posd TO {server.user}")
    elif server.is_superuser:
        what = f"database.dsn logs in as {server.user}, a superuser"
        yield warning(
            "rights", what, "log in as posd: this role has all rights that the daemon needs"
        )
    else:
        yield ok("rights", f"{server.user} may become posd, and is not a superuser")


def _settings(found: Mapping[str, str]) -> list[CheckResult]:
    wrong = [
        fault(
            "settings",
            f"{name} is {found[name]}: {harm}",
            f"set {name} = {better} in postgresql.conf",
        )
        for name, bad, better, harm in (
            ("fsync", ("off",), "on", "a crash destroys the database"),
            ("full_page_writes", ("off",), "on", "a crash destroys the database"),
            ("default_transaction_read_only", ("on",), "off", "posd cannot write"),
            (
                "default_transaction_isolation",
                ("repeatable read", "serializable"),
                "'read committed'",
                "the sequencer reads an old snapshot and fails",
            ),
        )
        if found.get(name) in bad
    ]
    wrong += [
        warning(
            "settings",
            f"{name} is {found[name]}: {harm}",
            f"set {name} = {better} in postgresql.conf",
        )
        for name, good, better, harm in (
            (
                "synchronous_commit",
                ("on", "local", "remote_write", "remote_apply"),
                "on",
                "a crash of the server loses accepted orders",
            ),
            ("autovacuum", ("on",), "on", "the outbox table grows without limit"),
            (
                "idle_session_timeout",
                ("0",),
                "0",
                "PostgreSQL closes posd's idle connections",
            ),
        )
        if name in found and found[name] not in good
    ]
    loud = [name for name, good in _LOG if name in found and found[name] not in good]
    if loud:
        what = f"{' and '.join(loud)}: PostgreSQL writes data of customers and orders to its log"
        remedy = (
            "log in as posd and run posctl bootstrap again; for other settings, ALTER ROLE posd SET"
        )
        wrong.append(warning("settings", what, remedy))
    return wrong or [ok("settings", "all checked settings are suitable")]


def _room(room: ConnectionCapacity, config: Config) -> CheckResult:
    wanted = config.database.pool_size + _LINKS
    limits = [each for each in (room.of_role, room.of_database) if each is not None]
    left = min([room.most - room.others, *limits])
    if left >= wanted:
        return ok("connections", f"posd needs {wanted} connections, and {left} are available")
    what = f"posd needs {wanted} connections, and {max(0, left)} are available"
    remedy = "raise max_connections or CONNECTION LIMIT, or lower database.pool_size"
    return fault("connections", what, remedy)


async def _regions(executor: Querier) -> list[CheckResult]:
    """Warn of each tenant whose region of telephone numbers is not the country of its time zone."""
    try:
        everyone = await tenants.list_tenants(executor)
    except (StatementFailed, Busy):
        # `_schemas` reports the cause.
        return []
    return [
        warning(
            "region",
            f"the region of telephone numbers of {each.tenant.slug} is {each.tenant.default_region}, but"
            f" the time zone {each.tenant.timezone} is in {country}",
            f"posctl tenant region {each.tenant.slug} {country}, unless this is intended",
        )
        for each in everyone
        if (country := region_country(each.tenant)) not in (None, each.tenant.default_region)
    ]


async def _schemas(executor: Querier) -> list[CheckResult]:
    """Check the versions of all schemas, the rights on them, the outbox, and the shops' tables."""
    lines: list[CheckResult] = []
    main = await _schema(executor, None, lines)
    if main is None:
        return lines
    roles = await run_check(executor, audit_main.ROLES, None, 10)
    lines += [
        fault("rights", f"{wrong.row} {wrong.what}", "ALTER ROLE … NO…, or REVOKE, as a superuser")
        for wrong in roles.rows
    ]
    nodes, rows = await fitness.outbox_backlog(executor)
    lines.append(_waiting(nodes, rows))
    everyone = await tenants.list_tenants(executor)
    fine = 0
    for listed in everyone:
        before = len(lines)
        schema = await _schema(executor, listed.tenant, lines)
        if schema is not None:
            lines += _hooks(listed.tenant, schema)
            lines += await _tables(executor, listed.tenant)
            lines += _zone(listed.tenant)
        fine += len(lines) == before
    if everyone:
        lines.append(ok("tenants", f"{fine} of {len(everyone)} are correct"))
    else:
        lines.append(
            warning("tenants", "there are no tenants", "posctl tenant add SLUG --name NAME")
        )
    return lines


async def _schema(
    executor: Querier, tenant: Tenant | None, lines: list[CheckResult]
) -> structure.Schema | None:
    """Load a schema and append its problems to `lines`. Return None if this posd does not support it."""
    name = MAIN if tenant is None else tenant.schema
    try:
        schema = await audit.load_schema(executor, tenant)
    except Busy as error:
        lines.append(unknown("schema", f"{name}: {error}"))
        return None
    except StatementFailed as error:
        remedy = _REMEDIES.get(error.sqlstate, "see the log of PostgreSQL")
        lines.append(fault("schema", f"{name} cannot be read: {error}", remedy))
        return None
    schema_mismatch = schema.schema_mismatch()
    if schema_mismatch is not None:
        lines.append(
            fault("schema", f"{name}: {schema_mismatch.partition('; ')[0]}", _remedy(schema))
        )
        return None
    others = []
    for difference in schema.differences():
        if difference.ours and difference.wrong.row.startswith(_RIGHTS):
            wrong = difference.wrong
            what = f"{name}: {wrong.row} {wrong.what}"
            lines.append(fault("rights", what, "GRANT or REVOKE the difference, as a superuser"))
        elif difference.ours and not _is_hook(difference.wrong.row):
            others.append(difference)
    if others:
        what = f"{name} differs from the migrations; number of differences: {len(others)}"
        lines.append(fault("schema", what, "posctl audit lists them; undo the changes"))
    elif tenant is None:
        lines.append(ok("schema", f"{name} has the version that this posd needs"))
    return schema


def _remedy(schema: structure.Schema) -> str:
    schema_mismatch = schema.schema_mismatch() or ""
    for remedy in ("posctl migrate", "create a new database"):
        if remedy in schema_mismatch:
            return remedy
    return "install the newer posd again"


def _hooks(tenant: Tenant, schema: structure.Schema) -> Iterator[CheckResult]:
    """Report hooks that were installed on the shop's tables and are missing or disabled now."""
    if hooks_migration().file not in schema.applied:
        return
    wrong = [each.wrong.row for each in schema.differences() if _is_hook(each.wrong.row)]
    if wrong:
        what = f"{tenant.schema}: {', '.join(wrong)} : missing or disabled, so posd misses orders"
        remedy = f"posctl adopt {tenant.slug}; if a hook is disabled, ALTER TABLE … ENABLE TRIGGER"
        yield fault("hooks", what, remedy)


async def _tables(executor: Querier, tenant: Tenant) -> list[CheckResult]:
    """Report changes of a shop's own tables since they were adopted, and a wrong `--timestamps`."""
    lines = []
    for each in await shop_changes.table_changes(executor, tenant):
        help_ = (
            " ".join(each.statements) or f"posctl adopt {tenant.slug}, if the change is intended"
        )
        lines.append(fault("tables", f"{tenant.schema}: {each.what}", help_))
    other = await shop_changes.better_timestamps_option(executor, tenant)
    if other is not None:
        what = f"orders.created_at of {tenant.slug} is wrong by the UTC offset of {tenant.timezone}"
        lines.append(warning("tables", what, f"posctl adopt {tenant.slug} --timestamps {other}"))
    return lines


def _zone(tenant: Tenant) -> Iterator[CheckResult]:
    """Warn of a tenant whose time zone does not exist."""
    if not is_zone(tenant.timezone):
        what = f"{tenant.slug} has the unknown time zone {tenant.timezone}: posd reads its times as UTC"
        statement = "UPDATE dinedesk_main.tenants SET timezone = 'Europe/London' WHERE slug = "
        yield warning("time zone", what, f"{statement}'{tenant.slug}', with the right zone")


def _is_hook(row: str) -> bool:
    return row.startswith(tuple(f"trigger {table}.pos_" for table in structure.SHOPS_OWN))


def _waiting(nodes: int, rows: int) -> CheckResult:
    if rows and nodes:
        what = f"a daemon runs, but some rows have waited for over a minute: {rows}"
        return warning("outbox", what, "see `journalctl -u posd`: a shop's tables cannot be read")
    if rows:
        what = f"no daemon runs; waiting rows: {rows}"
        return warning("outbox", what, "systemctl start posd")
    return ok("outbox", f"no rows wait; running daemons: {nodes}")


def examine_disk(server: DatabaseServer, found: Mapping[str, str]) -> CheckResult:
    """Check the free space at the database's files, if they are on this machine and the path is known."""
    folder = found.get("data_directory")
    if not server.is_local:
        return unknown("disk", "the database is on another machine: check the disk there")
    if folder is None:
        return unknown(
            "disk",
            "only a superuser, such as the user of database.admin_dsn, can see data_directory",
        )
    return machine.examine_disk("disk", Path(folder))


async def examine_reader(executor: Querier) -> list[CheckResult]:
    """Check that database.reader_dsn logs in as posd_reader."""
    server = await fitness.server_facts(executor)
    if server.user == "posd_reader":
        return [ok("reader_dsn", "posd reads shops' tables as posd_reader")]
    what = f"posd reads shops' tables as {server.user}, so shops' code runs with the rights of that user"
    return [fault("reader_dsn", what, "name the user posd_reader in database.reader_dsn")]


async def examine_administrator(executor: Querier) -> list[CheckResult]:
    """Check that database.admin_dsn can change schemas, and check the disk, which needs this connection."""
    server = await fitness.server_facts(executor)
    lines = [examine_disk(server, await fitness.session_settings(executor))]
    if server.may_own is None or server.may_own or server.is_superuser:
        lines.append(ok("admin_dsn", f"{server.user} may change schemas"))
    else:
        what = f"{server.user} may not become posd_owner, so `posctl migrate` will fail"
        lines.append(warning("admin_dsn", what, f"GRANT posd_owner TO {server.user}"))
    return lines
