"""Tests of looks, reads, transactions, refused batches and lost connections of two nodes in random order.

`POSD_TEST_SEEDS` is the number of random histories. The lease of the doorman moves between the nodes. One
test checks that a history detects a sequencer that deletes rows which the look has not seen.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, Final

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from posd.errors import Unavailable
from posd.publishing import outbox
from posd.publishing.publication import PublicationResult
from posd.publishing.sequencer import Sequencer
from posd.store import sequencing as numbering
from posd.store import shop_rows
from tests.database_case import REACTOR, begin, until
from tests.publishing.test_outbox import OutboxCase
from tests.sequencer_case import KITCHEN, CountingLink, publication

STEPS: Final = 60
ACTS: Final = {
    "place": 3,
    "change": 10,
    "change twice": 6,
    "bulk": 1,
    "publish": 3,
    "refused": 1,
    "ask": 3,
    "lose": 1,
    "end reader": 1,
}
"""The actions, with their weights."""


class Careless(Exception):
    """The history has found a fault."""


class History(OutboxCase):
    """A shop, two nodes, and the transactions committed so far."""

    links: Sequence[CountingLink] = ()
    nodes: Sequence[Sequencer] = ()

    def begin(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.orders: list[str] = []
        self.last: dict[str, int] = {}
        self.sent: dict[str, bool] = {}
        self.asked: dict[str, Deferred[PublicationResult]] = {}
        self.name = f"history-{seed}-"

    async def play(self, seed: int) -> None:
        """Raises `Careless`."""
        self.begin(seed)
        if not self.links:
            self.links = [await self.linked(), await self.linked()]
            self.nodes = [await self.started(each) for each in self.links]
            self.dawdle()
        nodes, links = self.nodes, self.links
        for number in range(STEPS):
            await self.step(number, nodes, links)
        await until(lambda: all(connection.up for connection in links), "the links are up")
        for each in nodes:
            await self.emptied(each)
            await self.rested(each)
        await self.all_answered()
        self.accept_requests()

    def dawdle(self) -> None:
        """Delay the begin of reads and their results, so that the shop commits meanwhile."""
        read = shop_rows.read_orders

        async def late(*arguments: Any) -> shop_rows.ShopRows:
            before, after = self.dice.choice(((0.0, 0.0), (0.0, 0.05), (0.05, 0.0)))
            await deferLater(REACTOR, self.dice.random() * before, lambda: None)
            rows = await read(*arguments)
            await deferLater(REACTOR, self.dice.random() * after, lambda: None)
            return rows

        self.patch(shop_rows, "read_orders", late)

    async def step(
        self, number: int, nodes: Sequence[Sequencer], links: Sequence[CountingLink]
    ) -> None:
        act = self.dice.choices([*ACTS], [*ACTS.values()])[0]
        mark = f"{self.name}{number}"
        if not self.orders or (act == "place" and len(self.orders) < 3):
            self.orders.append(self.place_order())
        elif act in ("place", "change", "change twice"):
            order_id = self.dice.choice(self.orders)
            for part in range(1 + (act == "change twice")):
                self.last[order_id] = 2 * number + part
                self.change(order_id, str(self.last[order_id]))
                node = self.dice.choice(nodes)
                if self.dice.random() < 0.3:
                    # The orders that the earlier doorman has read and not numbered are out of date.
                    await self.hand_over(node)
                node.wake()
                await self.go_on()
        elif act == "bulk":
            self.admin.run(
                "UPDATE dinedesk_kitchen.orders SET special_instructions = %s", str(2 * number)
            )
            self.last = dict.fromkeys(self.orders, 2 * number)
        elif act == "publish":
            self.publish("notice", {"number": 1, "mark": mark})
            self.sent[mark] = True
        elif act == "refused":
            self.publish("notice", {"number": 1, "mark": mark, "poison": True})
            self.sent[mark] = False
        elif act == "ask":
            call = publication(("notice", {"number": 1, "mark": mark}), key=mark)
            self.asked[mark] = begin(self.dice.choice(nodes).publish(call))
        elif act == "lose":
            self.dice.choice(links).drop()
        else:
            for pid in self.dice.sample(
                readers := self.backends("posd reader"), min(1, len(readers))
            ):
                self.admin.run("SELECT pg_terminate_backend(%s)", pid)
        self.dice.choice(nodes).wake()
        await self.go_on()

    async def go_on(self) -> None:
        """Let the nodes work for a random time, which may be zero."""
        if self.dice.random() < 0.6:
            await deferLater(REACTOR, self.dice.random() * 0.01, lambda: None)

    async def all_answered(self) -> None:
        """Check the results of the requests. A request with a lost connection may have been published."""
        for mark, running in self.asked.items():

            def done(running: Deferred[PublicationResult] = running) -> bool:
                self.clock.advance(0.01)
                return running.called

            await until(done, "it is answered")
            try:
                await running
            except Unavailable:
                continue
            self.sent[mark] = True

    def accept_requests(self) -> None:
        log = self.log_of(KITCHEN)
        seqs = [each.seq for each in log if each.seq is not None]
        self.expect(seqs == list(range(1, len(seqs) + 1)), "the positions have gaps")
        told: dict[str, list[int]] = {each: [] for each in self.orders}
        marks: list[str] = []
        for each in log:
            if each.failure is None and each.data.get("orderId") in told and each.data.get("notes"):
                told[each.data["orderId"]].append(int(each.data["notes"]))
            elif (mark := each.data.get("mark", "")).startswith(self.name):
                marks += [mark] if each.failure is None else []
        for order_id, numbers in told.items():
            self.expect(numbers == sorted(numbers), f"order {order_id} goes back: {numbers}")
            if order_id in self.last:
                self.expect(
                    numbers[-1:] == [self.last[order_id]], f"order {order_id} was lost: {numbers}"
                )
        self.expect(len(marks) == len(set(marks)), "something was published twice")
        for mark, was_sent in self.sent.items():
            self.expect((mark in marks) == was_sent, f"{mark} is there: {mark in marks}")

    def expect(self, condition: bool, what: str) -> None:
        if not condition:
            raise Careless(what)


class InterleavingTests(History):
    timeout = 600

    def setUp(self) -> None:
        super().setUp()
        self.admin.run(
            "ALTER TABLE dinedesk_main.pos_events ADD CONSTRAINT no_poison"
            " CHECK (event_data ->> 'poison' IS DISTINCT FROM 'true')"
        )

    async def test_the_last_event_of_each_order_has_its_last_state_and_no_event_is_lost(
        self,
    ) -> None:
        for seed in range(int(os.environ.get("POSD_TEST_SEEDS", "2"))):
            with self.subTest(seed=seed):
                await self.play(seed)

    async def test_a_sequencer_that_deletes_unseen_rows_is_detected(self) -> None:
        take = numbering.take_rows

        async def careless(executor: Any, seen: Any, *more: Any, **other: Any) -> Any:
            if not more:
                # A row that fails alone is taken alone.
                return await take(executor, seen, **other)
            tenants = {tenant_id for tenant_id, _ in seen}
            rows = await executor.query(
                "SELECT tenant_id, id FROM dinedesk_main.pos_outbox WHERE tenant_id = ANY (%s)",
                ([*tenants],),
            )
            return await take(executor, rows if seen else seen, *more, **other)

        self.patch(numbering, "take_rows", careless)
        await self.found_out()

    async def found_out(self) -> None:
        for seed in range(100):
            try:
                await self.play(seed)
            except Careless:
                return
        self.fail("nothing has found it out")


class PortionTests(History):
    def test_rows_of_an_order_stay_together(self) -> None:
        """This is so for any set of read orders."""
        dice = random.Random(1)
        for _ in range(300):
            rows = [
                numbering.SeenRow(
                    1, number, dice.choice(("order", "placed", "gift_card")), dice.choice("abc")
                )
                for number in range(dice.randrange(1, 9))
            ]
            rows = [evolve(row, ahead=row.key == "c") for row in rows]
            orders = {row.key for row in rows if row.type != "gift_card" and row.key}
            unread = {key for key in orders if dice.random() < 0.3}
            taken = outbox._readable_rows(rows, unread)
            about = {outbox._subject(row) for row in taken}
            self.assertEqual(taken, [row for row in rows if outbox._subject(row) in about])
            self.assertFalse({("order", key) for key in unread} & about)
