"""Fetch the open orders, page by page, as a till does after a resync. The caller does the HTTP requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import cast

from posd.errors import InvalidMessage
from posd.protocol.jsontext import decode_own

Fetch = Callable[[str], Awaitable[bytes]]
"""GETs a path of the server with the till's key, and returns the body of the response with status 200."""


async def pending_orders(
    fetch: Fetch, tenant: str, *, limit: int = 50
) -> AsyncIterator[Mapping[str, object]]:
    """Yield the open orders of a tenant, oldest first, from all pages.

    Numbers are int or Decimal. Exceptions of `fetch` are passed on. The till then keeps its orders and
    starts again. Raises InvalidMessage if a response is not a page of orders.
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
            raise InvalidMessage("a page must continue after the previous one")
        after = following
