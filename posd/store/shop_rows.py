"""The shops' own orders, read on the connections of `posd_reader` by the tenants' read functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from posd.database.readers import Readers
from posd.store import shop
from posd.values import Tenant

# Each name is of the system catalogs, and the one function is posd's. An order of more than 4 MiB is brought
# empty. Of the orders as they are named, those that do not fit into 1 MiB together are not brought; the first
# one always is.
_READ: Final = """
    WITH found AS MATERIALIZED (
        SELECT r.order_id,
               CASE WHEN octet_length(r.content::text) <= 4194304 THEN r.content::text ELSE '' END AS content
          FROM posd_hooks."read_orders${shop}"(%(ids)s::text[]) AS r
    ), counted AS (
        SELECT f.*, sum(octet_length(f.content)) OVER (ORDER BY w.number)
                    - octet_length(f.content) < 1048576 AS fits
          FROM found AS f
          JOIN unnest(%(ids)s::text[]) WITH ORDINALITY AS w (order_id, number) USING (order_id)
    )
    SELECT c.order_id, CASE WHEN c.fits THEN c.content END FROM counted AS c
"""


@frozen
class ShopRows:
    """Orders as the shop has them: JSON text by id, empty for one that is too large.

    `unread` are those that are there and were not brought. An order that is in neither is gone.
    """

    found: Mapping[str, str]
    unread: Sequence[str] = ()


async def read(readers: Readers, tenant: Tenant, order_ids: Sequence[str]) -> ShopRows:
    """The named orders of a tenant, each named once. Raises what `Readers.read` does."""
    rows = await readers.read(tenant.id, _READ.format(shop=shop(tenant)), {"ids": list(order_ids)})
    return ShopRows(
        {order_id: content for order_id, content in rows if content is not None},
        [order_id for order_id, content in rows if content is None],
    )
