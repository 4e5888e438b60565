"""Movements of gift cards: the rows of their ledger, and statements that make several at once.

`posd.store.giftcards` documents the kinds of movements and the errors they raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NoReturn

from attrs import frozen

from posd.database.reconnecting import Querier
from posd.errors import BadRequest, Conflict, NotFound, PosdError, Unprocessable
from posd.events import money
from posd.store import ledgers, shop
from posd.values import Tenant

MOVEMENT: Final = """
    m.outcome, (m.movement).id, (m.movement).card_number, (m.movement).seq, (m.movement).transaction_type,
    (m.movement).balance_before, (m.movement).amount, (m.movement).balance_after, (m.movement).order_id,
    (m.movement).expiry_date, (m.movement).created_at
"""
_MOVE: Final = f"""
    SELECT m.place, {MOVEMENT} FROM posd_hooks."card_move${{shop}}"(
        %(numbers)s::text[], %(kinds)s::text[], %(amounts)s::numeric[], %(principals)s::text[],
        %(keys)s::text[], %(devices)s::text[], %(orders)s::text[], %(notes)s::text[], %(patient)s) AS m
"""
_COLUMNS: Final = {
    "principals": "principal",
    "keys": "key",
    "devices": "device",
    "orders": "order",
    "notes": "note",
}
"""The array parameters of `_MOVE`, and the key of `MovementCause.columns` for the values of each."""


@frozen
class CardMoveRequest:
    """A request for one movement of a card. `amount` is signed; `columns` is `MovementCause.columns()`."""

    number: str
    kind: str
    amount: Decimal
    columns: Mapping[str, object]


@frozen
class CardMovement:
    """A row of the ledger: `after` is `before` plus the signed `amount`.

    `replayed` is true if an earlier call with the same key made the movement. A `tombstone` has the amount
    0 and prevents a movement that has been reversed before it arrived. `expiry_date` is set for sales only:
    the end of the card's validity as it was sold.
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


Outcome = CardMovement | PosdError | None
"""The result of a `CardMoveRequest`: the movement, or the error; None if nothing was done."""


async def move_one(executor: Querier, tenant: Tenant, asked: CardMoveRequest) -> CardMovement:
    """Make one movement. Raises the errors of `giftcards.deduct`."""
    (outcome,) = await move_many(executor, tenant, [asked])
    return movement_or_raise(outcome)


def movement_or_raise(outcome: Outcome) -> CardMovement:
    """Return the movement, or raise the error that `move_many` returned for it."""
    if isinstance(outcome, CardMovement):
        return outcome
    if outcome is None:
        raise PosdError("the ledger returned no result for a movement")
    raise outcome


async def move_many(
    executor: Querier, tenant: Tenant, moves: Sequence[CardMoveRequest], *, patient: bool = True
) -> list[Outcome]:
    """Make movements of several cards in one statement. No card may be named twice.

    Returns, for each request, the movement or the exception that `giftcards.deduct` raises. If `patient` is
    false, the statement does not wait for cards that another transaction has locked: their result is None,
    and they have not changed. If this function raises, no card has changed. After `OutcomeUnknown` and
    `ConnectionLost`, the movements may have been committed.
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
    for place, *row in await ledgers.run(executor, _MOVE.format(shop=shop(tenant)), parameters):
        outcomes[place - 1] = _outcome(tenant, row)
    return outcomes


def has_distinct_cards(moves: Sequence[CardMoveRequest]) -> bool:
    """Return True if no card is named twice, as `move_many` requires."""
    return len({each.number for each in moves}) == len(moves)


async def move_sequentially(
    executor: Querier, tenant: Tenant, moves: Sequence[CardMoveRequest]
) -> list[Outcome]:
    """Like `move_many` with `patient=False`, in a transaction; cards may be named several times.

    The first statement makes the first movement of each card, the second statement the second, and so on.
    """
    outcomes: list[Outcome] = [None] * len(moves)
    left = [*enumerate(moves)]
    while left:
        first: dict[str, tuple[int, CardMoveRequest]] = {}
        for each in left:
            first.setdefault(each[1].number, each)
        places, some = zip(*first.values(), strict=True)
        for place, outcome in zip(
            places, await move_many(executor, tenant, some, patient=False), strict=True
        ):
            outcomes[place] = outcome
        left = [each for each in left if each[0] not in places]
    return outcomes


def _outcome(tenant: Tenant, row: Sequence[Any]) -> Outcome:
    if row[0] == "locked":
        return None
    try:
        return load_movement(tenant, row)
    except PosdError as error:
        # Return the error: raising it would roll back the other movements of the statement.
        return error


def load_movement(tenant: Tenant, row: Sequence[Any]) -> CardMovement:
    """Convert a row of `MOVEMENT` to a movement. Raises the `Refusal` that the outcome stands for."""
    outcome, transaction_id, number, seq, kind, *amounts, order_id, expiry_date, created_at = row
    before, moved, after = (money.quantized(each or Decimal(), tenant.currency) for each in amounts)
    if outcome not in ("made", "replayed", "tombstoned"):
        _refuse(outcome, after)
    if transaction_id is None:
        raise ledgers.movement_suppressed()
    replayed = outcome == "replayed"
    about = (order_id, expiry_date, created_at, replayed)
    return CardMovement(transaction_id, number, seq, kind, before, moved, after, *about)


def _refuse(outcome: str, left: Decimal) -> NoReturn:
    match outcome:
        case "unknown":
            raise unknown_card()
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
            ledgers.raise_outcome(outcome)


def unknown_card() -> NotFound:
    return NotFound("There is no such card.", code="unknown_card")
