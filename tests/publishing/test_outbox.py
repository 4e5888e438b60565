"""Tests of the outbox: the transaction numbers exactly the rows that the look has seen."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred

from posd.publishing import outbox
from posd.publishing.sequencer import Sequencer
from posd.store import shop_rows
from posd.testing.postgres import test_server
from tests.database_case import begin, until
from tests.schema_case import ENDLESS, two_shops
from tests.sequencer_case import GRILL, KITCHEN, SequencerCase, notice, publication


class OutboxCase(SequencerCase):
    have_read = False

    def template(self) -> str:
        return test_server().template(two_shops)

    def change(self, order_id: str, note: str) -> None:
        self.admin.run(
            "UPDATE dinedesk_kitchen.orders SET special_instructions = %s WHERE id = %s",
            note,
            order_id,
        )

    def notes(self) -> list[str | None]:
        return [each.data.get("notes") for each in self.log_of()]

    def held(self) -> Deferred[None]:
        """Delay the results of reads until the returned Deferred fires."""
        gate: Deferred[None] = Deferred()
        read = shop_rows.read_orders

        async def late(*arguments: Any) -> shop_rows.ShopRows:
            rows = await read(*arguments)
            self.have_read = True
            if not gate.called:
                await until(lambda: gate.called, "it may go on")
            return rows

        self.patch(shop_rows, "read_orders", late)
        return gate

    def run_when_read(self, slug: str, body: str) -> None:
        """Replace a shop's table of items by a view, so that a read of its orders runs PL/pgSQL."""
        self.admin.run(
            f"DROP TABLE dinedesk_{slug}.order_items;"
            f"CREATE FUNCTION dinedesk_{slug}.evil() RETURNS bigint LANGUAGE plpgsql"
            f" AS $$ BEGIN {body}; RETURN 1; END $$;"
            f"CREATE VIEW dinedesk_{slug}.order_items AS"
            f" SELECT 1::bigint AS id, dinedesk_{slug}.evil() AS order_id, 'Soup' AS name, 1 AS price,"
            " 1 AS quantity;"
            f"GRANT SELECT ON dinedesk_{slug}.order_items TO posd_hook_{slug}"
        )


