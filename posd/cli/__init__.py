"""`posctl`: commands to set up, inspect and try an installation.

Rules that the daemon needs too belong in the package that they are about.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from posd import __version__
from posd.cli import terminal
from posd.cli.commands import CommandGroup
from posd.cli.installation import DEFAULT_CONFIG, DsnParameter, Installation

__all__ = ["main", "posctl"]


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--config",
    "config_path",
    # With --dsn it is not read, and need not be readable.
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    envvar="POSD_CONFIG",
    default=DEFAULT_CONFIG,
    show_default=True,
    show_envvar=True,
    metavar="FILE",
    help="The configuration of the posd that the command is about.",
)
@click.option(
    "--dsn",
    type=DsnParameter(),
    metavar="DSN",
    help="Connect by this libpq connection string instead of those in the configuration, which is"
    " then not read. Without it, commands that change schemas or tenants use database.admin_dsn,"
    " and all others, or where there is no admin_dsn, database.dsn.",
)
@click.version_option(__version__, "-V", "--version", prog_name="posctl")
@click.pass_context
def posctl(context: click.Context, config_path: Path, dsn: str | None) -> None:
    """Set up, watch and try posd, which delivers a restaurant's online orders to its tills.

    To see it work, before anything is installed:

    \b
        posctl demo

    A first installation, with the rights of a PostgreSQL superuser:

    \b
        posctl bootstrap
        posctl migrate
        posctl tenant add kitchen --name "The Kitchen"

    `posctl COMMAND --help` explains a command and has examples.

    Exit codes are those of sysexits: 0 done, 64 wrong usage, 65 unusable data or an unknown name,
    66 a file that cannot be read, 68 no such host, 69 no database or server, 73 exists already, 74 a
    file that cannot be written, 75 try again later, 76 no posd answers, 77 not allowed, 78 wrong
    configuration or schema.
    """
    context.obj = Installation(config_path, dsn, os.environ)


def main() -> None:
    """What the console script runs."""
    terminal.prepare()
    posctl(prog_name="posctl")
