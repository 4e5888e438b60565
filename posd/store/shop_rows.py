"""Read orders from the shops' own tables, on connections of the role `posd_reader`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from posd.database.shop_readers import ShopReaders
from posd.store import shop
from posd.values import Tenant

# The function bounds the size of its result (`pos_read_shop` in sql/main/013_adoptions.sql).
_READ: Final = (
    'SELECT r.order_id, r.content FROM posd_hooks."read_orders${shop}"(%(ids)s::text[]) AS r'
)


@frozen
class ShopRows:
    """Orders from the shop's tables: JSON text by order id, empty for an order that is too large.

    `unread` lists orders that exist but did not fit into the result. An order in neither was deleted.
    """

    found: Mapping[str, str]
    unread: Sequence[str] = ()


async def read_orders(readers: ShopReaders, tenant: Tenant, order_ids: Sequence[str]) -> ShopRows:
    """Read orders of a tenant. `order_ids` has no duplicates. Raises the errors of `ShopReaders.read`."""
    rows = await readers.read(tenant.id, _READ.format(shop=shop(tenant)), {"ids": list(order_ids)})
    return ShopRows(
        {order_id: content for order_id, content in rows if content is not None},
        [order_id for order_id, content in rows if content is None],
    )
