"""Loyalty accounts that no till finds, since a shop's SQL has written their number in another way than posd.

posd reads a number as it is typed, in the tenant's region, and looks for it in E.164. PostgreSQL cannot do
that, so the table takes what has the form of E.164: also `+4407700900123`, which is not how +447700900123 is
written.
"""

from __future__ import annotations

from typing import Final

from posd.database.reconnecting import Querier
from posd.errors import Unprocessable
from posd.events import phones
from posd.store import accounts
from posd.store.audit import BrokenRow, CheckOutcome
from posd.values import Tenant

_PAGE: Final = 5_000


async def unreachable_accounts(executor: Querier, tenant: Tenant, most: int) -> CheckOutcome:
    """The accounts whose number leads to another account, or to none; the first `most` of them by id."""
    if not await accounts.has_accounts(executor, tenant):
        return CheckOutcome()
    total, rows, last = 0, list[BrokenRow](), 0
    while page := await accounts.phone_numbers(executor, tenant, last, _PAGE):
        for account, phone in page:
            why = _number_fault(phone, tenant.default_region)
            if why is not None:
                total += 1
                if len(rows) < most:
                    rows.append(BrokenRow(f"loyalty_accounts id {account}", why))
        last = page[-1][0]
    return CheckOutcome(total, rows)


def _number_fault(phone: str, region: str) -> str | None:
    try:
        read = phones.normalise(phone, region)
    except Unprocessable:
        return "its number is no telephone number, so nobody who types one finds the account"
    return None if read == phone else "its number is written otherwise in E.164, so nobody finds it"
