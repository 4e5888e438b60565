"""`posctl forget`: erase the personal data of a customer."""

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
from posd.cli.output import as_json, counted, print_json, print_table, progress_bar
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
    """The data of a customer at one tenant.

    `remains` names tables of the shop that may contain the customer too and that posd does not change.
    """

    tenant: Tenant
    found: CustomerData
    counts: ErasureCounts
    remains: list[str]

    @property
    def points(self) -> int:
        return sum(each.points for each in self.found.accounts)


@click.command()
@click.option(
    "--phone",
    "numbers",
    multiple=True,
    metavar="NUMBER",
    help="A telephone number, in any notation. May be repeated.",
)
@click.option(
    "--email",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="An e-mail address. May be repeated.",
)
@click.option(
    "--order",
    "orders",
    multiple=True,
    metavar="ID",
    help="An order of the customer. May be repeated.",
)
@click.option("--tenant", "slug", type=SLUG, help="Only this shop. Default: all shops.")
@click.option("--dry-run", is_flag=True, help="Only count the data, and erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
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
    """Erase the personal data of a customer.

    The customer is given by telephone number, e-mail address or orders. The command erases names,
    numbers, addresses and free texts in events, orders, stored answers and gift cards. Orders, totals
    and positions stay. A number is found in any notation, also inside a text. If one event of an order
    names the customer, the personal data of the whole order is erased. The loyalty account loses its
    number, so the customer loses the points.

    posd does not change the shop's own tables. Erase the customer there first, because the shop's next
    change of an order would publish the data again. Backups are not changed.

    \b
    Examples:
        posctl forget --phone "07700 900123" --dry-run
        posctl forget --phone +447700900123 --email ines@example.com --tenant kitchen
        posctl forget --order W-7002 --tenant kitchen --yes --json
    """
    if not (numbers or addresses or orders):
        raise click.UsageError("Give the customer with --phone, --email or --order.")
    if orders and slug is None:
        raise click.UsageError("--order needs --tenant: two shops may use the same order number.")
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
        raise CommandFailure(
            f"--phone is not a telephone number in the region {region}", os.EX_DATAERR
        ) from error
    if not all("@" in each.strip("@ ") for each in addresses):
        raise CommandFailure("--email is not an e-mail address", os.EX_DATAERR)
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
    lost = f" The customer loses {counted(points, 'point')}." if points else ""
    click.confirm(f"Erase this data?{lost} This cannot be undone", abort=True, err=True)


def _redacted_request(
    numbers: tuple[str, ...], addresses: tuple[str, ...], orders: tuple[str, ...]
) -> str:
    """Return the request for the record of erasures: numbers shortened, addresses left out."""
    words = [f"phone {phone_tail(''.join(filter(str.isdigit, each)))}" for each in numbers]
    words += ["email …"] * len(addresses)
    words += [f"order {each}" for each in orders]
    return ", ".join(words)


@contextmanager
def _document_counter() -> Iterator[Callable[[int], None]]:
    """Show the number of searched documents on standard error, if that is a terminal."""
    with progress_bar(SpinnerColumn(), TextColumn("searched: {task.completed:.0f}")) as bar:
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
        click.echo("posd has no data of this customer.")
    else:
        _print(told)
        click.echo("Nothing was erased." if dry_run else "Erased.")
    unreadable = sum(each.found.unreadable for each in told)
    if unreadable:
        click.echo(f"Not searched, because not JSON: {counted(unreadable, 'text')}.", err=True)
    remains = [name for each in told for name in each.remains]
    if remains:
        click.echo(f"posd does not change these tables; check them too: {', '.join(remains)}.")


def _shape(each: TenantErasure) -> dict[str, object]:
    """Return the result for a tenant as the object that `--json` prints."""
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
