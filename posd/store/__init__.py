"""Every SQL statement of the daemon and the loader of its rows, one module per aggregate.

Functions take the `Session` they run on first, so that the caller decides about pool, dedicated
link or transaction. The only name that is put into a statement as text is a tenant's schema, quoted.
"""

from __future__ import annotations

from posd.values import Tenant


def schema(tenant: Tenant) -> str:
    """The tenant's schema as an SQL identifier."""
    return '"' + tenant.schema.replace('"', '""') + '"'