class SeenTests(OutboxCase):
    async def test_a_change_after_the_read_is_published_too(self) -> None:
        sequencer = await self.started()
        gate = self.held()
        order_id = self.place_order()
        sequencer.wake()
        await until(lambda: self.have_read, "the read is over")
        # The look has not seen the row of this change, so the row stays in the outbox.
        self.change(order_id, "cancelled")
        gate.callback(None)
        await self.emptied(sequencer)
        self.assertEqual(self.notes()[-1], "cancelled")

    async def test_other_tenants_are_numbered_while_the_orders_of_a_shop_are_read(self) -> None:
        sequencer = await self.started()
        gate = self.held()
        self.place_order()
        sequencer.wake()
        await until(lambda: sequencer._outbox.reading == 1, "it is read")
        self.publish("notice", {"number": 1}, GRILL)
        sequencer.wake()
        published = await sequencer.publish(publication(notice(2), tenant_id=GRILL))
        self.assertEqual(published.ids[0], self.seqs(GRILL)[-1])
        await until(lambda: self.seqs(GRILL) == [1, 2], "the other shop's event is numbered")
        gate.callback(None)
        await self.emptied(sequencer)
        self.assertEqual(self.seqs(), [1])

    async def test_orders_of_a_refused_batch_are_read_again(self) -> None:
        sequencer = await self.started()
        gate = self.held()
        order_id = self.place_order()
        self.publish("notice", {"number": 1})
        sequencer.wake()
        await until(lambda: self.have_read, "the read is over")
        # This constraint makes the whole batch fail while the notice is part of it.
        self.admin.run(
            "ALTER TABLE dinedesk_main.pos_events ADD CONSTRAINT no_notice"
            " CHECK (event_type <> 'notice')"
        )
        self.change(order_id, "changed since")
        gate.callback(None)
        await self.emptied(sequencer)
        log = self.log_of()
        self.assertEqual([each.type for each in log if each.failure], ["notice"])
        (order,) = [each for each in log if not each.failure]
        self.assertEqual(order.data["notes"], "changed since")

    async def test_other_tenants_are_numbered_while_the_orders_are_read_again(self) -> None:
        sequencer = await self.started()
        self.admin.run(
            "ALTER TABLE dinedesk_main.pos_events ADD CONSTRAINT none CHECK (tenant_id <> 1)"
        )
        reads: list[object] = []
        gate: Deferred[None] = Deferred()
        read = shop_rows.read_orders

        async def slowly(*arguments: Any) -> shop_rows.ShopRows:
            reads.append(arguments)
            if len(reads) > 1:
                await until(lambda: gate.called, "it may go on")
            return await read(*arguments)

        self.patch(shop_rows, "read_orders", slowly)
        for _ in range(2):
            self.place_order()
        sequencer.wake()
        await until(lambda: len(reads) == 2, "it is read again")
        published = await sequencer.publish(publication(notice(1), tenant_id=GRILL))
        self.assertEqual(published.ids, (1,))
        gate.callback(None)
        await self.emptied(sequencer)
        self.assertEqual([each.seq for each in self.log_of()], [None, None], "each failed alone")

    async def test_two_nodes_publish_the_last_state_of_each_order(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed):
                await self.one_history(random.Random(seed))

    async def one_history(self, chance: random.Random) -> None:
        """The lease moves between the nodes with random delays while the shop changes orders."""
        read = shop_rows.read_orders

        async def dawdling(*arguments: Any) -> shop_rows.ShopRows:
            rows = await read(*arguments)
            for _ in range(chance.randrange(4)):
                await until(lambda: True, "a turn of the reactor has passed")
            return rows

        self.patch(shop_rows, "read_orders", dawdling)
        nodes = [await self.started(), await self.started()]
        await self.hand_over(nodes[0])
        orders = [self.place_order() for _ in range(3)]
        last: dict[str, int] = {}
        for number in range(40):
            order_id = chance.choice(orders)
            self.change(order_id, str(number))
            last[order_id] = number
            if chance.random() < 0.15:
                await self.hand_over(chance.choice(nodes))
            for node in nodes:
                node.wake()
            if chance.random() < 0.4:
                await until(lambda: True, "a turn of the reactor has passed")
        for node in nodes:
            await self.emptied(node)
            await self.rested(node)
        told: dict[str, list[int]] = {each: [] for each in orders}
        for each in self.log_of():
            if each.data["orderId"] in told and each.data.get("notes"):
                told[each.data["orderId"]].append(int(each.data["notes"]))
        for order_id, numbers in told.items():
            self.assertEqual(numbers, sorted(numbers), "in the order of the commits")
            self.assertEqual(numbers[-1:], [last[order_id]] if order_id in last else [])
        seqs = self.seqs()
        self.assertEqual(seqs, list(range(1, len(seqs) + 1)))


