"""Gift cards: their balances, and all movements of their ledger.

An amount is positive and has no more decimals than the shop's currency, else `invalid_amount` is raised. The
amounts of a `CardMovement` are signed. All movements can also raise `Conflict` (`reversed`: the reversal
arrived first), `Unprocessable` (`idempotency_mismatch`), `NotFound` (`no_ledger`) and database errors. After
`OutcomeUnknown` and `ConnectionLost` the movement may have been made: repeat the call with the same key to
find out.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from attrs import frozen

from posd.database.reconnecting import Executor, Querier
from posd.errors import BadRequest, Unprocessable
from posd.events import money
from posd.store import card_movements, ledgers, shop
from posd.store.card_movements import (
    MOVEMENT,
    CardMovement,
    CardMoveRequest,
    load_movement,
    unknown_card,
)
from posd.store.ledgers import MovementCause
from posd.values import Tenant

# The same rule as the constraint gift_cards_number_form.
_NUMBER: Final = re.compile(r"[!-`{-~]([ -`{-~]{0,62}[!-`{-~])?")
# Without characters that look alike. 16 characters have 78 bits.
_ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
_MADE_LENGTH: Final = 16

_ISSUE: Final = f"""
    SELECT {MOVEMENT} FROM posd_hooks."card_issue${{shop}}"(
        %(number)s, %(chosen)s, %(kind)s, %(amount)s::numeric, %(principal)s, %(key)s, %(device)s, %(order)s,
        %(note)s, %(purchased_by)s, %(recipient_name)s, %(recipient_email)s,
        %(expiry_date)s::timestamptz) AS m
"""
_REVERSE: Final = f"""
    SELECT {MOVEMENT} FROM posd_hooks."card_reverse${{shop}}"(
        %(number)s, %(principal)s, %(original_key)s, %(original)s::bigint, %(device)s, %(note)s) AS m
"""
_CARDS: Final = """
    SELECT (r.card).card_number, coalesce((r.movement).balance_after, 0), (r.card).initial_balance,
           (r.card).is_blocked, coalesce((r.card).expiry_date < clock_timestamp(), false),
           (r.card).expiry_date, (r.card).purchased_by, (r.card).recipient_name, (r.card).recipient_email,
           (r.card).order_id, (r.card).created_at
      FROM posd_hooks."card_read${shop}"(%(numbers)s::text[]) AS r
"""
_BLOCK: Final = """
    UPDATE {schema}.gift_cards SET is_blocked = %(blocked)s
     WHERE card_number = %(number)s AND initial_balance IS NOT NULL AND is_blocked <> %(blocked)s
    RETURNING card_number
"""


Status = Literal["active", "blocked", "expired", "depleted"]


@frozen
class GiftCard:
    """The present state of a card. `expiry_date` is the last instant at which the card is valid."""

    number: str
    balance: Decimal
    initial_balance: Decimal
    is_blocked: bool
    is_expired: bool
    expiry_date: datetime | None
    purchased_by: str | None
    recipient_name: str | None
    recipient_email: str | None
    order_id: str | None
    created_at: datetime

    @property
    def status(self) -> Status:
        """The first that applies of `blocked`, `expired`, `depleted` and `active`."""
        if self.is_blocked:
            return "blocked"
        if self.is_expired:
            return "expired"
        return "active" if self.balance else "depleted"


@frozen
class CardDetails:
    """The optional details of a card."""

    purchased_by: str | None = None
    recipient_name: str | None = None
    recipient_email: str | None = None
    expiry_date: datetime | None = None


def normalise(number: str) -> str | None:
    """Return a card's number as it is stored and compared; None if it cannot be the number of a card."""
    number = number.strip().upper()
    return number if _NUMBER.fullmatch(number) else None


