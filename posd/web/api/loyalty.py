"""Loyalty points by REST: what a customer has, adding, redeeming, taking a movement back.

A customer is named by a telephone number, however it is written: see `posd.events.phones`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final

from attrs import define, field

from posd.database.gathering import Gathering
from posd.database.pool import Database
from posd.events import phones
from posd.events.timezones import zone
from posd.protocol.literals import timestamp
from posd.store import idempotency, loyalty, loyalty_accounts, loyalty_rules
from posd.store.loyalty import DailyLimit, Movement, Rules
from posd.store.loyalty_accounts import Account, Transaction
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
    ReversalTaken,
)
from posd.web.api.loyalty_models import (
    Addition,
    AdditionGiven,
    InsufficientPoints,
    PointsPerDay,
    PointsReversalGiven,
    PointsTaken,
    Redemption,
    RedemptionGiven,
    SettingsGiven,
    StandingData,
    StandingGiven,
    TransactionGiven,
    UnknownCustomer,
)
from posd.web.http.operations import LEDGERS, Operation, Refused, TenantAsk
from posd.web.http.requests import Answer

UNKNOWN: Final = Refused(404, "unknown_customer", "No customer has this number.")
INVALID_PHONE: Final = Refused(422, "invalid_phone", "This is not a telephone number.")
INVALID_POINTS: Final = Refused(
    422,
    "invalid_amount",
    "The number of points is not an integer above zero, or exceeds the maximum of a "
    "movement or an account.",
)
INSUFFICIENT: Final = Refused(
    400, "insufficient_points", "The customer does not have enough points.", InsufficientPoints
)
DISABLED: Final = Refused(422, "loyalty_disabled", "The loyalty programme of the shop is disabled.")


Standing = tuple[Account | None, Rules]


@define(eq=False)
class LoyaltyPoints:
    """The endpoints. A till may add `points_per_day` points in a day of its shop."""

    database: Database
    points_per_day: int
    _accounts: Gathering[Tenant, str, Standing] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._accounts = Gathering(self.database.clock, self._read)

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
                {200: StandingGiven},
                refusals=(Refused(404, UNKNOWN.code, UNKNOWN.when, UnknownCustomer), *either),
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
                {200: AdditionGiven},
                PointsTaken,
                refusals=(
                    Refused(
                        404,
                        UNKNOWN.code,
                        "No customer has this number, and the shop does not create "
                        "accounts automatically.",
                    ),
                    Refused(409, "already_earned", "The order has already earned points."),
                    Refused(
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
                {200: RedemptionGiven},
                PointsTaken,
                refusals=(
                    *(INSUFFICIENT, UNKNOWN),
                    Refused(
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
                {200: PointsReversalGiven},
                ReversalTaken,
                refusals=(*REVERSAL_REFUSALS, INVALID_PHONE, INSUFFICIENT, TOO_MUCH),
                idempotent=True,
                tag="Loyalty",
                description="The rules are those of gift cards. Points that the customer has "
                "spent since cannot be reversed.",
                example={"transactionId": "42"},
            ),
        )

    async def points(self, ask: TenantAsk[None]) -> Answer:
        """What a customer has, and what it is worth."""
        phone = _phone(ask)
        # It waits for what others wait for too.
        ask.call.give_turn()
        account, rules = await self._accounts.ask(ask.tenant, phone)
        if account is None:
            raise ledgers.unknown_customer(phone)
        return ledgers.twice(StandingGiven, _standing(account, rules))

    async def _read(self, tenant: Tenant, numbers: Sequence[str]) -> Mapping[str, Standing]:
        """Customers' accounts, and the rules that they are under."""
        session = self.database.of(tenant.id)
        found = await loyalty_accounts.accounts(session, tenant, numbers)
        rules = await loyalty_rules.read(session, tenant)
        return {number: (found.get(number), rules) for number in numbers}

    async def add(self, ask: TenantAsk[PointsTaken]) -> Answer:
        """What a till or a web shop does when somebody has paid."""
        movement = await self._move(ask, self._add_within_limit(ask))
        data = Addition(
            customer_id=str(movement.account_id),
            previous_points=movement.before,
            points_added=movement.points,
            new_points=movement.after,
            transaction_id=str(movement.transaction_id),
        )
        return ledgers.twice(AdditionGiven, data, replayed=movement.replayed)

    def _add_within_limit(self, ask: TenantAsk[Any]) -> Moving:
        """Add points, and count them where a till does."""

        giver = _giver(ask)
        if giver is None:
            return loyalty_rules.add
        offset = datetime.now(zone(ask.tenant.timezone)).utcoffset() or timedelta()
        return partial(loyalty_rules.add, limit=DailyLimit(giver, self.points_per_day, offset))

    async def redeem(self, ask: TenantAsk[PointsTaken]) -> Answer:
        """What a till or a web shop does when somebody pays with points."""
        movement = await self._move(ask, loyalty_rules.redeem)
        data = Redemption(
            previous_points=movement.before,
            points_redeemed=-movement.points,
            new_points=movement.after,
            remaining_points=movement.after,
            discount_amount=movement.discount or Decimal(),
            transaction_id=str(movement.transaction_id),
        )
        return ledgers.twice(RedemptionGiven, data, replayed=movement.replayed)

    async def reverse(self, ask: TenantAsk[ReversalTaken]) -> Answer:
        """The body names the movement; a key in a header is this call's own."""
        tenant, phone, original = ask.tenant, _phone(ask), ask.taken.original
        cause = ledgers.cause(ask, ask.taken.reason)
        named = ask.named([phone, original])
        answered = await self.database.transaction(
            lambda session: idempotency.once(
                session,
                named,
                lambda: ledgers.told(
                    _reversal(loyalty.reverse(session, tenant, phone, cause, **original))
                ),
            ),
            tenant=tenant.id,
            deadline=ledgers.deadline(ask),
        )
        return ledgers.again(answered)

    async def _move(self, ask: TenantAsk[PointsTaken], move: Moving) -> Movement:
        tenant, phone, points = ask.tenant, _phone(ask), ask.taken.points
        cause = ledgers.cause(ask, ask.taken.reason, key=ledgers.key_of(ask))
        return await self.database.transaction(
            lambda session: move(session, tenant, phone, points, cause),
            tenant=tenant.id,
            deadline=ledgers.deadline(ask),
        )


