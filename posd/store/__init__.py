"""Every SQL statement of the daemon and the loader of its rows, one module for each aggregate.

The first argument of a function is the executor that runs the statement, so that the caller chooses
between the pool, a dedicated connection and a transaction. Two names are put into statements as text:
the quoted schema of a tenant, and the suffix of the tenant's functions in `posd_hooks`. Decisions about
rows belong in the packages that call these functions.
"""

from __future__ import annotations

from posd.values import Tenant


def schema(tenant: Tenant) -> str:
    """The tenant's schema as an SQL identifier."""
    return '"' + tenant.schema.replace('"', '""') + '"'


def shop(tenant: Tenant) -> str:
    """What the names of the tenant's functions end in, for use in quotes: `posd_hooks."card_move${shop}"`."""
    return tenant.schema.removeprefix("dinedesk_").replace('"', '""')
