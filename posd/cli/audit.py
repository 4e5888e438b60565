"""`posctl audit`: check the consistency of the database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import click

from posd.cli import database
from posd.cli.database import run_to_completion
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, counted, print_json, print_table, progress_bar
from posd.cli.parameters import SLUG
from posd.cli.tenants import find_tenant
from posd.maintenance.audit import Audit, AuditFinding, Auditor
from posd.store import tenants

_STATEMENT_SECONDS: Final = 120.0


@click.command()
@click.option("--tenant", "slug", type=SLUG, help="Check only this shop and the main schema.")
@click.option(
    "--rows",
    type=click.IntRange(1, 10_000),
    default=10,
    show_default=True,
    help="How many rows are shown for one broken rule.",
)
@as_json
@pass_installation
def audit(installation: Installation, slug: str | None, rows: int, as_json: bool) -> None:
    """Check the consistency of the database.

    The command checks the numbering of the streams, positions, orders against their last events, print
    statuses, all movements of gift cards and loyalty accounts, reports and their earlier versions, and
    keys. It also checks that the constraints, triggers, functions and rights of the schemas are those
    of the migrations. It computes every value again and does not rely on constraints.

    It prints each row that breaks a rule, and warnings about rows that look wrong but break no rule. The
    command only reads, in one snapshot and with the rights of the daemon. It may run while posd runs. It
    reads the whole event log.

    The exit code is 0 if no rule is broken, 65 if a rule is broken, and 75 if no rule is broken but
    a check took longer than two minutes.

    \b
    Examples:
        sudo -u posd posctl audit
        posctl audit --tenant kitchen --rows 100
        posctl audit --json | jq -r '.faults[] | .tenant + " " + .check'
    """
    with database.open_snapshot(installation.dsn(), _STATEMENT_SECONDS) as executor:
        auditor = Auditor(executor, rows)
        if slug is None:
            chosen = [each.tenant for each in run_to_completion(tenants.list_tenants(executor))]
        else:
            chosen = [find_tenant(executor, slug)]
        with progress_bar() as bar:
            task = bar.add_task("audit", total=len(chosen) + 1)
            run_to_completion(auditor.main())
            bar.advance(task)
            for tenant in chosen:
                run_to_completion(auditor.tenant(tenant))
                bar.advance(task)
    _print_result(auditor.audit, len(chosen), as_json=as_json)
    if auditor.audit.faults:
        raise click.exceptions.Exit(os.EX_DATAERR)
    if auditor.audit.unfinished:
        raise click.exceptions.Exit(os.EX_TEMPFAIL)


def _print_result(audit: Audit, tenants: int, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "ok": not audit.faults and not audit.unfinished,
                "tenants": tenants,
                "checks": audit.checks,
                "faults": [_shape(each) for each in audit.faults],
                "warnings": [_shape(each) for each in audit.warnings],
                "unfinished": [{"tenant": slug, "check": name} for slug, name in audit.unfinished],
            }
        )
        return
    if audit.findings:
        print_table(
            ("", "tenant", "check", "row", "fault"),
            [row for each in (*audit.faults, *audit.warnings) for row in _lines(each)],
        )
    for slug, name in audit.unfinished:
        click.echo(
            f"{slug or 'main'}: the check {name!r} took longer than {_STATEMENT_SECONDS:g} s and was"
            " skipped",
            err=True,
        )
    faults = sum(each.found.total for each in audit.faults)
    warnings = sum(each.found.total for each in audit.warnings)
    click.echo(
        f"{counted(tenants, 'tenant')}, {counted(audit.checks, 'check')}:"
        f" {counted(faults, 'faulty row')}, {counted(warnings, 'warning')}"
    )


def _lines(finding: AuditFinding) -> Iterator[tuple[object, ...]]:
    first = "warning" if finding.warns else "fault"
    place = (first, finding.tenant, finding.check)
    for wrong in finding.found.rows:
        yield *place, wrong.row, wrong.what
    more = finding.found.total - len(finding.found.rows)
    if more:
        yield *place, f"and {more} more", None


def _shape(finding: AuditFinding) -> dict[str, object]:
    return {
        "tenant": finding.tenant,
        "check": finding.check,
        "total": finding.found.total,
        "rows": [{"row": each.row, "what": each.what} for each in finding.found.rows],
    }
