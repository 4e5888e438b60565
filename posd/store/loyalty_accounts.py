"""Customers' accounts of loyalty points: the customer, the balance and the latest movements."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final

from attrs import frozen

from posd.database.reconnecting import Querier, Row
from posd.events import money
from posd.store import ledgers, shop
from posd.values import Tenant

_RECENT: Final = 10

_ACCOUNTS: Final = """
    SELECT (r.account).id, (r.account).phone, (r.account).customer_name, (r.account).email, r.points,
           r.earned, r.redeemed, (r.account).total_spent, (r.account).member_since,
           (r.movement).id, (r.movement).transaction_type, (r.movement).points, (r.movement).balance_after,
           (r.movement).order_id, (r.movement).reason, (r.movement).created_at
      FROM posd_hooks."points_read${shop}"(%(phones)s::text[], %(recent)s) AS r
"""


@frozen
class PointsTransaction:
    """A movement in the list of a `LoyaltyAccount`."""

    transaction_id: int
    type: str
    points: int
    after: int
    order_id: str | None
    reason: str | None
    created_at: datetime


@frozen
class LoyaltyAccount:
    """The present state of a customer's account.

    `total_earned` and `total_redeemed` do not count reversed movements. `total_spent` is maintained by the
    shop. `recent` has the latest movements, newest first.
    """

    id: int
    phone: str
    name: str | None
    email: str | None
    points: int
    total_earned: int
    total_redeemed: int
    total_spent: Decimal
    member_since: datetime
    recent: tuple[PointsTransaction, ...]


async def find_account(executor: Querier, tenant: Tenant, phone: str) -> LoyaltyAccount | None:
    """Return a customer's account with its last ten movements; None if there is none."""
    return (await find_accounts(executor, tenant, [phone])).get(phone)


async def find_accounts(
    executor: Querier, tenant: Tenant, phones: Sequence[str]
) -> dict[str, LoyaltyAccount]:
    """Return the accounts with these telephone numbers, by number. Unknown numbers are left out."""
    statement = _ACCOUNTS.format(shop=shop(tenant))
    found: dict[str, list[Row]] = {}
    for row in await ledgers.run(executor, statement, {"phones": [*phones], "recent": _RECENT}):
        found.setdefault(row[1], []).append(row)
    return {phone: _account(tenant, rows) for phone, rows in found.items()}


def _account(tenant: Tenant, rows: Sequence[Row]) -> LoyaltyAccount:
    """Build an account from its rows: one row per recent movement, or one row without a movement."""
    account_id, phone, name, email, points, earned, redeemed, spent, since = rows[0][:9]
    return LoyaltyAccount(
        id=account_id,
        phone=phone,
        name=name,
        email=email,
        points=points,
        total_earned=earned,
        total_redeemed=redeemed,
        total_spent=money.quantized(spent, tenant.currency),
        member_since=since,
        recent=tuple(PointsTransaction(*row[9:]) for row in rows if row[9] is not None),
    )
