"""Change the region in which a shop's telephone numbers are read. Blocking code for `posctl`.

A customer's account is stored under a number in E.164. A number that was typed without a country code got
that of the region. Under another region the same digits mean another number, and the customer does not
find the account. `change_region` names the accounts of which that is so.
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
# A shop's own table of this name is none of posd's ledgers, and is not read with these rights.
_IS_OURS: Final = """
    SELECT EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname = %s AND c.relname = 'loyalty_accounts' AND c.relkind = 'r'
           AND pg_get_userbyid(c.relowner) = %s)
"""


@frozen
class RenumberedAccount:
    """An account's number as it is stored, and what the digits that were typed mean in the new region.

    `merges`: there is an account of that other number already, so one customer has two.
    """

    phone: str
    elsewhere: str
    merges: bool


@frozen
class RegionChange:
    """A change of region that was made, or was not: `accounts` are those that customers leave behind."""

    before: str
    after: str
    accounts: tuple[RenumberedAccount, ...]
    is_made: bool


def region_country(tenant: Tenant) -> str | None:
    """Return the region of a tenant's time zone; None where the zone is of no country."""
    return region_of(tenant.timezone)


def change_region(
    connection: Connection, slug: str, region: str | None, *, keep_accounts: bool = False
) -> RegionChange:
    """Set the region of a tenant, or only compare: where it is None, or accounts would be left behind.

    With `keep_accounts` it is set all the same; no account and no points are changed. Raises
    `SchemaError` if there is no such tenant.
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
    """The accounts whose number was, as far as can be told, typed without a country code."""
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
