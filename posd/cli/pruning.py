"""`posctl prune`: away with what is older than it is kept for, now."""

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
    """What went of each tenant, and how many stored answers of all.

    `held` are the tenants of which not all went, since somebody had a lock; so it may be with answers.
    """

    before: datetime
    tenants: dict[str, PrunedCounts]
    answers: int
    held: tuple[str, ...] = ()
    answers_held: bool = False

    @property
    def rest(self) -> list[str]:
        """Of what not all went."""
        return [*self.held, *(["the stored answers"] if self.answers_held else [])]


@click.command()
@click.option("--tenant", "slug", type=SLUG, help="Only this shop; without it, all.")
@click.option(
    "--older-than",
    "seconds",
    type=DURATION,
    metavar="DURATION",
    help="Such as 30d or 12h, an hour at least. Default: delivery.retention.",
)
@click.option("--dry-run", is_flag=True, help="Only count what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
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
    """Delete events that are older than they are kept for.

    The daemon does this by itself every night. By hand it is for making room before that, or for
    keeping less than `delivery.retention` once, which is asked about. With the events go what tills
    said, refusals, stored answers, and orders that are at their end. Ledgers and reports stay.

    It may run at any time and beside daemons: it deletes a few hundred rows at once, and nobody waits
    for it. Where somebody holds a lock for ten seconds the rest of that shop stays, and the exit code is
    75. A till that was away for longer is told to reload its open orders. `expired` are events
    that no till had acknowledged.

    \b
    Examples:
        posctl prune --dry-run
        posctl prune --tenant kitchen --older-than 7d
        posctl prune --json | jq '.tenants[] | select(.expired > 0)'
    """
    kept = installation.retention()
    seconds = kept if seconds is None else seconds
    if seconds < HOUR:
        raise CommandFailure("what is younger than an hour is not pruned", os.EX_USAGE)
    with database.open_executor(installation.dsn()) as executor:
        everyone = [each.tenant for each in run_to_completion(tenants.list_tenants(executor))]
        chosen = everyone if slug is None else [find_tenant(executor, slug)]
        before = run_to_completion(retention.cutoff_time(executor, seconds))
        expected = _count_prunable(executor, chosen, before, answers=slug is None)
        if dry_run:
            _print_result(expected, True, as_json)
            return
        if seconds < kept and not yes:
            click.confirm(
                f"Will {sum(each.events for each in expected.tenants.values())} events go that are"
                f" to be kept for {format_duration(kept)}?",
                abort=True,
                err=True,
            )
        with _bar(expected) as progress:
            pruned = _prune(executor, chosen, before, slug is None, progress)
    _print_result(pruned, False, as_json)
    if pruned.rest:
        still = ", ".join(pruned.rest)
        raise CommandFailure(f"somebody holds a lock, and not all went of: {still}", os.EX_TEMPFAIL)


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
    """A progress bar on standard error, if a person is looking."""
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
    end = ": nothing was deleted yet." if dry_run else "."
    click.echo(
        f"Stored answers: {pruned.answers}. All from before {local_time(pruned.before)}{end}"
    )
