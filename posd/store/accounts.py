"""The telephone numbers of loyalty accounts, as they are stored."""

from __future__ import annotations

from typing import Final

from posd.database.reconnecting import Querier
from posd.store import schema
from posd.values import Tenant

# A shop's own table of this name is none of posd's.
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
    """Whether posd keeps the accounts of a tenant."""
    return bool((await executor.query(_IS_OURS, (tenant.schema,)))[0][0])


async def phone_numbers(
    executor: Querier, tenant: Tenant, after: int, most: int
) -> list[tuple[int, str]]:
    """The ids and numbers of the accounts after an id, in order, up to `most`."""
    rows = await executor.query(_NUMBERS.format(schema=schema(tenant)), (after, most))
    return [(account, phone) for account, phone in rows]
