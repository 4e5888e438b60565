"""Loyalty points by REST: read the points of a customer, add, redeem, reverse a movement.

A telephone number in any spelling names the customer (`posd.events.phones`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final

from attrs import define, field

from posd.database.keyed_coalescing import KeyedCoalescer
from posd.database.pool import Pool
from posd.events import phones
from posd.events.timezones import zone
from posd.protocol.json_literals import timestamp
from posd.store import idempotency, loyalty, loyalty_accounts, loyalty_rules
from posd.store.loyalty import DailyLimit, LoyaltyRules, PointsMovement
from posd.store.loyalty_accounts import LoyaltyAccount, PointsTransaction
from posd.store.loyalty_rules import Moving
from posd.values import KeyKind, Tenant
from posd.web.api import ledgers
from posd.web.api.ledgers import (
    BAD_KEY,
    LONG_ORDER,
    MISMATCH,
    NO_LEDGER,
    REVERSAL_REFUSALS,
    REVERSED,
    TOO_MUCH,
    ReversalRequest,
)
from posd.web.api.loyalty_models import (
    AdditionResponse,
    InsufficientPoints,
    LoyaltyStandingData,
    LoyaltyStandingResponse,
    PointsAddition,
    PointsPerDay,
    PointsRedemption,
    PointsRequest,
    PointsReversalResponse,
    RedemptionResponse,
    SettingsResponse,
    TransactionEntry,
    UnknownCustomer,
)
from posd.web.http.operations import LEDGERS, DeclaredError, Operation, TenantRequest
from posd.web.http.responses import Response

UNKNOWN: Final = DeclaredError(404, "unknown_customer", "No customer has this number.")
INVALID_PHONE: Final = DeclaredError(422, "invalid_phone", "This is not a telephone number.")
INVALID_POINTS: Final = DeclaredError(
    422,
    "invalid_amount",
    "The number of points is not an integer above zero, or exceeds the maximum of a "
    "movement or an account.",
)
INSUFFICIENT: Final = DeclaredError(
    400, "insufficient_points", "The customer does not have enough points.", InsufficientPoints
)
DISABLED: Final = DeclaredError(
    422, "loyalty_disabled", "The loyalty programme of the shop is disabled."
)


AccountAndRules = tuple[LoyaltyAccount | None, LoyaltyRules]


@define(eq=False)
class LoyaltyEndpoints:
    """The endpoints. A till may add `points_per_day` points in a day of its shop."""

    database: Pool
    points_per_day: int
    _accounts: KeyedCoalescer[Tenant, str, AccountAndRules] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._accounts = KeyedCoalescer(self.database.clock, self._read)

    @property
    def operations(self) -> tuple[Operation, ...]:
        customer = "/api/{tenant}/loyalty/{phone}"
        either = (INVALID_PHONE, NO_LEDGER)
        moved = (*either, REVERSED, MISMATCH, BAD_KEY, LONG_ORDER, DISABLED)
        return (
            Operation(
                "GET",
                f"{customer}/points",
                self.points,
                "Read the points of a customer",
                LEDGERS,
                {200: LoyaltyStandingResponse},
                refusals=(DeclaredError(404, UNKNOWN.code, UNKNOWN.when, UnknownCustomer), *either),
                tag="Loyalty",
                description="The answer has the last ten movements, newest first. "
                "`totalSpent` is a figure of the shop.",
            ),
            Operation(
                "POST",
                f"{customer}/add",
                self.add,
                "Add points to a customer",
                LEDGERS,
                {200: AdditionResponse},
                PointsRequest,
                refusals=(
                    DeclaredError(
                        404,
                        UNKNOWN.code,
                        "No customer has this number, and the shop does not create "
                        "accounts automatically.",
                    ),
                    DeclaredError(409, "already_earned", "The order has already earned points."),
                    DeclaredError(
                        429,
                        "too_many_points",
                        "The till would exceed `limits.points_per_day_per_till` today.",
                        PointsPerDay,
                    ),
                    *(INVALID_POINTS, *moved),
                ),
                idempotent=True,
                tag="Loyalty",
                description="An order earns points once, with any key. posd creates an "
                "account for an unknown number, unless the shop has disabled "
                "this.",
                example={"points": 23, "orderId": "A-17", "reason": "order A-17"},
            ),
            Operation(
                "POST",
                f"{customer}/redeem",
                self.redeem,
                "Redeem points of a customer",
                LEDGERS,
                {200: RedemptionResponse},
                PointsRequest,
                refusals=(
                    *(INSUFFICIENT, UNKNOWN),
                    DeclaredError(
                        422,
                        INVALID_POINTS.code,
                        f"{INVALID_POINTS.when} It must also be a multiple of the increment of"
                        " the shop, and not below its minimum.",
                    ),
                    *moved,
                ),
                idempotent=True,
                tag="Loyalty",
                description="`discountAmount` is the value of the points at the time of the "
                "redemption.",
                example={"points": 100, "orderId": "A-17"},
            ),
            Operation(
                "POST",
                f"{customer}/reverse",
                self.reverse,
                "Reverse a movement of points",
                LEDGERS,
                {200: PointsReversalResponse},
                ReversalRequest,
                refusals=(*REVERSAL_REFUSALS, INVALID_PHONE, INSUFFICIENT, TOO_MUCH),
                idempotent=True,
                tag="Loyalty",
                description="The rules are those of gift cards. Points that the customer has "
                "spent since cannot be reversed.",
                example={"transactionId": "42"},
            ),
        )

    async def points(self, request: TenantRequest[None]) -> Response:
        """Read the points of a customer."""
        phone = _phone(request)
        # This request shares statements with others, so it needs no turn.
        request.http_request.release_turn()
        account, rules = await self._accounts.ask(request.tenant, phone)
        if account is None:
            raise ledgers.unknown_customer_error(phone)
        return ledgers.duplicated_under_data(LoyaltyStandingResponse, _standing(account, rules))

    async def _read(self, tenant: Tenant, numbers: Sequence[str]) -> Mapping[str, AccountAndRules]:
        """Return accounts by number, with the rules of the shop."""
        executor = self.database.of(tenant.id)
        found = await loyalty_accounts.find_accounts(executor, tenant, numbers)
        rules = await loyalty_rules.load_rules(executor, tenant)
        return {number: (found.get(number), rules) for number in numbers}

    async def add(self, request: TenantRequest[PointsRequest]) -> Response:
        """Add points, when a customer has paid at a till or in a web shop."""
        movement = await self._move(request, self._add_within_limit(request))
        data = PointsAddition(
            customer_id=str(movement.account_id),
            previous_points=movement.before,
            points_added=movement.points,
            new_points=movement.after,
            transaction_id=str(movement.transaction_id),
        )
        return ledgers.duplicated_under_data(AdditionResponse, data, replayed=movement.replayed)

    def _add_within_limit(self, request: TenantRequest[Any]) -> Moving:
        """Return the function that adds points. For a till it has a daily limit."""
        limit_scope = _limit_scope(request)
        if limit_scope is None:
            return loyalty_rules.add_points
        offset = datetime.now(zone(request.tenant.timezone)).utcoffset() or timedelta()
        return partial(
            loyalty_rules.add_points, limit=DailyLimit(limit_scope, self.points_per_day, offset)
        )

    async def redeem(self, request: TenantRequest[PointsRequest]) -> Response:
        """Redeem points, when a customer pays with points."""
        movement = await self._move(request, loyalty_rules.redeem_points)
        data = PointsRedemption(
            previous_points=movement.before,
            points_redeemed=-movement.points,
            new_points=movement.after,
            remaining_points=movement.after,
            discount_amount=movement.discount or Decimal(),
            transaction_id=str(movement.transaction_id),
        )
        return ledgers.duplicated_under_data(RedemptionResponse, data, replayed=movement.replayed)

    async def reverse(self, request: TenantRequest[ReversalRequest]) -> Response:
        """Reverse the movement that the body names. A key in a header belongs to this call."""
        tenant, phone, original = request.tenant, _phone(request), request.arguments.original
        movement_cause = ledgers.movement_cause(request, request.arguments.reason)
        idempotency_key = request.idempotency_key([phone, original])
        answered = await self.database.transaction(
            lambda executor: idempotency.run_once(
                executor,
                idempotency_key,
                lambda: ledgers.as_stored(
                    _reversal(loyalty.reverse(executor, tenant, phone, movement_cause, **original))
                ),
            ),
            tenant=tenant.id,
            deadline=ledgers.deadline(request),
        )
        return ledgers.from_stored(answered)

    async def _move(self, request: TenantRequest[PointsRequest], move: Moving) -> PointsMovement:
        tenant, phone, points = request.tenant, _phone(request), request.arguments.points
        movement_cause = ledgers.movement_cause(
            request, request.arguments.reason, key=ledgers.requested_key(request)
        )
        return await self.database.transaction(
            lambda executor: move(executor, tenant, phone, points, movement_cause),
            tenant=tenant.id,
            deadline=ledgers.deadline(request),
        )


async def _reversal(reversing: Awaitable[PointsMovement]) -> PointsReversalResponse:
    movement = await reversing
    return PointsReversalResponse(
        reversed=not movement.tombstoned,
        tombstoned=movement.tombstoned,
        new_points=movement.after,
        remaining_points=movement.after,
        transaction_id=str(movement.transaction_id),
    )


def _limit_scope(request: TenantRequest[Any]) -> str | None:
    """Return the scope of the daily limit of points; None for a platform, which has no limit.

    A device key identifies a till. With a tenant's key a till can send any name, so all points that are added
    with this key count together.
    """
    principal = request.principal
    if principal.kind is KeyKind.DEVICE:
        return f"device {principal.device_id}"
    return f"key {principal.key_id}" if principal.kind is KeyKind.TENANT else None


def _phone(request: TenantRequest[Any]) -> str:
    """Return the normalised telephone number in the path."""
    return phones.normalise(request.path["phone"], request.tenant.default_region)


def _standing(account: LoyaltyAccount, rules: LoyaltyRules) -> LoyaltyStandingData:
    return LoyaltyStandingData(
        customer_id=str(account.id),
        phone=account.phone,
        customer_phone=account.phone,
        name=account.name,
        customer_name=account.name,
        email=account.email,
        member_since=timestamp(account.member_since),
        loyalty_points=account.points,
        points=account.points,
        total_spent=account.total_spent,
        recent_transactions=[_transaction(each) for each in account.recent],
        settings=SettingsResponse(
            enabled=rules.enabled,
            points_per_pound=rules.points_per_pound,
            redemption_rate=rules.redemption_rate,
            minimum_redeem=rules.minimum_redeem,
            increment=rules.increment,
        ),
    )


def _transaction(movement: PointsTransaction) -> TransactionEntry:
    return TransactionEntry(
        transaction_id=str(movement.transaction_id),
        type=movement.type,
        points=movement.points,
        balance=movement.after,
        order_id=movement.order_id,
        reason=movement.reason,
        created_at=timestamp(movement.created_at),
    )
