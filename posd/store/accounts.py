"""The stored telephone numbers of loyalty accounts, for the commands that normalise them."""

from __future__ import annotations

from typing import Final

from posd.database.reconnecting import Querier
from posd.store import schema
from posd.values import Tenant

# A shop may have its own table of this name. The owner tells the tables apart.
_IS_OURS: Final = """
    SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                    WHERE n.nspname = %s AND c.relname = 'loyalty_accounts'
                      AND c.relowner = 'posd_owner'::regrole)
"""
_NUMBERS: Final = """
    SELECT a.id, a.phone FROM {schema}.loyalty_accounts AS a
     WHERE a.phone IS NOT NULL AND a.id > %s ORDER BY a.id LIMIT %s
"""


async def has_accounts(executor: Querier, tenant: Tenant) -> bool:
    """Return True if the tenant's table `loyalty_accounts` belongs to posd."""
    return bool((await executor.query(_IS_OURS, (tenant.schema,)))[0][0])


async def phone_numbers(
    executor: Querier, tenant: Tenant, after: int, most: int
) -> list[tuple[int, str]]:
    """Return up to `most` pairs of account id and telephone number with ids above `after`, by id."""
    rows = await executor.query(_NUMBERS.format(schema=schema(tenant)), (after, most))
    return [(account, phone) for account, phone in rows]
