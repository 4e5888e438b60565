"""`posctl doctor`: check an installation, and print faults with their remedies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

import click
import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import make_dsn, parse_dsn
from rich.text import Text

from posd.cli.database import SnapshotQuerier, run_to_completion
from posd.cli.failures import explain
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, counted, print_json, print_table, printable
from posd.config.model import Config
from posd.database import migrations
from posd.database.dsn import with_reader_user
from posd.errors import PosdError
from posd.maintenance.doctor import (
    CheckResult,
    CheckState,
    database,
    fault,
    files,
    machine,
    startup,
    unknown,
)
from posd.maintenance.doctor.startup import guard

_STYLES: Final = {
    CheckState.OK: "green",
    CheckState.WARNING: "yellow",
    CheckState.FAULT: "bold red",
    CheckState.UNKNOWN: "dim",
}
_CONNECT_SECONDS: Final = 5


@click.command()
@as_json
@pass_installation
def doctor(installation: Installation, as_json: bool) -> None:
    """Check an installation, and print faults with their remedies.

    The command checks the configuration and the permissions of its files, the certificate with its
    issuers and its expiry, the clock, the version, settings, rights and schemas of the database, the
    hooks on shops' tables, the ports, the daemon and its limits. Each line is ok, a warning or a fault;
    a dash marks a check that was not possible. The command changes nothing. It works on a broken
    installation too. Run it as root while posd runs: then all checks are possible.

    The exit code is 0 if there is no fault, 69 if the only faults are that the database or the daemon
    is not available, and 78 for all other faults.

    \b
    Examples:
        sudo posctl doctor
        sudo posctl doctor --json | jq '.lines[] | select(.state == "fault")'
    """
    lines = [*_examine(installation)]
    faults = [line for line in lines if line.state is CheckState.FAULT]
    warnings = [line for line in lines if line.state is CheckState.WARNING]
    if as_json:
        print_json({"ok": not faults, "lines": [_shape(line) for line in lines]})
    else:
        _show(lines)
        click.echo(f"{counted(len(faults), 'fault')}, {counted(len(warnings), 'warning')}")
    if faults:
        passing = all(line.passing for line in faults)
        raise click.exceptions.Exit(os.EX_UNAVAILABLE if passing else os.EX_CONFIG)


def _examine(installation: Installation) -> Iterator[CheckResult]:
    """Yield the results of all parts. An error in one part does not prevent the others."""
    environ = files.daemon_environment(installation.environ)
    now = datetime.now(UTC)
    config, before = startup.examine(installation.config_path, environ, now)
    yield from before
    yield from guard("clock", lambda: machine.examine_clock(now))
    yield from guard("database", lambda: _database(installation, config))
    yield from guard("daemon", lambda: machine.examine_unit(config))


def _database(installation: Installation, config: Config | None) -> Iterator[CheckResult]:
    """Check the connection of the daemon, its reader connection, and `admin_dsn` if it is set."""
    dsn = installation.given_dsn or (None if config is None else config.database.dsn)
    if dsn is None:
        yield unknown("database", "the configuration with the database's DSN cannot be used")
        return
    # Connect as the daemon's user, not as the caller, because peer authentication depends on
    # the user. A connection string of `--dsn` is for the user who runs the command.
    user = None if installation.given_dsn else files.USER
    yield from _connected(
        "database",
        dsn,
        user,
        lambda executor: run_to_completion(database.examine(executor, config)),
    )
    if installation.given_dsn or config is None:
        return
    yield from _connected(
        "reader_dsn",
        config.database.reader_dsn or with_reader_user(config.database.dsn),
        files.USER,
        lambda executor: run_to_completion(database.examine_reader(executor)),
    )
    admin_dsn = config.database.admin_dsn
    if admin_dsn is not None:
        yield from _connected(
            "admin_dsn",
            admin_dsn,
            parse_dsn(admin_dsn).get("user"),
            lambda executor: run_to_completion(database.examine_administrator(executor)),
        )


def _connected(
    part: str, dsn: str, user: str | None, examine: Callable[[SnapshotQuerier], list[CheckResult]]
) -> Iterable[CheckResult]:
    try:
        with closing(_connect(dsn, user)) as connection:
            with connection.cursor() as cursor:
                cursor.execute("BEGIN READ ONLY; SET LOCAL statement_timeout = '10s'")
            return examine(SnapshotQuerier(connection))
    except (psycopg2.Error, PosdError) as error:
        failure = explain(error)
        what = migrations.first_line(error) if failure is None else str(failure)
        return [_unreachable(part, what)]


def _connect(dsn: str, user: str | None) -> Connection:
    with files.as_user(user):
        return migrations.connect(str(make_dsn(dsn, connect_timeout=_CONNECT_SECONDS)))


def _unreachable(part: str, what: str) -> CheckResult:
    if part == "reader_dsn" and "Peer authentication" in what:
        remedy = (
            "permit the user posd to connect as posd_reader: `local all posd,posd_reader peer map=posd`"
            " as the first line of pg_hba.conf, and `posd posd posd` and `posd posd posd_reader` in"
            " pg_ident.conf; or set database.reader_dsn"
        )
        return fault(part, f"shops' tables cannot be read: {what}", remedy, passing=True)
    remedies = {
        "does not exist": "posctl bootstrap creates roles and database; run posctl as the user posd",
        "authentication failed": "see pg_hba.conf: a `local` line with peer permits the user posd to"
        " connect as posd",
        "no pg_hba.conf entry": "add a line for posd to pg_hba.conf",
        "permission denied": "posctl bootstrap, then posctl migrate",
        "Permission denied": "the user who connects needs the permission x on the folder of the socket:"
        " chmod a+x",
        "No such file": "systemctl start postgresql, or set its host in database.dsn",
        "onnection refused": "systemctl start postgresql, or set its host and port in database.dsn",
    }
    remedy = next(
        (r for word, r in remedies.items() if word in what),
        "check that PostgreSQL runs, and its address",
    )
    return fault(part, f"the connection failed: {what}", remedy, passing=True)


def _show(lines: Iterable[CheckResult]) -> None:
    """Print a table with each remedy below its finding."""
    print_table(("", "part", "finding"), [_cells(line) for line in lines])


def _cells(line: CheckResult) -> tuple[Text, str, Text]:
    found = printable(line.what)
    if line.remedy is not None:
        found += f"\n→ {printable(line.remedy)}"
    word = "–" if line.state is CheckState.UNKNOWN else line.state.value
    return Text(word, style=_STYLES[line.state]), line.part, Text(found)


def _shape(line: CheckResult) -> dict[str, object]:
    return {
        "part": line.part,
        "state": line.state.value,
        "what": line.what,
        "remedy": line.remedy,
        "preventsStart": line.stops,
    }