class OrderTests(OutboxCase):
    """Tests of the order of events that a tenant publishes by SQL, by hooks and by REST."""

    def partition_key(self, count: int) -> None:
        self.admin.run(
            "INSERT INTO dinedesk_kitchen.orders (total_amount) SELECT 5 FROM generate_series(1, %s)",
            count,
        )

    def told(self) -> list[object]:
        return [each.data.get("number") or each.data["customerName"] for each in self.log_of()]

    async def test_an_event_published_by_sql_waits_for_an_earlier_order_that_is_read(self) -> None:
        sequencer = await self.started()
        gate = self.held()
        self.place_order(name="Ann")
        sequencer.wake()
        await until(lambda: sequencer._outbox.reading == 1, "it is read")
        self.publish("notice", {"number": 2})
        sequencer.wake()
        await until(lambda: not sequencer._working, "it has looked again")
        self.assertEqual(self.told(), [])
        gate.callback(None)
        await self.emptied(sequencer)
        self.assertEqual(self.told(), ["Ann", 2])

    async def test_a_request_comes_after_the_rows_committed_before(self) -> None:
        """The called node is the doorman or not, and the doorman has seen the rows or not."""
        called, other = await self.started(), await self.started()
        for doorman, knows in ((called, True), (called, False), (other, True)):
            with self.subTest(is_doorman=doorman is called, knows=knows):
                await self.hand_over(doorman)
                await self.after_row_id(called, doorman, knows)

    async def after_row_id(self, called: Sequencer, doorman: Sequencer, knows: bool) -> None:
        before = len(self.told())
        gate = self.held()
        self.place_order(name="Ann")
        if knows:
            doorman.wake()
            await until(lambda: doorman._outbox.reading == 1, "it is read")
        running = begin(called.publish(publication(notice(2))))
        await until(lambda: doorman._outbox.reading == 1, "the doorman reads")
        self.assertEqual(len(self.told()), before)
        gate.callback(None)
        await until(lambda: not self.waiting, "the doorman has numbered the order")
        self.assertEqual((await self.answered(running)).ids, (before + 2,))
        self.assertEqual(self.told()[before:], ["Ann", 2])

    async def test_a_request_waits_for_a_batch_and_not_for_a_whole_bulk_update(self) -> None:
        sequencer = await self.started()
        self.admin.run(
            "INSERT INTO dinedesk_kitchen.orders (total_amount) SELECT n FROM generate_series(1, 1500) AS n"
        )
        published = await self.answered(begin(sequencer.publish(publication(notice(2)))))
        (position,) = published.ids
        assert position is not None
        self.assertGreater(position, 200)
        self.assertLess(position, 1501)
        await self.emptied(sequencer)

    async def test_a_new_order_does_not_wait_for_a_whole_bulk_update(self) -> None:
        sequencer = await self.started()
        self.partition_key(1500)
        await self.emptied(sequencer)
        self.admin.run("UPDATE dinedesk_kitchen.orders SET total_amount = 6")
        with self.admin.transaction():
            order_id = self.place_order()
            self.admin.run(
                "INSERT INTO dinedesk_kitchen.order_items (order_id, name, price) VALUES (%s, 'Soup', 5)",
                order_id,
            )
        self.change(order_id, "hurry")
        self.change("1", "changed again")
        await self.emptied(sequencer)
        log = self.log_of()[1500:]
        new = [n for n, each in enumerate(log) if each.data["orderId"] == order_id]
        self.assertEqual(len(new), 1, "all rows of an order are taken together")
        self.assertLess(new[0], 500)
        self.assertEqual((log[new[0]].type, log[new[0]].data["notes"]), ("new_order", "hurry"))
        self.assertEqual(len(log), 1501)
        self.assertEqual(
            [each.data["notes"] for each in log if each.data["orderId"] == "1"], ["changed again"]
        )

    async def test_changes_that_are_no_bulk_update_come_before_a_new_order(self) -> None:
        sequencer = await self.started()
        self.partition_key(300)
        await self.emptied(sequencer)
        change = "UPDATE dinedesk_kitchen.orders SET total_amount = 6 WHERE id {} 150"
        self.admin.run(change.format("<="))
        self.publish("notice", {"number": 1})
        self.admin.run(change.format(">"))
        self.place_order(name="Ann")
        self.publish("notice", {"number": 2})
        await self.emptied(sequencer)
        self.assertEqual([each.type for each in self.log_of()[-2:]], ["new_order", "notice"])
        self.assertEqual(self.seqs(), list(range(1, 604)))

    async def test_a_request_waits_for_two_seconds_at_most(self) -> None:
        sequencer = await self.started()
        gate = self.held()
        self.place_order()
        running = begin(sequencer.publish(publication(notice(2))))
        await until(lambda: sequencer._outbox.reading == 1, "it is read")
        for _ in range(19):
            self.clock.advance(0.1)
        self.assertFalse(running.called)
        self.clock.advance(0.2)
        self.assertEqual((await running).ids, (1,))
        gate.callback(None)
        await self.emptied(sequencer)

    async def test_requests_of_other_tenants_do_not_wait(self) -> None:
        sequencer = await self.started()
        gate = self.held()
        self.place_order()
        waits = begin(sequencer.publish(publication(notice(2))))
        await until(lambda: sequencer._outbox.reading == 1, "it is read")
        published = await sequencer.publish(publication(notice(1), tenant_id=GRILL))
        self.assertEqual(published.ids, (1,))
        self.assertFalse(waits.called)
        gate.callback(None)
        self.assertEqual((await self.answered(waits)).ids, (2,))

    async def test_accepted_requests_are_published_in_order_before_a_stop(self) -> None:
        sequencer = await self.started()
        self.place_order(name="Ann")
        running = begin(sequencer.publish(publication(notice(2))))
        await self.answered(begin(_stop(sequencer)))
        self.assertTrue(running.called)
        self.assertEqual(self.told(), ["Ann", 2])

    async def test_a_read_with_a_lost_connection_is_repeated_in_order(self) -> None:
        sequencer = await self.started()
        self.run_when_read("kitchen", "PERFORM pg_sleep(0.5)")
        self.place_order(name="Ann")
        running = begin(sequencer.publish(publication(notice(2))))
        reads = "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND application_name = 'posd reader'"
        pid = await self.found(reads)
        self.admin.run("SELECT pg_terminate_backend(%s)", pid)
        await self.answered(running)
        self.assertEqual(self.told(), ["Ann", 2])
        self.assertEqual(sequencer.left_out, 0)

    async def found(self, sql: str) -> object:
        rows: list[Any] = []

        def is_there() -> bool:
            rows.extend(self.admin.rows(sql))
            return bool(rows)

        await until(is_there, "there is one")
        return rows[0][0]

    async def test_orders_that_do_not_fit_into_a_portion_keep_their_order(self) -> None:
        self.patch(outbox, "_SLOW_SECONDS", 1000.0)
        sequencer = await self.started()
        sequencer.event_bytes = 10**6
        # The order of the ids is not the order of creation.
        for number in (9, 1, 8, 2):
            self.admin.run(
                "INSERT INTO dinedesk_kitchen.orders (id, total_amount, customer_name)"
                " VALUES (%s, 5, repeat('x', 600000))",
                number,
            )
            self.publish("notice", {"number": number})
        await self.emptied(sequencer)
        told = [int(each.data.get("number") or each.data["orderId"]) for each in self.log_of()]
        self.assertEqual(told, [9, 9, 1, 1, 8, 8, 2, 2])


