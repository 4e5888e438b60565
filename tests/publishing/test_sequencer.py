"""Tests of the sequencer: shared transactions, failures of single events, retries, lost connections."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from twisted.internet.defer import Deferred, gatherResults

from posd.errors import (
    Conflict,
    NotFound,
    OutcomeUnknown,
    StatementFailed,
    TooLarge,
    Unavailable,
    Unprocessable,
)
from posd.events import normalise as drafts
from posd.publishing import outbox
from posd.publishing.publication import PublicationResult
from posd.publishing.publishing_log import PublishingLog
from posd.publishing.sequencer import Sequencer
from posd.store import sequencing as numbering
from posd.store import stream
from posd.values import AppendedEvents, Tenant, TenantId
from tests.database_case import begin, until
from tests.sequencer_case import (
    EVENT_BYTES,
    GRILL,
    KITCHEN,
    SCHEMAS,
    SLUGS,
    SequencerCase,
    first,
    notice,
    order,
    publication,
)


class PublishingTests(SequencerCase):
    async def test_a_publication_returns_its_position_after_the_commit(self) -> None:
        sequencer = await self.started()
        published = await sequencer.publish(publication(notice(1)))
        self.assertEqual(published, PublicationResult((1,), 0))
        ((logged),) = self.log_of()
        self.assertEqual((logged.seq, logged.type, logged.data), (1, "notice", {"number": 1}))

    async def test_the_events_of_a_publication_have_consecutive_numbers(self) -> None:
        sequencer = await self.started()
        published = await sequencer.publish(publication(*(notice(n) for n in range(5))))
        self.assertEqual(published.ids, (1, 2, 3, 4, 5))

    async def test_each_tenant_has_numbers_of_its_own(self) -> None:
        sequencer = await self.started()
        await sequencer.publish(publication(notice()))
        self.assertEqual(first(await sequencer.publish(publication(notice(), tenant_id=GRILL))), 1)

    async def test_requests_during_a_transaction_share_the_next_one(self) -> None:
        connection = await self.linked()
        sequencer = await self.started(connection)
        running = [begin(sequencer.publish(publication(notice(n)))) for n in range(20)]
        published = await gatherResults(running)
        self.assertEqual([first(each) for each in published], list(range(1, 21)))
        self.assertEqual(connection.transactions, 2)

    async def test_a_batch_needs_the_fewest_statements(self) -> None:
        sequencer = await self.started()
        await sequencer.publish(publication(notice(1)))
        called: list[str] = []
        for name in (
            "take_rows",
            "stored_orders",
            "record_entries",
            "record_and_commit",
            "record_plain_and_commit",
        ):
            self.patch(numbering, name, _noting(called, name, getattr(numbering, name)))
        # An event about no order is not compared.
        await sequencer.publish(publication(notice(2)))
        self.assertEqual(called, ["record_plain_and_commit"])
        await sequencer.publish(publication(order("7")))
        await sequencer.publish(publication(order("7")))
        # The second event changes nothing.
        self.assertEqual(called[1:], ["take_rows", "record_and_commit", "take_rows"])
        data = '{"orderId":"7","status":"cooking"}'
        self.admin.run("SELECT dinedesk_main.pos_publish('kitchen', 'order_updated', %s)", data)
        sequencer.wake()
        await until(lambda: not self.waiting, "the row was taken")
        self.assertEqual(called[4:], ["take_rows", "stored_orders", "record_and_commit"])

    async def test_older_rows_of_the_outbox_come_before_events_about_no_order(self) -> None:
        sequencer = await self.started()
        await sequencer.publish(publication(notice(1)))
        await until(lambda: not sequencer._working, "it is at rest")
        called: list[str] = []
        for name in ("take_rows", "record_plain_and_commit"):
            self.patch(numbering, name, _noting(called, name, getattr(numbering, name)))
        # The rows stay in the outbox while this node is not the doorman.
        fence, sequencer.fence = sequencer.fence, None
        self.publish("note", {"number": 2})
        asked = begin(sequencer.publish(publication(notice(3))))
        await until(lambda: len(called) > 1, "it was tried")
        self.assertEqual(called[:2], ["record_plain_and_commit", "take_rows"])
        sequencer.fence = fence

        def is_answered() -> bool:
            self.clock.advance(0.005)
            return bool(asked.called)

        await until(is_answered, "it is answered")
        self.assertEqual([each.data["number"] for each in self.log_of()], [1, 2, 3])

    async def test_an_exception_after_the_commit_publishes_nothing_twice(self) -> None:
        sequencer = await self.started()

        def fails(tenant_id: TenantId) -> int:
            raise ZeroDivisionError

        sequencer._batch_transaction.connections_here = fails
        with self.assertRaises(OutcomeUnknown):
            await sequencer.publish(publication(notice(1)))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        sequencer._batch_transaction.connections_here = lambda tenant_id: 0
        self.assertEqual(first(await sequencer.publish(publication(notice(2)))), 2)
        self.assertEqual(self.seqs(), [1, 2])

    async def test_an_exception_in_the_metrics_publishes_nothing_twice(self) -> None:
        sequencer = await self.started()

        def fails(publishing_log: PublishingLog, outcome: object, seconds: float) -> None:
            raise ZeroDivisionError

        self.patch(PublishingLog, "committed", fails)
        self.assertEqual(first(await sequencer.publish(publication(notice(1)))), 1)
        self.publish("note", {"number": 2})
        sequencer.wake()
        await until(lambda: not self.waiting and self.rests(sequencer), "it was counted")
        self.assertEqual(self.seqs(), [1, 2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    async def test_appended_events_equal_the_events_of_the_log(self) -> None:
        handed: list[AppendedEvents] = []
        sequencer = await self.started(appended=handed.append)
        extra_members = ("gift_card_updated", {"cardNumber": "G", "balance": 5})
        await sequencer.publish(publication(notice(1), extra_members, order("7")))
        await sequencer.publish(publication(notice(2), tenant_id=GRILL))
        connection = await self.linked()
        for each, tenant_id, slug in zip(handed, (KITCHEN, GRILL), SLUGS.values(), strict=True):
            self.assertEqual(each.tenant_id, tenant_id)
            tenant = Tenant(tenant_id, slug, slug, SCHEMAS[tenant_id])
            log = await stream.events_after(connection, tenant, each.stream_id, 0, 10)
            self.assertEqual(list(each.events), log)

    async def test_an_exception_in_the_delivery_publishes_nothing_twice(self) -> None:
        def refuse(appended: AppendedEvents) -> None:
            raise ZeroDivisionError

        sequencer = await self.started(appended=refuse)
        self.assertEqual(first(await sequencer.publish(publication(notice(1)))), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.seqs(), [1])

    async def test_a_bulk_of_large_orders_is_read_in_several_batches(self) -> None:
        """Orders that do not fit into a batch wait for the next one, and are not treated as deleted."""
        # On a busy machine the reads take long, and fewer orders are read at once.
        self.patch(outbox, "_SLOW_SECONDS", 1000.0)
        connection = await self.linked()
        sequencer = await self.started(connection)
        sequencer.event_bytes = 10**6
        self.admin.run(
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount, customer_name)"
            " SELECT n, 5, repeat('x', 300000) FROM generate_series(1, 10) AS n"
        )
        sequencer.wake()
        await until(lambda: len(self.seqs()) == 10, "all are published")
        told = sorted(int(each.data["orderId"]) for each in self.log_of())
        self.assertEqual(told, list(range(1, 11)))
        self.assertEqual(connection.transactions, 3)

    async def test_an_unchanged_order_becomes_no_event(self) -> None:
        sequencer = await self.started()
        self.assertEqual(first(await sequencer.publish(publication(order("7")))), 1)
        self.assertIsNone(first(await sequencer.publish(publication(order("7")))))
        changed = await sequencer.publish(publication(order("7", status="ready")))
        self.assertEqual(first(changed), 2)
        self.assertEqual([each.type for each in self.log_of()], ["new_order", "order_updated"])

    async def test_connections_include_other_nodes_for_an_unchanged_order_too(self) -> None:
        sequencer = await self.started()
        node = str(uuid4())
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_nodes VALUES (%s, now() + interval '1 minute')", node
        )
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_connections"
            " (connection_id, node_id, tenant_id, connected_at, last_seen_at)"
            " SELECT gen_random_uuid(), %s, 1, now(), now() FROM generate_series(1, 3)",
            node,
        )
        call = publication(order("7"), key="k")
        answers = [
            await sequencer.publish(call),
            await sequencer.publish(publication(order("7"))),
            await sequencer.publish(call),
        ]
        self.assertEqual([each.connections for each in answers], [3, 3, 3])

    async def test_a_deleted_tenant_is_not_found(self) -> None:
        sequencer = await self.started()
        with self.assertRaises(NotFound):
            await sequencer.publish(publication(notice(), tenant_id=99))

    async def test_a_stopped_sequencer_refuses_requests(self) -> None:
        sequencer = await self.started()
        await sequencer.stopService()
        with self.assertRaises(Unavailable):
            await sequencer.publish(publication(notice()))

    async def test_a_stop_publishes_the_accepted_requests(self) -> None:
        sequencer = await self.started()
        running = [begin(sequencer.publish(publication(notice(n)))) for n in range(5)]
        await sequencer.stopService()
        self.assertEqual([first(self.successResultOf(each)) for each in running], list(range(1, 6)))

    async def test_a_row_with_a_time_zone_unknown_to_python_is_published(self) -> None:
        self.admin.run("ALTER TABLE dinedesk_main.tenants DISABLE TRIGGER pos_tenant_zone_update")
        self.admin.run("UPDATE dinedesk_main.tenants SET timezone = 'europe/LONDON' WHERE id = 1")
        sequencer = await self.started()
        self.publish("new_order", {"orderId": "7", "totalAmount": 5})
        await self.emptied(sequencer)
        self.assertEqual(self.seqs(), [1])


class OutboxTests(SequencerCase):
    async def test_events_of_sql_and_of_hooks_are_numbered(self) -> None:
        sequencer = await self.started()
        order_id = self.place_order()
        self.publish("notice", {"number": 1})
        self.publish("notice", {"number": 2}, GRILL)
        await self.emptied(sequencer)
        placed, told = self.log_of()
        self.assertEqual((placed.seq, placed.type), (1, "new_order"))
        self.assertEqual(placed.data["orderId"], order_id)
        self.assertEqual((told.seq, told.data), (2, {"number": 1}))
        self.assertEqual(self.seqs(GRILL), [1])

    async def test_a_deleted_order_publishes_nothing(self) -> None:
        sequencer = await self.started()
        self.place_order()
        self.admin.run("DELETE FROM dinedesk_kitchen.orders")
        await self.emptied(sequencer)
        self.assertEqual(self.log_of(), [])

    async def test_more_rows_than_one_batch_takes_are_all_published(self) -> None:
        sequencer = await self.started()
        self.admin.run(
            "SELECT dinedesk_main.pos_publish('kitchen', 'notice', jsonb_build_object('n', n))"
            " FROM generate_series(1, 1203) AS n"
        )
        await self.emptied(sequencer)
        self.assertEqual(self.seqs(), list(range(1, 1204)))
        self.assertEqual([each.data["n"] for each in self.log_of()], list(range(1, 1204)))

    async def test_a_row_that_cannot_become_an_event_is_logged_and_the_others_published(
        self,
    ) -> None:
        sequencer = await self.started()
        self.publish("notice", {"number": 1})
        self.publish("Not A Type", {})
        self.publish("new_order", {"no": "order id"})
        self.publish("notice", {"text": "x" * EVENT_BYTES})
        self.publish("notice", {"number": 2})
        await self.emptied(sequencer)
        self.assertEqual(self.seqs(), [1, None, None, None, 2])
        reasons = [each.failure for each in self.log_of() if each.failure]
        self.assertIn("type must be", reasons[0])
        self.assertIn("orderId", reasons[1])
        self.assertIn(f"{EVENT_BYTES} are allowed", reasons[2])

    async def test_data_that_cannot_be_read_is_logged_as_text(self) -> None:
        sequencer = await self.started()
        nested: object = []
        for _ in range(40):
            nested = [nested]
        self.publish("notice", {"nested": nested})
        self.admin.run(
            "SELECT dinedesk_main.pos_publish('kitchen', 'notice',"
            " jsonb_build_array(repeat('x', 3000000)))"
        )
        self.publish("notice", {"number": 1})
        await self.emptied(sequencer)
        deep, bomb, fine = self.log_of()
        self.assertEqual(deep.data, {"text": '{"nested": ' + "[" * 41 + "]" * 41 + "}"})
        self.assertIn("nested more than", deep.failure or "")
        self.assertEqual(bomb.data, {})
        self.assertIn("too large", bomb.failure or "")
        self.assertEqual(fine.seq, 1)

    async def test_a_touched_order_that_is_too_large_for_an_event_is_stored_whole(self) -> None:
        sequencer = await self.started()
        self.place_order(name="A" * EVENT_BYTES)
        await self.emptied(sequencer)
        ((logged),) = self.log_of()
        self.assertIsNone(logged.seq)
        self.assertIn("are allowed", logged.failure or "")
        name = "SELECT snapshot ->> 'customerName' FROM dinedesk_kitchen.pos_orders"
        self.assertEqual(self.admin.value(name), "A" * EVENT_BYTES)

    async def test_a_touched_order_that_is_too_large_to_read_is_logged_as_failed(self) -> None:
        sequencer = await self.started()
        self.place_order(name="A" * 5_000_000)
        self.publish("notice", {"number": 1})
        await self.emptied(sequencer)
        order, notice = self.log_of()
        self.assertIn("too large", order.failure or "")
        self.assertEqual(notice.seq, 1)

    async def test_a_row_that_the_database_refuses_fails_alone(self) -> None:
        connection = await self.linked()
        sequencer = await self.started(connection)
        refuse_poison(self)
        for number in range(60):
            self.publish("notice", {"number": number, "poison": number == 31})
        await self.emptied(sequencer)
        self.assertEqual(
            self.seqs(), [*range(1, 32), None, *range(32, 60)], "each but one, in their order"
        )
        self.assertIn("no_poison", self.log_of()[31].failure or "")
        self.assertLess(connection.transactions, 60)

    async def test_a_row_that_causes_an_exception_in_posd_fails_alone(self) -> None:
        sequencer = await self.started()
        known = drafts.draft

        def draft(kind: object, data: object, *more: Any, **other: Any) -> object:
            if data == {"number": 2}:
                raise ZeroDivisionError
            return known(kind, data, *more, **other)

        self.patch(drafts, "draft", draft)
        for number in range(1, 5):
            self.publish("notice", {"number": number})
        await self.emptied(sequencer)
        self.assertEqual(self.seqs(), [1, None, 2, 3])
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))

    async def test_a_row_that_cannot_be_logged_is_kept_and_the_others_published(self) -> None:
        sequencer = await self.started()
        self.admin.run(
            "ALTER TABLE dinedesk_main.pos_events ADD CONSTRAINT none CHECK (tenant_id <> 1);"
            "ALTER TABLE dinedesk_main.pos_unsequenced ADD CONSTRAINT none CHECK (tenant_id <> 1)"
        )
        self.publish("notice", {"number": 1})
        self.publish("notice", {"number": 1}, GRILL)
        await self.rested(sequencer)
        self.assertEqual((self.seqs(), self.seqs(GRILL), self.waiting), ([], [1], 1))
        for table in ("pos_events", "pos_unsequenced"):
            self.admin.run(f"ALTER TABLE dinedesk_main.{table} DROP CONSTRAINT none")
        self.clock.advance(1.5)
        await self.emptied(sequencer)
        self.assertEqual(self.seqs(), [1])

    async def test_a_missing_privilege_loses_no_row(self) -> None:
        sequencer = await self.started()
        self.publish("notice", {"number": 1})
        self.admin.run("REVOKE INSERT ON dinedesk_main.pos_events FROM posd")
        await self.rested(sequencer)
        self.assertEqual((self.log_of(), self.waiting), ([], 1))
        self.admin.run("GRANT INSERT ON dinedesk_main.pos_events TO posd")
        self.clock.advance(1.5)
        await self.emptied(sequencer)
        self.assertEqual(self.seqs(), [1])


class FailingAloneTests(SequencerCase):
    """Tests of several publishers in one transaction."""

    async def published(
        self, sequencer: Sequencer, *calls: object
    ) -> list[PublicationResult | BaseException]:
        """Publish all publications in one transaction."""
        ahead = begin(sequencer.publish(publication(notice(0))))
        running = [begin(sequencer.publish(call)) for call in calls]  # type: ignore[arg-type]
        await ahead
        return [await outcome(each) for each in running]

    async def test_a_publication_that_is_too_large_is_refused_and_no_other(self) -> None:
        sequencer = await self.started()
        good, bad, other = await self.published(
            sequencer,
            publication(notice(1)),
            publication(notice(2), notice(3, text="x" * EVENT_BYTES)),
            publication(notice(4)),
        )
        self.assertIsInstance(bad, TooLarge)
        self.assertEqual((good, other), (PublicationResult((2,), 0), PublicationResult((3,), 0)))
        self.assertEqual([each.data["number"] for each in self.log_of()], [0, 1, 4])

    async def test_a_request_that_the_database_refuses_fails_alone_and_as_a_whole(self) -> None:
        sequencer = await self.started()
        refuse_poison(self)
        self.publish("notice", {"number": 5})
        sequencer.wake()
        good, bad, other = await self.published(
            sequencer,
            publication(notice(1)),
            publication(notice(2), notice(3, poison=True)),
            publication(notice(4)),
        )
        self.assertIsInstance(bad, Unprocessable)
        self.assertIsInstance(good, PublicationResult)
        self.assertIsInstance(other, PublicationResult)
        self.assertEqual([each.data["number"] for each in self.log_of()], [5, 0, 1, 4])

    async def test_an_event_without_a_fault_is_not_called_invalid(self) -> None:
        sequencer = await self.started()
        self.admin.run(
            "CREATE FUNCTION dinedesk_kitchen.odd() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE EXCEPTION ''odd'' USING ERRCODE = ''42P01''; END'"
        )
        self.admin.run(
            "CREATE TRIGGER odd BEFORE INSERT ON dinedesk_main.pos_events"
            " FOR EACH ROW EXECUTE FUNCTION dinedesk_kitchen.odd()"
        )
        with self.assertRaises(StatementFailed):
            await sequencer.publish(publication(notice(1)))


class LeftOutTests(SequencerCase):
    async def test_a_tenant_whose_orders_cannot_be_read_keeps_its_rows_and_publishes(self) -> None:
        sequencer = await self.started()
        self.admin.run("ALTER TABLE dinedesk_kitchen.orders RENAME TO put_away")
        self.admin.run("INSERT INTO dinedesk_kitchen.put_away (total_amount) VALUES (5)")
        self.place_order(GRILL)
        await self.rested(sequencer)
        self.assertEqual((self.seqs(), self.seqs(GRILL), self.waiting), ([], [1], 1))
        self.assertEqual(first(await sequencer.publish(publication(notice()))), 1)
        self.admin.run("ALTER TABLE dinedesk_kitchen.put_away RENAME TO orders")
        await self.rested(sequencer)
        self.assertEqual(self.waiting, 1)
        self.clock.advance(1.5)
        await self.emptied(sequencer)
        self.assertEqual([each.type for each in self.log_of()], ["notice", "new_order"])

    async def test_a_request_of_a_tenant_with_unreadable_rows_is_published(self) -> None:
        sequencer = await self.started()
        self.place_order()
        with self.client().transaction():
            self.admin.run("BEGIN; LOCK TABLE dinedesk_kitchen.orders")
            self.assertEqual(first(await sequencer.publish(publication(notice()))), 1)
            self.admin.run("COMMIT")
        self.clock.advance(1.5)
        await self.emptied(sequencer)
        self.assertEqual(self.seqs(), [1, 2])

    async def test_tenants_whose_reads_never_end_delay_no_other_tenant(self) -> None:
        sequencer = await self.started()
        self.slow_down("kitchen", 60)
        self.place_order()
        self.publish("notice", {"number": 1}, GRILL)
        await self.rested(sequencer)
        self.assertEqual((self.seqs(), self.seqs(GRILL), self.waiting), ([], [1], 1))
        published = await sequencer.publish(publication(notice(), tenant_id=GRILL))
        self.assertEqual(published.ids, (2,))

    def slow_down(self, slug: str, seconds: float) -> None:
        """Replace a shop's table of items by a view that is slow to read."""
        self.admin.run(
            f"DROP TABLE dinedesk_{slug}.order_items;"
            f"CREATE FUNCTION dinedesk_{slug}.slowly() RETURNS bigint LANGUAGE sql AS"
            f" 'SELECT 1::bigint FROM pg_sleep({seconds})';"
            f"CREATE VIEW dinedesk_{slug}.order_items AS"
            f" SELECT 1::bigint AS id, dinedesk_{slug}.slowly() AS order_id, 'Soup' AS name, 1 AS price,"
            " 1 AS quantity;"
            f"GRANT SELECT ON dinedesk_{slug}.order_items TO posd_hook_{slug}"
        )


