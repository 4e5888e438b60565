"""The queue for connections: fair among tenants, bounded, and flat with any number of waiters."""

from __future__ import annotations

import sys

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database import checkout as module
from posd.database.checkout import ResourceQueue
from posd.errors import Busy, Unavailable

_CROWD = 2000
_SHARE = 2
_MOST, _MOST_OF_TENANT = 400, 50


def stack_depth() -> int:
    """How many frames the caller is deep in."""
    depth, frame = 0, sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        depth += 1
    return depth


class CheckoutCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.checkout: ResourceQueue[str] = ResourceQueue(self.clock, _SHARE)
        self.granted: list[tuple[int | None, str]] = []

    def ask(self, tenant: int | None = None, seconds: float = 5.0) -> Deferred[str]:
        """Ask for a link, and note whom it is granted."""
        waiter = self.checkout.acquire(tenant, self.clock.seconds() + seconds)
        return waiter.addCallback(self._note, tenant)

    def _note(self, connection: str, tenant: int | None) -> str:
        self.granted.append((tenant, connection))
        return connection

    def give_back(self) -> None:
        """Release what was granted first of all that is still lent."""
        tenant, connection = self.granted.pop(0)
        self.checkout.release(connection, tenant, usable=True)


class CrowdTests(CheckoutCase):
    """Waiters that release at once, as they do while connections are lost, do not pile up."""

    def depths_of(self, tenant: int | None, most: int) -> list[int]:
        depths: list[int] = []

        async def use() -> None:
            connection = await self.checkout.acquire(tenant, 5.0)
            depths.append(stack_depth())
            self.checkout.release(connection, tenant, usable=True)

        self.patch(module, "MAX_WAITING_OF_TENANT", most)
        self.patch(module, "MAX_WAITING", most)
        self.checkout.add("a")
        held = self.successResultOf(self.checkout.acquire(tenant, 5.0))
        calls = [Deferred.fromCoroutine(use()) for _ in range(most)]
        self.checkout.release(held, tenant, usable=True)
        for call in calls:
            self.successResultOf(call)
        self.assertEqual((self.checkout.idle, self.checkout.waiting), (1, 0))
        return depths

    def test_of_one_tenant(self) -> None:
        self.assertEqual(len({*self.depths_of(1, _CROWD)}), 1)

    def test_of_posd_itself(self) -> None:
        self.assertEqual(len({*self.depths_of(None, _CROWD)}), 1)

    def test_whose_links_are_lost_are_all_answered_and_the_share_is_whole_again(self) -> None:
        self.patch(module, "MAX_WAITING_OF_TENANT", _CROWD)
        self.checkout.add("a")
        self.checkout.add("b")
        held = [self.successResultOf(self.ask(1)) for _ in range(_SHARE)]
        waiting = [self.ask(1) for _ in range(_CROWD)]
        for connection in held:
            self.checkout.withdraw(connection)
            self.checkout.release(connection, 1, usable=False)
        self.checkout.fail(lambda: Unavailable("away"))
        for each in waiting:
            self.failureResultOf(each, Unavailable)
        for connection in held:
            self.checkout.add(connection)
        self.assertEqual([self.successResultOf(self.ask(1)) for _ in held], ["a", "b"])

    def test_that_times_out_in_one_turn_leaves_nothing(self) -> None:
        self.patch(module, "MAX_WAITING_OF_TENANT", _CROWD)
        waiting = [self.ask(1, 1.0) for _ in range(_CROWD)]
        self.clock.advance(1.0)
        for each in waiting:
            self.failureResultOf(each, Busy)
        self.assertEqual((self.checkout.waiting, self.checkout._lent_by_tenant), (0, {}))


