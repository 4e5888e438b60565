"""What the calls about loyalty points take and give, as types."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from posd.web.api.ledgers import MovementTaken, Remark, ReversalGiven, TransactionId
from posd.web.http.models import UNSET, Given, Moment, Points, Unset


class PointsTaken(MovementTaken, frozen=True, kw_only=True):
    """How many points are moved, and why."""

    points: Points
    reason: Remark | Unset | None = UNSET


class TransactionGiven(Given, frozen=True):
    """A movement in a customer's list: `points` has its sign, `balance` is what there was after it."""

    transaction_id: TransactionId
    type: str
    points: int
    balance: int
    order_id: str | None
    reason: str | None
    created_at: Moment


class SettingsGiven(Given, frozen=True):
    """A shop's rules: what a point is worth, and how many may be redeemed at once."""

    enabled: bool
    points_per_pound: Decimal
    redemption_rate: Decimal
    minimum_redeem: int
    increment: int


class Standing(Given, frozen=True):
    """What a customer has. `loyaltyPoints` and `points` are one value, so are the two phones."""

    customer_id: str
    phone: str
    customer_phone: str
    name: str | None
    loyalty_points: int
    points: int
    total_spent: Decimal
    recent_transactions: list[TransactionGiven]
    settings: SettingsGiven


class StandingData(Standing, frozen=True):
    """The same, with what platforms call it besides."""

    customer_name: str | None
    email: str | None
    member_since: Moment


class StandingGiven(Standing, frozen=True, kw_only=True):
    """What a customer has."""

    success: Literal[True] = True
    data: StandingData


class Addition(Given, frozen=True):
    """What was added."""

    customer_id: str
    previous_points: int
    points_added: int
    new_points: int
    transaction_id: TransactionId


class AdditionGiven(Addition, frozen=True, kw_only=True):
    """What was added."""

    success: Literal[True] = True
    data: Addition


class Redemption(Given, frozen=True):
    """What was redeemed, and what it is worth. `newPoints` and `remainingPoints` are one value."""

    previous_points: int
    points_redeemed: int
    new_points: int
    remaining_points: int
    discount_amount: Decimal
    transaction_id: TransactionId


class RedemptionGiven(Redemption, frozen=True, kw_only=True):
    """What was redeemed."""

    success: Literal[True] = True
    data: Redemption


class PointsReversalGiven(ReversalGiven, frozen=True, kw_only=True):
    """What became of a reversal, and what there is after it. Both numbers of points are one value."""

    new_points: int
    remaining_points: int


class NewCustomer(Given, frozen=True):
    """Nobody yet."""

    phone: str
    points: Literal[0]
    is_new_customer: Literal[True]


class UnknownCustomer(Given, frozen=True):
    """Said so that deployed platforms can go on."""

    data: NewCustomer


class PointsPerDay(Given, frozen=True):
    """What a till may add in a day."""

    points_per_day: int


class InsufficientPoints(Given, frozen=True):
    """What there is."""

    current_points: int
