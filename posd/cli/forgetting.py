"""`posctl forget`: erase a customer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click
from attrs import asdict, frozen
from rich.progress import SpinnerColumn, TextColumn

from posd.cli import database
from posd.cli.database import BlockingExecutor, run_to_completion
from posd.cli.failures import CommandFailure
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, print_json, print_table, progress_bar
from posd.cli.parameters import SLUG
from posd.cli.tenants import find_tenant
from posd.errors import Unprocessable
from posd.events import phones
from posd.events import redaction as erasure
from posd.events.redaction import ErasedPerson
from posd.maintenance.customer_erasure import CustomerData, erase, find
from posd.monitoring.logs import phone_tail
from posd.store import erasure as store
from posd.store import tenants
from posd.store.erasure import ErasureCounts
from posd.values import Tenant

_COLUMNS: Final = ("events", "orders", "answers", "gift cards", "accounts", "points")


@frozen
class TenantErasure:
    """One tenant: how much there is of the customer, points that go with it, and what is left to others."""

    tenant: Tenant
    found: CustomerData
    counts: ErasureCounts
    remains: list[str]

    @property
    def points(self) -> int:
        return sum(each.points for each in self.found.accounts)


@click.command()
@click.option("--phone", "numbers", multiple=True, metavar="NUMBER", help="However it is written.")
@click.option("--email", "addresses", multiple=True, metavar="ADDRESS")
@click.option("--order", "orders", multiple=True, metavar="ID", help="An order that was theirs.")
@click.option("--tenant", "slug", type=SLUG, help="Only in this shop; without it, in all.")
@click.option("--dry-run", is_flag=True, help="Only count what would be erased.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@pass_installation
def forget(
    installation: Installation,
    numbers: tuple[str, ...],
    addresses: tuple[str, ...],
    orders: tuple[str, ...],
    slug: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Erase a customer, who is named by telephone number, e-mail address or orders.

    Names, numbers, addresses and what they wrote go from events, orders, stored answers and gift
    cards; orders, totals and positions stay. A number is found however it is spelled, also in the
    middle of a text. An order that names the customer once is theirs, and everything about it is
    erased. Their loyalty account stays without a number, so its points are gone.

    The shop's own tables are not posd's to write. Erase the customer there first: what the shop
    writes next about them would bring them back. Backups are as they were.

    \b
    Examples:
        posctl forget --phone "07700 900123" --dry-run
        posctl forget --phone +447700900123 --email ines@example.com --tenant kitchen
        posctl forget --order W-7002 --tenant kitchen --yes --json
    """
    if not (numbers or addresses or orders):
        raise click.UsageError("Say whom: --phone, --email or --order.")
    if orders and slug is None:
        raise click.UsageError("--order needs --tenant: orders of two shops may have one number.")
    with database.open_executor(installation.dsn()) as executor:
        everyone = [each.tenant for each in run_to_completion(tenants.list_tenants(executor))]
        chosen = everyone if slug is None else [find_tenant(executor, slug)]
        people = {each: _person(each, numbers, addresses, orders) for each in chosen}
        with _document_counter() as progress:
            found = [_find(executor, each, people[each], progress) for each in chosen]
        if dry_run or not any(each.found for each in found):
            _print_result(found, dry_run, as_json)
            return
        if not yes:
            _confirm(found)
        request = _redacted_request(numbers, addresses, orders)
        with _document_counter() as progress:
            done = [_erase(executor, each, request, progress) for each in found]
    _print_result(done, False, as_json)


def _person(
    tenant: Tenant, numbers: tuple[str, ...], addresses: tuple[str, ...], orders: tuple[str, ...]
) -> ErasedPerson:
    region = tenant.default_region
    try:
        named = frozenset(phones.normalise(each, region) for each in numbers)
    except Unprocessable as error:
        raise CommandFailure(f"this is no telephone number in {region}", os.EX_DATAERR) from error
    if not all("@" in each.strip("@ ") for each in addresses):
        raise CommandFailure("this is no e-mail address", os.EX_DATAERR)
    emails = frozenset(erasure.email(each) for each in addresses)
    return ErasedPerson(region, named, emails, frozenset(orders))


def _find(
    executor: BlockingExecutor,
    tenant: Tenant,
    person: ErasedPerson,
    progress: Callable[[int], None],
) -> TenantErasure:
    found = run_to_completion(find(executor, tenant, person, progress))
    return TenantErasure(
        tenant, found, found.counts, run_to_completion(store.remaining_tables(executor, tenant))
    )


def _erase(
    executor: BlockingExecutor, each: TenantErasure, request: str, progress: Callable[[int], None]
) -> TenantErasure:
    if not each.found:
        return each
    counts = run_to_completion(erase(executor, each.tenant, each.found, request, progress))
    return TenantErasure(each.tenant, each.found, counts, each.remains)


def _confirm(found: list[TenantErasure]) -> None:
    _print(found)
    points = sum(each.points for each in found)
    lost = f" {points} points are lost." if points else ""
    click.confirm(f"Erase this?{lost} It cannot be undone", abort=True, err=True)


def _redacted_request(
    numbers: tuple[str, ...], addresses: tuple[str, ...], orders: tuple[str, ...]
) -> str:
    """Whom somebody asked to erase, as it may be kept: of a number the end, and no address."""
    words = [f"phone {phone_tail(''.join(filter(str.isdigit, each)))}" for each in numbers]
    words += ["email …"] * len(addresses)
    words += [f"order {each}" for each in orders]
    return ", ".join(words)


@contextmanager
def _document_counter() -> Iterator[Callable[[int], None]]:
    """How many documents were looked at, on standard error, if a person is looking."""
    with progress_bar(SpinnerColumn(), TextColumn("looking: {task.completed:.0f}")) as bar:
        task = bar.add_task("", total=None)
        yield lambda count: bar.update(task, advance=count)


def _print(found: list[TenantErasure]) -> None:
    print_table(
        ("tenant", *_COLUMNS),
        [
            (each.tenant.slug, *asdict(each.counts).values(), each.points)
            for each in found
            if each.found
        ],
    )


def _print_result(told: list[TenantErasure], dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"dryRun": dry_run, "tenants": [_shape(each) for each in told]})
        return
    if not any(each.found for each in told):
        click.echo("posd has nothing about them.")
    else:
        _print(told)
        click.echo("Nothing was erased yet." if dry_run else "Erased.")
    unreadable = sum(each.found.unreadable for each in told)
    if unreadable:
        click.echo(f"{unreadable} texts could not be looked into: they are no JSON.", err=True)
    remains = [name for each in told for name in each.remains]
    if remains:
        click.echo(f"Not posd's to write, so look there too: {', '.join(remains)}.")


def _shape(each: TenantErasure) -> dict[str, object]:
    """A tenant as programs read it."""
    return {
        "tenant": each.tenant.slug,
        "events": each.counts.events,
        "orders": each.counts.orders,
        "answers": each.counts.answers,
        "giftCards": each.counts.gift_cards,
        "accounts": each.counts.accounts,
        "points": each.points,
        "unreadable": each.found.unreadable,
        "remains": each.remains,
    }
