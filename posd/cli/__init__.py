"""`posctl`: the commands that set up, inspect and try an installation.

A rule that the daemon needs too does not belong here, but in the package of its subject.
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
    # Do not check that the file is readable: with --dsn it is not read.
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    envvar="POSD_CONFIG",
    default=DEFAULT_CONFIG,
    show_default=True,
    show_envvar=True,
    metavar="FILE",
    help="The configuration file of posd.",
)
@click.option(
    "--dsn",
    type=DsnParameter(),
    metavar="DSN",
    help="A libpq connection string. With this option the configuration file is not read. Without it,"
    " commands that change schemas or tenants connect with database.admin_dsn if it is set; all other"
    " commands connect with database.dsn.",
)
@click.version_option(__version__, "-V", "--version", prog_name="posctl")
@click.pass_context
def posctl(context: click.Context, config_path: Path, dsn: str | None) -> None:
    """Set up, monitor and try posd, which delivers a restaurant's online orders to its tills.

    Try posd without an installation:

    \b
        posctl demo

    Set up a new installation, with the rights of a PostgreSQL superuser:

    \b
        posctl bootstrap
        posctl migrate
        posctl tenant add kitchen --name "The Kitchen"

    `posctl COMMAND --help` describes a command and shows examples.

    Exit codes are those of sysexits: 0 success, 64 wrong usage, 65 invalid data or unknown name,
    66 file not readable, 68 unknown host, 69 database or server not available, 73 already exists,
    74 file not writable, 75 try again later, 76 the server is not posd, 77 permission denied, 78 wrong
    configuration or schema.
    """
    context.obj = Installation(config_path, dsn, os.environ)


def main() -> None:
    """Run `posctl`. The console script calls this function."""
    terminal.prepare()
    posctl(prog_name="posctl")
