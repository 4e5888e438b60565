"""A shop's rules about points: who may have any, how many are redeemed at once, what they are worth.

They are read in the transaction of each movement, so a change of them counts at once. A movement is made
first and judged afterwards, and rolled back with its transaction if it may not be: a call that is made
again has to be answered as before, whatever the rules are by then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Final

from attrs import frozen

from posd.database.link import Reader, Session
from posd.errors import Unprocessable
from posd.store import loyalty
from posd.store.ledgers import Cause
from posd.store.loyalty import DailyLimit, Movement
from posd.values import Tenant

_RULES: Final = """
    SELECT t.loyalty_enabled, t.loyalty_opens_accounts, t.loyalty_points_per_pound,
           t.loyalty_redemption_rate, t.loyalty_minimum_redeem, t.loyalty_increment
      FROM dinedesk_main.tenants AS t WHERE t.id = %s
"""

Moving = Callable[[Session, Tenant, str, object, Cause], Awaitable[Movement]]
"""`add` or `redeem`."""


@frozen
class Rules:
    """`redemption_rate` is what a point is worth, in the shop's currency.

    `points_per_pound` is how many points a till gives for a unit of that currency. `minimum_redeem` and
    `increment`: so many points at least are redeemed at once, and a multiple of so many.
    """

    enabled: bool
    opens_accounts: bool
    points_per_pound: Decimal
    redemption_rate: Decimal
    minimum_redeem: int
    increment: int


async def read(session: Reader, tenant: Tenant) -> Rules:
    """A tenant's rules. One that was deleted meanwhile has no ledger either, so it does not matter."""
    rows = await session.query(_RULES, (tenant.id,))
    return Rules(*rows[0]) if rows else Rules(False, False, Decimal(0), Decimal(0), 1, 1)


async def add(
    session: Session,
    tenant: Tenant,
    phone: str,
    points: object,
    cause: Cause,
    limit: DailyLimit | None = None,
) -> Movement:
    """As `loyalty.add`, under the rules, in a transaction.

    Raises `Unprocessable` (`loyalty_disabled`) and `TooManyRequests` (`too_many_points`) too.
    """
    rules = await read(session, tenant)
    joining = rules.enabled and rules.opens_accounts
    movement = await loyalty.add(session, tenant, phone, points, cause, joining=joining)
    if not movement.replayed:
        _check_enabled(rules)
        if limit is not None:
            await loyalty.count_given(session, tenant, movement.points, limit)
    return movement


async def redeem(
    session: Session, tenant: Tenant, phone: str, points: object, cause: Cause
) -> Movement:
    """As `loyalty.redeem`, under the rules, in a transaction.

    Raises `Unprocessable` (`loyalty_disabled`, `invalid_amount`) too.
    """
    movement = await loyalty.redeem(session, tenant, phone, points, cause)
    if not movement.replayed:
        rules = await read(session, tenant)
        _check_enabled(rules)
        _check_redeemable(rules, -movement.points)
    return movement


def _check_enabled(rules: Rules) -> None:
    if not rules.enabled:
        raise Unprocessable("This shop has no loyalty points.", code="loyalty_disabled")


def _check_redeemable(rules: Rules, points: int) -> None:
    if points < rules.minimum_redeem:
        what = f"must be {rules.minimum_redeem} or more"
    elif points % rules.increment:
        what = f"must be a multiple of {rules.increment}"
    else:
        return
    raise Unprocessable(f"points {what}.", code="invalid_amount", details={"field": "points"})
