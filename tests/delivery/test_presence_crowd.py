"""Tests of presence with thousands of tills in memory: shared statements, and failures that stop no other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs

from posd.delivery.pending_writes import subscription
from posd.errors import Busy, StatementFailed, Unavailable
from posd.store import orders
from posd.values import Seq, Tenant, TenantId, Terminal
from tests.database.test_checkout import stack_depth
from tests.delivery_case import KITCHEN, STREAM, terminal
from tests.presence_case import PresenceCase

_CROWD = 2000
_GRILL = Tenant(8, "grill", "Grill", "dinedesk_grill")
_DENIED = StatementFailed("permission denied for table pos_cursors", "42501")


class CrowdTests(PresenceCase):
    """Two thousand callers wait for one flush. No caller runs in the stack of another."""

    def setUp(self) -> None:
        super().setUp()
        self.tills = [terminal(f"till-{number}") for number in range(_CROWD)]
        for till in self.tills:
            self.presence.connected(till)
        self.depths: set[int] = set()

    def claim(self, till: Terminal) -> Deferred[bool]:
        async def claim() -> bool:
            won = await self.presence.claim(till)
            self.depths.add(stack_depth())
            return won

        return Deferred.fromCoroutine(claim())

    def write_pending(self, till: Terminal) -> Deferred[None]:
        async def write_pending() -> None:
            await self.presence.write_pending(till.tenant.id, till.device_id or "")
            self.depths.add(stack_depth())

        return Deferred.fromCoroutine(write_pending())

    def assert_flat(self) -> None:
        self.assertLess(max(self.depths), sys.getrecursionlimit() // 4)

    def test_connections_that_claim_together_take_a_few_statements(self) -> None:
        self.tables.pending = []
        claims = [self.claim(till) for till in self.tills]
        self.answer()
        self.assertEqual([self.successResultOf(each) for each in claims], [True] * _CROWD)
        self.assertEqual(len(self.tables.claimed), _CROWD)
        self.assertLess(len(self.tables.statements), 10)
        self.assert_flat()

    def test_terminals_that_reconnect_wait_for_their_acknowledgements_together(self) -> None:
        for till in self.tills:
            self.presence.acknowledged(till, 7)
        self.tables.pending = []
        waiting = [self.write_pending(till) for till in self.tills]
        self.answer()
        for each in waiting:
            self.successResultOf(each)
        self.assertEqual(len(self.tables.cursors), _CROWD)
        self.assertEqual(self.tables.statements.count("advance"), 1)
        self.assert_flat()

    def test_all_callers_fail_without_a_database_and_succeed_later(self) -> None:
        self.fails("renew_lease")
        for each in [self.claim(till) for till in self.tills]:
            self.failureResultOf(each, Unavailable)
        self.fails("claim_devices")
        self.tables.trouble.pop("renew_lease")
        for each in [self.claim(till) for till in self.tills]:
            self.failureResultOf(each, Unavailable)
        self.tables.trouble.clear()
        for each in [self.claim(till) for till in self.tills]:
            self.assertTrue(self.successResultOf(each))
        self.assert_flat()

    def test_callers_wait_for_a_limited_time(self) -> None:
        self.tables.pending = []
        claims = [self.claim(till) for till in self.tills[:100]]
        self.clock.advance(5.0)
        for each in claims:
            self.failureResultOf(each, Busy)
        self.answer()
        self.tables.pending = None
        self.assertTrue(self.successResultOf(self.claim(self.tills[-1])))


class WaitingTests(PresenceCase):
    def test_a_terminal_waits_for_the_running_flush_of_its_acknowledgement(self) -> None:
        self.flush()
        front = terminal("front")
        self.presence.acknowledged(front, 7)
        self.tables.pending = []
        flush = Deferred.fromCoroutine(self.presence.flush())
        settled = Deferred.fromCoroutine(self.presence.write_pending(KITCHEN.id, "front"))
        other = Deferred.fromCoroutine(self.presence.write_pending(KITCHEN.id, "back"))
        self.assertNoResult(settled)
        self.successResultOf(other)
        self.answer()
        self.successResultOf(settled)
        self.successResultOf(flush)
        self.assertEqual(self.tables.cursors, {(KITCHEN.id, "front"): 7})

    def test_a_terminal_waits_for_its_position_in_an_earlier_stream(self) -> None:
        self.flush()
        self.presence.sent(subscription(terminal("front")), 7, uses_positions=True)
        self.tables.pending = []
        settled = Deferred.fromCoroutine(self.presence.write_pending(KITCHEN.id, "front"))
        self.assertNoResult(settled)
        self.answer()
        self.successResultOf(settled)
        self.assertEqual(self.tables.astray, [("front", 7)])

    def test_a_terminal_waits_for_its_refusals(self) -> None:
        self.flush()
        front = terminal("front")
        self.presence.refused(front, 7, "no paper")
        self.presence.refused(terminal("back"), 7, "no paper")
        for under_way in (False, True):
            self.tables.pending = []
            if under_way:
                self.presence.refused(front, 8, "no paper")
                self.presence._messages.start_write()
            settled = Deferred.fromCoroutine(self.presence.write_pending(KITCHEN.id, "front"))
            other = Deferred.fromCoroutine(self.presence.write_pending(KITCHEN.id, "till"))
            self.assertNoResult(settled)
            self.successResultOf(other)
            self.answer()
            self.successResultOf(settled)
            self.assertIn(("front", 8 if under_way else 7), self.tables.nacked)
        self.assertEqual(self.presence._messages._unwritten_rejections, {})

    def test_a_terminal_without_pending_writes_does_not_wait(self) -> None:
        self.fails("renew_lease")
        self.presence.acknowledged(terminal("back"), 7)
        settled = Deferred.fromCoroutine(self.presence.write_pending(KITCHEN.id, "front"))
        self.successResultOf(settled)
        self.assertEqual(self.tables.statements, [])

    def test_pending_writes_added_during_a_flush_are_in_the_next_one(self) -> None:
        front = terminal("front")
        self.presence.acknowledged(front, 7)
        self.tables.pending = []
        first = Deferred.fromCoroutine(self.presence.flush())
        self.presence.acknowledged(front, 9)
        second = Deferred.fromCoroutine(self.presence.flush())
        self.answer()
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.tables.cursors, {(KITCHEN.id, "front"): 9})

    def test_a_connection_that_ends_before_a_flush_is_not_stored(self) -> None:
        front, back = terminal("front"), terminal("back")
        for each in (front, back):
            self.presence.connected(each)
        self.presence.disconnected(front)
        self.flush()
        self.assertEqual([*self.tables.entered], [back.connection_id])
        self.assertNotIn("delete_connections", self.tables.statements)

    def test_a_connection_that_ends_during_an_outage_is_not_stored_later(self) -> None:
        self.flush()
        front = terminal("front")
        self.presence.connected(front)
        self.tables.pending = []
        self.fails("insert_connections")
        flush = Deferred.fromCoroutine(self.presence.flush())
        self.presence.disconnected(front)
        self.answer()
        self.failureResultOf(flush, Unavailable)
        self.tables.pending = None
        self.tables.trouble.clear()
        self.flush()
        self.assertEqual(self.tables.entered, {})
        self.assertEqual(self.tables.statements.count("insert_connections"), 1)

    def test_a_connection_that_has_ended_makes_no_claim(self) -> None:
        front = terminal("front")
        self.presence.connected(front)
        self.tables.pending = []
        first = Deferred.fromCoroutine(self.presence.flush())
        claim = Deferred.fromCoroutine(self.presence.claim(front))
        self.presence.disconnected(front)
        self.answer()
        self.successResultOf(first)
        self.failureResultOf(claim, Unavailable)
        self.assertEqual((self.tables.entered, self.tables.claimed), ({}, set()))


class KeepingTests(PresenceCase):
    def away(self) -> None:
        flush = Deferred.fromCoroutine(self.presence.flush())
        self.failureResultOf(flush, Unavailable)
        self.tables.trouble.clear()

    def fail_flush_during(self, noted: Callable[[], None]) -> None:
        """Let a flush fail, and call `noted` while it runs."""
        self.tables.pending = []
        flush = Deferred.fromCoroutine(self.presence.flush())
        self.assertFalse(self.presence._pending_writes)
        noted()
        self.fails("advance")
        self.answer()
        self.failureResultOf(flush, Unavailable)
        self.tables.pending = None
        self.tables.trouble.clear()

    def add(self, seq: Seq) -> None:
        self.presence.acknowledged(terminal("front"), seq)
        self.presence.delivered((KITCHEN.id, STREAM), seq)

    def test_later_positions_replace_those_that_could_not_be_written(self) -> None:
        self.flush()
        self.add(7)
        self.fail_flush_during(lambda: self.add(9))
        self.flush()
        self.assertEqual(self.tables.cursors, {(KITCHEN.id, "front"): 9})
        self.assertEqual((self.tables.sent, self.tables.received), ({7: 9}, {7: 9}))

    def test_a_lower_position_replaces_no_higher_one(self) -> None:
        """A poll or a till that catches up may add a lower position later."""
        self.flush()
        self.add(9)
        self.fail_flush_during(lambda: self.add(7))
        self.flush()
        self.assertEqual(self.tables.cursors, {(KITCHEN.id, "front"): 9})
        self.assertEqual((self.tables.sent, self.tables.received), ({7: 9}, {7: 9}))

    def test_a_head_that_could_not_be_moved_is_moved_later(self) -> None:
        self.presence.acknowledged(terminal("front"), 9)
        self.fails("update_progress")
        self.away()
        self.flush()
        self.assertEqual(self.tables.received, {KITCHEN.id: 9})
        self.assertEqual(self.tables.statements.count("advance"), 1)

    def test_heartbeats_that_could_not_be_written_are_kept(self) -> None:
        front = terminal("front")
        self.presence.connected(front)
        self.presence.heartbeats = lambda: [(front.connection_id, 0.5, 3)]
        Deferred.fromCoroutine(self.presence._renew())
        self.fails("update_connections")
        self.away()
        self.flush()
        self.assertEqual(self.tables.seen, [front.connection_id])

    def test_one_invalid_row_of_a_thousand_is_logged_and_dropped_alone(self) -> None:
        tills = [terminal(f"till-{number}") for number in range(1000)]
        for till in tills:
            self.presence.acknowledged(till, 7)
        self.tables.bad = {"till-123", "till-700"}
        with capturedLogs() as logged:
            self.flush()
        self.assertEqual(len(self.tables.cursors), 998)
        named = [str(each["row"]) for each in logged if each["log_level"] is LogLevel.error]
        self.assertEqual(["till-123" in named[0], "till-700" in named[1]], [True, True])
        self.assertLess(len(self.tables.statements), 60)
        self.assertEqual(self.tables.received, {KITCHEN.id: 7})

    def test_many_invalid_rows_cost_a_bounded_number_of_statements(self) -> None:
        for number in range(1000):
            self.presence.acknowledged(terminal(f"till-{number}"), 7)
        self.tables.bad = {f"till-{number}" for number in range(1000)}
        with capturedLogs() as logged:
            self.flush()
        self.assertLess(len(self.tables.statements), 100)
        errors = [each for each in logged if each["log_level"] is LogLevel.error]
        self.assertEqual(sum(each["count"] for each in errors), 1000)

    def test_a_kind_that_is_refused_is_kept_logged_once_and_stops_no_other(self) -> None:
        front = terminal("front")
        self.presence.connected(front)
        self.presence.acknowledged(front, 7)
        self.presence.delivered((KITCHEN.id, STREAM), 7)
        self.fails("advance", _DENIED)
        with capturedLogs() as logged:
            for _ in range(3):
                self.flush()
            self.assertEqual((len(self.tables.entered), self.tables.sent), (1, {KITCHEN.id: 7}))
            self.tables.trouble.clear()
            self.flush()
        self.assertEqual(self.tables.cursors, {(KITCHEN.id, "front"): 7})
        told = [each["log_level"] for each in logged if each["log_namespace"].startswith("posd")]
        self.assertEqual(told, [LogLevel.error, LogLevel.info])

    def test_a_node_whose_row_is_lost_registers_again_without_an_error(self) -> None:
        tills = [terminal(f"till-{number}") for number in range(3)]
        self.presence.connected(tills[0])
        self.flush()
        self.tables.nodes.clear()
        self.tables.entered.clear()
        self.presence.connected(tills[1])
        with capturedLogs() as logged:
            self.flush()
            self.flush()
        self.assertEqual({*self.tables.entered}, {tills[0].connection_id, tills[1].connection_id})
        self.assertEqual([each for each in logged if each["log_level"] is LogLevel.error], [])


class MessageTests(PresenceCase):
    def test_messages_of_many_tenants_take_one_statement_of_each_kind(self) -> None:
        for number in range(1, 501):
            till = terminal("front", tenant=Tenant(number, f"shop-{number}", "", ""))
            self.presence.said(till, "status", b"{}")
            self.presence.refused(till, 3, "no paper")
        self.presence._messages.start_write()
        self.assertEqual(self.tables.statements, ["insert_nacks", "insert_messages"])
        self.assertEqual(self.tables.logged, [(number, "front") for number in range(1, 501)])
        self.assertEqual(len(self.tables.nacked), 500)
        self.assertEqual(self.presence._messages._pending.total, 0)

    def test_a_tenant_with_many_messages_delays_another_by_no_statement(self) -> None:
        for number in range(3000):
            self.presence.said(terminal(f"till-{number}"), "status", b"{}")
        self.presence.said(terminal("front", tenant=_GRILL), "status", b"{}")
        self.tables.pending = []
        self.presence._messages.start_write()
        self.tables.pending.pop().callback(None)
        self.assertIn((_GRILL.id, "front"), self.tables.logged)
        self.assertLess(len(self.tables.logged), 1000)
        self.answer()
        self.assertEqual(len(self.tables.logged), 3001)
        mine = [device for tenant_id, device in self.tables.logged if tenant_id == KITCHEN.id]
        self.assertEqual(mine, [f"till-{number}" for number in range(3000)])

    def test_a_till_that_reconnects_waits_only_for_its_refusals(self) -> None:
        front, other = terminal("front"), terminal("front", tenant=_GRILL)
        self.tables.pending = []
        self.presence.said(front, "status", b"{}")
        self.presence._messages.start_write()
        self.presence.said(front, "status", b"{}")
        self.presence.refused(other, 3, "no paper")
        quiet = Deferred.fromCoroutine(self.presence.write_pending(KITCHEN.id, "front"))
        self.successResultOf(quiet)
        settled = Deferred.fromCoroutine(self.presence.write_pending(_GRILL.id, "front"))
        self.tables.pending.pop(0).callback(None)
        self.assertNoResult(settled)
        self.answer()
        self.successResultOf(settled)
        self.assertEqual(
            self.tables.statements, ["insert_messages", "insert_nacks", "insert_messages"]
        )

    def test_messages_that_cannot_be_written_are_kept_in_order_and_written_once(self) -> None:
        for name in ("one", "two"):
            self.presence.said(terminal(name), "status", b"{}")
        self.fails("insert_messages")
        self.flush()
        self.presence.said(terminal("three"), "status", b"{}")
        self.tables.trouble.clear()
        self.flush()
        self.flush()
        self.assertEqual([device for _, device in self.tables.logged], ["one", "two", "three"])
        self.assertEqual(self.presence._messages._pending.total, 0)

    def test_after_a_partial_write_only_unwritten_messages_are_kept(self) -> None:
        for name in ("one", "two", "three", "four"):
            self.presence.said(terminal(name), "status", b"{}")
        self.presence.said(terminal("five", tenant=_GRILL), "status", b"{}")
        self.tables.bad, self.tables.away = {"two"}, {"three"}
        with capturedLogs():
            self.flush()
        self.assertEqual(self.tables.logged, [(KITCHEN.id, "one")])
        self.tables.away.clear()
        self.flush()
        said = [device for _, device in self.tables.logged]
        self.assertEqual(said, ["one", "three", "four", "five"])
        self.assertEqual(self.presence._messages._pending.total, 0)

    def test_a_fault_of_one_tenant_costs_no_message_of_another(self) -> None:
        for name in ("one", "three"):
            self.presence.said(terminal(name), "status", b"{}")
        for number in range(40):
            self.presence.said(terminal(f"bad-{number}", tenant=_GRILL), "status", b"{}")
        last = terminal("one", tenant=Tenant(9, "bar", "Bar", "dinedesk_bar"))
        self.presence.said(last, "status", b"{}")
        self.tables.bad = {f"bad-{number}" for number in range(40)}
        with capturedLogs() as logged:
            self.flush()
        self.assertEqual(
            {*self.tables.logged}, {(KITCHEN.id, "one"), (KITCHEN.id, "three"), (9, "one")}
        )
        lost = [each for each in logged if each["log_level"] is LogLevel.error]
        self.assertEqual({each["slug"] for each in lost}, {"grill"})
        self.assertEqual(sum(each["count"] for each in lost), 40)
        self.assertEqual(self.presence._messages._pending.total, 0)

    def test_one_invalid_message_is_logged_and_dropped_alone(self) -> None:
        for name in ("one", "two", "three"):
            self.presence.said(terminal(name), "status", b"{}")
        self.tables.bad = {"two"}
        with capturedLogs() as logged:
            self.flush()
        self.assertEqual([device for _, device in self.tables.logged], ["one", "three"])
        (lost,) = [each for each in logged if each["log_level"] is LogLevel.error]
        self.assertEqual((lost["slug"], lost["device"], lost["count"]), ("kitchen", "two", 1))

    def test_messages_whose_table_is_missing_are_kept_and_logged_once(self) -> None:
        self.presence.said(terminal("one"), "status", b"{}")
        self.presence.refused(terminal("one"), 3, "no paper")
        self.fails("insert_messages", StatementFailed("relation does not exist", "42P01"))
        with capturedLogs() as logged:
            self.flush()
            self.flush()
            self.assertEqual((self.tables.nacked, self.tables.logged), ([("one", 3)], []))
            self.tables.trouble.clear()
            self.flush()
        self.assertEqual(self.tables.logged, [(KITCHEN.id, "one")])
        told = [each["log_level"] for each in logged if each["log_namespace"].startswith("posd")]
        self.assertEqual(told, [LogLevel.error, LogLevel.info])


class MarkTests(PresenceCase):
    def test_a_failed_update_of_orders_is_kept_and_stops_no_other_tenant(self) -> None:
        for error in (_DENIED, Busy("The database is busy.")):
            self.tables.marked.clear()
            for number in range(1, 121):
                self.presence.delivered((number, STREAM), 7)
            self.flush()
            self.fails("mark 51", error)
            marking = Deferred.fromCoroutine(self.presence.mark())
            self.failureResultOf(marking, type(error))
            self.assertEqual(self.tables.marked, [*range(1, 51), *range(101, 121)])
            self.tables.trouble.clear()
            self.successResultOf(Deferred.fromCoroutine(self.presence.mark()))
            self.assertEqual({*self.tables.marked}, {*range(1, 121)})

    def test_a_tenant_with_a_slow_table_delays_only_itself(self) -> None:
        asked: list[list[TenantId]] = []
        slow: set[TenantId] = {7}

        async def mark(_: object, ids: Iterable[TenantId]) -> dict[TenantId, str]:
            asked.append([*ids])
            if slow.intersection(asked[-1]):
                raise Busy("The database is busy.")
            self.tables.marked += asked[-1]
            return {}

        self.patch(orders, "update_print_status", mark)
        for number in range(1, 61):
            self.presence.delivered((number, STREAM), 7)
        self.flush()
        with capturedLogs() as logged:
            for _ in range(4):
                self.failureResultOf(Deferred.fromCoroutine(self.presence.mark()), Busy)
        self.assertEqual({*self.tables.marked}, {*range(1, 61)} - slow)
        self.assertEqual(asked[-2:], [[7], [7]])
        (line,) = [each["what"] for each in logged if "what" in each]
        self.assertEqual(line, "print statuses of orders of tenant 7")
        slow.clear()
        self.presence.delivered((8, STREAM), 8)
        self.flush()
        for _ in range(2):
            self.presence.delivered((7, STREAM), 8)
            self.flush()
            self.successResultOf(Deferred.fromCoroutine(self.presence.mark()))
        self.assertEqual(asked[-3:], [[8], [7], [7]])
        self.presence._marks.heads_moved({7, 8})
        self.successResultOf(Deferred.fromCoroutine(self.presence.mark()))
        self.assertEqual(asked[-1], [7, 8])

    def test_a_failed_update_of_orders_does_not_keep_the_nodes_row(self) -> None:
        for error in (_DENIED, Busy("The database is busy.")):
            self.presence.delivered((KITCHEN.id, STREAM), 7)
            self.flush()
            self.assertEqual(len(self.tables.nodes), 1)
            self.fails(f"mark {KITCHEN.id}", error)
            with capturedLogs():
                self.successResultOf(self.presence.stopService())
            self.assertEqual(self.tables.nodes, set())
            self.tables.nodes.add(self.presence._node_id)


class ReadinessTests(PresenceCase):
    def run_for(self, seconds: float) -> None:
        self.clock.pump([0.1] * int(seconds * 10))

    def setUp(self) -> None:
        super().setUp()
        self.presence.startService()
        self.addCleanup(self.presence.stopService)

    def test_presence_is_not_overdue_while_flushes_succeed(self) -> None:
        for number in range(100):
            self.presence.acknowledged(terminal("front"), number)
            self.run_for(1)
            self.assertFalse(self.presence.is_overdue)

    def test_presence_is_overdue_when_the_lease_fails_for_half_a_minute(self) -> None:
        self.run_for(5)
        self.fails("renew_lease")
        self.run_for(29)
        self.assertFalse(self.presence.is_overdue)
        self.run_for(7)
        self.assertTrue(self.presence.is_overdue)
        self.tables.trouble.clear()
        self.run_for(6)
        self.assertFalse(self.presence.is_overdue)

    def test_presence_is_overdue_when_a_flush_fails_or_hangs_for_half_a_minute(self) -> None:
        front = terminal("front")
        for hangs in (False, True):
            self.presence.acknowledged(front, 7)
            if hangs:
                self.run_for(4.9)
                self.tables.pending = []
                self.presence.acknowledged(front, 8)
            else:
                self.fails("advance", _DENIED)
            with capturedLogs():
                self.run_for(25)
                self.assertFalse(self.presence.is_overdue)
                self.run_for(10)
                self.assertTrue(self.presence.is_overdue)
                self.tables.trouble.clear()
                self.answer()
                self.tables.pending = None
                self.run_for(6)
            self.assertFalse(self.presence.is_overdue)

    def test_a_problem_whose_rows_are_gone_is_over(self) -> None:
        front = terminal("front")
        self.fails("insert_connections")
        self.presence.connected(front)
        self.run_for(10)
        self.presence.disconnected(front)
        self.run_for(40)
        self.assertFalse(self.presence.is_overdue)
