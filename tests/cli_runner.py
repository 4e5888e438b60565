"""Run `posctl` in this process."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from attrs import frozen
from click.testing import CliRunner
from psycopg2.extensions import make_dsn

from posd.cli import posctl as command
from posd.database import migrations
from posd.database import provisioning as provision
from posd.protocol.jsontext import decode
from posd.testing.postgres import test_server


@frozen
class Ran:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        """The line of JSON that was printed."""
        return decode(self.out)


def posctl(
    *arguments: str | Path,
    dsn: str | None = None,
    environ: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> Ran:
    """Run a command. An exception that it does not handle is raised."""
    connection = () if dsn is None else ("--dsn", dsn)
    ran = CliRunner().invoke(
        command,
        [*connection, *map(str, arguments)],
        prog_name="posctl",
        input=stdin,
        env={"POSD_CONFIG": None, "POSD_KEY": None, **(environ or {})},
    )
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return Ran(ran.exit_code, ran.stdout, ran.stderr)


def migrated_database() -> str:
    """Return the DSN of a database with only the main schema and the tenant `kitchen`."""
    server = test_server()
    return server.fresh_database(server.template(with_kitchen))


def with_kitchen(dsn: str) -> None:
    """Fill a database, for `TestServer.template`."""
    migrations.bootstrap(dsn)
    with closing(migrations.connect(dsn)) as connection:
        provision.migrate(connection)
        provision.add_tenant(
            connection, "kitchen", "The Kitchen", currency="GBP", timezone="Europe/London"
        )


def as_role(dsn: str, role: str) -> str:
    """Return a DSN of the same database for another role. Members of `posd` have its rights."""
    return str(make_dsn(dsn, user=role))


def execute(dsn: str, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    """Run a statement as the superuser. Return its rows, if it has any."""
    with closing(migrations.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []
