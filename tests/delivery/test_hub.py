"""Tests of a node's sessions: opened at their head, woken, compared with the database, and closed."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from uuid import UUID

from attrs import evolve
from twisted.internet.defer import Deferred

from posd.delivery.session import SessionState
from posd.errors import TooManyRequests, Unavailable
from posd.values import (
    DISABLED,
    DISCONNECTED,
    GOING_AWAY,
    RENAMED,
    REVOKED,
    SUPERSEDED,
    AppendedEvents,
    Position,
    SessionStart,
    StreamHead,
)
from tests.delivery_case import (
    KITCHEN,
    NOON,
    OTHER_STREAM,
    STREAM,
    FakeTransport,
    session_start,
    terminal,
)
from tests.hub_case import HubCase, wake


class LookingUpTests(HubCase):
    def look_up(self, device: str | None = "BAR") -> Deferred[SessionStart]:
        return Deferred.fromCoroutine(self.hub.look_up(KITCHEN, device))

    def test_look_up_returns_the_start_of_a_terminal(self) -> None:
        self.store.session_start = session_start(10, 4)
        self.assertEqual(self.successResultOf(self.look_up()), self.store.session_start)

    def test_pending_acknowledgements_are_written_before_the_cursor_is_read(self) -> None:
        self.store.session_start = session_start(10, 4)
        self.look_up()
        self.look_up(None)
        self.assertEqual(self.progress_store.settled, [(KITCHEN.id, "BAR")])

    def test_a_requested_replay_is_sent_at_the_next_connection(self) -> None:
        self.store.session_start = session_start(10, 4)
        self.store.wished = {(KITCHEN.id, "BAR")}
        told = Deferred.fromCoroutine(self.hub.look_up(KITCHEN, "BAR", resuming=False))
        self.assertTrue(self.successResultOf(told).recalled)
        self.assertEqual(self.store.wished, {(KITCHEN.id, "BAR")})
        self.assertFalse(self.successResultOf(self.look_up()).recalled)
        self.assertEqual(self.store.wished, set())

    def test_too_many_devices_are_refused(self) -> None:
        refusal = self.failureResultOf(self.look_up(), TooManyRequests).value
        self.assertEqual((refusal.code, refusal.retry_after), ("too_many_devices", 60))

    def test_no_terminal_is_admitted_after_a_drain_has_begun(self) -> None:
        self.store.session_start = session_start(10)
        self.store.pending = []
        waiting = self.look_up()
        self.successResultOf(Deferred.fromCoroutine(self.hub.drain(5)))
        self.store.pending.pop().callback(None)
        for refused in (waiting, self.look_up()):
            self.assertEqual(self.failureResultOf(refused, Unavailable).value.retry_after, 1)


class OpeningTests(HubCase):
    def test_a_session_is_counted_and_stored(self) -> None:
        session, _ = self.connect()
        self.assertEqual(len(self.hub), 1)
        self.assertEqual(self.hub.connections(KITCHEN.id), 1)
        self.assertEqual(self.hub.channels.tenants, [KITCHEN.id])
        self.assertEqual(self.progress_store.here, [session.terminal])

    def test_new_limits_apply_to_all_sessions_and_a_new_heartbeat_to_future_ones(
        self,
    ) -> None:
        session, transport = self.connect()
        session.send_queue.pauseProducing()
        self.hub.reconfigure(heartbeat=7, send_queue_bytes=10, send_queue_total=100_000)
        self.assertFalse(session.send_queue.offer(b"x" * 11))
        self.assertTrue(session.send_queue.offer(b"x" * 10))
        self.assertEqual(transport.messages[0]["heartbeatSeconds"], 30)
        _, late = self.connect()
        self.assertEqual(late.messages[0]["heartbeatSeconds"], 7)

    def test_a_smaller_total_limit_empties_send_queues_at_once(self) -> None:
        session, _ = self.connect()
        session.send_queue.pauseProducing()
        self.assertTrue(session.send_queue.offer(b"x" * 10))
        self.hub.reconfigure(heartbeat=30, send_queue_bytes=1000, send_queue_total=9)
        self.assertEqual(session.send_queue.held, 0)

    def test_a_session_that_has_ended_is_not_counted(self) -> None:
        session, _ = self.connect()
        self.hub.closed(session)
        self.hub.closed(session)
        self.assertEqual(len(self.hub), 0)
        self.assertEqual(self.hub.connections(KITCHEN.id), 0)
        self.assertEqual((self.hub.channels.tenants, self.progress_store.here), ([], []))

    def test_a_channel_exists_as_long_as_it_has_sessions(self) -> None:
        first, second = self.connect()[0], self.connect()[0]
        self.hub.closed(first)
        self.assertEqual(self.hub.channels.tenants, [KITCHEN.id])
        self.hub.closed(second)
        self.assertEqual(self.hub.channels.tenants, [])

    def test_a_till_resumes_at_the_position_that_it_names(self) -> None:
        _, transport = self.connect(terminal(position=Position(7)))
        self.assertEqual(transport.ids, [8, 9, 10])
        self.assertEqual(transport.messages[0]["heartbeatSeconds"], 30)

    def test_an_invalid_position_gets_a_resync_with_the_reason(self) -> None:
        _, transport = self.connect(terminal(position=Position(7, OTHER_STREAM)))
        self.assertEqual((transport.messages[0]["resync"], transport.ids), ("reset", []))

    def test_an_event_committed_after_the_head_was_read_is_not_missed(self) -> None:
        self.log.commit()
        _, transport = self.connect(at=10)
        self.assertEqual(transport.ids, [11])

    def test_a_session_that_fails_to_begin_is_removed(self) -> None:
        class Broken(FakeTransport):
            def attach(self, send_queue: object) -> None:
                raise ZeroDivisionError

        self.assertRaises(ZeroDivisionError, self.hub.open, terminal(), session_start(10), Broken())
        self.assertEqual((len(self.hub), self.progress_store.here), (0, []))

    def test_changed_connections_are_reported_to_the_store(self) -> None:
        session, _ = self.connect()
        ((connection_id, _, seq),) = self.progress_store.heartbeats()
        self.assertEqual((connection_id, seq), (session.terminal.connection_id, 10))

    def test_the_heartbeats_also_store_the_positions_of_legacy_tills(self) -> None:
        legacy = evolve(session_start(10, 3), legacy=True)
        self.hub.open(terminal(key_device="BAR"), legacy, FakeTransport())
        self.connect(terminal("FRONT"), acked=10)
        wake(self.hub, KITCHEN.id, self.log.commit(2))
        self.progress_store.heartbeats()
        self.assertEqual(self.progress_store.follows, [10, 12])

    def test_a_frame_claims_the_device(self) -> None:
        _, old = self.connect(terminal("BAR"), acked=10)
        newer = terminal("BAR", connected_at=NOON + timedelta(seconds=1))
        session, new = self.connect(newer, acked=10)
        self.hub.heard(session)
        self.assertEqual((old.closings, new.closings), ([SUPERSEDED], []))
        self.assertEqual(self.progress_store.claims, [newer])

    def test_a_connection_of_another_node_may_supersede_a_connection(self) -> None:
        session, transport = self.connect(terminal("BAR"), acked=10)
        self.hub.superseded(UUID(int=7))
        self.hub.superseded(session.terminal.connection_id)
        self.assertEqual(transport.closings, [SUPERSEDED])

    def test_an_operator_may_disconnect_a_till(self) -> None:
        session, transport = self.connect(terminal("BAR"), acked=10)
        self.hub.disconnect(UUID(int=7))
        self.assertEqual(transport.closings, [])
        self.hub.disconnect(session.terminal.connection_id)
        self.assertEqual((transport.closings, transport.drops), ([DISCONNECTED], []))

    def test_a_basic_till_is_disconnected_without_a_close_frame(self) -> None:
        session, transport = self.connect()
        self.hub.disconnect(session.terminal.connection_id)
        self.assertEqual((transport.closings, transport.drops), ([], [False]))
        self.assertEqual(session.state, SessionState.CLOSED)


class CheckTests(HubCase):
    def test_a_check_finds_events_without_a_wake(self) -> None:
        _, transport = self.connect()
        self.log.commit()
        self.successResultOf(self.check(self.log.head))
        self.assertEqual(transport.ids, [11])

    def test_new_events_of_several_tenants_are_read_together(self) -> None:
        shops = [evolve(KITCHEN, id=number, slug=f"shop-{number}") for number in (7, 8, 9)]
        lines = [self.connect(terminal(tenant=shop))[1] for shop in shops]
        self.log.commit()
        heads = [StreamHead(shop.id, self.log.stream_id, 11) for shop in shops]
        self.store.pages.clear()
        self.successResultOf(self.check(*heads))
        self.assertEqual([transport.ids for transport in lines], [[11]] * 3)
        self.assertEqual(self.store.pages, [[(n, self.log.stream_id, 10) for n in (7, 8, 9)]])

    def test_a_stream_with_another_id_does_not_delay_others(self) -> None:
        lines = []
        for number, name in ((7, STREAM), (8, OTHER_STREAM), (9, STREAM)):
            shop, transport = evolve(KITCHEN, id=number, slug=f"shop-{number}"), FakeTransport()
            begun = evolve(session_start(10), head=StreamHead(number, name, 10))
            self.hub.open(terminal(tenant=shop, stream_id=name), begun, transport)
            lines.append(transport)
        self.log.commit()
        self.store.pages.clear()
        names = (STREAM, OTHER_STREAM, STREAM)
        self.successResultOf(self.check(*map(StreamHead, (7, 8, 9), names, (11, 11, 11))))
        self.assertEqual(len(self.store.pages), 1)
        self.assertEqual([transport.ids for transport in lines], [[11], [], [11]])
        self.assertEqual([transport.closings for transport in lines], [[], [], []])

    def test_events_committed_on_this_node_are_sent_without_a_read(self) -> None:
        _, transport = self.connect()
        self.store.pages.clear()
        self.log.commit(2)
        events = self.log.events[-2:]
        self.hub.channels.append(AppendedEvents(KITCHEN.id, self.log.stream_id, events))
        self.hub.channels.append(AppendedEvents(99, self.log.stream_id, events))
        self.assertEqual((transport.ids, self.store.pages), ([11, 12], []))

    def test_wakes_and_heads_of_tenants_without_tills_are_ignored(self) -> None:
        wake(self.hub, 99, 5)
        self.successResultOf(self.check(StreamHead(99, OTHER_STREAM, 5)))
        self.assertEqual(self.hub.channels.tenants, [])

    def test_a_head_read_before_a_commit_does_not_count_as_a_restored_backup(self) -> None:
        _, transport = self.connect()
        before = self.log.head
        wake(self.hub, KITCHEN.id, self.log.commit())
        self.successResultOf(self.check(before))
        self.assertEqual((transport.ids, transport.closings, self.store.set_back), ([11], [], []))
        self.log.commit()
        wake(self.hub, KITCHEN.id, 12)
        self.assertEqual(transport.ids, [11, 12])

    def test_a_head_that_stays_behind_counts_as_a_restored_backup(self) -> None:
        _, transport = self.connect(terminal("BAR", position=Position(10)))
        wake(self.hub, KITCHEN.id, self.log.commit())
        del self.log.events[5:]
        found = self.log.head
        self.successResultOf(self.check(found))
        self.clock.advance(1)
        self.assertEqual((transport.closings, self.store.set_back), ([RENAMED], [found]))
        self.assertEqual(self.hub.channels.tenants, [])

    def test_events_that_come_during_the_second_read_are_no_restored_backup(self) -> None:
        _, transport = self.connect()
        before = self.log.head
        wake(self.hub, KITCHEN.id, self.log.commit())
        self.store.pending = []
        checking = self.check(before)
        # The second read has found event 11. Event 12 is committed now.
        wake(self.hub, KITCHEN.id, self.log.commit())
        self.store.pending.pop().callback(None)
        self.successResultOf(checking)
        self.assertEqual((transport.ids, self.store.set_back), ([11, 12], []))

    def test_all_sessions_may_leave_during_a_check(self) -> None:
        session, _ = self.connect()
        before = self.log.head
        wake(self.hub, KITCHEN.id, self.log.commit())
        self.store.pending = []
        checking = self.check(before)
        self.hub.closed(session)
        self.store.pending.pop().callback(None)
        self.successResultOf(checking)

    def test_no_event_of_a_new_stream_id_is_sent_to_sessions_of_the_old_one(self) -> None:
        _, transport = self.connect()
        self.log.stream_id = OTHER_STREAM
        wake(self.hub, KITCHEN.id, self.log.commit(5))
        self.assertEqual(transport.ids, [])

    def test_a_head_that_could_not_be_read_is_read_by_the_next_check(self) -> None:
        self.store.away = True
        self.log.commit()
        session, transport = self.connect(at=10)
        self.assertEqual((session.state, transport.ids), (SessionState.LIVE, []))
        self.store.away = False
        self.successResultOf(self.check(self.log.head))
        self.assertEqual(transport.ids, [11])


class RecheckTests(HubCase):
    def recheck(self, keys: Collection[int] | None = None) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.hub.recheck(keys)))

    def test_tills_with_an_invalid_key_are_closed(self) -> None:
        lines = [self.connect(terminal(key_id=key))[1] for key in (1, 2, 2)]
        self.store.ended = {2, 3}
        self.recheck()
        self.assertEqual([transport.closings for transport in lines], [[], [REVOKED], [REVOKED]])

    def test_a_single_key_can_be_checked(self) -> None:
        lines = [self.connect(terminal(key_id=key))[1] for key in (1, 2)]
        self.store.ended = {1, 2}
        self.recheck([1])
        self.assertEqual([transport.closings for transport in lines], [[REVOKED], []])
        self.assertEqual(self.store.checked, [{1}])

    def test_a_key_without_a_connection_is_not_checked(self) -> None:
        self.recheck([1])
        self.connect(terminal(key_id=2))
        self.recheck([1])
        self.assertEqual(self.store.checked, [])

    def test_tills_of_a_disabled_device_are_closed(self) -> None:
        lines = [self.connect(terminal(name), acked=10)[1] for name in ("BAR", "DOOR", None)]
        self.store.disabled = {(KITCHEN.id, "BAR"), (KITCHEN.id + 1, "DOOR")}
        self.recheck([1])
        self.assertEqual(lines[0].closings, [])
        self.recheck()
        self.assertEqual([transport.closings for transport in lines], [[DISABLED], [], []])

    def test_tills_with_a_requested_replay_are_disconnected(self) -> None:
        lines = [self.connect(terminal(name), acked=10)[1] for name in ("BAR", "DOOR")]
        self.store.wished = {(KITCHEN.id, "BAR"), (KITCHEN.id + 1, "DOOR")}
        self.recheck()
        self.assertEqual([transport.closings for transport in lines], [[DISCONNECTED], []])


class DrainTests(HubCase):
    def drain(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.hub.drain(5))

    def pass_seconds(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))

    def test_without_connections_a_drain_ends_at_once(self) -> None:
        self.successResultOf(self.drain())
        self.assertTrue(self.hub.draining)

    def test_a_drain_closes_tills_with_1001(self) -> None:
        _, transport = self.connect(terminal("BAR"), acked=10)
        self.drain()
        self.assertEqual((transport.closings, transport.drops), ([GOING_AWAY], []))

    def test_a_drain_drops_basic_tills_without_a_close_frame(self) -> None:
        session, transport = self.connect()
        self.drain()
        self.assertEqual((transport.closings, transport.drops), ([], [False]))
        self.assertIs(session.state, SessionState.CLOSED)

    def test_a_drain_closes_in_random_order_and_basic_tills_last(self) -> None:
        order: list[str] = []

        class Listed(FakeTransport):
            def close(self, closing: object) -> None:
                order.append("modern")

            def drop(self, *, abort: bool) -> None:
                order.append("deployed")

        for number in range(60):
            connecting = terminal(f"BAR{number}" if number % 2 else None)
            self.hub.open(connecting, session_start(10), Listed())
        draining = self.drain()
        self.assertEqual(order, ["modern"] * 3)
        self.pass_seconds(2)
        self.assertNotEqual(order.count("modern"), 0)
        self.assertLess(len(order), 60)
        self.pass_seconds(10)
        self.assertEqual(order, ["modern"] * 30 + ["deployed"] * 30)
        self.successResultOf(draining)

    def test_a_drain_ends_when_all_connections_have_ended(self) -> None:
        session, _ = self.connect()
        draining = self.drain()
        self.pass_seconds(1)
        self.assertNoResult(draining)
        self.hub.closed(session)
        self.pass_seconds(0.1)
        self.successResultOf(draining)

    def test_a_drain_does_not_wait_forever(self) -> None:
        self.connect()
        draining = self.drain()
        self.pass_seconds(3.1)
        self.successResultOf(draining)

    def test_a_session_that_cannot_be_closed_does_not_stop_a_drain(self) -> None:
        class Broken(FakeTransport):
            def drop(self, *, abort: bool) -> None:
                raise ZeroDivisionError

        self.hub.open(terminal(), session_start(10), Broken())
        others = [self.connect()[1] for _ in range(5)]
        self.drain()
        self.pass_seconds(8)
        self.assertEqual([transport.drops for transport in others], [[False]] * 5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_session_may_end_during_a_drain(self) -> None:
        sessions = [self.connect(terminal(f"BAR{n}"), acked=10) for n in range(40)]
        self.drain()
        for session, _ in sessions:
            self.hub.closed(session)
        self.pass_seconds(8)
        self.assertEqual(sum(len(transport.closings) for _, transport in sessions), 2)
