"""Gift cards: what is on them, and every way in which that changes.

An amount is more than nothing and in the decimals of the shop's currency, else `invalid_amount`;
what a movement says is signed, as the ledger has it. Each movement can also raise `Conflict`
(`reversed`: a reversal came first), `Unprocessable` (`idempotency_mismatch`), `NotFound` (`no_ledger`)
and what the database raises; after `OutcomeUnknown` and `ConnectionLost` it may have been made, and the
same call with the same key tells.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal, NoReturn

from attrs import frozen

from posd.database.link import Reader, Session
from posd.errors import BadRequest, Conflict, NotFound, PosdError, Refusal, Unprocessable
from posd.events import money
from posd.store import ledgers, shop
from posd.store.ledgers import Cause
from posd.values import Tenant

# As gift_cards_number_form in the schema.
_NUMBER: Final = re.compile(r"[!-`{-~]([ -`{-~]{0,62}[!-`{-~])?")
# Without those that look alike: 78 bits in 16 characters.
_ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
_MADE_LENGTH: Final = 16

_MOVEMENT: Final = """
    m.outcome, (m.movement).id, (m.movement).card_number, (m.movement).seq, (m.movement).transaction_type,
    (m.movement).balance_before, (m.movement).amount, (m.movement).balance_after, (m.movement).order_id,
    (m.movement).expiry_date, (m.movement).created_at
"""
_MOVE: Final = f"""
    SELECT m.place, {_MOVEMENT} FROM posd_hooks."card_move${{shop}}"(
        %(numbers)s::text[], %(kinds)s::text[], %(amounts)s::numeric[], %(principals)s::text[],
        %(keys)s::text[], %(devices)s::text[], %(orders)s::text[], %(notes)s::text[], %(patient)s) AS m
"""
_ISSUE: Final = f"""
    SELECT {_MOVEMENT} FROM posd_hooks."card_issue${{shop}}"(
        %(number)s, %(chosen)s, %(kind)s, %(amount)s::numeric, %(principal)s, %(key)s, %(device)s, %(order)s,
        %(note)s, %(purchased_by)s, %(recipient_name)s, %(recipient_email)s,
        %(expiry_date)s::timestamptz) AS m
"""
_REVERSE: Final = f"""
    SELECT {_MOVEMENT} FROM posd_hooks."card_reverse${{shop}}"(
        %(number)s, %(principal)s, %(original_key)s, %(original)s::bigint, %(device)s, %(note)s) AS m
"""
_CARDS: Final = """SELECT c.* FROM posd_hooks."card_read${shop}"(%(numbers)s::text[]) AS c"""
_BLOCK: Final = """
    UPDATE {schema}.gift_cards SET is_blocked = %(blocked)s
     WHERE card_number = %(number)s AND initial_balance IS NOT NULL AND is_blocked <> %(blocked)s
    RETURNING card_number
"""


_COLUMNS: Final = {
    "principals": "principal",
    "keys": "key",
    "devices": "device",
    "orders": "order",
    "notes": "note",
}
"""The parameters of `_MOVE`, and the columns of a `Cause` that they are made of."""


Status = Literal["active", "blocked", "expired", "depleted"]


@frozen
class Card:
    """A card as it is now. `expiry_date` is the last instant at which it is valid."""

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
        """`blocked`, `expired`, `depleted` or `active`: the first that is true."""
        if self.is_blocked:
            return "blocked"
        if self.is_expired:
            return "expired"
        return "active" if self.balance else "depleted"


@frozen
class Details:
    """What is known of a card besides its money."""

    purchased_by: str | None = None
    recipient_name: str | None = None
    recipient_email: str | None = None
    expiry_date: datetime | None = None


@frozen
class Move:
    """A movement of a known card that is asked for: `amount` is signed, `columns` those of its `Cause`."""

    number: str
    kind: str
    amount: Decimal
    columns: Mapping[str, object]


@frozen
class Movement:
    """A row of the ledger: `after` is `before` and the signed `amount`.

    `replayed`: it was there already. A `tombstone` moves nothing and keeps a movement from coming.
    `expiry_date` is a sale's: until when the card was to be valid as it was sold.
    """

    transaction_id: int
    card_number: str
    seq: int
    type: str
    before: Decimal
    amount: Decimal
    after: Decimal
    order_id: str | None
    expiry_date: datetime | None
    created_at: datetime
    replayed: bool

    @property
    def tombstoned(self) -> bool:
        return self.type == "tombstone"


Outcome = Movement | Refusal | None
"""What came of a `Move`; None: nothing was done."""


def normalise(number: str) -> str | None:
    """A card's number as it is stored and compared; None for what can be none."""
    number = number.strip().upper()
    return number if _NUMBER.fullmatch(number) else None


