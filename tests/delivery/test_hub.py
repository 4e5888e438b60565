"""The sessions of one node: opened at their head, woken, compared with the database, sent home."""

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

    def test_it_tells_where_a_terminal_stands(self) -> None:
        self.store.session_start = session_start(10, 4)
        self.assertEqual(self.successResultOf(self.look_up()), self.store.session_start)

    def test_what_a_device_said_is_written_down_before_it_is_told(self) -> None:
        self.store.session_start = session_start(10, 4)
        self.look_up()
        self.look_up(None)
        self.assertEqual(self.progress_store.settled, [(KITCHEN.id, "BAR")])

    def test_one_that_is_to_come_for_events_again_gets_them_when_it_does(self) -> None:
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

    def test_nobody_is_let_in_once_the_drain_has_begun(self) -> None:
        self.store.session_start = session_start(10)
        self.store.pending = []
        waiting = self.look_up()
        self.successResultOf(Deferred.fromCoroutine(self.hub.drain(5)))
        self.store.pending.pop().callback(None)
        for refused in (waiting, self.look_up()):
            self.assertEqual(self.failureResultOf(refused, Unavailable).value.retry_after, 1)


class OpeningTests(HubCase):
    def test_a_session_is_counted_and_entered_in_the_books(self) -> None:
        session, _ = self.connect()
        self.assertEqual(len(self.hub), 1)
        self.assertEqual(self.hub.connections(KITCHEN.id), 1)
        self.assertEqual(self.hub.channels.tenants, [KITCHEN.id])
        self.assertEqual(self.progress_store.here, [session.terminal])

    def test_bounds_that_change_count_for_those_who_are_here_and_the_heartbeat_for_who_comes(
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

    def test_what_is_held_beyond_a_smaller_total_is_given_up_at_once(self) -> None:
        session, _ = self.connect()
        session.send_queue.pauseProducing()
        self.assertTrue(session.send_queue.offer(b"x" * 10))
        self.hub.reconfigure(heartbeat=30, send_queue_bytes=1000, send_queue_total=9)
        self.assertEqual(session.send_queue.held, 0)

    def test_and_no_more_when_it_is_gone(self) -> None:
        session, _ = self.connect()
        self.hub.closed(session)
        self.hub.closed(session)
        self.assertEqual(len(self.hub), 0)
        self.assertEqual(self.hub.connections(KITCHEN.id), 0)
        self.assertEqual((self.hub.channels.tenants, self.progress_store.here), ([], []))

    def test_a_channel_is_there_for_as_long_as_there_are_sessions(self) -> None:
        first, second = self.connect()[0], self.connect()[0]
        self.hub.closed(first)
        self.assertEqual(self.hub.channels.tenants, [KITCHEN.id])
        self.hub.closed(second)
        self.assertEqual(self.hub.channels.tenants, [])

    def test_a_till_goes_on_from_where_it_asks(self) -> None:
        _, transport = self.connect(terminal(position=Position(7)))
        self.assertEqual(transport.ids, [8, 9, 10])
        self.assertEqual(transport.messages[0]["heartbeatSeconds"], 30)

    def test_a_position_that_cannot_be_is_answered_with_the_reason(self) -> None:
        _, transport = self.connect(terminal(position=Position(7, OTHER_STREAM)))
        self.assertEqual((transport.messages[0]["resync"], transport.ids), ("reset", []))

    def test_an_event_that_was_committed_while_the_head_was_on_its_way_is_not_missed(self) -> None:
        self.log.commit()
        _, transport = self.connect(at=10)
        self.assertEqual(transport.ids, [11])

    def test_a_connection_that_fails_to_begin_leaves_nothing_behind(self) -> None:
        class Broken(FakeTransport):
            def attach(self, send_queue: object) -> None:
                raise ZeroDivisionError

        self.assertRaises(ZeroDivisionError, self.hub.open, terminal(), session_start(10), Broken())
        self.assertEqual((len(self.hub), self.progress_store.here), (0, []))

    def test_what_is_new_of_connections_is_told_to_the_books(self) -> None:
        session, _ = self.connect()
        ((connection_id, _, seq),) = self.progress_store.heartbeats()
        self.assertEqual((connection_id, seq), (session.terminal.connection_id, 10))

    def test_the_positions_of_legacy_tills_are_noted_with_that(self) -> None:
        legacy = evolve(session_start(10, 3), legacy=True)
        self.hub.open(terminal(key_device="BAR"), legacy, FakeTransport())
        self.connect(terminal("FRONT"), acked=10)
        wake(self.hub, KITCHEN.id, self.log.commit(2))
        self.progress_store.heartbeats()
        self.assertEqual(self.progress_store.follows, [10, 12])

    def test_a_frame_takes_the_devices_place(self) -> None:
        _, old = self.connect(terminal("BAR"), acked=10)
        newer = terminal("BAR", connected_at=NOON + timedelta(seconds=1))
        session, new = self.connect(newer, acked=10)
        self.hub.heard(session)
        self.assertEqual((old.closings, new.closings), ([SUPERSEDED], []))
        self.assertEqual(self.progress_store.claims, [newer])

    def test_a_connection_may_be_superseded_by_one_of_another_node(self) -> None:
        session, transport = self.connect(terminal("BAR"), acked=10)
        self.hub.superseded(UUID(int=7))
        self.hub.superseded(session.terminal.connection_id)
        self.assertEqual(transport.closings, [SUPERSEDED])

    def test_an_operator_may_send_a_till_away(self) -> None:
        session, transport = self.connect(terminal("BAR"), acked=10)
        self.hub.disconnect(UUID(int=7))
        self.assertEqual(transport.closings, [])
        self.hub.disconnect(session.terminal.connection_id)
        self.assertEqual((transport.closings, transport.drops), ([DISCONNECTED], []))

    def test_a_deployed_till_is_sent_away_without_a_close_frame_and_so_comes_back(self) -> None:
        session, transport = self.connect()
        self.hub.disconnect(session.terminal.connection_id)
        self.assertEqual((transport.closings, transport.drops), ([], [False]))
        self.assertEqual(session.state, SessionState.CLOSED)


class CheckTests(HubCase):
    def test_a_poll_finds_what_no_wake_told(self) -> None:
        _, transport = self.connect()
        self.log.commit()
        self.successResultOf(self.check(self.log.head))
        self.assertEqual(transport.ids, [11])

    def test_what_is_new_of_several_tenants_is_read_together(self) -> None:
        shops = [evolve(KITCHEN, id=number, slug=f"shop-{number}") for number in (7, 8, 9)]
        lines = [self.connect(terminal(tenant=shop))[1] for shop in shops]
        self.log.commit()
        heads = [StreamHead(shop.id, self.log.stream_id, 11) for shop in shops]
        self.store.pages.clear()
        self.successResultOf(self.check(*heads))
        self.assertEqual([transport.ids for transport in lines], [[11]] * 3)
        self.assertEqual(self.store.pages, [[(n, self.log.stream_id, 10) for n in (7, 8, 9)]])

    def test_a_stream_that_has_another_name_keeps_no_other_from_its_events(self) -> None:
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

    def test_what_this_node_committed_is_sent_without_a_read(self) -> None:
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

    def test_a_poll_that_looked_before_a_commit_is_no_restored_backup(self) -> None:
        _, transport = self.connect()
        before = self.log.head
        wake(self.hub, KITCHEN.id, self.log.commit())
        self.successResultOf(self.check(before))
        self.assertEqual((transport.ids, transport.closings, self.store.set_back), ([11], [], []))
        self.log.commit()
        wake(self.hub, KITCHEN.id, 12)
        self.assertEqual(transport.ids, [11, 12])

    def test_a_head_that_still_is_behind_is_one_and_the_stream_gets_a_new_name(self) -> None:
        _, transport = self.connect(terminal("BAR", position=Position(10)))
        wake(self.hub, KITCHEN.id, self.log.commit())
        del self.log.events[5:]
        found = self.log.head
        self.successResultOf(self.check(found))
        self.clock.advance(1)
        self.assertEqual((transport.closings, self.store.set_back), ([RENAMED], [found]))
        self.assertEqual(self.hub.channels.tenants, [])

    def test_what_came_while_it_was_looked_again_is_no_reason_either(self) -> None:
        _, transport = self.connect()
        before = self.log.head
        wake(self.hub, KITCHEN.id, self.log.commit())
        self.store.pending = []
        checking = self.check(before)
        # The second look has read 11 by now, and here comes 12.
        wake(self.hub, KITCHEN.id, self.log.commit())
        self.store.pending.pop().callback(None)
        self.successResultOf(checking)
        self.assertEqual((transport.ids, self.store.set_back), ([11, 12], []))

    def test_everybody_may_have_left_meanwhile(self) -> None:
        session, _ = self.connect()
        before = self.log.head
        wake(self.hub, KITCHEN.id, self.log.commit())
        self.store.pending = []
        checking = self.check(before)
        self.hub.closed(session)
        self.store.pending.pop().callback(None)
        self.successResultOf(checking)

    def test_nothing_of_another_history_is_delivered_before_that_is_known(self) -> None:
        _, transport = self.connect()
        self.log.stream_id = OTHER_STREAM
        wake(self.hub, KITCHEN.id, self.log.commit(5))
        self.assertEqual(transport.ids, [])

    def test_a_database_that_is_away_is_looked_at_again(self) -> None:
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

    def test_tills_whose_key_has_ended_are_closed(self) -> None:
        lines = [self.connect(terminal(key_id=key))[1] for key in (1, 2, 2)]
        self.store.ended = {2, 3}
        self.recheck()
        self.assertEqual([transport.closings for transport in lines], [[], [REVOKED], [REVOKED]])

    def test_one_key_can_be_asked_for(self) -> None:
        lines = [self.connect(terminal(key_id=key))[1] for key in (1, 2)]
        self.store.ended = {1, 2}
        self.recheck([1])
        self.assertEqual([transport.closings for transport in lines], [[REVOKED], []])
        self.assertEqual(self.store.checked, [{1}])

    def test_a_key_that_nobody_uses_is_not_asked_for(self) -> None:
        self.recheck([1])
        self.connect(terminal(key_id=2))
        self.recheck([1])
        self.assertEqual(self.store.checked, [])

    def test_tills_whose_device_was_disabled_are_closed(self) -> None:
        lines = [self.connect(terminal(name), acked=10)[1] for name in ("BAR", "DOOR", None)]
        self.store.disabled = {(KITCHEN.id, "BAR"), (KITCHEN.id + 1, "DOOR")}
        self.recheck([1])
        self.assertEqual(lines[0].closings, [])
        self.recheck()
        self.assertEqual([transport.closings for transport in lines], [[DISABLED], [], []])

    def test_tills_that_are_to_come_for_events_again_are_sent_home(self) -> None:
        lines = [self.connect(terminal(name), acked=10)[1] for name in ("BAR", "DOOR")]
        self.store.wished = {(KITCHEN.id, "BAR"), (KITCHEN.id + 1, "DOOR")}
        self.recheck()
        self.assertEqual([transport.closings for transport in lines], [[DISCONNECTED], []])


class DrainTests(HubCase):
    def drain(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.hub.drain(5))

    def pass_seconds(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))

    def test_where_nobody_is_it_is_over_at_once(self) -> None:
        self.successResultOf(self.drain())
        self.assertTrue(self.hub.draining)

    def test_tills_are_told_to_come_back(self) -> None:
        _, transport = self.connect(terminal("BAR"), acked=10)
        self.drain()
        self.assertEqual((transport.closings, transport.drops), ([GOING_AWAY], []))

    def test_deployed_tills_are_dropped_without_a_close_frame(self) -> None:
        session, transport = self.connect()
        self.drain()
        self.assertEqual((transport.closings, transport.drops), ([], [False]))
        self.assertIs(session.state, SessionState.CLOSED)

    def test_they_come_last_and_everybody_has_a_turn_of_chance(self) -> None:
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

    def test_it_is_over_when_all_have_hung_up(self) -> None:
        session, _ = self.connect()
        draining = self.drain()
        self.pass_seconds(1)
        self.assertNoResult(draining)
        self.hub.closed(session)
        self.pass_seconds(0.1)
        self.successResultOf(draining)

    def test_it_does_not_wait_for_ever(self) -> None:
        self.connect()
        draining = self.drain()
        self.pass_seconds(3.1)
        self.successResultOf(draining)

    def test_one_that_cannot_be_closed_keeps_nobody_here(self) -> None:
        class Broken(FakeTransport):
            def drop(self, *, abort: bool) -> None:
                raise ZeroDivisionError

        self.hub.open(terminal(), session_start(10), Broken())
        others = [self.connect()[1] for _ in range(5)]
        self.drain()
        self.pass_seconds(8)
        self.assertEqual([transport.drops for transport in others], [[False]] * 5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_one_that_left_meanwhile_is_let_go(self) -> None:
        sessions = [self.connect(terminal(f"BAR{n}"), acked=10) for n in range(40)]
        self.drain()
        for session, _ in sessions:
            self.hub.closed(session)
        self.pass_seconds(8)
        self.assertEqual(sum(len(transport.closings) for _, transport in sessions), 2)
