"""Tests of the size of a transaction. The test provides the rows of the outbox."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database.reconnecting import Executor
from posd.publishing import batch
from posd.publishing.outbox import MOST_ROWS, OutboxReader
from tests.publishing.answers import Answers

SMALL, LARGE = MOST_ROWS // 2, MOST_ROWS // 2 + 1


class PortionTests(SynchronousTestCase):
    def batches(self, *sizes: int) -> list[list[int]]:
        """Return the tenants of each batch. The n-th tenant has `rows[n]` rows that need no read."""
        rows = [
            (n, i, "promotion", None, False) for n, size in enumerate(sizes) for i in range(size)
        ]
        nobody: Any = None

        async def shops(*arguments: object) -> batch.Shops:
            return {}

        session = cast(Executor, Answers(pos_look=rows))
        outbox = OutboxReader(Clock(), session, nobody, shops=shops, changed=nobody, failed=nobody)
        outbox.fence = 1
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(outbox.look(()))), len(rows))
        found = []
        while portions := outbox.next_batch():
            found.append([each.tenant_id for each in portions])
        return found

    def test_portions_that_fit_are_numbered_together(self) -> None:
        self.assertEqual(self.batches(SMALL, SMALL), [[0, 1]])

    def test_a_batch_has_a_limited_number_of_rows(self) -> None:
        self.assertEqual(self.batches(SMALL, LARGE, 1), [[0], [1, 2]])

    def test_the_first_portion_of_a_batch_may_exceed_the_limit(self) -> None:
        self.assertEqual(self.batches(MOST_ROWS + 1, 1), [[0], [1]])
