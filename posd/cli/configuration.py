"""`posctl check-config`: every problem of a configuration at once."""

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
    """Say whether posd starts with a configuration, and everything that is wrong with it.

    Reads the file, the *.toml files of conf.d beside it and the certificates, tries whether the
    listeners' places are free or posd's own, and prints each problem on one line: the file, the
    dotted key, what is wrong, what was meant. Run it as a user who may read the files. `posctl
    doctor` makes the same examination, and looks at the database and the machine besides.

    Exit code 78 if there is a problem with which the daemon does not start, else 0. A line that
    begins with "warning:" tells something to mend with which posd starts, such as a certificate that
    has ended.

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
        is_sound = "is in order" if not warnings else "can be used, with the warnings above"
        click.echo(f"{installation.config_path} {is_sound}.")


def _is_warning(line: CheckResult) -> bool:
    """Whether to tell a line with which posd starts. What runs now is for `doctor` to tell."""
    return (
        not line.stops and not line.passing and line.state in (CheckState.WARNING, CheckState.FAULT)
    )


def _sentence(line: CheckResult) -> str:
    if line.part == "configuration":
        # It begins with the file and the key, and ends with what was meant.
        return printable(line.what)
    remedy = "" if line.remedy is None else f"; {line.remedy}"
    return printable(f"{line.part}: {line.what}{remedy}")
