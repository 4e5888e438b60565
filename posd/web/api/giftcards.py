"""Gift cards by REST: what is on one, taking money off it, selling one, taking a movement back."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal

from attrs import define, field
from msgspec import Meta

from posd.database.gathering import Gathering
from posd.database.pool import Database
from posd.errors import BadRequest, NotFound
from posd.events import coercion as readings
from posd.events.timezones import zone
from posd.protocol.literals import timestamp
from posd.store import giftcards, idempotency
from posd.store.card_movements import Movement
from posd.store.giftcards import Card, Details, Status
from posd.values import Tenant
from posd.web.api import ledgers
from posd.web.api.card_moves import CardMoves
from posd.web.api.ledgers import (
    BAD_KEY,
    LONG_ORDER,
    MISMATCH,
    NO_LEDGER,
    REVERSAL_REFUSALS,
    REVERSED,
    TOO_MUCH,
    MovementTaken,
    Remark,
    ReversalGiven,
    ReversalTaken,
    TransactionId,
)
from posd.web.http.models import UNSET, Amount, Given, Moment, Success, Text, Unset, called
from posd.web.http.operations import LEDGERS, PLATFORMS, Operation, Refused, TenantAsk, given
from posd.web.http.requests import Answer


class DeductionTaken(MovementTaken, frozen=True, kw_only=True):
    """The amount to deduct from a card, and the reason."""

    amount: Amount
    notes: Annotated[Remark, called("reference")] | Unset | None = UNSET


class SaleTaken(MovementTaken, frozen=True, kw_only=True):
    """A card to sell. Without `cardNumber`, posd generates a random number."""

    amount: Amount
    card_number: str | Unset | None = UNSET
    purchased_by: Text | Unset | None = UNSET
    recipient_name: Text | Unset | None = UNSET
    recipient_email: Text | Unset | None = UNSET
    expiry_date: (
        Annotated[
            str,
            Meta(
                max_length=60,
                description="A time, or a date. With a date, the card is valid to the end of "
                "the day.",
            ),
        ]
        | Unset
        | None
    ) = UNSET


class Balance(Given, frozen=True):
    """The balance of a card. `expiryDate` is the last instant at which the card is valid."""

    card_number: str
    balance: Decimal
    initial_balance: Decimal
    status: Status
    expiry_date: Moment | None


class BalanceData(Balance, frozen=True):
    """The balance of a card, with the names that existing platforms read."""

    initial_amount: Decimal
    is_expired: bool
    recipient_name: str | None


class BalanceGiven(Balance, frozen=True, kw_only=True):
    """The balance of a card."""

    success: Literal[True] = True
    data: BalanceData


class Deduction(Given, frozen=True):
    """A deduction from a card. `newBalance` and `remainingBalance` are equal."""

    previous_balance: Decimal
    amount_deducted: Decimal
    new_balance: Decimal
    remaining_balance: Decimal
    transaction_id: TransactionId


class DeductionGiven(Deduction, frozen=True, kw_only=True):
    """A deduction from a card."""

    success: Literal[True] = True
    data: Deduction


class CardGiven(Success, frozen=True):
    """A card that was sold."""

    card_number: str
    balance: Decimal
    initial_balance: Decimal
    status: Literal["active"]
    expiry_date: Moment | None
    purchased_by: str | None
    recipient_name: str | None
    recipient_email: str | None
    order_id: str | None
    created_at: Moment
    transaction_id: TransactionId


class CardReversalGiven(ReversalGiven, frozen=True, kw_only=True):
    """The result of a reversal, and the balance of the card after it. Both balances are equal."""

    new_balance: Decimal
    remaining_balance: Decimal


class InsufficientBalance(Given, frozen=True):
    """The balance of the card."""

    current_balance: Decimal


UNKNOWN: Final = Refused(404, "unknown_card", "There is no such card.")
INVALID_AMOUNT: Final = Refused(
    422,
    "invalid_amount",
    "The amount is not a number above zero with at most the decimals of the currency. "
    "`field` names the member.",
)
INSUFFICIENT: Final = Refused(
    400, "insufficient_balance", "The balance of the card is too low.", InsufficientBalance
)
BLOCKED: Final = Refused(400, "card_blocked", "The card is blocked.")
EXPIRED: Final = Refused(400, "card_expired", "The card has expired.")


@define(eq=False)
class GiftCards:
    """The endpoints."""

    database: Database
    _cards: Gathering[Tenant, str, Card | None] = field(init=False)
    _moves: CardMoves = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._cards = Gathering(self.database.clock, self._read)
        self._moves = CardMoves(self.database)

    @property
    def operations(self) -> tuple[Operation, ...]:
        card = "/api/{tenant}/gift-cards/{cardNumber}"
        return (
            Operation(
                "GET",
                f"{card}/balance",
                self.balance,
                "Read the balance of a gift card",
                LEDGERS,
                {200: BalanceGiven},
                refusals=(UNKNOWN, NO_LEDGER),
                tag="Gift cards",
                description="posd compares card numbers without surrounding spaces and in "
                "upper case.",
            ),
            Operation(
                "POST",
                f"{card}/deduct",
                self.deduct,
                "Deduct an amount from a gift card",
                LEDGERS,
                {200: DeductionGiven},
                DeductionTaken,
                refusals=(
                    *(INSUFFICIENT, EXPIRED, BLOCKED, UNKNOWN, NO_LEDGER, INVALID_AMOUNT),
                    *(REVERSED, MISMATCH, BAD_KEY, LONG_ORDER),
                ),
                idempotent=True,
                tag="Gift cards",
                description="posd answers after the COMMIT, or with 503 within eight seconds."
                " With an `Idempotency-Key` the call can be repeated at any later"
                " time.",
                example={"amount": 12.5, "orderId": "A-17", "notes": "table 4"},
            ),
            Operation(
                "POST",
                "/api/{tenant}/gift-cards",
                self.sell,
                "Sell a gift card",
                PLATFORMS,
                {201: CardGiven},
                SaleTaken,
                refusals=(
                    Refused(400, "card_expired", "`expiryDate` is in the past."),
                    BLOCKED,
                    Refused(409, "card_exists", "A card with this number has already been sold."),
                    Refused(422, "invalid_card", "The card number is not valid."),
                    *(NO_LEDGER, INVALID_AMOUNT, REVERSED, MISMATCH, BAD_KEY, LONG_ORDER),
                ),
                idempotent=True,
                tag="Gift cards",
                description="Tills get a `gift_card_purchased` event. After the sale is "
                "reversed, the number can be sold again.",
                example={"amount": 50, "purchasedBy": "Maya Stone", "recipientName": "Tom"},
            ),
            Operation(
                "POST",
                f"{card}/reverse",
                self.reverse,
                "Reverse a movement of a gift card",
                LEDGERS,
                {200: CardReversalGiven},
                ReversalTaken,
                refusals=(*REVERSAL_REFUSALS, UNKNOWN, INSUFFICIENT, TOO_MUCH),
                idempotent=True,
                tag="Gift cards",
                description="posd reverses a movement once and completely, and answers a "
                "repeated call in the same way. If no movement has the key, posd "
                "stores the key and refuses a later movement with 409 `reversed`."
                " A till can reverse its own movements, a platform all movements.",
                example={"idempotencyKey": "till-1-000042"},
            ),
        )

    async def balance(self, ask: TenantAsk[None]) -> Answer:
        """Nothing is locked for it, so what it says may be over when it arrives."""
        number = giftcards.normalise(ask.path["cardNumber"])
        # It waits for what others wait for too.
        ask.call.give_turn()
        card = None if number is None else await self._cards.ask(ask.tenant, number)
        if card is None:
            raise NotFound("There is no such card.", code="unknown_card")
        data = BalanceData(
            card_number=card.number,
            balance=card.balance,
            initial_balance=card.initial_balance,
            initial_amount=card.initial_balance,
            status=card.status,
            is_expired=card.is_expired,
            expiry_date=_moment(card.expiry_date),
            recipient_name=card.recipient_name,
        )
        return ledgers.twice(BalanceGiven, data)

    async def _read(self, tenant: Tenant, numbers: Sequence[str]) -> Mapping[str, Card | None]:
        found = await giftcards.balances(self.database.of(tenant.id), tenant, numbers)
        return {number: found.get(number) for number in numbers}

    async def deduct(self, ask: TenantAsk[DeductionTaken]) -> Answer:
        """What a till or a web shop does when somebody pays with a card."""
        cause = ledgers.cause(ask, ask.taken.notes, key=ledgers.key_of(ask))
        number, amount = ask.path["cardNumber"], ask.taken.amount
        move = giftcards.deduction(ask.tenant, number, amount, cause)
        # It waits for what others wait for too.
        ask.call.give_turn()
        movement = await self._moves.make(ask.tenant, move, ledgers.deadline(ask))
        data = Deduction(
            previous_balance=movement.before,
            amount_deducted=-movement.amount,
            new_balance=movement.after,
            remaining_balance=movement.after,
            transaction_id=str(movement.transaction_id),
        )
        return ledgers.twice(DeductionGiven, data, replayed=movement.replayed)

    async def sell(self, ask: TenantAsk[SaleTaken]) -> Answer:
        """A call that is made again is for the card of the first one, whoever chose its number."""
        tenant, taken = ask.tenant, ask.taken
        number = ledgers.sent(taken.card_number)
        cause = ledgers.cause(ask, None, key=ledgers.key_of(ask))
        details = Details(
            ledgers.sent(taken.purchased_by),
            ledgers.sent(taken.recipient_name),
            ledgers.sent(taken.recipient_email),
            _expiry(ask),
        )
        movement, card = await self.database.transaction(
            lambda session: giftcards.sell(session, tenant, number, taken.amount, cause, details),
            tenant=tenant.id,
            deadline=ledgers.deadline(ask),
        )
        return given(_sold(movement, card), 201, replayed=movement.replayed)

    async def reverse(self, ask: TenantAsk[ReversalTaken]) -> Answer:
        """The body names the movement; a key in a header is this call's own."""
        tenant, number, original = ask.tenant, ask.path["cardNumber"], ask.taken.original
        cause = ledgers.cause(ask, ask.taken.reason)
        named = ask.named([giftcards.normalise(number), original])
        answered = await self.database.transaction(
            lambda session: idempotency.once(
                session,
                named,
                lambda: ledgers.told(
                    _reversal(giftcards.reverse(session, tenant, number, cause, **original))
                ),
            ),
            tenant=tenant.id,
            deadline=ledgers.deadline(ask),
        )
        return ledgers.again(answered)


