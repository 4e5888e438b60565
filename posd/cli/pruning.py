"""`posctl prune`: delete old events now."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Final

import click
from attrs import asdict, frozen

from posd.cli import database
from posd.cli.database import BlockingExecutor, retry_while_locked, run_to_completion
from posd.cli.failures import CommandFailure
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import (
    as_json,
    counted,
    local_time,
    print_json,
    print_table,
    progress_bar,
    timestamp_or_none,
)
from posd.cli.parameters import DURATION, SLUG
from posd.cli.tenants import find_tenant
from posd.config.units import HOUR, format_duration
from posd.events.orders import FINAL_STATUSES
from posd.store import retention, tenants
from posd.store.retention import PrunedCounts
from posd.values import Tenant

_COLUMNS: Final = ("events", "expired", "messages", "nacks", "orders")


@frozen
class PrunedRows:
    """The numbers of deleted rows for each tenant, and of deleted stored answers.

    `held` are the tenants with rows that were left because another transaction held a lock.
    `answers_held` says the same of the stored answers.
    """

    before: datetime
    tenants: dict[str, PrunedCounts]
    answers: int
    held: tuple[str, ...] = ()
    answers_held: bool = False

    @property
    def rest(self) -> list[str]:
        """What still has rows to delete."""
        return [*self.held, *(["the stored answers"] if self.answers_held else [])]


@click.command()
@click.option("--tenant", "slug", type=SLUG, help="Only this shop. Default: all shops.")
@click.option(
    "--older-than",
    "seconds",
    type=DURATION,
    metavar="DURATION",
    help="The age, such as 30d or 12h; at least an hour. Default: delivery.retention.",
)
@click.option("--dry-run", is_flag=True, help="Only count the rows, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@as_json
@pass_installation
def prune(
    installation: Installation,
    slug: str | None,
    seconds: float | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete events that are older than the retention.

    The daemon does this every night. Use the command to free space earlier, or to delete events that
    are younger than `delivery.retention`; for the latter it asks for confirmation. It also deletes
    messages of tills, nacks, stored answers, and orders in a final status. It does not delete ledgers
    and reports.

    The command may run at any time, also while posd runs: it deletes a few hundred rows in each
    transaction, so others wait only briefly. If another transaction holds a lock for ten seconds, the
    command leaves the remaining rows of that shop, and the exit code is 75. A till whose next event was
    deleted is told to reload its open orders. The column `expired` counts deleted events that no till
    had acknowledged.

    \b
    Examples:
        posctl prune --dry-run
        posctl prune --tenant kitchen --older-than 7d
        posctl prune --json | jq '.tenants[] | select(.expired > 0)'
    """
    kept = installation.retention()
    seconds = kept if seconds is None else seconds
    if seconds < HOUR:
        raise CommandFailure("--older-than must be at least an hour", os.EX_USAGE)
    with database.open_executor(installation.dsn()) as executor:
        everyone = [each.tenant for each in run_to_completion(tenants.list_tenants(executor))]
        chosen = everyone if slug is None else [find_tenant(executor, slug)]
        before = run_to_completion(retention.cutoff_time(executor, seconds))
        expected = _count_prunable(executor, chosen, before, answers=slug is None)
        if dry_run:
            _print_result(expected, True, as_json)
            return
        if seconds < kept and not yes:
            events = counted(sum(each.events for each in expected.tenants.values()), "event")
            click.confirm(
                f"Delete {events}? The configured retention is {format_duration(kept)}",
                abort=True,
                err=True,
            )
        with _bar(expected) as progress:
            pruned = _prune(executor, chosen, before, slug is None, progress)
    _print_result(pruned, False, as_json)
    if pruned.rest:
        rest = ", ".join(pruned.rest)
        raise CommandFailure(
            f"another transaction holds a lock, so rows are left of: {rest}", os.EX_TEMPFAIL
        )


def _count_prunable(
    executor: BlockingExecutor, chosen: list[Tenant], before: datetime, *, answers: bool
) -> PrunedRows:
    return PrunedRows(
        before,
        {
            each.slug: run_to_completion(
                retention.count_prunable(executor, each, before, FINAL_STATUSES)
            )
            for each in chosen
        },
        run_to_completion(retention.count_prunable_answers(executor, before)) if answers else 0,
    )


def _prune(
    executor: BlockingExecutor,
    chosen: list[Tenant],
    before: datetime,
    answers: bool,
    progress: Callable[[str, int], None],
) -> PrunedRows:
    gone_of: dict[str, PrunedCounts] = {}
    held: list[str] = []
    for tenant in chosen:
        total, done = PrunedCounts(), False
        prune = partial(retention.prune, executor, tenant.id, before, FINAL_STATUSES)
        while not done:
            pruned = retry_while_locked(prune)
            if pruned is None:
                held.append(tenant.slug)
                break
            gone, done = pruned
            total += gone
            progress(tenant.slug, gone.rows)
        gone_of[tenant.slug] = total
    forgotten, answers_held = 0, False
    while answers:
        count = retry_while_locked(partial(retention.prune_answers, executor, before))
        answers, answers_held = bool(count), count is None
        forgotten += count or 0
        progress("answers", count or 0)
    return PrunedRows(before, gone_of, forgotten, tuple(held), answers_held)


@contextmanager
def _bar(expected: PrunedRows) -> Iterator[Callable[[str, int], None]]:
    """Show a progress bar on standard error, if that is a terminal."""
    total = sum(each.rows for each in expected.tenants.values()) + expected.answers
    with progress_bar() as bar:
        task = bar.add_task("", total=total)

        def progress(what: str, rows: int) -> None:
            bar.update(task, description=what, advance=rows)

        yield progress


def _print_result(pruned: PrunedRows, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "before": timestamp_or_none(pruned.before),
                "dryRun": dry_run,
                "tenants": [
                    {"tenant": slug, **asdict(gone), "held": slug in pruned.held}
                    for slug, gone in pruned.tenants.items()
                ],
                "answers": pruned.answers,
                "answersHeld": pruned.answers_held,
            }
        )
        return
    print_table(
        ("tenant", *_COLUMNS),
        [
            (slug, *(getattr(gone, name) for name in _COLUMNS))
            for slug, gone in pruned.tenants.items()
        ],
    )
    click.echo(f"Stored answers: {pruned.answers}.")
    verb = "Nothing was deleted; these rows are" if dry_run else "The deleted rows are"
    click.echo(f"{verb} older than {local_time(pruned.before)}.")
