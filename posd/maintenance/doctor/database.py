"""The database: whether it is one for posd, with the rights that posd needs and no others."""

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
    "42501": "posctl bootstrap and posctl migrate grant what is missing",  # insufficient_privilege
}
_LOG: Final = (
    ("log_min_messages", ("log", "fatal", "panic")),
    ("log_min_error_statement", ("log", "fatal", "panic")),
    ("log_statement", ("none", "ddl")),
    ("log_min_duration_statement", ("-1",)),
)
"""Settings with the values for which the daemon's rows do not come into PostgreSQL's own log."""
_RIGHTS: Final = ("rights", "schema", "function")


async def examine(executor: Querier, config: Config | None) -> list[CheckResult]:
    """Everything that the database itself tells; `config` is None where it could not be read."""
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
        what = "it is a standby, which nothing can be written to"
        yield fault("database", what, "name the primary in database.dsn, or promote this one")
    else:
        yield ok("database", f"PostgreSQL {server.version_text} answers")
    if server.encoding != "UTF8":
        what = f"its encoding is {server.encoding}"
        yield fault(
            "database", what, "make a database with ENCODING 'UTF8', as posctl bootstrap does"
        )
    if server.may_be_posd is None:
        yield fault("database", "there is no role posd", "posctl bootstrap, then posctl migrate")
    elif not server.may_be_posd:
        what = f"{server.user} may not become posd, as the daemon does with each connection"
        yield fault("rights", what, f"GRANT posd TO {server.user}")
    elif server.is_superuser:
        what = f"database.dsn logs in as {server.user}, a superuser"
        yield warning("rights", what, "log in as posd: it has all that the daemon needs")
    else:
        yield ok("rights", f"{server.user} may become posd, and is no superuser")


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
            ("default_transaction_read_only", ("on",), "off", "posd can write nothing"),
            (
                "default_transaction_isolation",
                ("repeatable read", "serializable"),
                "'read committed'",
                "the sequencer sees an old moment and fails",
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
                "a crash of the server loses orders that were accepted",
            ),
            ("autovacuum", ("on",), "on", "the outbox grows without end"),
            (
                "idle_session_timeout",
                ("0",),
                "0",
                "connections that wait are closed again and again",
            ),
        )
        if name in found and found[name] not in good
    ]
    loud = [name for name, good in _LOG if name in found and found[name] not in good]
    if loud:
        what = f"by {' and '.join(loud)} PostgreSQL's log has customers and orders in it"
        remedy = "log in as posd, run posctl bootstrap again, and ALTER ROLE posd SET what is left"
        wrong.append(warning("settings", what, remedy))
    return wrong or [ok("settings", "none of them does harm")]


def _room(room: ConnectionCapacity, config: Config) -> CheckResult:
    wanted = config.database.pool_size + _LINKS
    limits = [each for each in (room.of_role, room.of_database) if each is not None]
    left = min([room.most - room.others, *limits])
    if left >= wanted:
        return ok("connections", f"{wanted} are wanted, and {left} can be had")
    what = f"posd wants {wanted} connections, and {max(0, left)} can be had"
    remedy = "raise max_connections or the limit of role or database, or lower database.pool_size"
    return fault("connections", what, remedy)


async def _regions(executor: Querier) -> list[CheckResult]:
    """Whether telephone numbers are read as of the country that a shop is in."""
    try:
        everyone = await tenants.list_tenants(executor)
    except (StatementFailed, Busy):
        # What is missing is told by `_schemas`.
        return []
    return [
        warning(
            "region",
            f"telephone numbers of {each.tenant.slug} are of {each.tenant.default_region}, and its time"
            f" zone {each.tenant.timezone} is of {country}",
            f"posctl tenant region {each.tenant.slug} {country}, unless it is meant",
        )
        for each in everyone
        if (country := region_country(each.tenant)) not in (None, each.tenant.default_region)
    ]


async def _schemas(executor: Querier) -> list[CheckResult]:
    """Whether the schemas are this posd's, and the rights on them as they were made."""
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
        lines.append(ok("tenants", f"{fine} of {len(everyone)} are in order"))
    else:
        lines.append(warning("tenants", "there is none", "posctl tenant add SLUG --name NAME"))
    return lines


