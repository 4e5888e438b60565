"""The shops' own orders, read on the connections of `posd_reader` by the tenants' read functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from posd.database.shop_readers import ShopReaders
from posd.store import shop
from posd.values import Tenant

# The function bounds what it returns (`pos_read_shop` in sql/main/013_adoptions.sql).
_READ: Final = (
    'SELECT r.order_id, r.content FROM posd_hooks."read_orders${shop}"(%(ids)s::text[]) AS r'
)


@frozen
class ShopRows:
    """Orders as the shop has them: JSON text by id, empty for one that is too large.

    `unread` are those that are there and were not brought. An order that is in neither is gone.
    """

    found: Mapping[str, str]
    unread: Sequence[str] = ()


async def read_orders(readers: ShopReaders, tenant: Tenant, order_ids: Sequence[str]) -> ShopRows:
    """The named orders of a tenant, each named once. Raises what `ShopReaders.read` does."""
    rows = await readers.read(tenant.id, _READ.format(shop=shop(tenant)), {"ids": list(order_ids)})
    return ShopRows(
        {order_id: content for order_id, content in rows if content is not None},
        [order_id for order_id, content in rows if content is None],
    )
