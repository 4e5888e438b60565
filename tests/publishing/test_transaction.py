"""Tests of the sequencer's transaction. The test provides the rows of the database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast
from uuid import UUID

from attrs import astuple, evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database.reconnecting import Executor
from posd.publishing.transaction import BatchTransaction, OutboxChanged
from posd.store.sequencing import OutboxRow
from posd.values import Tenant
from tests.publishing.answers import Answers

KITCHEN = Tenant(1, "kitchen", "The Kitchen", "dinedesk_kitchen")
ROW = OutboxRow(7, 1, "promotion", None, "{}")
NOW = datetime(2026, 3, 1, tzinfo=UTC)


class TransactionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.numbering = BatchTransaction(self.clock, UUID(int=1), 1000, lambda tenant_id: 0)

    def shops(self, session: Answers) -> str:
        """Return the tenant's name in the transaction's cache."""
        work = self.numbering.shops(cast(Executor, session), [1])
        return self.successResultOf(Deferred.fromCoroutine(work))[1].name

    def reject(self, *rows: OutboxRow) -> Deferred[None]:
        """Reject `ROW`, with these rows in the outbox."""
        answer = [(r.tenant_id, r.id, r.type, r.key, r.data, *[None] * 4, NOW) for r in rows]
        end = (0, *[None] * 8, NOW)
        self.session = Answers(pos_take=[*answer, end], pos_record=[(None,)])
        work = self.numbering.reject(cast(Executor, self.session), ROW, "It cannot be read.", 1)
        return Deferred.fromCoroutine(work)

    def test_a_tenant_is_read_again_after_a_minute(self) -> None:
        before = Answers(tenants=[astuple(KITCHEN)])
        after = Answers(tenants=[astuple(evolve(KITCHEN, name="The New Kitchen"))])
        self.assertEqual(self.shops(before), "The Kitchen")
        self.clock.advance(60)
        self.assertEqual(self.shops(after), "The Kitchen")
        self.clock.advance(1)
        self.assertEqual(self.shops(after), "The New Kitchen")

    def test_a_row_in_the_outbox_is_rejected(self) -> None:
        self.successResultOf(self.reject(ROW))
        self.assertEqual(self.session.asked, ["pos_take", "pos_record"])

    def test_a_changed_or_deleted_row_is_not_rejected(self) -> None:
        for rows in ((), (OutboxRow(7, 1, "promotion", None, '{"a": 1}'),)):
            self.failureResultOf(self.reject(*rows), OutboxChanged)
            self.assertEqual(self.session.asked, ["pos_take"])
