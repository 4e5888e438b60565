"""Fetching open orders after a resync: all pages, and no endless loop."""

from __future__ import annotations

from decimal import Decimal

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from posd.client import pending_orders
from posd.errors import InvalidMessage
from posd.protocol.jsontext import encode


class PendingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.asked: list[str] = []

    def fetch(self, *pages: object) -> Deferred[list[object]]:
        answers = iter(pages)

        async def ask(path: str) -> bytes:
            self.asked.append(path)
            return encode(next(answers))

        async def collect() -> list[object]:
            return [order async for order in pending_orders(ask, "kitchen", limit=2)]

        return Deferred.fromCoroutine(collect())

    def page(self, *names: str, after: str | None = None) -> dict[str, object]:
        orders = [{"id": name, "total": Decimal("12.30")} for name in names]
        return {"success": True, "orders": orders, "hasMore": after is not None, "next": after}

    def test_all_pages_are_fetched(self) -> None:
        pages = self.page("a", "b", after="P2"), self.page("c", "d", after="P3"), self.page("e")
        found = self.successResultOf(self.fetch(*pages))
        self.assertEqual([str(dict(each)["id"]) for each in found], [*"abcde"])  # type: ignore[call-overload]
        self.assertEqual(str(dict(found[0])["total"]), "12.30")  # type: ignore[call-overload]
        start = "/api/kitchen/orders/pending?limit=2"
        self.assertEqual(self.asked, [start, f"{start}&after=P2", f"{start}&after=P3"])

    def test_one_page_is_fetched_if_there_are_no_orders(self) -> None:
        self.assertEqual(self.successResultOf(self.fetch(self.page())), [])

    def test_a_repeated_page_is_refused(self) -> None:
        for pages in (
            (self.page("a", after="X"), self.page("b", after="X")),
            (self.page(after="X"),),
        ):
            self.failureResultOf(self.fetch(*pages), InvalidMessage)

    def test_an_invalid_page_is_refused(self) -> None:
        wrong: tuple[object, ...] = ([], {}, {"orders": 1}, {"orders": [1]})
        for page in wrong:
            self.failureResultOf(self.fetch(page), InvalidMessage)
