"""`posctl bootstrap` and `posctl migrate`: create and update the schemas."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import click
from psycopg2.extensions import parse_dsn

from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, counted, print_json, printable_lines, progress_bar
from posd.database import migrations
from posd.database import provisioning as provision
from posd.errors import SchemaError


@click.command()
@as_json
@pass_installation
def bootstrap(installation: Installation, as_json: bool) -> None:
    """Create the database, the roles and the main schema.

    The command needs the rights of a PostgreSQL superuser. The connection string names the database.
    The command may be repeated: it does not change what already exists.

    \b
    Examples:
        sudo -u postgres posctl bootstrap
        posctl --dsn "postgresql://postgres@db.example.net/posd" bootstrap
    """
    dsn = installation.admin_dsn()
    created = migrations.bootstrap(dsn)
    name = parse_dsn(dsn).get("dbname")
    if as_json:
        print_json({"database": name, "created": created})
        return
    database = "The database" if name is None else f"The database {name}"
    click.echo(f"{database} {'was created' if created else 'already exists'}.")
    click.echo("The roles and the schema dinedesk_main exist. Next: posctl migrate")


@click.command()
@click.option("--check", is_flag=True, help="Only check the main schema, and change nothing.")
@as_json
@pass_installation
def migrate(installation: Installation, check: bool, as_json: bool) -> None:
    """Update all schemas to this version of posd.

    The command updates the main schema, then the schemas of the tenants one by one. It may be
    interrupted and repeated. If the schema of a tenant cannot be updated, the command prints the reason
    and continues with the next tenant; the exit code is then 65. Run the command before you start a
    new version of the daemon. A daemon of the old version keeps working.

    With --check the command only checks the main schema, through the connection of the daemon. The
    exit code is 0 if a daemon of this version starts with it, else 78.

    \b
    Examples:
        posctl migrate
        posctl migrate --json | jq .failed
        posctl migrate --check && systemctl restart posd
    """
    if check:
        _check(installation.dsn(), as_json)
        return
    with closing(migrations.connect(installation.admin_dsn())) as connection, _bar() as progress:
        report = provision.migrate(connection, progress)
    if as_json:
        print_json({"updated": report.updated, "current": report.current, "failed": report.failed})
    else:
        for schema, reason in report.failed.items():
            click.echo(f"{schema}: {printable_lines(reason)}", err=True)
        click.echo(f"{counted(len(report.updated), 'schema')} updated, {len(report.failed)} failed")
    if report.failed:
        raise click.exceptions.Exit(os.EX_DATAERR)


def _check(dsn: str, as_json: bool) -> None:
    """Print whether the main schema is of this version. Raises `SchemaError` if it is not."""
    try:
        with closing(migrations.connect(dsn)) as connection:
            migrations.check_main(connection)
    except SchemaError as error:
        if not as_json:
            raise
        print_json({"fits": False, "reason": str(error)})
        raise click.exceptions.Exit(os.EX_CONFIG) from error
    if as_json:
        print_json({"fits": True, "reason": None})
    else:
        click.echo("The main schema is that of this version of posd.")


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show the progress of the tenants on standard error, if that is a terminal."""
    with progress_bar() as bar:
        task = bar.add_task("dinedesk_main", total=None)

        def progress(schema: str, number: int, total: int) -> None:
            bar.update(task, description=schema, completed=number - 1, total=total)

        yield progress
