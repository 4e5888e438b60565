"""Tests of batches that are too much work: they are rolled back, and published in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.publishing import workload
from posd.publishing.workload import BatchTooLarge, StepWorkload
from posd.store import sequencing as numbering
from tests.sequencer_case import GRILL, KITCHEN, SequencerCase, notice, publication


class WorkloadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def work(self, work: StepWorkload, *rows: tuple[int, float, int]) -> BatchTooLarge | None:
        """Work on rows, each with a tenant, a time in tenths of the limit, and a size in bytes."""
        for tenant_id, tenths, size in rows:
            self.clock.advance(tenths * workload._MOST_SECONDS / 10)
            try:
                work.done(tenant_id, size)
            except BatchTooLarge as trouble:
                return trouble
        return None

    def test_rows_that_take_too_long_end_the_batch(self) -> None:
        trouble = self.work(StepWorkload(self.clock, [1] * 20), *[(1, 2.0, 0)] * 20)
        assert trouble is not None
        self.assertEqual((trouble.tenant_id, trouble.rows), (1, 3))

    def test_rows_that_store_too_many_bytes_end_the_batch(self) -> None:
        size = workload._MOST_BYTES // 4
        trouble = self.work(StepWorkload(self.clock, [1] * 20), *[(1, 0.0, size)] * 20)
        assert trouble is not None
        self.assertEqual((trouble.tenant_id, trouble.rows), (1, 2))

    def test_the_tenant_with_most_of_the_work_gets_fewer_rows(self) -> None:
        rows = [(1, 0.1, 10), (2, 3.0, 10)] * 10
        trouble = self.work(StepWorkload(self.clock, [1, 2] * 10), *rows)
        assert trouble is not None
        self.assertEqual(trouble.tenant_id, 2)

    def test_a_tenant_with_one_row_keeps_it(self) -> None:
        self.assertIsNone(self.work(StepWorkload(self.clock, [1, 2]), (1, 99.0, 0), (2, 99.0, 0)))
        trouble = self.work(StepWorkload(self.clock, [1, 2, 2]), (1, 99.0, 0), (2, 1.0, 0))
        assert trouble is not None
        self.assertEqual((trouble.tenant_id, trouble.rows), (2, 1))

    def test_the_last_row_does_not_end_the_batch(self) -> None:
        self.assertIsNone(self.work(StepWorkload(self.clock, [1, 1]), (1, 1.0, 0), (1, 99.0, 0)))


class BatchTests(SequencerCase):
    async def test_short_rows_about_long_orders_are_published_in_parts(self) -> None:
        most = 8192
        self.patch(workload, "_MOST_BYTES", most)
        recorded: list[list[tuple[int, int]]] = []
        record = numbering.record_and_commit

        async def counted(executor: Any, node: Any, entries: Sequence[numbering.LogEntry]) -> Any:
            recorded.append([(each.tenant_id, each.size) for each in entries])
            return await record(executor, node, entries)

        self.patch(numbering, "record_and_commit", counted)
        sequencer = await self.started()
        await sequencer.publish(publication(("new_order", {"orderId": "7", "notes": "x" * 1000})))
        for number in range(30):
            self.publish("order_updated", {"orderId": "7", "total": number + 1})
        self.publish("note", {"number": 1}, GRILL)
        sequencer.wake()
        # A request that arrives meanwhile waits for one part at most.
        await sequencer.publish(publication(notice(1), tenant_id=GRILL))
        await self.emptied(sequencer)
        self.assertEqual([each.data.get("total") for each in self.log_of()][1:], [*range(1, 31)])
        self.assertEqual(self.seqs(), [*range(1, 32)])
        self.assertEqual(self.seqs(GRILL), [1, 2])
        of_kitchen = [sum(size for of, size in each if of == KITCHEN) for each in recorded]
        self.assertLess(max(of_kitchen), 2 * most)
        self.assertEqual(self.flushLoggedErrors(), [])
