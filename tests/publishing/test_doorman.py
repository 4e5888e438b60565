"""Tests of the lease of the doorman: one node has it, and orders read without it are not published."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from posd.publishing.doorman import Doorman
from posd.publishing.sequencer import Sequencer
from posd.store import doorman as leases
from posd.store import shop_rows
from tests.database_case import until
from tests.sequencer_case import GRILL, SequencerCase, first, notice, publication


class LeaseCase(SequencerCase):
    def holder(self) -> UUID | None:
        held = self.admin.value("SELECT node_id FROM dinedesk_main.pos_doorman")
        return None if held is None else UUID(held)

    def lapse(self) -> None:
        self.admin.run("UPDATE dinedesk_main.pos_doorman SET lease_until = now() - interval '1 s'")


class LeaseTests(LeaseCase):
    async def test_the_first_node_gets_the_lease_and_another_one_after_it_lapses(self) -> None:
        one, other = await self.linked(), await self.linked()
        nodes = uuid4(), uuid4()
        self.assertEqual(await leases.claim(one, nodes[0], "a"), 1)
        self.assertIsNone(await leases.claim(other, nodes[1], "b"))
        self.assertEqual(await leases.claim(one, nodes[0], "a"), 1)
        held = await leases.current_lease(one)
        assert held is not None
        self.assertEqual((held.node_id, held.host), (nodes[0], "a"))
        self.lapse()
        self.assertIsNone(await leases.current_lease(one))
        self.assertEqual(await leases.claim(other, nodes[1], "b"), 2)
        self.assertIsNone(await leases.claim(one, nodes[0], "a"))

    async def test_the_lease_lasts_five_seconds_by_the_clock_of_the_database(self) -> None:
        await leases.claim(await self.linked(), uuid4(), "a")
        left = "SELECT extract(epoch FROM lease_until - now()) FROM dinedesk_main.pos_doorman"
        self.assertGreater(self.admin.value(left), 4.0)
        self.assertLessEqual(self.admin.value(left), 5.0)

    async def test_a_node_renews_its_lapsed_lease_if_no_other_node_has_it(self) -> None:
        connection, node = await self.linked(), uuid4()
        await leases.claim(connection, node, "a")
        self.lapse()
        self.assertEqual(await leases.claim(connection, node, "a"), 1)

    async def test_another_node_gets_the_lease_at_once_when_the_connection_has_ended(self) -> None:
        one, other = await self.linked(), await self.linked()
        await leases.claim(one, uuid4(), "a")
        await one.stopService()
        await until(lambda: len(self.backends("posd sequencer")) == 1, "its process has gone")
        self.assertEqual(await leases.claim(other, uuid4(), "b"), 2)

    async def test_another_node_gets_a_released_lease(self) -> None:
        one, other = await self.linked(), await self.linked()
        nodes = uuid4(), uuid4()
        await leases.claim(one, nodes[0], "a")
        await leases.release(other, nodes[1])
        self.assertIsNone(await leases.claim(other, nodes[1], "b"))
        await leases.release(one, nodes[0])
        self.assertEqual(await leases.claim(other, nodes[1], "b"), 2)

    async def test_one_of_two_simultaneous_claims_succeeds(self) -> None:
        one, other = await self.linked(), await self.linked()
        with self.admin.transaction():
            self.admin.run("SELECT FROM dinedesk_main.pos_doorman FOR UPDATE")
            claims = [
                Deferred.fromCoroutine(leases.claim(connection, uuid4(), "a"))
                for connection in (one, other)
            ]
            blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            await until(lambda: self.admin.value(blocked) == 2, "both wait for the row")
        fences = [await each for each in claims]
        self.assertEqual(sorted(fences, key=str), [1, None])


class RenewingTests(LeaseCase):
    async def doorman(self) -> tuple[Doorman, list[int | None]]:
        fences: list[int | None] = []
        doorman = Doorman(self.clock, await self.linked(), uuid4(), "a", changed=fences.append)
        doorman.startService()
        self.addCleanup(doorman.stopService)
        await until(lambda: doorman._claim is None, "it has asked")
        return doorman, fences

    async def ask(self, doorman: Doorman, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        await until(lambda: doorman._claim is None, "it has asked")

    async def test_the_lease_is_renewed_every_second(self) -> None:
        doorman, fences = await self.doorman()
        self.lapse()
        await self.ask(doorman, 0.9)
        self.assertIsNone(await leases.current_lease(doorman._connection))
        await self.ask(doorman, 0.1)
        self.assertIsNotNone(await leases.current_lease(doorman._connection))
        self.assertEqual((fences, doorman.fence), ([1], 1))

    async def test_a_clean_stop_releases_the_lease_at_once(self) -> None:
        doorman, fences = await self.doorman()
        other, fences_of_other = await self.doorman()
        self.assertEqual(fences_of_other, [])
        await doorman.stopService()
        self.assertEqual((fences, self.holder()), ([1, None], None))
        await self.ask(other)
        self.assertEqual(fences_of_other, [2])

    async def test_a_lost_connection_ends_the_lease_until_the_next_connection(self) -> None:
        doorman, fences = await self.doorman()
        doorman._connection._changed = doorman.connection_changed
        (pid,) = self.backends("posd sequencer")
        self.admin.run("SELECT pg_terminate_backend(%s)", pid)
        await until(
            lambda: fences == [1, None, 1], "it has the lease again, with another connection"
        )

    async def test_a_failed_renewal_is_logged_once_and_repeated(self) -> None:
        doorman, fences = await self.doorman()
        self.admin.run("REVOKE UPDATE ON dinedesk_main.pos_doorman FROM posd")
        with capturedLogs() as logs:
            await self.ask(doorman)
            await self.ask(doorman)
        self.assertEqual(sum("cannot be renewed" in each["log_format"] for each in logs), 1)
        self.admin.run("GRANT UPDATE ON dinedesk_main.pos_doorman TO posd")
        self.lapse()
        await self.ask(doorman)
        self.assertIsNotNone(await leases.current_lease(doorman._connection))
        self.assertEqual(fences, [1])


class OneDoormanTests(LeaseCase):
    """Two nodes, one of them with the lease."""

    async def test_only_the_doorman_takes_rows_and_both_number_requests(self) -> None:
        nodes = [await self.started(), await self.started()]
        self.publish("notice", {"number": 1})
        nodes[1].wake()
        published = await nodes[1].publish(publication(notice(2), tenant_id=GRILL))
        self.assertEqual((first(published), self.waiting), (1, 1))
        nodes[0].wake()
        await until(lambda: not self.waiting, "the doorman has numbered it")

    async def stalled(self) -> tuple[Sequencer, Sequencer, Deferred[None]]:
        """Return a doorman that reads when the Deferred fires, and the next doorman."""
        gate: Deferred[None] = Deferred()
        read = shop_rows.read_orders
        calls: list[object] = []

        async def late(*arguments: Any) -> shop_rows.ShopRows:
            calls.append(arguments)
            if len(calls) == 1:
                await until(lambda: gate.called, "it may go on")
            return await read(*arguments)

        self.patch(shop_rows, "read_orders", late)
        one, other = await self.started(), await self.started()
        self.order_id = self.place_order()
        one.wake()
        await until(lambda: bool(calls), "it has looked")
        return one, other, gate

    def change(self, note: str) -> None:
        self.admin.run(
            "UPDATE dinedesk_kitchen.orders SET special_instructions = %s WHERE id = %s",
            note,
            self.order_id,
        )

    async def test_orders_read_before_the_lease_was_lost_are_not_published(self) -> None:
        """Without the fence the order is `ready`, then `cancelled`, then `ready` and `cancelled` again.

        The first doorman has seen the first row only, and reads late. The second one has seen both rows and
        read early. If the first one could number, it would take the first row and publish the newest state.
        The second one would take the second row and publish the state before.
        """
        one, other, gate = await self.stalled()
        self.change("ready")
        held = self.held_numbering(other)
        await self.hand_over(other)
        await until(lambda: held.waits, "the next doorman has read")
        self.change("cancelled")
        gate.callback(None)
        await until(lambda: self.rests(one), "the first doorman has read and tried to number")
        self.assertEqual(self.log_of(), [])
        self.assertIsNone(one.fence)
        held.go_on.callback(None)
        await self.emptied(other)
        self.assertEqual([each.data["notes"] for each in self.log_of()], ["ready", "cancelled"])

    async def test_requests_of_a_batch_with_an_old_fence_are_numbered(self) -> None:
        one = await self.started()
        self.publish("notice", {"number": 1})
        self.admin.run("UPDATE dinedesk_main.pos_doorman SET node_id = %s", str(uuid4()))
        with capturedLogs() as logs:
            one.wake()
            published = await one.publish(publication(notice(2), tenant_id=GRILL))
            await until(lambda: self.rests(one), "it rests")
        self.assertEqual((first(published), self.waiting), (1, 1))
        self.assertEqual(sum("not the doorman any more" in each["log_format"] for each in logs), 1)

    def held_numbering(self, sequencer: Sequencer) -> _Held:
        """Delay the transactions of a node."""
        held, connection = _Held(), sequencer._connection
        transaction = connection.transaction

        async def later(*arguments: Any, **more: Any) -> Any:
            held.waits = True
            await held.go_on
            return await transaction(*arguments, **more)

        self.patch(connection, "transaction", later)
        return held


class _Held:
    def __init__(self) -> None:
        self.waits = False
        self.go_on: Deferred[None] = Deferred()
