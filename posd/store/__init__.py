"""All SQL statements of the daemon, and the functions that load their rows: one module per aggregate.

The first argument of a function is the executor that runs the statement, so the caller chooses between
the pool, a dedicated connection and a transaction. Only two names are inserted into statements as text:
the quoted schema of a tenant, and the suffix of the tenant's functions in `posd_hooks`. Decisions about
rows belong in the packages that call these functions.
"""

from __future__ import annotations

from posd.values import Tenant


def schema(tenant: Tenant) -> str:
    """Return the tenant's schema as a quoted SQL identifier."""
    return '"' + tenant.schema.replace('"', '""') + '"'


def shop(tenant: Tenant) -> str:
    """Return the suffix of the tenant's functions, to stand in quotes: `posd_hooks."card_move${shop}"`."""
    return tenant.schema.removeprefix("dinedesk_").replace('"', '""')
