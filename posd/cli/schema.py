"""`posctl bootstrap` and `migrate`: what posd needs in the database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import click
from psycopg2.extensions import parse_dsn

from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, print_json, printable_lines, progress_bar
from posd.database import migrations
from posd.database import provisioning as provision
from posd.errors import SchemaError


@click.command()
@as_json
@pass_installation
def bootstrap(installation: Installation, as_json: bool) -> None:
    """Make the database, the roles and the main schema.

    Needs a superuser of the PostgreSQL cluster, once; what is there already stays as it is, so it
    may be run again at any time. The database is the one that the connection names.

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
    click.echo(f"{database} {'was made' if created else 'was there already'}.")
    click.echo("Its roles and the schema dinedesk_main are in place. Next: posctl migrate")


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; say whether the daemon would start.")
@as_json
@pass_installation
def migrate(installation: Installation, check: bool, as_json: bool) -> None:
    """Bring all schemas up to date with this posd.

    First the main schema, then tenant by tenant; it can be stopped and run again. A tenant whose
    schema fails is named and leaves the others updated, and the exit code is then 65. Run it before
    a new version of the daemon is started; the version that is running goes on working.

    With --check only the main schema is looked at, by the connection of the daemon: the exit code is
    0 if it is what this posd needs, and 78 if a daemon of this version would not start.

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
        click.echo(f"{len(report.updated)} schemas updated, {len(report.failed)} failed")
    if report.failed:
        raise click.exceptions.Exit(os.EX_DATAERR)


def _check(dsn: str, as_json: bool) -> None:
    """Tell what the daemon would find; `SchemaError` if that is not what it needs."""
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
        click.echo("The main schema is what this posd needs.")


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error while tenants are migrated, if a person is looking."""
    with progress_bar() as bar:
        task = bar.add_task("dinedesk_main", total=None)

        def progress(schema: str, number: int, total: int) -> None:
            bar.update(task, description=schema, completed=number - 1, total=total)

        yield progress
