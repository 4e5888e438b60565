"""`posctl card` and `posctl points`: what an operator corrects in a shop's ledgers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeVar

import click

from posd.cli import database
from posd.cli.database import BlockingExecutor
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, local_time, print_json, print_table, timestamp_or_none
from posd.cli.parameters import SLUG
from posd.cli.tenants import find_tenant
from posd.errors import NotFound
from posd.events import phones
from posd.store import giftcards, loyalty, loyalty_accounts
from posd.store.giftcards import GiftCard
from posd.store.ledgers import MovementCause
from posd.store.loyalty_accounts import LoyaltyAccount
from posd.values import Tenant

F = TypeVar("F", bound=Callable[..., Any])

PRINCIPAL: Final = "operator"
"""In whose name `posctl` moves money and points. Idempotency keys of tills and platforms are others."""


class _AmountParameter(click.ParamType[Decimal]):
    """An amount of money. The ledger checks its sign and its decimals."""

    name = "amount"

    def convert(
        self, value: str | Decimal, param: click.Parameter | None, ctx: click.Context | None
    ) -> Decimal:
        try:
            return Decimal(value)
        except InvalidOperation:
            self.fail(f"{value!r} is not an amount: write a number such as 12.50.", param, ctx)


_AMOUNT: Final = _AmountParameter()
_tenant: Final = click.option(
    "--tenant", "slug", type=SLUG, required=True, help="The shop that the ledger belongs to."
)


def _movement(command: F) -> F:
    """The options of a command that moves money or points."""
    command = click.option("--note", help="Why, for the people who read the ledger.")(command)
    return click.option(
        "--idempotency-key",
        "key",
        metavar="KEY",
        help="A name for this movement. A second call with the same key changes nothing.",
    )(command)


@click.group()
def card() -> None:
    """Show, activate, top up, block and unblock gift cards.

    The amounts have the currency of the shop. Its tills are informed of each change.
    """


@card.command()
@click.argument("number")
@_tenant
@as_json
@pass_installation
def show(installation: Installation, number: str, slug: str, as_json: bool) -> None:
    """Show a gift card and its balance.

    \b
    Example:
        posctl card show GC-7Q4M-2XKD --tenant kitchen
    """
    with database.open_executor(installation.dsn()) as executor:
        _show_card(executor, find_tenant(executor, slug), number, as_json)


@card.command()
@click.argument("number")
@click.argument("amount", type=_AMOUNT)
@_tenant
@_movement
@as_json
@pass_installation
def activate(
    installation: Installation,
    number: str,
    amount: Decimal,
    slug: str,
    key: str | None,
    note: str | None,
    as_json: bool,
) -> None:
    """Sell a printed gift card with this number and amount.

    \b
    Example:
        posctl card activate GC-7Q4M-2XKD 50 --tenant kitchen --note "sold by telephone"
    """
    cause = MovementCause(PRINCIPAL, key, note=note)
    with _card_changed(installation, slug, number, as_json) as (executor, tenant):
        database.run_to_completion(giftcards.activate(executor, tenant, number, amount, cause))


@card.command("top-up")
@click.argument("number")
@click.argument("amount", type=_AMOUNT)
@_tenant
@_movement
@as_json
@pass_installation
def top_up(
    installation: Installation,
    number: str,
    amount: Decimal,
    slug: str,
    key: str | None,
    note: str | None,
    as_json: bool,
) -> None:
    """Add an amount to a gift card.

    \b
    Example:
        posctl card top-up GC-7Q4M-2XKD 10 --tenant kitchen --note "goodwill, complaint 88"
    """
    cause = MovementCause(PRINCIPAL, key, note=note)
    with _card_changed(installation, slug, number, as_json) as (executor, tenant):
        database.run_to_completion(giftcards.top_up(executor, tenant, number, amount, cause))


@card.command()
@click.argument("number")
@_tenant
@as_json
@pass_installation
def block(installation: Installation, number: str, slug: str, as_json: bool) -> None:
    """Block a gift card, for example one that was lost or stolen.

    Its balance is kept. Nothing can be deducted from it until it is unblocked.

    \b
    Example:
        posctl card block GC-7Q4M-2XKD --tenant kitchen
    """
    with _card_changed(installation, slug, number, as_json) as (executor, tenant):
        database.run_to_completion(giftcards.block(executor, tenant, number))


@card.command()
@click.argument("number")
@_tenant
@as_json
@pass_installation
def unblock(installation: Installation, number: str, slug: str, as_json: bool) -> None:
    """Unblock a gift card.

    \b
    Example:
        posctl card unblock GC-7Q4M-2XKD --tenant kitchen
    """
    with _card_changed(installation, slug, number, as_json) as (executor, tenant):
        database.run_to_completion(giftcards.unblock(executor, tenant, number))


@click.group()
def points() -> None:
    """Show and correct the loyalty points of a customer."""


@points.command("show")
@click.argument("phone")
@_tenant
@as_json
@pass_installation
def show_account(installation: Installation, phone: str, slug: str, as_json: bool) -> None:
    """Show the points of a customer and the last ten movements.

    \b
    Example:
        posctl points show 07700900123 --tenant kitchen
    """
    with database.open_executor(installation.dsn()) as executor:
        tenant = find_tenant(executor, slug)
        _show_account(executor, tenant, phones.normalise(phone, tenant.default_region), as_json)


@points.command(context_settings={"ignore_unknown_options": True})
@click.argument("phone")
@click.argument("change", type=int)
@_tenant
@_movement
@as_json
@pass_installation
def adjust(
    installation: Installation,
    phone: str,
    change: int,
    slug: str,
    key: str | None,
    note: str | None,
    as_json: bool,
) -> None:
    """Add CHANGE points to an account, or deduct them if CHANGE is negative.

    An account cannot have fewer than 0 points.

    \b
    Examples:
        posctl points adjust 07700900123 50 --tenant kitchen --note "forgotten receipt"
        posctl points adjust 07700900123 -20 --tenant kitchen
    """
    with database.open_executor(installation.dsn()) as executor:
        tenant = find_tenant(executor, slug)
        known = phones.normalise(phone, tenant.default_region)
        cause = MovementCause(PRINCIPAL, key, note=note)
        database.run_to_completion(loyalty.adjust(executor, tenant, known, change, cause))
        _show_account(executor, tenant, known, as_json)


@contextmanager
def _card_changed(
    installation: Installation, slug: str, number: str, as_json: bool
) -> Iterator[tuple[BlockingExecutor, Tenant]]:
    """Let the block change a card of the tenant, then show the card."""
    with database.open_executor(installation.dsn()) as executor:
        tenant = find_tenant(executor, slug)
        yield executor, tenant
        _show_card(executor, tenant, number, as_json)


def _show_card(executor: BlockingExecutor, tenant: Tenant, number: str, as_json: bool) -> None:
    found = database.run_to_completion(giftcards.balance(executor, tenant, number))
    if found is None:
        raise NotFound("There is no gift card with this number.", code="unknown_card")
    if as_json:
        print_json(_card_members(found))
        return
    print_table(
        ("card", "balance", "initial balance", "status", "valid until", "sold"),
        [
            (
                found.number,
                f"{found.balance} {tenant.currency}",
                f"{found.initial_balance} {tenant.currency}",
                found.status,
                local_time(found.expiry_date),
                local_time(found.created_at),
            )
        ],
    )


def _card_members(found: GiftCard) -> dict[str, object]:
    return {
        "cardNumber": found.number,
        "balance": found.balance,
        "initialBalance": found.initial_balance,
        "status": found.status,
        "expiryDate": timestamp_or_none(found.expiry_date),
        "createdAt": timestamp_or_none(found.created_at),
    }


def _show_account(executor: BlockingExecutor, tenant: Tenant, phone: str, as_json: bool) -> None:
    found = database.run_to_completion(loyalty_accounts.find_account(executor, tenant, phone))
    if found is None:
        raise NotFound(
            "There is no loyalty account with this telephone number.", code="unknown_customer"
        )
    if as_json:
        print_json(_account_members(found))
        return
    click.echo(f"{found.phone} has {found.points} points.")
    print_table(
        ("id", "type", "points", "balance", "order", "reason", "at"),
        [
            (
                each.transaction_id,
                each.type,
                each.points,
                each.after,
                each.order_id,
                each.reason,
                local_time(each.created_at),
            )
            for each in found.recent
        ],
    )


def _account_members(found: LoyaltyAccount) -> dict[str, object]:
    return {
        "customerPhone": found.phone,
        "points": found.points,
        "recentTransactions": [
            {
                "transactionId": str(each.transaction_id),
                "type": each.type,
                "points": each.points,
                "balance": each.after,
                "orderId": each.order_id,
                "reason": each.reason,
                "createdAt": timestamp_or_none(each.created_at),
            }
            for each in found.recent
        ],
    }
