"""A batch in which tenants fail, where the transactions end as the test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Unavailable
from posd.publishing.batches import Batches
from posd.publishing.outbox import Portion
from posd.publishing.publication import Published, Request
from posd.publishing.quarantine import Aside
from posd.publishing.request_queue import RequestQueue
from posd.publishing.transaction import Outcome, TenantsFailed
from posd.waiting import Pulse
from tests.sequencer_case import notice, publication

TenantIds = list[int]


class Transactions:
    """A link and its `Numbering`. `fails` says which tenants fail, by the tenants of rows and of requests."""

    def __init__(self, fails: Callable[[TenantIds, TenantIds], TenantIds]) -> None:
        self._fails = fails
        self.tried: list[tuple[TenantIds, TenantIds]] = []

    async def transaction(self, work: Callable[[object], Outcome]) -> Outcome:
        return work(self)

    def is_plain(self, requests: Sequence[Request]) -> bool:
        return False

    def number(
        self, session: object, requests: Sequence[Request], portions: Sequence[Portion]
    ) -> Outcome:
        rows, asking = [each.tenant_id for each in portions], [each.tenant_id for each in requests]
        self.tried.append((rows, asking))
        if failed := self._fails(rows, asking):
            raise TenantsFailed(dict.fromkeys(failed, "its tables cannot be read"))
        for each in requests:
            each.result = Published((1,), 0)
        return Outcome()


class LeftOutTests(SynchronousTestCase):
    def settle(self, transactions: Transactions) -> list[Request]:
        """Have rows of the tenants 1 and 2, and a request of each, settled; the requests."""
        clock = Clock()
        self.aside: Aside[int] = Aside(clock)
        self.shut: Aside[int] = Aside(clock)
        self.looks = 0
        link: Any = transactions
        batches = Batches(
            clock=clock,
            link=link,
            numbering=link,
            journal=Mock(),
            outbox=Mock(),
            queue=RequestQueue(),
            following=Mock(),
            aside=self.aside,
            shut=self.shut,
            pulse=Pulse(),
            instruments=Mock(),
            appended=Mock(),
            look_again=self.look_again,
            fence_lost=Mock(),
        )
        requests = [Request(publication(notice(), tenant_id=each)) for each in (1, 2)]
        work = batches.settle(requests, [Portion(each, [each]) for each in (1, 2)])
        self.successResultOf(Deferred.fromCoroutine(work))
        return requests

    def look_again(self) -> None:
        self.looks += 1

    def test_rows_at_fault_cost_their_tenant_its_place_in_the_outbox_only(self) -> None:
        transactions = Transactions(lambda rows, asking: [1] if 1 in rows else [])
        for each in self.settle(transactions):
            self.assertEqual(self.successResultOf(each.answer).ids, (1,))
        self.assertEqual((self.aside.now(), self.shut.now()), ([1], []))
        # The rows of the others are seen by the next look.
        self.assertEqual(transactions.tried, [([1, 2], [1, 2]), ([], [2]), ([], [1])])
        self.assertEqual(self.looks, 1)

    def test_a_tenant_whose_requests_fail_too_is_refused(self) -> None:
        transactions = Transactions(lambda rows, asking: [1] if 1 in rows or 1 in asking else [])
        first, second = self.settle(transactions)
        self.failureResultOf(first.answer, Unavailable)
        self.assertEqual(self.successResultOf(second.answer).ids, (1,))
        self.assertEqual((self.aside.now(), self.shut.now()), ([1], [1]))
