"""Movements of points under the shop's rules: whether points are enabled, and how many can be redeemed.

The statement of each movement reads the rules, so a change takes effect at once. These functions make the
movement first and then check the rules; the transaction rolls back a forbidden movement. In this order a
repeated call gets its first answer, even if the rules have changed since.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Final

from posd.database.reconnecting import Executor, Querier
from posd.errors import Unprocessable
from posd.store import loyalty
from posd.store.ledgers import MovementCause
from posd.store.loyalty import RULES, DailyLimit, LoyaltyRules, PointsMovement
from posd.values import Tenant

_READ: Final = f"SELECT {RULES} FROM dinedesk_main.tenants AS t WHERE t.id = %s"

Moving = Callable[[Executor, Tenant, str, object, MovementCause], Awaitable[PointsMovement]]
"""`add_points` or `redeem_points`."""


async def load_rules(executor: Querier, tenant: Tenant) -> LoyaltyRules:
    """Return a tenant's rules.

    For a deleted tenant, return rules that disable points. It has no ledger either.
    """
    rows = await executor.query(_READ, (tenant.id,))
    return (
        LoyaltyRules(*rows[0]) if rows else LoyaltyRules(False, False, Decimal(0), Decimal(0), 1, 1)
    )


async def add_points(
    executor: Executor,
    tenant: Tenant,
    phone: str,
    points: object,
    cause: MovementCause,
    limit: DailyLimit | None = None,
) -> PointsMovement:
    """Like `loyalty.add_by_rules`, in a transaction; check the rules and the daily limit.

    Also raises `Unprocessable` (`loyalty_disabled`) and `TooManyRequests` (`too_many_points`).
    """
    movement, rules = await loyalty.add_by_rules(executor, tenant, phone, points, cause)
    if not movement.replayed:
        _check_enabled(rules)
        if limit is not None:
            await loyalty.count_towards_limit(executor, tenant, movement.points, limit)
    return movement


async def redeem_points(
    executor: Executor, tenant: Tenant, phone: str, points: object, cause: MovementCause
) -> PointsMovement:
    """Like `loyalty.redeem`, in a transaction; check the rules.

    Also raises `Unprocessable` (`loyalty_disabled`, `invalid_amount`).
    """
    movement, rules = await loyalty.redeem_by_rules(executor, tenant, phone, points, cause)
    if not movement.replayed:
        _check_enabled(rules)
        _check_redeemable(rules, -movement.points)
    return movement


def _check_enabled(rules: LoyaltyRules) -> None:
    if not rules.enabled:
        raise Unprocessable("This shop has no loyalty points.", code="loyalty_disabled")


def _check_redeemable(rules: LoyaltyRules, points: int) -> None:
    if points < rules.minimum_redeem:
        what = f"must be {rules.minimum_redeem} or more"
    elif points % rules.increment:
        what = f"must be a multiple of {rules.increment}"
    else:
        return
    raise Unprocessable(f"points {what}.", code="invalid_amount", details={"field": "points"})
