"""Movements of gift cards: rows of their ledger, and how several are made in one statement.

`posd.store.giftcards` says what each kind of movement is for, and what it raises.
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
"""The parameters of `_MOVE`, and the columns of a `MovementCause` that they are made of."""


@frozen
class CardMoveRequest:
    """A movement of a known card that is asked for: `amount` is signed, `columns` those of its
    `MovementCause`.
    """

    number: str
    kind: str
    amount: Decimal
    columns: Mapping[str, object]


@frozen
class CardMovement:
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


Outcome = CardMovement | PosdError | None
"""What came of a `CardMoveRequest`: the movement, or what is to be raised; None: nothing was done."""


async def move_one(executor: Querier, tenant: Tenant, asked: CardMoveRequest) -> CardMovement:
    """Make one movement. Raises what `deduct` does."""
    (outcome,) = await move_many(executor, tenant, [asked])
    return movement_or_raise(outcome)


def movement_or_raise(outcome: Outcome) -> CardMovement:
    """The movement, or raise what has come instead."""
    if isinstance(outcome, CardMovement):
        return outcome
    if outcome is None:
        raise PosdError("the ledger said nothing of a movement")
    raise outcome


async def move_many(
    executor: Querier, tenant: Tenant, moves: Sequence[CardMoveRequest], *, patient: bool = True
) -> list[Outcome]:
    """Move money on several cards, of which none is named twice, in one statement.

    Returns what came of each: the movement, or the exception that `deduct` raises. Where it is not
    `patient`, a card that another transaction has locked is not waited for: None, and nothing was done. If
    it raises, nothing was done with any card, but for `OutcomeUnknown` and `ConnectionLost`.
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
    """Whether `move_many` can make all of these."""
    return len({each.number for each in moves}) == len(moves)


async def move_sequentially(
    executor: Querier, tenant: Tenant, moves: Sequence[CardMoveRequest]
) -> list[Outcome]:
    """As `move_many`, not patiently and in a transaction, where cards may be named several times.

    A statement makes the first movement of each card, the next one the second, and so on.
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
        # The others are committed with it.
        return error


def load_movement(tenant: Tenant, row: Sequence[Any]) -> CardMovement:
    """A row of `MOVEMENT` as a movement. Raises the `Refusal` that its outcome is."""
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