def generate_number() -> str:
    """Return an unpredictable number for a new card."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_MADE_LENGTH))


async def balances(
    executor: Querier, tenant: Tenant, numbers: Sequence[str]
) -> dict[str, GiftCard]:
    """Return the cards with these normalised numbers, by number. Unknown numbers are left out."""
    statement = _CARDS.format(shop=shop(tenant))
    rows = await ledgers.run(executor, statement, {"numbers": [*numbers]})
    return {
        number: GiftCard(
            number,
            money.quantized(now_on_it, tenant.currency),
            money.quantized(initial, tenant.currency),
            *rest,
        )
        for number, now_on_it, initial, *rest in rows
    }


async def balance(executor: Executor, tenant: Tenant, number: str) -> GiftCard | None:
    """Return a card with its balance; None if there is no such card."""
    known = normalise(number)
    if known is None:
        return None
    return (await balances(executor, tenant, [known])).get(known)


async def deduct(
    executor: Executor, tenant: Tenant, number: str, amount: object, cause: MovementCause
) -> CardMovement:
    """Deduct an amount from a card.

    Raises `BadRequest` (`insufficient_balance` with `currentBalance`, `card_expired`, `card_blocked`)
    and `NotFound` (`unknown_card`).
    """
    return await card_movements.move_one(
        executor, tenant, deduction_request(tenant, number, amount, cause)
    )


async def top_up(
    executor: Executor, tenant: Tenant, number: str, amount: object, cause: MovementCause
) -> CardMovement:
    """Add an amount to a card. Raises the errors of `deduct`, except `insufficient_balance`."""
    value = money.parse_positive(amount, tenant.currency, "amount")
    return await card_movements.move_one(
        executor, tenant, CardMoveRequest(_known(number), "top_up", value, cause.columns())
    )


def deduction_request(
    tenant: Tenant, number: str, amount: object, cause: MovementCause
) -> CardMoveRequest:
    """Return the request with which `card_movements.move_many` does the same as `deduct`.

    Raises `NotFound` (`unknown_card`) and `Unprocessable` (`invalid_amount`).
    """
    value = money.parse_positive(amount, tenant.currency, "amount")
    return CardMoveRequest(_known(number), "deduct", -value, cause.columns())


async def purchase(
    executor: Executor,
    tenant: Tenant,
    number: str | None,
    amount: object,
    cause: MovementCause,
    details: CardDetails | None = None,
) -> CardMovement:
    """Sell a new card. If `number` is None, posd generates one.

    Raises `Conflict` (`card_exists`) and `Unprocessable` (`invalid_card`).
    """
    return await _issue(executor, tenant, number, "purchase", amount, cause, details)


async def purchase_in_transaction(
    executor: Executor,
    tenant: Tenant,
    number: str | None,
    amount: object,
    cause: MovementCause,
    details: CardDetails,
) -> tuple[CardMovement, GiftCard]:
    """Like `purchase`, in a transaction; return the new card too.

    Raises `BadRequest` (`card_expired`) if the card would have expired before its sale.
    """
    movement = await purchase(executor, tenant, number, amount, cause, details)
    card = await balance(executor, tenant, movement.card_number)
    if card is None:
        raise unknown_card()
    if card.is_expired and not movement.replayed:
        raise BadRequest("expiryDate is past.", code="card_expired")
    return movement, card


async def activate(
    executor: Executor,
    tenant: Tenant,
    number: str,
    amount: object,
    cause: MovementCause,
    details: CardDetails | None = None,
) -> CardMovement:
    """Sell a preprinted card, whether or not its number has been entered before.

    Raises `Conflict` (`card_exists`: the card has been sold), `BadRequest` (`card_expired`, `card_blocked`)
    and `Unprocessable` (`invalid_card`).
    """
    return await _issue(executor, tenant, number, "activate", amount, cause, details)


async def reverse(
    executor: Executor,
    tenant: Tenant,
    number: str,
    cause: MovementCause,
    *,
    key: str | None = None,
    transaction_id: int | None = None,
) -> CardMovement:
    """Reverse a whole movement, identified by its idempotency key or its id.

    A repeated call returns the same reversal, `replayed`. If no movement has the key, a tombstone is stored
    (`tombstoned`), even for an unknown card number. Only the principal's own movements are searched for the
    key, but the platform may reverse movements of all principals. `cause.key` and `cause.order_id` are
    ignored. Raises `NotFound` (`unknown_transaction`, `unknown_card`), `Forbidden`, `Conflict`
    (`ambiguous_key`), `Unprocessable` (`not_reversible`), and `BadRequest` (`insufficient_balance`) if the
    amount to take back from the card has been spent.
    """
    parameters = cause.columns() | ledgers.original_reference(key, transaction_id)
    return await _run(executor, tenant, _REVERSE, _known(number), parameters)


async def block(executor: Executor, tenant: Tenant, number: str) -> GiftCard:
    """Block a card: it accepts no deductions and no top-ups. Raises `NotFound` (`unknown_card`)."""
    return await _set_blocked(executor, tenant, number, blocked=True)


async def unblock(executor: Executor, tenant: Tenant, number: str) -> GiftCard:
    """Unblock a card. Raises `NotFound` (`unknown_card`)."""
    return await _set_blocked(executor, tenant, number, blocked=False)


async def _set_blocked(
    executor: Executor, tenant: Tenant, number: str, *, blocked: bool
) -> GiftCard:
    values = {"number": _known(number), "blocked": blocked}
    await ledgers.run_on_own_tables(executor, tenant, "gift_cards", _BLOCK, values)
    card = await balance(executor, tenant, number)
    if card is None:
        raise unknown_card()
    return card


async def _issue(
    executor: Executor,
    tenant: Tenant,
    number: str | None,
    kind: str,
    amount: object,
    cause: MovementCause,
    details: CardDetails | None,
) -> CardMovement:
    known = details or CardDetails()
    parameters = {
        **cause.columns(),
        "kind": kind,
        "amount": money.parse_positive(amount, tenant.currency, "amount"),
        "chosen": number is not None,
        "purchased_by": known.purchased_by,
        "recipient_name": known.recipient_name,
        "recipient_email": known.recipient_email,
        "expiry_date": known.expiry_date,
    }
    issued = generate_number() if number is None else normalise(number)
    if issued is None:
        message = "A card's number is 1 to 64 visible ASCII characters."
        raise Unprocessable(message, code="invalid_card")
    return await _run(executor, tenant, _ISSUE, issued, parameters)


async def _run(
    executor: Executor, tenant: Tenant, statement: str, number: str, parameters: dict[str, object]
) -> CardMovement:
    statement = statement.format(shop=shop(tenant))
    (row,) = await ledgers.run(executor, statement, {**parameters, "number": number})
    return load_movement(tenant, row)


def _known(number: str) -> str:
    """Return the normalised number. Raises `NotFound` (`unknown_card`) if it cannot be a card's number."""
    issued = normalise(number)
    if issued is None:
        raise unknown_card()
    return issued