class IdempotencyTests(SequencerCase):
    async def test_a_retry_gets_the_first_answer_and_publishes_nothing(self) -> None:
        sequencer = await self.started()
        call = publication(notice(1), notice(2), key="k")
        self.assertEqual(await sequencer.publish(call), PublicationResult((1, 2), 0))
        self.assertEqual(await sequencer.publish(call), PublicationResult((1, 2), 0, replayed=True))
        self.assertEqual(self.seqs(), [1, 2])

    async def test_another_publication_with_the_same_key_is_refused(self) -> None:
        sequencer = await self.started()
        await sequencer.publish(publication(notice(1), key="k"))
        with self.assertRaises(Unprocessable) as caught:
            await sequencer.publish(publication(notice(2), key="k", fingerprint=b"other"))
        self.assertEqual(caught.exception.code, "idempotency_mismatch")

    async def test_a_first_call_that_is_still_running_is_a_conflict(self) -> None:
        sequencer = await self.started()
        call = publication(notice(1), key="k")
        running = begin(sequencer.publish(call))
        with self.assertRaises(Conflict):
            await sequencer.publish(call)
        self.assertEqual(first(await running), 1)
        self.assertTrue((await sequencer.publish(call)).replayed)

    async def test_the_same_request_to_two_nodes_is_published_once(self) -> None:
        one, other = await self.started(), await self.started()
        call = publication(notice(1), key="k")
        answers = await gatherResults([begin(each.publish(call)) for each in (one, other)])
        self.assertEqual([each.ids for each in answers], [(1,), (1,)])
        self.assertEqual(sorted(each.replayed for each in answers), [False, True])
        self.assertEqual(self.seqs(), [1])

    async def test_a_refused_request_may_be_repeated(self) -> None:
        sequencer = await self.started()
        with self.assertRaises(TooLarge):
            await sequencer.publish(publication(notice(1, text="x" * EVENT_BYTES), key="k"))
        self.assertFalse((await sequencer.publish(publication(notice(1), key="k"))).replayed)


