"""`posctl audit`: whether all is so in the database that must be so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import click

from posd.cli import database
from posd.cli.database import run_to_completion
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, print_json, print_table, progress_bar
from posd.cli.parameters import SLUG
from posd.cli.tenants import find_tenant
from posd.maintenance.audit import Audit, AuditFinding, Auditor
from posd.store import tenants

_STATEMENT_SECONDS: Final = 120.0


@click.command()
@click.option("--tenant", "slug", type=SLUG, help="Only this shop, and what all have in common.")
@click.option(
    "--rows",
    type=click.IntRange(1, 10_000),
    default=10,
    show_default=True,
    help="So many rows are named of those that break one rule.",
)
@as_json
@pass_installation
def audit(installation: Installation, slug: str | None, rows: int, as_json: bool) -> None:
    """Recompute everything that must be so in the database.

    Streams without gaps, positions in their ranges, orders as they were last published, print
    statuses, every chain of gift cards and points from its first movement, reports with all that
    they have replaced, keys, and the schema itself: constraints, triggers, functions and rights as
    the migrations have made them. Nothing is believed because a constraint says so.

    Names each row that breaks a rule. It only reads, one moment of the database, with the rights of
    the daemon, and may be run while posd works; of a large log it reads all. Warnings are worth
    looking at and break no rule.

    Exit code 0, or 65 if a rule is broken, or 75 if none is but one could not be looked at in two
    minutes.

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
            ("", "tenant", "check", "row", "what is wrong"),
            [row for each in (*audit.faults, *audit.warnings) for row in _lines(each)],
        )
    for slug, name in audit.unfinished:
        click.echo(f"{slug or 'main'}: {name} took too long and was left out", err=True)
    faults = sum(each.found.total for each in audit.faults)
    warnings = sum(each.found.total for each in audit.warnings)
    click.echo(
        f"{tenants} tenants, {audit.checks} checks: {faults} rows at fault, {warnings} warnings"
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