async def _reversal(reversing: Awaitable[Movement]) -> PointsReversalGiven:
    movement = await reversing
    return PointsReversalGiven(
        reversed=not movement.tombstoned,
        tombstoned=movement.tombstoned,
        new_points=movement.after,
        remaining_points=movement.after,
        transaction_id=str(movement.transaction_id),
    )


def _giver(ask: TenantAsk[Any]) -> str | None:
    """For whom added points are counted; None for a platform.

    A device's key proves which till it is. Behind a tenant's key a till can call itself anything, so
    all that comes with that key is counted together.
    """
    principal = ask.principal
    if principal.kind is KeyKind.DEVICE:
        return f"device {principal.device_id}"
    return f"key {principal.key_id}" if principal.kind is KeyKind.TENANT else None


def _phone(ask: TenantAsk[Any]) -> str:
    """The number in the path, as customers are named."""
    return phones.normalise(ask.path["phone"], ask.tenant.default_region)


def _standing(account: Account, rules: Rules) -> StandingData:
    return StandingData(
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
        settings=SettingsGiven(
            enabled=rules.enabled,
            points_per_pound=rules.points_per_pound,
            redemption_rate=rules.redemption_rate,
            minimum_redeem=rules.minimum_redeem,
            increment=rules.increment,
        ),
    )


def _transaction(movement: Transaction) -> TransactionGiven:
    return TransactionGiven(
        transaction_id=str(movement.transaction_id),
        type=movement.type,
        points=movement.points,
        balance=movement.after,
        order_id=movement.order_id,
        reason=movement.reason,
        created_at=timestamp(movement.created_at),
    )
