"""What a movement on a ledger, or a card that was changed, tells the tills.

By a hook posd learns only which row it was; what the row says is read after the commit, and becomes an
event here. One event a movement, in their order. A reversal is told as what it does to the balance.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from decimal import Decimal
from typing import Final, cast

from posd.events import money
from posd.events import normalise as drafts
from posd.events.coercion import deadline
from posd.values import Draft

GIFT_CARD_MOVEMENT: Final = "gift_card_movement"
GIFT_CARD: Final = "gift_card"
LOYALTY_MOVEMENT: Final = "loyalty_movement"
KINDS: Final = frozenset((GIFT_CARD_MOVEMENT, GIFT_CARD, LOYALTY_MOVEMENT))
"""The `type` of an outbox row by which a hook says that a row of a ledger, or a card, was written."""

_SALES: Final = ("purchase", "activate")
_POINTS: Final = ("add", "redeem")
"""Tills know these two, and take everything else for a correction."""


def draft(kind: str, row: Mapping[str, object], currency: str) -> Draft:
    """The event of a row as `pos_movement_states()` gives it; `kind` is one of `KINDS`."""
    if kind == LOYALTY_MOVEMENT:
        return drafts.draft("loyalty_updated", _points(row))
    if kind == GIFT_CARD:
        return drafts.draft("gift_card_updated", _changed(row, currency))
    if row["type"] in _SALES:
        return drafts.draft("gift_card_purchased", _sold(row, currency))
    return drafts.draft("gift_card_updated", _moved(row, currency))


def _sold(row: Mapping[str, object], currency: str) -> dict[str, object]:
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


def _moved(row: Mapping[str, object], currency: str) -> dict[str, object]:
    return {
        "cardNumber": row["card_number"],
        "balance": _amount(row["balance"], currency),
        "change": _amount(row["amount"], currency),
        "transactionType": row["type"],
        "updatedAt": row["created_at"],
    }


def _changed(row: Mapping[str, object], currency: str) -> dict[str, object]:
    """A card that was blocked, unblocked, or given another expiry: no money has moved."""
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


def _points(row: Mapping[str, object]) -> dict[str, object]:
    return {
        "customerId": row["account_id"],
        "customerPhone": row["phone"],
        "pointsChange": row["points"],
        "newBalance": row["balance"],
        "transactionType": row["type"] if row["type"] in _POINTS else "adjust",
        "reason": row["reason"],
        "updatedAt": row["created_at"],
    }


def _amount(stored: object, currency: str) -> Decimal:
    return money.present(Decimal(cast("Decimal | int", stored)), currency)
