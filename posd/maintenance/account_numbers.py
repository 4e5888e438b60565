"""Find loyalty accounts that no till can find, because a shop's SQL stored their number in another form.

posd parses a typed number in the tenant's region and looks the account up by its E.164 form. PostgreSQL
cannot parse telephone numbers. The table's constraint therefore accepts every text that looks like E.164,
also `+4407700900123`, whose correct form is `+447700900123`.
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
    """Count the accounts that cannot be found by their number. Return the first `most` of them, by id."""
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
        return "its number is not a valid telephone number, so no till finds the account"
    return (
        None if read == phone else "its number is not in E.164 form, so no till finds the account"
    )