async def _schema(
    executor: Querier, tenant: Tenant | None, lines: list[CheckResult]
) -> structure.Schema | None:
    """A schema that fits this posd; what is wrong with it goes into `lines`."""
    name = MAIN if tenant is None else tenant.schema
    try:
        schema = await audit.load_schema(executor, tenant)
    except Busy as error:
        lines.append(unknown("schema", f"{name}: {error}"))
        return None
    except StatementFailed as error:
        remedy = _REMEDIES.get(error.sqlstate, "see the log of PostgreSQL")
        lines.append(fault("schema", f"{name} cannot be looked at: {error}", remedy))
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
            lines.append(fault("rights", what, "GRANT or REVOKE what differs, as a superuser"))
        elif difference.ours and not _is_hook(difference.wrong.row):
            others.append(difference)
    if others:
        what = f"{name}: {len(others)} things are not as the migrations have made them"
        lines.append(fault("schema", what, "posctl audit names them; put them back as they were"))
    elif tenant is None:
        lines.append(ok("schema", f"{name} is what this posd needs"))
    return schema


def _remedy(schema: structure.Schema) -> str:
    schema_mismatch = schema.schema_mismatch() or ""
    for remedy in ("posctl migrate", "make a new database"):
        if remedy in schema_mismatch:
            return remedy
    return "install the newer posd again"


def _hooks(tenant: Tenant, schema: structure.Schema) -> Iterator[CheckResult]:
    """A shop whose tables were hooked, and are not any more."""
    if hooks_migration().file not in schema.applied:
        return
    wrong = [each.wrong.row for each in schema.differences() if _is_hook(each.wrong.row)]
    if wrong:
        what = f"{tenant.schema}: {', '.join(wrong)} are missing or disabled, so orders are not noticed"
        remedy = f"posctl adopt {tenant.slug}; where one is disabled, ALTER TABLE … ENABLE TRIGGER"
        yield fault("hooks", what, remedy)


async def _tables(executor: Querier, tenant: Tenant) -> list[CheckResult]:
    """What has changed in a shop's own tables since they were adopted, and by which clock they are read."""
    lines = []
    for each in await shop_changes.table_changes(executor, tenant):
        help_ = " ".join(each.statements) or f"posctl adopt {tenant.slug}, if the change is meant"
        lines.append(fault("tables", f"{tenant.schema}: {each.what}", help_))
    other = await shop_changes.better_timestamps_option(executor, tenant)
    if other is not None:
        what = f"orders.created_at of {tenant.slug} is off by the time zone {tenant.timezone}"
        lines.append(warning("tables", what, f"posctl adopt {tenant.slug} --timestamps {other}"))
    return lines


def _zone(tenant: Tenant) -> Iterator[CheckResult]:
    """A shop whose times are read by another clock than its own."""
    if not is_zone(tenant.timezone):
        what = (
            f"{tenant.slug} has the unknown time zone {tenant.timezone}: its times are read as UTC"
        )
        remedy = "UPDATE dinedesk_main.tenants SET timezone = 'Europe/London', or what is right,"
        yield warning("time zone", what, f"{remedy} WHERE slug = '{tenant.slug}'")


def _is_hook(row: str) -> bool:
    return row.startswith(tuple(f"trigger {table}.pos_" for table in structure.SHOPS_OWN))


def _waiting(nodes: int, rows: int) -> CheckResult:
    if rows and nodes:
        what = f"{rows} rows of the outbox have waited for over a minute, and a daemon runs"
        return warning("outbox", what, "see `journalctl -u posd`: a shop's tables cannot be read")
    if rows:
        what = f"{rows} rows of the outbox wait, and no daemon runs"
        return warning("outbox", what, "systemctl start posd")
    return ok("outbox", f"nothing waits; {nodes} daemons are alive")


def examine_disk(server: DatabaseServer, found: Mapping[str, str]) -> CheckResult:
    """Room where the database is, if that is on this machine and may be seen."""
    folder = found.get("data_directory")
    if not server.is_local:
        return unknown("disk", "the database is reached by network: look there")
    if folder is None:
        return unknown("disk", "only database.admin_dsn may see where the database is")
    return machine.examine_disk("disk", Path(folder))


async def examine_reader(executor: Querier) -> list[CheckResult]:
    """Whether the login that shops' tables are read by is posd_reader, and nothing more."""
    server = await fitness.server_facts(executor)
    if server.user == "posd_reader":
        return [ok("reader_dsn", "shops' tables are read as posd_reader")]
    what = f"shops' tables are read as {server.user}: their code runs with its rights"
    return [fault("reader_dsn", what, "name the user posd_reader in database.reader_dsn")]


async def examine_administrator(executor: Querier) -> list[CheckResult]:
    """Whether database.admin_dsn can be used for what it is there for, and what only it can tell."""
    server = await fitness.server_facts(executor)
    lines = [examine_disk(server, await fitness.session_settings(executor))]
    if server.may_own is None or server.may_own or server.is_superuser:
        lines.append(ok("admin_dsn", f"{server.user} may change schemas"))
    else:
        what = f"{server.user} may not become posd_owner, so `posctl migrate` will fail"
        lines.append(warning("admin_dsn", what, f"GRANT posd_owner TO {server.user}"))
    return lines
