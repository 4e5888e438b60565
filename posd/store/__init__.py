"""Every SQL statement of the daemon and the loader of its rows, one module per aggregate.

Functions take the `Session` they run on first, so that the caller decides about pool, dedicated
link or transaction. The only names that are put into a statement as text are a tenant's schema, quoted, and
the part of it that ends the names of the tenant's functions in `posd_hooks`.
"""

from __future__ import annotations

from posd.values import Tenant


def schema(tenant: Tenant) -> str:
    """The tenant's schema as an SQL identifier."""
    return '"' + tenant.schema.replace('"', '""') + '"'


def shop(tenant: Tenant) -> str:
    """What the names of the tenant's functions end in, for use in quotes: `posd_hooks."card_move${shop}"`."""
    return tenant.schema.removeprefix("dinedesk_").replace('"', '""')