class OutageTests(SequencerCase):
    async def test_publishing_is_unavailable_until_the_database_is_back(self) -> None:
        connection = await self.linked()
        sequencer = await self.started(connection)
        connection.drop()
        with self.assertRaises(Unavailable):
            await sequencer.publish(publication(notice()))
        await until(lambda: connection.up, "the link is up")
        self.assertEqual(first(await sequencer.publish(publication(notice()))), 1)

    async def test_a_connection_lost_in_a_batch_loses_and_repeats_no_event(self) -> None:
        connection = await self.linked()
        sequencer = await self.started(connection)
        self.publish("notice", {"number": 1})
        self.admin.run("BEGIN; LOCK TABLE dinedesk_main.pos_heads")
        call = publication(notice(2), key="k")
        running = [begin(sequencer.publish(each)) for each in (call, publication(notice(3)))]
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        await until(lambda: self.admin.value(blocked) == 1, "the batch is on its way")
        for pid in self.backends("posd sequencer"):
            self.admin.run("SELECT pg_terminate_backend(%s)", pid)
        for each in running:
            self.assertIsInstance(await outcome(each), Unavailable)
        self.admin.run("COMMIT")
        self.assertEqual((self.log_of(), self.waiting), ([], 1))
        await until(lambda: connection.up, "the link is up")
        self.assertFalse((await sequencer.publish(call)).replayed)
        await self.emptied(sequencer)
        self.assertEqual(sorted(each.data["number"] for each in self.log_of()), [1, 2])

    async def test_a_commit_without_an_answer_is_found_by_the_retry(self) -> None:
        connection = await self.linked()
        sequencer = await self.started(connection)
        call = publication(notice(1), key="k")
        # The connection ends after the COMMIT was executed and before its answer is read.
        execute = connection.transaction

        async def cut_off(work: object) -> object:
            await execute(work)  # type: ignore[arg-type]
            connection.drop()
            raise OutcomeUnknown("lost")

        self.patch(connection, "transaction", cut_off)
        with self.assertRaises(OutcomeUnknown):
            await sequencer.publish(call)
        self.patch(connection, "transaction", execute)
        await until(lambda: connection.up, "the link is up")
        self.assertEqual(await sequencer.publish(call), PublicationResult((1,), 0, replayed=True))