def new_number() -> str:
    """A number that nobody can guess."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_MADE_LENGTH))


async def balances(session: Reader, tenant: Tenant, numbers: Sequence[str]) -> dict[str, Card]:
    """These cards and what is on them, by their normalised numbers; a number of no card is left out."""
    statement = _CARDS.format(shop=shop(tenant))
    rows = await ledgers.call(session, statement, {"numbers": [*numbers]})
    return {
        number: Card(
            number,
            money.present(now_on_it, tenant.currency),
            money.present(initial, tenant.currency),
            *rest,
        )
        for number, now_on_it, initial, *rest in rows
    }


async def balance(session: Session, tenant: Tenant, number: str) -> Card | None:
    """A card and what is on it."""
    known = normalise(number)
    if known is None:
        return None
    return (await balances(session, tenant, [known])).get(known)


async def deduct(
    session: Session, tenant: Tenant, number: str, amount: object, cause: Cause
) -> Movement:
    """Take money off a card.

    Raises `BadRequest` (`insufficient_balance` with `currentBalance`, `card_expired`, `card_blocked`)
    and `NotFound` (`unknown_card`).
    """
    return await make(session, tenant, deduction(tenant, number, amount, cause))


async def top_up(
    session: Session, tenant: Tenant, number: str, amount: object, cause: Cause
) -> Movement:
    """Put money on a card. Raises what `deduct` does, but for the balance."""
    value = money.parse_positive(amount, tenant.currency, "amount")
    return await make(session, tenant, Move(_known(number), "top_up", value, cause.columns()))


def deduction(tenant: Tenant, number: str, amount: object, cause: Cause) -> Move:
    """What `deduct` does, to be done by `move`. Raises what `deduct` does about what it is given."""
    value = money.parse_positive(amount, tenant.currency, "amount")
    return Move(_known(number), "deduct", -value, cause.columns())


async def make(session: Reader, tenant: Tenant, asked: Move) -> Movement:
    """Make one movement. Raises what `deduct` does."""
    (outcome,) = await move(session, tenant, [asked])
    return made(outcome)


def made(outcome: Outcome) -> Movement:
    """The movement, or raise the refusal."""
    if isinstance(outcome, Movement):
        return outcome
    if outcome is None:
        raise PosdError("the ledger said nothing of a movement")
    raise outcome


async def move(
    session: Reader, tenant: Tenant, moves: Sequence[Move], *, patient: bool = True
) -> list[Outcome]:
    """Move money on several cards, of which none is named twice, in one statement.

    Returns what came of each: the movement, or the refusal that `deduct` raises. Where it is not `patient`, a
    card that another transaction has locked is not waited for: None, and nothing was done. If it raises,
    nothing was done with any card, but for `OutcomeUnknown` and `ConnectionLost`.
    """
    parameters: dict[str, object] = {
        "numbers": [each.number for each in moves],
        "kinds": [each.kind for each in moves],
        "amounts": [each.amount for each in moves],
        "patient": patient,
    }
    for name, column in _COLUMNS.items():
        parameters[name] = [each.columns[column] for each in moves]
    outcomes: list[Outcome] = [None] * len(moves)
    for place, *row in await ledgers.call(session, _MOVE.format(shop=shop(tenant)), parameters):
        outcomes[place - 1] = _outcome(tenant, row)
    return outcomes


async def purchase(
    session: Session,
    tenant: Tenant,
    number: str | None,
    amount: object,
    cause: Cause,
    details: Details | None = None,
) -> Movement:
    """Sell a new card, with a number that posd chooses if it is None.

    Raises `Conflict` (`card_exists`) and `Unprocessable` (`invalid_card`).
    """
    return await _issue(session, tenant, number, "purchase", amount, cause, details)


async def sell(
    session: Session,
    tenant: Tenant,
    number: str | None,
    amount: object,
    cause: Cause,
    details: Details,
) -> tuple[Movement, Card]:
    """As `purchase`, in a transaction, with the card that it has made.

    Raises `BadRequest` (`card_expired`) for one that would be of no use when it is sold.
    """
    movement = await purchase(session, tenant, number, amount, cause, details)
    card = await balance(session, tenant, movement.card_number)
    if card is None:
        raise _unknown()
    if card.is_expired and not movement.replayed:
        raise BadRequest("expiryDate is past.", code="card_expired")
    return movement, card


async def activate(
    session: Session,
    tenant: Tenant,
    number: str,
    amount: object,
    cause: Cause,
    details: Details | None = None,
) -> Movement:
    """Sell a card that lies in the shop with its number on it, whether it was entered before or not.

    Raises `Conflict` (`card_exists`: it is sold already), `BadRequest` (`card_expired`, `card_blocked`)
    and `Unprocessable` (`invalid_card`).
    """
    return await _issue(session, tenant, number, "activate", amount, cause, details)


async def reverse(
    session: Session,
    tenant: Tenant,
    number: str,
    cause: Cause,
    *,
    key: str | None = None,
    transaction_id: int | None = None,
) -> Movement:
    """Take a movement back, named by the key it was made with or by its id; once and wholly.

    Called again it gives the same reversal, `replayed`. A key that no movement has leaves a tombstone
    (`tombstoned`), on an unknown number too. The key is looked for among the principal's own; the
    platform may reverse others' movements. `cause.key` and `cause.order_id` play no part. Raises
    `NotFound` (`unknown_transaction`, `unknown_card`), `Forbidden`, `Conflict` (`ambiguous_key`),
    `Unprocessable` (`not_reversible`), and `BadRequest` (`insufficient_balance`) when what a sale put
    on a card has been spent.
    """
    parameters = cause.columns() | ledgers.original(key, transaction_id)
    return await _run(session, tenant, _REVERSE, _known(number), parameters)


async def block(session: Session, tenant: Tenant, number: str) -> Card:
    """Let nothing be taken off a card or put on it. Raises `NotFound` (`unknown_card`)."""
    return await _set_blocked(session, tenant, number, blocked=True)


async def unblock(session: Session, tenant: Tenant, number: str) -> Card:
    """Take `block` back. Raises `NotFound` (`unknown_card`)."""
    return await _set_blocked(session, tenant, number, blocked=False)


async def _set_blocked(session: Session, tenant: Tenant, number: str, *, blocked: bool) -> Card:
    values = {"number": _known(number), "blocked": blocked}
    await ledgers.own(session, tenant, "gift_cards", _BLOCK, values)
    card = await balance(session, tenant, number)
    if card is None:
        raise _unknown()
    return card


async def _issue(
    session: Session,
    tenant: Tenant,
    number: str | None,
    kind: str,
    amount: object,
    cause: Cause,
    details: Details | None,
) -> Movement:
    known = details or Details()
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
    wanted = new_number() if number is None else normalise(number)
    if wanted is None:
        message = "A card's number is 1 to 64 visible ASCII characters."
        raise Unprocessable(message, code="invalid_card")
    return await _run(session, tenant, _ISSUE, wanted, parameters)


async def _run(
    session: Session, tenant: Tenant, statement: str, number: str, parameters: dict[str, object]
) -> Movement:
    statement = statement.format(shop=shop(tenant))
    (row,) = await ledgers.call(session, statement, {**parameters, "number": number})
    return _movement(tenant, row)


def _outcome(tenant: Tenant, row: Sequence[Any]) -> Outcome:
    if row[0] == "locked":
        return None
    try:
        return _movement(tenant, row)
    except Refusal as refusal:
        return refusal


def _movement(tenant: Tenant, row: Sequence[Any]) -> Movement:
    """A row of `_MOVEMENT`. Raises the `Refusal` that its outcome is."""
    outcome, transaction_id, number, seq, kind, *amounts, order_id, expiry_date, created_at = row
    before, moved, after = (money.present(each or Decimal(), tenant.currency) for each in amounts)
    if outcome not in ("made", "replayed", "tombstoned"):
        _refuse(outcome, after)
    replayed = outcome == "replayed"
    about = (order_id, expiry_date, created_at, replayed)
    return Movement(transaction_id, number, seq, kind, before, moved, after, *about)


def _refuse(outcome: str, left: Decimal) -> NoReturn:
    match outcome:
        case "unknown":
            raise _unknown()
        case "insufficient":
            raise BadRequest(
                "There is not enough money on this card.",
                code="insufficient_balance",
                details={"currentBalance": left},
            )
        case "expired":
            raise BadRequest("This card has expired.", code="card_expired")
        case "blocked":
            raise BadRequest("This card is blocked.", code="card_blocked")
        case "exists":
            raise Conflict("This card has been sold already.", code="card_exists")
        case "too_much":
            message = "This is more than a card can hold."
            raise Unprocessable(message, code="invalid_amount", details={"field": "amount"})
        case _:
            ledgers.refuse(outcome)


def _known(number: str) -> str:
    """The number of a card that there may be."""
    wanted = normalise(number)
    if wanted is None:
        raise _unknown()
    return wanted


def _unknown() -> NotFound:
    return NotFound("There is no such card.", code="unknown_card")