async def _reversal(reversing: Awaitable[Movement]) -> CardReversalGiven:
    movement = await reversing
    return CardReversalGiven(
        reversed=not movement.tombstoned,
        tombstoned=movement.tombstoned,
        new_balance=movement.after,
        remaining_balance=movement.after,
        transaction_id=str(movement.transaction_id),
    )


def _sold(movement: Movement, card: Card) -> CardGiven:
    """A card as it was when it was sold; but who bought it, and for whom, as it is known now."""
    return CardGiven(
        card_number=card.number,
        balance=movement.after,
        initial_balance=movement.amount,
        status="active",
        expiry_date=_moment(movement.expiry_date),
        purchased_by=card.purchased_by,
        recipient_name=card.recipient_name,
        recipient_email=card.recipient_email,
        order_id=movement.order_id,
        created_at=timestamp(movement.created_at),
        transaction_id=str(movement.transaction_id),
    )


def _expiry(ask: TenantAsk[SaleTaken]) -> datetime | None:
    """The last instant at which a card is valid; a day is one of the shop's."""
    written = ledgers.sent(ask.taken.expiry_date)
    try:
        read = readings.deadline(written, zone(ask.tenant.timezone)) if written else None
    except readings.Unreadable:
        raise BadRequest(
            "expiryDate is neither a time nor a day.",
            code="invalid_field",
            details={"field": "expiryDate"},
        ) from None
    return None if read is None else datetime.fromisoformat(read)


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)