class HostileTests(OutboxCase):
    async def test_a_shop_whose_view_never_ends_delays_no_other_tenant(self) -> None:
        sequencer = await self.started()
        self.run_when_read("kitchen", ENDLESS)
        for _ in range(3):
            self.place_order()
        sequencer.wake()
        await until(lambda: sequencer._outbox.reading == 1, "it is read")
        placed = [self.place_order(GRILL) for _ in range(3)]
        sequencer.wake()
        await until(lambda: len(self.seqs(GRILL)) == len(placed), "the other shop is served")
        self.assertEqual(sequencer._outbox.reading, 1, "the read goes on all the while")
        await self.rested(sequencer)
        self.assertEqual((self.seqs(), self.waiting), ([], 3))
        self.assertEqual((sequencer.left_out, sequencer.serves_all), (1, False))

    async def test_the_pauses_of_a_tenant_double_up_to_five_minutes(self) -> None:
        sequencer = await self.started()
        self.admin.run("ALTER TABLE dinedesk_kitchen.orders RENAME TO put_away")
        self.admin.run("SELECT posd_hooks.enqueue$kitchen('order', '{1}')")
        pauses = []
        for _ in range(11):
            await self.rested(sequencer)
            began = self.clock.seconds()
            until_then = sequencer._outbox._pauses._until[KITCHEN][0]
            pauses.append(round(until_then - began))
            self.clock.advance(pauses[-1] + 0.1)
        self.assertEqual(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300])

    async def test_fewer_orders_of_a_slow_shop_are_read_at_once(self) -> None:
        sequencer = await self.started()
        self.run_when_read("kitchen", "PERFORM pg_sleep(0.03)")
        self.admin.run(
            "INSERT INTO dinedesk_kitchen.orders (total_amount) SELECT n FROM generate_series(1, 60) AS n"
        )
        self.assertEqual(self.waiting, 60)
        await self.numbered(sequencer, 60)
        self.assertEqual(Counter(each.type for each in self.log_of()), {"new_order": 60})

    async def numbered(self, sequencer: Sequencer, count: int) -> None:
        def done() -> bool:
            if self.rests(sequencer):
                self.clock.advance(1.1)
                sequencer.wake()
            return len(self.seqs()) == count

        await until(done, "all are numbered")


async def _stop(sequencer: Sequencer) -> None:
    await sequencer.stopService()
