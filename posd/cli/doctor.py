"""`posctl doctor`: what is wrong with an installation, and what to do about it."""

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
from posd.cli.output import as_json, print_json, print_table, printable
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
    """Look at everything that an installation needs, and say what to do where it is not so.

    The configuration, who can read its files, the certificate with its issuers and its end, the
    clock, the database with its version, settings, rights and schemas, the hooks on shops' tables,
    the ports, the daemon and what the system lets it have. Each line is ok, a warning or a fault;
    a dash is what could not be looked at. Nothing is changed. It needs nothing to work, and sees most
    as root while posd runs.

    Exit code 0 if nothing is at fault; 69 if all that is is a database or a daemon that is away; 78
    for everything else.

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
        click.echo(f"{len(faults)} faults, {len(warnings)} warnings")
    if faults:
        passing = all(line.passing for line in faults)
        raise click.exceptions.Exit(os.EX_UNAVAILABLE if passing else os.EX_CONFIG)


def _examine(installation: Installation) -> Iterator[CheckResult]:
    """Everything, part by part: what goes wrong in one says nothing of the others."""
    environ = files.daemon_environment(installation.environ)
    now = datetime.now(UTC)
    config, before = startup.examine(installation.config_path, environ, now)
    yield from before
    yield from guard("clock", lambda: machine.examine_clock(now))
    yield from guard("database", lambda: _database(installation, config))
    yield from guard("daemon", lambda: machine.examine_unit(config))


def _database(installation: Installation, config: Config | None) -> Iterator[CheckResult]:
    """The connection of the daemon, and then the administrator's if there is one."""
    dsn = installation.given_dsn or (None if config is None else config.database.dsn)
    if dsn is None:
        yield unknown("database", "the configuration that names it cannot be used")
        return
    # As the daemon does, whoever asks. `--dsn` names another way in, for who asks.
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
            "let the user posd in as posd_reader: `local all posd,posd_reader peer map=posd` as the first"
            " line of pg_hba.conf, and `posd posd posd` and `posd posd posd_reader` in pg_ident.conf;"
            " or set database.reader_dsn"
        )
        return fault(part, f"shops' tables cannot be read: {what}", remedy, passing=True)
    remedies = {
        "does not exist": "posctl bootstrap makes roles and database; run posctl as the user posd",
        "authentication failed": "see pg_hba.conf: `local` lines with peer let the user posd in as posd",
        "no pg_hba.conf entry": "add a line for posd to pg_hba.conf",
        "permission denied": "posctl bootstrap, then posctl migrate",
        "Permission denied": "the system's user who asks needs x on the folder of the socket: chmod a+x",
        "No such file": "systemctl start postgresql, or name its host in database.dsn",
        "onnection refused": "systemctl start postgresql, or name its host and port in database.dsn",
    }
    remedy = next(
        (r for word, r in remedies.items() if word in what), "see whether it runs, and where"
    )
    return fault(part, f"it cannot be used: {what}", remedy, passing=True)


def _show(lines: Iterable[CheckResult]) -> None:
    """A table in which what to do stands below what is wrong."""
    print_table(("", "part", "what was found"), [_cells(line) for line in lines])


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
