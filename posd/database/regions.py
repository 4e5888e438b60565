"""Change the region in which a shop's telephone numbers are parsed. Blocking code for `posctl`.

A customer's account is stored with a number in E.164 form. A number that was typed without a country code has
the country code of the region. In another region the same digits are another number, and the customer's
account is not found. `change_region` returns these accounts.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen
from psycopg2.extensions import connection as Connection  # noqa: N812

from posd.database.migrations import MAIN, OWNER, administer, check_main, transaction
from posd.errors import SchemaError
from posd.events import phones
from posd.events.regions import region_of
from posd.values import Tenant

_TENANT: Final = (
    f"SELECT id, schema_name, default_region FROM {MAIN}.tenants WHERE slug = %s FOR UPDATE"
)
_CHANGE: Final = f"UPDATE {MAIN}.tenants SET default_region = %s WHERE id = %s"
# A table with this name that the shop owns is not a ledger of posd. It must not be read with the rights of
# this session, because that could run the shop's code.
_IS_OURS: Final = """
    SELECT EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname = %s AND c.relname = 'loyalty_accounts' AND c.relkind = 'r'
           AND pg_get_userbyid(c.relowner) = %s)
"""


@frozen
class RenumberedAccount:
    """An account whose number changes with the region.

    `phone` is the stored number, and `elsewhere` the number of the same typed digits in the new region.
    `merges`: an account with the number `elsewhere` exists, so one customer has two accounts.
    """

    phone: str
    elsewhere: str
    merges: bool


@frozen
class RegionChange:
    """The result of `change_region`. Customers no longer find `accounts`. `is_made`: the region was set."""

    before: str
    after: str
    accounts: tuple[RenumberedAccount, ...]
    is_made: bool


def region_country(tenant: Tenant) -> str | None:
    """Return the region of a tenant's time zone, or None if the zone belongs to no country."""
    return region_of(tenant.timezone)


def change_region(
    connection: Connection, slug: str, region: str | None, *, keep_accounts: bool = False
) -> RegionChange:
    """Set the region of a tenant.

    The region is not set if `region` is None, or if customers would no longer find their accounts and
    `keep_accounts` is False. Accounts and points are never changed. Raises `SchemaError` if there is no such
    tenant.
    """
    with administer(connection):
        check_main(connection)
        with transaction(connection) as cursor:
            cursor.execute(_TENANT, (slug,))
            row = cursor.fetchone()
            if row is None:
                raise SchemaError(f"there is no tenant {slug!r}")
            tenant_id, schema, before = row
            after = region or before
            accounts = _accounts(cursor, schema, before, after)
            is_changed = after != before and (keep_accounts or not accounts)
            if is_changed:
                cursor.execute(_CHANGE, (after, tenant_id))
    return RegionChange(before, after, accounts, is_changed)


def _accounts(cursor: Any, schema: str, before: str, after: str) -> tuple[RenumberedAccount, ...]:
    """Return the accounts whose number was probably typed without a country code."""
    cursor.execute(_IS_OURS, (schema, OWNER))
    if before == after or not cursor.fetchone()[0]:
        return ()
    cursor.execute(f"SELECT phone FROM {_quoted(schema)}.loyalty_accounts WHERE phone IS NOT NULL")
    known = {row[0] for row in cursor.fetchall()}
    found = []
    for phone in sorted(known):
        elsewhere = phones.reinterpret(phone, before, after)
        if elsewhere is not None and elsewhere != phone:
            found.append(RenumberedAccount(phone, elsewhere, elsewhere in known))
    return tuple(found)


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
