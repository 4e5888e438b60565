"""The models of the requests and answers about loyalty points."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from posd.web.api.ledgers import MovementRequest, Remark, ReversalResponse, TransactionId
from posd.web.http.models import UNSET, Moment, Points, ResponseModel, Unset


class PointsRequest(MovementRequest, frozen=True, kw_only=True):
    """The number of points to move, and the reason."""

    points: Points
    reason: Remark | Unset | None = UNSET


class TransactionEntry(ResponseModel, frozen=True):
    """A movement of points. `points` is signed, `balance` is the balance after the movement."""

    transaction_id: TransactionId
    type: str
    points: int
    balance: int
    order_id: str | None
    reason: str | None
    created_at: Moment


class SettingsResponse(ResponseModel, frozen=True):
    """The rules of a shop: the value of a point, and how many points can be redeemed at once."""

    enabled: bool
    points_per_pound: Decimal
    redemption_rate: Decimal
    minimum_redeem: int
    increment: int


class LoyaltyStanding(ResponseModel, frozen=True):
    """The points of a customer. `loyaltyPoints` and `points` are equal, and so are the two phone
    numbers."""

    customer_id: str
    phone: str
    customer_phone: str
    name: str | None
    loyalty_points: int
    points: int
    total_spent: Decimal
    recent_transactions: list[TransactionEntry]
    settings: SettingsResponse


class LoyaltyStandingData(LoyaltyStanding, frozen=True):
    """The points of a customer, with the names that existing platforms read."""

    customer_name: str | None
    email: str | None
    member_since: Moment


class LoyaltyStandingResponse(LoyaltyStanding, frozen=True, kw_only=True):
    """The points of a customer."""

    success: Literal[True] = True
    data: LoyaltyStandingData


class PointsAddition(ResponseModel, frozen=True):
    """The points that were added."""

    customer_id: str
    previous_points: int
    points_added: int
    new_points: int
    transaction_id: TransactionId


class AdditionResponse(PointsAddition, frozen=True, kw_only=True):
    """The points that were added."""

    success: Literal[True] = True
    data: PointsAddition


class PointsRedemption(ResponseModel, frozen=True):
    """The points that were redeemed, and their value. `newPoints` and `remainingPoints` are equal."""

    previous_points: int
    points_redeemed: int
    new_points: int
    remaining_points: int
    discount_amount: Decimal
    transaction_id: TransactionId


class RedemptionResponse(PointsRedemption, frozen=True, kw_only=True):
    """The points that were redeemed, and their value."""

    success: Literal[True] = True
    data: PointsRedemption


class PointsReversalResponse(ReversalResponse, frozen=True, kw_only=True):
    """The result of a reversal, and the points after it. Both numbers of points are equal."""

    new_points: int
    remaining_points: int


class NewCustomer(ResponseModel, frozen=True):
    """A telephone number without an account."""

    phone: str
    points: Literal[0]
    is_new_customer: Literal[True]


class UnknownCustomer(ResponseModel, frozen=True):
    """The answer for an unknown customer. Existing platforms read `data`."""

    data: NewCustomer


class PointsPerDay(ResponseModel, frozen=True):
    """The maximum number of points that a till can add in a day."""

    points_per_day: int


class InsufficientPoints(ResponseModel, frozen=True):
    """The points of the customer."""

    current_points: int