class TurnTests(CheckoutCase):
    def test_who_waits_is_served_in_its_order(self) -> None:
        waiting = [self.ask() for _ in range(3)]
        self.checkout.add("a")
        for _ in range(2):
            self.give_back()
        self.assertEqual([each.called for each in waiting], [True] * 3)

    def test_no_tenant_has_more_than_its_share_while_links_are_idle(self) -> None:
        for connection in "abcd":
            self.checkout.add(connection)
        waiting = [self.ask(1) for _ in range(4)]
        self.assertEqual([each.called for each in waiting], [True, True, False, False])
        self.successResultOf(self.ask(2))
        self.assertEqual((self.checkout.idle, self.checkout.lent, self.checkout.waiting), (1, 3, 2))
        self.assertEqual(self.checkout.held_back, 2)
        self.give_back()
        self.assertTrue(waiting[2].called)
        self.assertFalse(waiting[3].called)

    def test_tenants_and_posd_itself_are_served_in_turn(self) -> None:
        for tenant in (1, 1, 1, 2, 3, None, None, None):
            self.ask(tenant)
        self.checkout.add("a")
        order = []
        while self.granted:
            order.append(self.granted[0][0])
            self.give_back()
        self.assertEqual(order, [None, 1, None, 2, None, 3, 1, 1])

    def test_what_many_wait_for_goes_before_all(self) -> None:
        for tenant in (None, 1, None):
            self.ask(tenant)
        urgent = self.checkout.acquire(None, 5.0, urgent=True)
        late = self.checkout.acquire(None, 5.0, urgent=True)
        late.cancel()
        self.failureResultOf(late, CancelledError)
        self.checkout.add("a")
        self.assertEqual((self.successResultOf(urgent), self.granted), ("a", []))
        self.checkout.add("b")
        self.assertEqual(self.granted, [(None, "b")])
        for connection in "cde":
            self.checkout.add(connection)
        # One that nobody waits for is granted at once.
        self.successResultOf(self.checkout.acquire(None, 5.0, urgent=True))

    def test_a_tenant_that_comes_late_waits_for_one_turn_of_a_long_queue(self) -> None:
        for _ in range(100):
            self.ask(1)
        late = self.ask(2)
        self.checkout.add("a")
        self.give_back()
        self.assertTrue(late.called)

    def test_who_comes_while_others_are_served_waits_behind_them(self) -> None:
        order: list[str] = []

        def come_again(connection: str) -> str:
            order.append("first")
            # A link that comes up meanwhile is the second one's.
            self.checkout.add("b")
            self.checkout.acquire(None, 5.0).addCallback(lambda _: order.append("again"))
            return connection

        self.checkout.acquire(None, 5.0).addCallback(come_again)
        self.checkout.acquire(None, 5.0).addCallback(lambda _: order.append("second"))
        self.checkout.add("a")
        self.checkout.add("c")
        self.assertEqual(order, ["first", "second", "again"])

    def test_a_link_that_is_granted_to_many_in_one_turn_is_lent_to_one_at_a_time(self) -> None:
        self.checkout.add("a")
        first, second = self.ask(), self.ask(1)
        self.assertEqual((first.called, second.called), (True, False))
        self.checkout.add("a")
        self.assertFalse(second.called)


class BoundTests(CheckoutCase):
    def setUp(self) -> None:
        super().setUp()
        # The clock of the tests is slow with thousands of timers.
        self.patch(module, "MAX_WAITING", _MOST)
        self.patch(module, "MAX_WAITING_OF_TENANT", _MOST_OF_TENANT)

    def test_a_tenant_has_so_many_waiters_and_the_others_have_theirs(self) -> None:
        for _ in range(_MOST_OF_TENANT):
            self.ask(1)
        with self.assertRaises(Busy):
            self.ask(1)
        self.ask(2)
        self.ask()

    def test_all_tenants_together_leave_posd_its_own(self) -> None:
        for number in range(_MOST):
            self.ask(1 + number // _MOST_OF_TENANT)
        with self.assertRaises(Busy):
            self.ask(1000)
        for _ in range(_MOST):
            self.ask()
        with self.assertRaises(Busy):
            self.ask()
        self.assertEqual(self.checkout.waiting, 2 * _MOST)

    def test_who_gives_up_makes_room_and_is_not_served(self) -> None:
        waiting = [self.ask(1) for _ in range(_MOST_OF_TENANT)]
        waiting[0].cancel()
        self.failureResultOf(waiting[0], CancelledError)
        self.ask(1)
        self.checkout.add("a")
        self.assertTrue(waiting[1].called)

    def test_at_the_deadline_it_is_busy(self) -> None:
        waiter = self.ask(None, 2.0)
        self.clock.advance(1.9)
        self.assertNoResult(waiter)
        self.clock.advance(0.1)
        self.failureResultOf(waiter, Busy)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_link_that_is_withdrawn_is_lent_to_nobody(self) -> None:
        self.checkout.add("a")
        self.checkout.withdraw("a")
        waiter = self.ask()
        self.assertNoResult(waiter)
        self.checkout.add("a")
        self.assertEqual(self.successResultOf(waiter), "a")
        self.checkout.withdraw("a")
        self.checkout.release("a", None, usable=False)
        self.assertEqual((self.checkout.idle, self.checkout.lent), (0, 0))
