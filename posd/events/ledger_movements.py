"""Makes events of movements of ledgers, and of changes of gift cards.

A hook notes only which row was written. The sequencer reads the row after the commit, and this module makes
one event of each row, in the order of the rows. The event of a reversal has the change of the balance.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from decimal import Decimal
from typing import Final, cast

from posd.events import money, normalise
from posd.events.coercion import deadline
from posd.values import EventDraft

GIFT_CARD_MOVEMENT: Final = "gift_card_movement"
GIFT_CARD: Final = "gift_card"
LOYALTY_MOVEMENT: Final = "loyalty_movement"
KINDS: Final = frozenset((GIFT_CARD_MOVEMENT, GIFT_CARD, LOYALTY_MOVEMENT))
"""The `type` of an outbox row that a hook has written for a row of a ledger, or for a gift card."""

_SALE_TYPES: Final = ("purchase", "activate")
_POINTS_TYPES: Final = ("add", "redeem")
"""The types that tills know. They treat all others as corrections."""


def draft(kind: str, row: Mapping[str, object], currency: str) -> EventDraft:
    """Return the event for a row of `pos_movement_states()`. `kind` is one of `KINDS`."""
    if kind == LOYALTY_MOVEMENT:
        return normalise.draft("loyalty_updated", _points_movement(row))
    if kind == GIFT_CARD:
        return normalise.draft("gift_card_updated", _card_changed(row, currency))
    if row["type"] in _SALE_TYPES:
        return normalise.draft("gift_card_purchased", _card_sold(row, currency))
    return normalise.draft("gift_card_updated", _card_movement(row, currency))


def _card_sold(row: Mapping[str, object], currency: str) -> dict[str, object]:
    return {
        "cardNumber": row["card_number"],
        "initialBalance": _amount(row["amount"], currency),
        "currentBalance": _amount(row["balance"], currency),
        "purchasedBy": row["purchased_by"],
        "recipientName": row["recipient_name"],
        "recipientEmail": row["recipient_email"],
        "expiryDate": row["expiry_date"],
        "purchasedAt": row["created_at"],
    }


def _card_movement(row: Mapping[str, object], currency: str) -> dict[str, object]:
    return {
        "cardNumber": row["card_number"],
        "balance": _amount(row["balance"], currency),
        "change": _amount(row["amount"], currency),
        "transactionType": row["type"],
        "updatedAt": row["created_at"],
    }


def _card_changed(row: Mapping[str, object], currency: str) -> dict[str, object]:
    """Return the data for a card whose status or expiry date was changed. The balance is unchanged."""
    expiry = row["expiry_date"]
    return {
        "cardNumber": row["card_number"],
        "balance": _amount(row["balance"], currency),
        "change": _amount(Decimal(), currency),
        "transactionType": "status",
        "updatedAt": row["now"],
        "status": row["status"],
        "expiryDate": expiry and deadline(expiry, UTC),
    }


def _points_movement(row: Mapping[str, object]) -> dict[str, object]:
    return {
        "customerId": row["account_id"],
        "customerPhone": row["phone"],
        "pointsChange": row["points"],
        "newBalance": row["balance"],
        "transactionType": row["type"] if row["type"] in _POINTS_TYPES else "adjust",
        "reason": row["reason"],
        "updatedAt": row["created_at"],
    }


def _amount(stored: object, currency: str) -> Decimal:
    return money.quantized(Decimal(cast("Decimal | int", stored)), currency)
