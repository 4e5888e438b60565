"""A shop's rules about points: who may have any, how many are redeemed at once, what they are worth.

They are read by the statement of each movement, so a change of them counts at once. A movement is made
first and judged afterwards, and rolled back with its transaction if it may not be: a call that is made
again has to be answered as before, whatever the rules are by then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Final

from posd.database.link import Reader, Session
from posd.errors import Unprocessable
from posd.store import loyalty
from posd.store.ledgers import Cause
from posd.store.loyalty import RULES, DailyLimit, Movement, Rules
from posd.values import Tenant

_READ: Final = f"SELECT {RULES} FROM dinedesk_main.tenants AS t WHERE t.id = %s"

Moving = Callable[[Session, Tenant, str, object, Cause], Awaitable[Movement]]
"""`add` or `redeem`."""


async def read(session: Reader, tenant: Tenant) -> Rules:
    """A tenant's rules. One that was deleted meanwhile has no ledger either, so it does not matter."""
    rows = await session.query(_READ, (tenant.id,))
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
    movement, rules = await loyalty.add_by_rules(session, tenant, phone, points, cause)
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
    movement, rules = await loyalty.redeem_by_rules(session, tenant, phone, points, cause)
    if not movement.replayed:
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
