"""Tests of the order in which requests are published."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Unavailable
from posd.publishing.publication import Publication, PublicationRequest, PublicationResult, answer
from posd.publishing.request_queue import RequestQueue
from posd.values import EventDraft


def request(tenant_id: int, events: int = 1, size: int = 0) -> PublicationRequest:
    return PublicationRequest(
        Publication(tenant_id, [EventDraft("notice", {})] * events, size=size)
    )


def queue(*requests: PublicationRequest) -> RequestQueue:
    waiting = RequestQueue()
    for each in requests:
        waiting.append(each)
    return waiting


def sizes(waiting: RequestQueue) -> list[list[int]]:
    """Take all batches. Return the numbers of events of the requests in each batch."""
    found = []
    while waiting:
        found.append([len(each.publication.drafts) for each in waiting.next_batch()])
    return found


class RequestQueueTests(SynchronousTestCase):
    def test_a_tenant_with_one_request_waits_for_one_of_each_other_tenant(self) -> None:
        waiting = queue(
            *(request(1, 300) for _ in range(50)), *(request(2, 300) for _ in range(50))
        )
        waiting.next_batch()
        small = request(3)
        waiting.append(small)
        self.assertIn(small, waiting.next_batch() + waiting.next_batch() + waiting.next_batch())

    def test_a_batch_has_up_to_300_events_or_one_request(self) -> None:
        waiting = queue(*(request(tenant, 50) for tenant in range(8)), request(9, 500))
        self.assertEqual(sizes(waiting), [[500], [50] * 6, [50] * 2])

    def test_large_requests_alternate_with_batches_of_small_ones(self) -> None:
        """A small request waits for one large request, even if many large ones wait."""
        waiting = queue(
            *(request(tenant, 500) for tenant in (1, 1, 2)), *(request(3) for _ in range(350))
        )
        self.assertEqual(
            sizes(waiting), [[500], [1] * 100, [500], [1] * 100, [500], [1] * 100, [1] * 50]
        )

    def test_a_small_request_waits_for_the_large_one_before_it(self) -> None:
        waiting = queue(request(1, 500), request(1), request(2))
        self.assertEqual(sizes(waiting), [[500], [1, 1]])
        waiting = queue(request(1), request(1, 500), request(1), request(2, 51))
        self.assertEqual(sizes(waiting), [[51], [1], [500], [1]])

    def test_a_batch_has_about_a_mebibyte(self) -> None:
        waiting = queue(*(request(tenant, size=200_000) for tenant in range(10)))
        self.assertEqual([len(waiting.next_batch()), len(waiting.next_batch())], [6, 4])

    def test_a_long_request_is_alone_in_its_batch(self) -> None:
        waiting = queue(request(1, size=10), request(2, size=300_000), request(3, size=10))
        tenants = []
        while waiting:
            tenants.append([each.tenant_id for each in waiting.next_batch()])
        self.assertEqual(tenants, [[2], [1, 3]])

    def test_a_batch_has_up_to_100_requests(self) -> None:
        waiting = queue(*(request(tenant) for tenant in range(150)))
        self.assertEqual([len(waiting.next_batch()), len(waiting.next_batch())], [100, 50])

    def test_one_tenant_does_not_take_the_places_of_others(self) -> None:
        waiting = queue(*(request(1) for _ in range(2000)))
        self.assertRaises(Unavailable, waiting.append, request(1))
        waiting.append(request(2))
        self.assertEqual(len(waiting), 2001)

    def test_the_queue_has_10000_places(self) -> None:
        waiting = queue(*(request(number // 2000) for number in range(10_000)))
        self.assertRaises(Unavailable, waiting.append, request(7))

    @given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 400)), max_size=60))
    def test_each_request_is_taken_once_and_in_the_order_of_its_tenant(
        self, made: list[tuple[int, int]]
    ) -> None:
        requests = [request(tenant, events) for tenant, events in made]
        waiting, taken = queue(*requests), []
        while waiting:
            batch = waiting.next_batch()
            self.assertTrue(batch)
            taken += batch
        self.assertEqual(len(waiting), 0)
        for tenant in range(1, 5):
            expected = [id(each) for each in requests if each.tenant_id == tenant]
            self.assertEqual([id(each) for each in taken if each.tenant_id == tenant], expected)
        self.assertEqual(len(taken), len(requests))


class AnswerTests(SynchronousTestCase):
    def test_20_requests_are_answered_in_a_turn_of_the_reactor(self) -> None:
        """The answers of a whole batch in one turn would block the reactor for 10 ms."""
        clock, requests = Clock(), [request(1) for _ in range(45)]
        for each in requests:
            each.result = PublicationResult((1,), 0)
        told: list[int] = []

        def turn() -> None:
            told.append([each.answer.called for each in requests].count(True))
            if told[-1] < len(requests):
                clock.callLater(0, turn)

        telling = Deferred.fromCoroutine(answer(clock, requests))
        turn()
        clock.advance(0)
        self.assertEqual((told, telling.called), ([20, 40, 45], True))