class TwoNodesTests(SequencerCase):
    async def test_two_sequencers_number_without_gaps_and_deadlocks(self) -> None:
        nodes = [await self.started(), await self.started()]
        running = []
        for number in range(200):
            tenant_id = KITCHEN if number % 3 else GRILL
            call = publication(notice(number), tenant_id=tenant_id)
            running.append(begin(nodes[number % 2].publish(call)))
            if number % 10 == 0:
                self.publish("notice", {"number": 1000 + number})
                nodes[0].wake()
                nodes[1].wake()
        await self.answered(gatherResults(running))
        await self.emptied(nodes[0])
        await self.rested(nodes[1])
        for tenant_id in (KITCHEN, GRILL):
            count = len(self.log_of(tenant_id))
            self.assertEqual(self.seqs(tenant_id), list(range(1, count + 1)))
        numbers = [each.data["number"] for t in (KITCHEN, GRILL) for each in self.log_of(t)]
        self.assertEqual(len(numbers), len(set(numbers)))
        self.assertEqual(len(numbers), 220)


class AnyOrderTests(SequencerCase):
    async def test_exactly_the_committed_events_are_numbered_in_any_order_of_commits(self) -> None:
        for seed in range(6):
            with self.subTest(seed=seed):
                await self.one_history(random.Random(seed))

    async def one_history(self, chance: random.Random) -> None:
        nodes = [await self.started(), await self.started()]
        await self.hand_over(nodes[0])
        shops = [self.client() for _ in range(4)]
        # For each shop: whether a transaction is open, and the events that it has published so far.
        open_with: list[list[str] | None] = [None] * len(shops)
        committed: set[str] = set()
        running = []
        prefix = f"{chance.random()}"
        for step in range(150):
            which = chance.randrange(len(shops))
            shop, pending = shops[which], open_with[which]
            name = f"{prefix}-{step}"
            match chance.choice(["publish", "publish", "order", "rest", "wake", "end", "end"]):
                case "publish" | "order" if pending is None:
                    shop.run("BEGIN")
                    open_with[which] = []
                case "publish" if pending is not None:
                    data = f'{{"name": "{name}"}}'
                    shop.run("SELECT dinedesk_main.pos_publish('kitchen', 'notice', %s)", data)
                    pending.append(name)
                case "order" if pending is not None:
                    shop.run(
                        "INSERT INTO dinedesk_kitchen.orders (customer_name, total_amount)"
                        " VALUES (%s, 5)",
                        name,
                    )
                    pending.append(name)
                case "rest":
                    call = publication(("notice", {"name": name}))
                    running.append(begin(chance.choice(nodes).publish(call)))
                    committed.add(name)
                case "wake":
                    if chance.random() < 0.2:
                        await self.hand_over(chance.choice(nodes))
                    for node in nodes:
                        node.wake()
                case "end" if pending is not None:
                    keep = chance.random() < 0.7
                    shop.run("COMMIT" if keep else "ROLLBACK")
                    committed.update(pending if keep else ())
                    open_with[which] = None
            if chance.random() < 0.3:
                await until(lambda: True, "a turn of the reactor has passed")
        for shop, pending in zip(shops, open_with, strict=True):
            if pending is not None:
                shop.run("ROLLBACK")
        await self.answered(gatherResults(running))
        await self.emptied(nodes[0])
        await self.rested(nodes[1])
        log = self.log_of()
        self.assertEqual([each.seq for each in log], list(range(1, len(log) + 1)))
        names = [each.data.get("name") or each.data["customerName"] for each in log]
        mine = [name for name in names if name.startswith(prefix)]
        self.assertEqual(sorted(mine), sorted(committed))

    async def test_the_events_of_an_order_keep_the_order_of_its_changes(self) -> None:
        nodes = [await self.started(), await self.started()]
        order_id = self.place_order()
        for number in range(30):
            self.admin.run(
                "UPDATE dinedesk_kitchen.orders SET special_instructions = %s WHERE id = %s",
                str(number),
                order_id,
            )
            nodes[number % 2].wake()
            if number % 4 == 0:
                await until(lambda: True, "a turn of the reactor has passed")
        await self.emptied(nodes[0])
        await self.rested(nodes[1])
        log = self.log_of()
        versions = [each.data["version"] for each in log]
        self.assertEqual(versions, list(range(1, len(log) + 1)))
        notes = [int(each.data["notes"]) for each in log if each.data["notes"]]
        self.assertEqual(notes, sorted(notes))
        self.assertEqual(notes[-1], 29)
        self.assertEqual([each.seq for each in log], list(range(1, len(log) + 1)))


def refuse_poison(case: SequencerCase) -> None:
    """Make the database refuse events with a member `poison` that is true."""
    case.admin.run(
        "ALTER TABLE dinedesk_main.pos_events ADD CONSTRAINT no_poison"
        " CHECK (event_data ->> 'poison' IS DISTINCT FROM 'true')"
    )


async def outcome(running: Deferred[PublicationResult]) -> PublicationResult | BaseException:
    try:
        return await running
    except Exception as error:
        return error


def _noting(
    called: list[str], name: str, work: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """Return `work` with a note of each call in `called`."""

    async def noted(*arguments: Any, **more: Any) -> Any:
        called.append(name)
        return await work(*arguments, **more)

    return noted
