"""`posctl check-config`: every problem of a configuration at once."""

from __future__ import annotations

import os

import click

from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, print_json
from posd.config import model as config
from posd.errors import ConfigError
from posd.security import server_tls as tls


@click.command("check-config")
@as_json
@pass_installation
def check_config(installation: Installation, as_json: bool) -> None:
    """Say everything that is wrong with a configuration.

    Reads the file and the *.toml files of conf.d beside it, and prints each problem on one line:
    the file, the dotted key, what is wrong, what was meant. Certificate and key are read too: run it
    as a user who may. The daemon makes the same check when it starts. Exit code 0, or 78 if there is
    a problem.

    \b
    Examples:
        posctl check-config
        posctl --config ./posd.toml check-config && systemctl reload posd
    """
    try:
        config.load(installation.config_path, installation.environ, tls.problems)
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"ok": False, "problems": error.problems})
        raise click.exceptions.Exit(os.EX_CONFIG) from error
    if as_json:
        print_json({"ok": True, "problems": []})
    else:
        click.echo(f"{installation.config_path} is in order.")
