"""Tests of batches in which tenants fail. The test sets the results of the transactions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Unavailable
from posd.publishing.batches import BatchPublishing
from posd.publishing.outbox import OutboxPortion
from posd.publishing.publication import PublicationRequest, PublicationResult
from posd.publishing.quarantine import TenantQuarantine
from posd.publishing.request_queue import RequestQueue
from posd.publishing.transaction import TenantsFailed, TransactionOutcome
from posd.waiting import AttemptPulse
from tests.sequencer_case import notice, publication

TenantIds = list[int]


class Transactions:
    """A connection and its `BatchTransaction`.

    `fails` returns the tenants that fail, from the tenants of the rows and of the requests.
    """

    def __init__(self, fails: Callable[[TenantIds, TenantIds], TenantIds]) -> None:
        self._fails = fails
        self.tried: list[tuple[TenantIds, TenantIds]] = []

    async def transaction(self, work: Callable[[object], TransactionOutcome]) -> TransactionOutcome:
        return work(self)

    def is_plain(self, requests: Sequence[PublicationRequest]) -> bool:
        return False

    def number(
        self,
        session: object,
        requests: Sequence[PublicationRequest],
        portions: Sequence[OutboxPortion],
    ) -> TransactionOutcome:
        rows, asking = [each.tenant_id for each in portions], [each.tenant_id for each in requests]
        self.tried.append((rows, asking))
        if failed := self._fails(rows, asking):
            raise TenantsFailed(dict.fromkeys(failed, "its tables cannot be read"))
        for each in requests:
            each.result = PublicationResult((1,), 0)
        return TransactionOutcome()


class LeftOutTests(SynchronousTestCase):
    def publish_all(self, transactions: Transactions) -> list[PublicationRequest]:
        """Publish a row and a request of each of the tenants 1 and 2. Return the requests."""
        clock = Clock()
        self.outbox_quarantine: TenantQuarantine[int] = TenantQuarantine(clock)
        self.request_quarantine: TenantQuarantine[int] = TenantQuarantine(clock)
        self.looks = 0
        connection: Any = transactions
        batches = BatchPublishing(
            clock=clock,
            connection=connection,
            batch_transaction=connection,
            publishing_log=Mock(),
            outbox=Mock(),
            queue=RequestQueue(),
            request_order=Mock(),
            outbox_quarantine=self.outbox_quarantine,
            request_quarantine=self.request_quarantine,
            pulse=AttemptPulse(),
            counters=Mock(),
            appended=Mock(),
            request_look=self.request_look,
            fence_lost=Mock(),
        )
        requests = [PublicationRequest(publication(notice(), tenant_id=each)) for each in (1, 2)]
        work = batches.publish(requests, [OutboxPortion(each, [each]) for each in (1, 2)])
        self.successResultOf(Deferred.fromCoroutine(work))
        return requests

    def request_look(self) -> None:
        self.looks += 1

    def test_a_tenant_whose_rows_fail_keeps_its_rows_and_publishes_its_requests(self) -> None:
        transactions = Transactions(lambda rows, asking: [1] if 1 in rows else [])
        for each in self.publish_all(transactions):
            self.assertEqual(self.successResultOf(each.answer).ids, (1,))
        self.assertEqual((self.outbox_quarantine.now(), self.request_quarantine.now()), ([1], []))
        # The next look sees the rows of the other tenants.
        self.assertEqual(transactions.tried, [([1, 2], [1, 2]), ([], [2]), ([], [1])])
        self.assertEqual(self.looks, 1)

    def test_requests_that_fail_without_the_rows_are_refused(self) -> None:
        transactions = Transactions(lambda rows, asking: [1] if 1 in rows or 1 in asking else [])
        first, second = self.publish_all(transactions)
        self.failureResultOf(first.answer, Unavailable)
        self.assertEqual(self.successResultOf(second.answer).ids, (1,))
        self.assertEqual((self.outbox_quarantine.now(), self.request_quarantine.now()), ([1], [1]))
