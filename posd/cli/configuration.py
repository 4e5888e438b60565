"""`posctl check-config`: check a configuration and print all its problems."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import click

from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, print_json, printable
from posd.maintenance.doctor import CheckResult, CheckState, files, startup


@click.command("check-config")
@as_json
@pass_installation
def check_config(installation: Installation, as_json: bool) -> None:
    """Check a configuration and print all problems.

    The command reads the configuration file, the *.toml files of conf.d beside it and the certificates,
    and checks that the addresses of the listeners are free or in use by posd itself. Each problem is one
    line: the file, the dotted key, the problem, and a suggestion. Run the command as a user who may
    read the files. `posctl doctor` does the same and also checks the database and the machine.

    The exit code is 78 if the daemon does not start with the configuration, else 0. A line that begins
    with "warning:" is a problem with which posd starts, such as an expired certificate.

    \b
    Examples:
        posctl check-config
        posctl --config ./posd.toml check-config && systemctl reload posd
    """
    environ = files.daemon_environment(installation.environ)
    _, lines = startup.examine(installation.config_path, environ, datetime.now(UTC))
    problems = [_sentence(line) for line in lines if line.stops]
    warnings = [_sentence(line) for line in lines if _is_warning(line)]
    if as_json:
        print_json({"ok": not problems, "problems": problems, "warnings": warnings})
    else:
        for problem in problems:
            click.echo(problem, err=True)
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)
    if problems:
        raise click.exceptions.Exit(os.EX_CONFIG)
    if not as_json:
        verdict = "is valid" if not warnings else "is valid, with the warnings above"
        click.echo(f"{installation.config_path} {verdict}.")


def _is_warning(line: CheckResult) -> bool:
    """Return whether to print a line as a warning. Only `posctl doctor` prints passing conditions."""
    return (
        not line.stops and not line.passing and line.state in (CheckState.WARNING, CheckState.FAULT)
    )


def _sentence(line: CheckResult) -> str:
    if line.part == "configuration":
        # The text already begins with the file and the key, and ends with the suggestion.
        return printable(line.what)
    remedy = "" if line.remedy is None else f"; {line.remedy}"
    return printable(f"{line.part}: {line.what}{remedy}")
