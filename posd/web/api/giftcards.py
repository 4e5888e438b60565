"""Gift cards by REST: read the balance, deduct an amount, sell a card, reverse a movement."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal

from attrs import define, field
from msgspec import Meta

from posd.database.keyed_coalescing import KeyedCoalescer
from posd.database.pool import Pool
from posd.errors import BadRequest, NotFound
from posd.events import coercion as readings
from posd.events.timezones import zone
from posd.protocol.json_literals import timestamp
from posd.store import giftcards, idempotency
from posd.store.card_movements import CardMovement
from posd.store.giftcards import CardDetails, GiftCard, Status
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
    MovementRequest,
    Remark,
    ReversalRequest,
    ReversalResponse,
    TransactionId,
)
from posd.web.http.models import (
    UNSET,
    Amount,
    Moment,
    ResponseModel,
    SuccessModel,
    Text,
    Unset,
    also_named,
)
from posd.web.http.operations import (
    LEDGERS,
    PLATFORMS,
    DeclaredError,
    Operation,
    TenantRequest,
    model_response,
)
from posd.web.http.responses import Response


class DeductionRequest(MovementRequest, frozen=True, kw_only=True):
    """The amount to deduct from a card, and the reason."""

    amount: Amount
    notes: Annotated[Remark, also_named("reference")] | Unset | None = UNSET


class SaleRequest(MovementRequest, frozen=True, kw_only=True):
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


class Balance(ResponseModel, frozen=True):
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


class BalanceResponse(Balance, frozen=True, kw_only=True):
    """The balance of a card."""

    success: Literal[True] = True
    data: BalanceData


class Deduction(ResponseModel, frozen=True):
    """A deduction from a card. `newBalance` and `remainingBalance` are equal."""

    previous_balance: Decimal
    amount_deducted: Decimal
    new_balance: Decimal
    remaining_balance: Decimal
    transaction_id: TransactionId


class DeductionResponse(Deduction, frozen=True, kw_only=True):
    """A deduction from a card."""

    success: Literal[True] = True
    data: Deduction


class CardResponse(SuccessModel, frozen=True):
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


class CardReversalResponse(ReversalResponse, frozen=True, kw_only=True):
    """The result of a reversal, and the balance of the card after it. Both balances are equal."""

    new_balance: Decimal
    remaining_balance: Decimal


class InsufficientBalance(ResponseModel, frozen=True):
    """The balance of the card."""

    current_balance: Decimal


UNKNOWN: Final = DeclaredError(404, "unknown_card", "There is no such card.")
INVALID_AMOUNT: Final = DeclaredError(
    422,
    "invalid_amount",
    "The amount is not a number above zero with at most the decimals of the currency. "
    "`field` names the member.",
)
INSUFFICIENT: Final = DeclaredError(
    400, "insufficient_balance", "The balance of the card is too low.", InsufficientBalance
)
BLOCKED: Final = DeclaredError(400, "card_blocked", "The card is blocked.")
EXPIRED: Final = DeclaredError(400, "card_expired", "The card has expired.")


@define(eq=False)
class GiftCardEndpoints:
    """The endpoints."""

    database: Pool
    _cards: KeyedCoalescer[Tenant, str, GiftCard | None] = field(init=False)
    _moves: CardMoves = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._cards = KeyedCoalescer(self.database.clock, self._read)
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
                {200: BalanceResponse},
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
                {200: DeductionResponse},
                DeductionRequest,
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
                {201: CardResponse},
                SaleRequest,
                refusals=(
                    DeclaredError(400, "card_expired", "`expiryDate` is in the past."),
                    BLOCKED,
                    DeclaredError(
                        409, "card_exists", "A card with this number has already been sold."
                    ),
                    DeclaredError(422, "invalid_card", "The card number is not valid."),
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
                {200: CardReversalResponse},
                ReversalRequest,
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

    async def balance(self, request: TenantRequest[None]) -> Response:
        """Read the balance of a card. The card is not locked, so the balance may change at any time."""
        number = giftcards.normalise(request.path["cardNumber"])
        # This request shares a statement with others, so it needs no turn.
        request.http_request.release_turn()
        card = None if number is None else await self._cards.ask(request.tenant, number)
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
        return ledgers.duplicated_under_data(BalanceResponse, data)

    async def _read(self, tenant: Tenant, numbers: Sequence[str]) -> Mapping[str, GiftCard | None]:
        found = await giftcards.balances(self.database.of(tenant.id), tenant, numbers)
        return {number: found.get(number) for number in numbers}

    async def deduct(self, request: TenantRequest[DeductionRequest]) -> Response:
        """Deduct an amount, when a customer pays with a card at a till or in a web shop."""
        movement_cause = ledgers.movement_cause(
            request, request.arguments.notes, key=ledgers.requested_key(request)
        )
        number, amount = request.path["cardNumber"], request.arguments.amount
        move = giftcards.deduction_request(request.tenant, number, amount, movement_cause)
        # This request shares a transaction with others, so it needs no turn.
        request.http_request.release_turn()
        movement = await self._moves.make(request.tenant, move, ledgers.deadline(request))
        data = Deduction(
            previous_balance=movement.before,
            amount_deducted=-movement.amount,
            new_balance=movement.after,
            remaining_balance=movement.after,
            transaction_id=str(movement.transaction_id),
        )
        return ledgers.duplicated_under_data(DeductionResponse, data, replayed=movement.replayed)

    async def sell(self, request: TenantRequest[SaleRequest]) -> Response:
        """Sell a card. A repeated call returns the card of the first call, even with a generated number."""
        tenant, arguments = request.tenant, request.arguments
        number = ledgers.unset_to_none(arguments.card_number)
        movement_cause = ledgers.movement_cause(request, None, key=ledgers.requested_key(request))
        details = CardDetails(
            ledgers.unset_to_none(arguments.purchased_by),
            ledgers.unset_to_none(arguments.recipient_name),
            ledgers.unset_to_none(arguments.recipient_email),
            _expiry_date(request),
        )
        movement, card = await self.database.transaction(
            lambda executor: giftcards.purchase_in_transaction(
                executor, tenant, number, arguments.amount, movement_cause, details
            ),
            tenant=tenant.id,
            deadline=ledgers.deadline(request),
        )
        return model_response(_card_response(movement, card), 201, replayed=movement.replayed)

    async def reverse(self, request: TenantRequest[ReversalRequest]) -> Response:
        """Reverse the movement that the body names. A key in a header belongs to this call."""
        tenant, number, original = (
            request.tenant,
            request.path["cardNumber"],
            request.arguments.original,
        )
        movement_cause = ledgers.movement_cause(request, request.arguments.reason)
        idempotency_key = request.idempotency_key([giftcards.normalise(number), original])
        answered = await self.database.transaction(
            lambda executor: idempotency.run_once(
                executor,
                idempotency_key,
                lambda: ledgers.as_stored(
                    _reversal(
                        giftcards.reverse(executor, tenant, number, movement_cause, **original)
                    )
                ),
            ),
            tenant=tenant.id,
            deadline=ledgers.deadline(request),
        )
        return ledgers.from_stored(answered)


async def _reversal(reversing: Awaitable[CardMovement]) -> CardReversalResponse:
    movement = await reversing
    return CardReversalResponse(
        reversed=not movement.tombstoned,
        tombstoned=movement.tombstoned,
        new_balance=movement.after,
        remaining_balance=movement.after,
        transaction_id=str(movement.transaction_id),
    )


def _card_response(movement: CardMovement, card: GiftCard) -> CardResponse:
    """Return a card in its state at the sale, with the present names of the buyer and the recipient."""
    return CardResponse(
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


def _expiry_date(request: TenantRequest[SaleRequest]) -> datetime | None:
    """Return the last instant at which a card is valid. A date is a day in the shop's time zone."""
    written = ledgers.unset_to_none(request.arguments.expiry_date)
    try:
        read = readings.deadline(written, zone(request.tenant.timezone)) if written else None
    except readings.NotCoercible:
        raise BadRequest(
            "expiryDate is neither a time nor a day.",
            code="invalid_field",
            details={"field": "expiryDate"},
        ) from None
    return None if read is None else datetime.fromisoformat(read)


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)
