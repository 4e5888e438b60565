"""The orders that are still to be made, which a till fetches after a resync. The caller does the HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import cast

from posd.errors import InvalidMessage
from posd.protocol.jsontext import decode_own

Fetch = Callable[[str], Awaitable[bytes]]
"""GETs a path of the server with the till's key, and gives the body of its 200."""


async def pending_orders(
    fetch: Fetch, tenant: str, *, limit: int = 50
) -> AsyncIterator[Mapping[str, object]]:
    """Yield every open order of a tenant, the oldest first, page after page until there are no more.

    Numbers are int or Decimal. What `fetch` raises is raised, and then the till asks again from the
    beginning: it keeps the orders that it has. Raises InvalidMessage for what is no page.
    """
    after = ""
    while True:
        page = decode_own(await fetch(f"/api/{tenant}/orders/pending?limit={limit}{after}"))
        if not isinstance(page, dict) or not isinstance(orders := page.get("orders"), list):
            raise InvalidMessage("a page must be an object with orders")
        for order in orders:
            if not isinstance(order, dict):
                raise InvalidMessage("an order must be an object")
            yield cast("Mapping[str, object]", order)
        if not page.get("hasMore"):
            return
        following = f"&after={page.get('next')}"
        if following == after or not orders:
            raise InvalidMessage("a page must go on from the one before")
        after = following
