"""Tests of pending orders: their JSON from the stored text, and pages shared by concurrent requests."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database.pool import Pool
from posd.protocol import jsontext
from posd.store.orders import OpenOrder
from posd.values import Tenant, TenantId
from posd.web.api import pending
from posd.web.http.operations import TenantRequest
from posd.web.http.responses import Response


class WrittenTests(SynchronousTestCase):
    def written(self, snapshot: str, order_id: str = "A-1") -> str:
        return pending._encoded_order(OpenOrder(order_id, snapshot, "sent_to_pos")).decode()

    def test_the_text_goes_out_as_it_was_stored(self) -> None:
        stored = (
            '{"orderId":"A-1", "totalAmount":12.50,"items":[{"id":7,"price":0.10}],"tip":1.000}'
        )
        self.assertEqual(
            self.written(stored),
            stored[:-1] + ',"id":"A-1","total":12.50,"printStatus":"sent_to_pos"}',
        )

    def test_a_text_with_spaces_around_it_is_still_one_object(self) -> None:
        written = self.written('  {"orderId": "A-1", "totalAmount": 5}\n')
        self.assertEqual(jsontext.decode(written), jsontext.decode(self.written(written)))

    def test_an_order_of_a_strange_id_is_still_json(self) -> None:
        order_id = 'é"\\\n'
        value = jsontext.decode(self.written('{"totalAmount":5}', order_id))
        assert isinstance(value, dict)
        self.assertEqual(value["id"], order_id)

    def test_no_name_is_there_twice(self) -> None:
        for member in ('"id":7', '"\\u0069d":7', '"total":null', '"printStatus":"x"'):
            for stored in (f'{{{member},"totalAmount":5.0}}', f'{{"totalAmount":5.0,{member}}}'):
                written = self.written(stored)
                self.assertEqual(written.count('"id"'), 1)
                self.assertEqual(written.count('"total"'), 1)
                self.assertEqual(written.count('"printStatus"'), 1)
                self.assertIn('"id":"A-1"', written)
                self.assertIn('"total":5.0', written)
                self.assertIn('"printStatus":"sent_to_pos"', written)

    def test_an_order_without_an_amount_has_no_total(self) -> None:
        for stored in ("{}", '{"orderId":"A-1"}'):
            value = jsontext.decode(self.written(stored))
            assert isinstance(value, dict)
            self.assertEqual((value["id"], "total" in value), ("A-1", False))


class Sessions:
    """A database that answers a read of a page when the test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.reads: list[tuple[int, Deferred[None]]] = []

    def of(self, tenant: TenantId) -> Sessions:
        return self

    async def query(self, sql: str, values: Mapping[str, object]) -> list[tuple[object, ...]]:
        gate: Deferred[None] = Deferred()
        number = len(self.reads)
        self.reads.append((cast(int, values["limit"]), gate))
        await gate
        head = (number, str(UUID(int=7)), None, None, None, None)
        return [head, (None, None, "A-1", '{"totalAmount":5}', "pending", None)]

    def answer(self, number: int) -> None:
        self.reads[number][1].callback(None)


class TogetherTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.sessions = Sessions()
        self.turns: list[str] = []
        self.pages = pending.PendingEndpoints(cast(Pool, self.sessions))

    def ask(self, name: str, limit: int = 50) -> Deferred[Response]:
        ask = SimpleNamespace(
            arguments=pending.PendingRequest(limit=limit),
            tenant=Tenant(1, "kitchen", "The Kitchen", "dinedesk_kitchen"),
            http_request=SimpleNamespace(release_turn=lambda: self.turns.append(name)),
        )
        return Deferred.fromCoroutine(self.pages.pending(cast("TenantRequest[Any]", ask)))

    def position(self, asked: Deferred[Response]) -> object:
        page = jsontext.decode(self.successResultOf(asked).encoded())
        assert isinstance(page, dict)
        self.assertEqual(
            page["orders"], [{"totalAmount": 5, "id": "A-1", "total": 5, "printStatus": "pending"}]
        )
        return page["lastEventId"]

    def test_a_page_is_read_once_for_all_who_ask_while_it_is_read_before(self) -> None:
        first, *others = [self.ask(name) for name in ("first", "second", "third")]
        # Whoever asks during a read has to see what was committed before it asked.
        self.assertEqual([limit for limit, _ in self.sessions.reads], [50])
        self.sessions.answer(0)
        self.assertEqual([limit for limit, _ in self.sessions.reads], [50, 50])
        self.sessions.answer(1)
        self.assertEqual([self.position(each) for each in (first, *others)], [0, 1, 1])

    def test_only_those_who_wait_for_the_same_page_give_their_turn_back(self) -> None:
        self.ask("first")
        self.ask("another page", 7)
        self.assertEqual(self.turns, [])
        self.ask("second")
        self.assertEqual(self.turns, ["second"])
        self.assertEqual([limit for limit, _ in self.sessions.reads], [50, 7])
