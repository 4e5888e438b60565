"""Tests of a session: its greeting, replay, live events and end, and the messages of its till."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail

from posd.delivery.channel import TenantChannel
from posd.delivery.encoded import chunks
from posd.delivery.session import SessionState
from posd.errors import EventsPruned, StatementFailed, Unavailable
from posd.protocol.encodings import WEBSOCKET
from posd.values import (
    FAILED,
    GOING_AWAY,
    POLICY,
    PRUNED,
    STREAM_CHANGED,
    TOO_SLOW,
    Position,
    PrintStatus,
    Resync,
)
from tests.delivery_case import (
    KITCHEN,
    STREAM,
    FakeTransport,
    Log,
    SessionCase,
    session_start,
    terminal,
)


class GreetingTests(SessionCase):
    def greeting(self) -> dict[str, Any]:
        return self.transport.messages[0]

    def test_the_greeting_has_the_device_the_stream_and_its_head(self) -> None:
        session = self.named()
        self.assertEqual(
            self.greeting(),
            {
                "type": "connected",
                "tenant": "kitchen",
                "message": "Connected to POS WebSocket",
                "timestamp": "2026-11-22T12:00:00.000Z",
                "connectionId": str(session.terminal.connection_id),
                "deviceId": "BAR",
                "streamId": str(STREAM),
                "lastEventId": 10,
                "resumedFrom": 10,
                "resync": None,
                "heartbeatSeconds": 30,
            },
        )

    def test_a_greeting_without_a_position_has_no_resume_position(self) -> None:
        for begin in (self.unnamed, self.legacy):
            self.transport = FakeTransport()
            begin()
            self.assertIsNone(self.greeting()["resumedFrom"])

    def test_a_till_that_names_a_position_is_told_where_it_resumes(self) -> None:
        self.unnamed(after=4)
        self.assertEqual(self.greeting()["resumedFrom"], 4)

    def test_a_till_that_acknowledges_is_told_where_it_resumes(self) -> None:
        self.named(acked=6)
        self.assertEqual(self.greeting()["resumedFrom"], 6)

    def test_a_till_that_gets_a_resync_gets_no_replay(self) -> None:
        for reason in Resync:
            self.transport = FakeTransport()
            asked = terminal("BAR", position=Position(4))
            self.begin(asked, session_start(10, 4), 10, reason)
            greeting = self.greeting()
            self.assertEqual((greeting["resync"], greeting["resumedFrom"]), (reason.value, None))
            self.assertEqual(self.transport.ids, [])

    def test_the_greeting_is_the_first_message(self) -> None:
        self.unnamed(after=0)
        self.assertEqual(
            [each["type"] for each in self.transport.messages], ["connected"] + ["note"] * 10
        )

    def test_an_empty_stream_has_a_head_too(self) -> None:
        self.log = Log()
        self.channel = TenantChannel(KITCHEN, self.log.head, self.log.read)
        self.begin(terminal(), session_start(0), 0)
        self.assertEqual(self.greeting()["lastEventId"], 0)


class DeliveryTests(SessionCase):
    def test_a_session_with_nothing_to_catch_up_with_is_live_at_once(self) -> None:
        session = self.unnamed()
        self.assertIs(session.state, SessionState.LIVE)
        self.channel.wake(self.log.commit(2))
        self.assertEqual(self.transport.ids, [11, 12])
        self.assertNotIn("replay", self.transport.messages[1])

    def test_missed_events_come_first_and_are_marked_as_replayed(self) -> None:
        self.unnamed(after=7)
        self.channel.wake(self.log.commit())
        self.assertEqual(self.transport.ids, [8, 9, 10, 11])
        marks = [each.get("replay") for each in self.transport.messages[1:]]
        self.assertEqual(marks, [True, True, True, None])

    def test_events_committed_during_a_replay_come_once_and_in_order(self) -> None:
        self.log.at_once = False
        self.unnamed(after=7)
        self.channel.wake(self.log.commit(2))
        self.log.answer(1)
        self.log.answer(0)
        while self.log.waiting:
            self.log.answer()
        self.assertEqual(self.transport.ids, [8, 9, 10, 11, 12])
        self.log.at_once = True
        self.channel.wake(self.log.commit())
        self.assertEqual(self.transport.ids[-1], 13)

    def test_a_session_ahead_of_the_channel_waits_for_the_channel(self) -> None:
        # The page of another session may have events for which the channel was not woken yet.
        self.log.commit(2)
        session = self.unnamed(after=8)
        self.assertEqual((self.transport.ids, session.state), ([9, 10, 11, 12], SessionState.LIVE))
        self.assertEqual(self.channel.tail, 12)

    def test_a_session_whose_head_is_ahead_of_the_channel_waits_too(self) -> None:
        self.log.commit()
        self.log.at_once = False
        session = self.begin(terminal(), session_start(11), 11)
        self.assertIs(session.state, SessionState.CATCHING_UP)
        self.log.answer()
        self.assertEqual((session.state, self.transport.ids), (SessionState.LIVE, []))

    def test_a_long_replay_stays_within_the_limit_of_the_send_queue(self) -> None:
        self.channel.wake(self.log.commit(500, size=500))
        self.transport.enough = 2000
        session = self.unnamed(after=0)
        steps = 0
        while session.state is not SessionState.LIVE:
            self.assertLessEqual(session.send_queue.held, self.limit)
            self.transport.drain(enough=2000)
            steps += 1
        self.assertEqual(self.transport.ids, list(range(1, 511)))
        self.assertGreater(steps, 2)

    def test_a_slow_till_catches_up_again_and_misses_nothing(self) -> None:
        session = self.unnamed()
        self.transport.stall()
        for _ in range(20):
            self.channel.wake(self.log.commit(size=100))
        self.assertIs(session.state, SessionState.CATCHING_UP)
        self.assertLessEqual(session.send_queue.held, self.limit)
        self.transport.drain()
        self.assertEqual(self.transport.ids, list(range(11, 31)))
        self.assertIs(session.state, SessionState.LIVE)

    def test_a_slow_till_delays_no_other(self) -> None:
        other = FakeTransport()
        self.unnamed()
        self.begin(terminal(), session_start(10), 10, transport=other)
        self.transport.stall()
        for _ in range(20):
            self.channel.wake(self.log.commit(size=100))
        self.assertEqual(other.ids, list(range(11, 31)))

    def test_events_dropped_to_save_memory_are_read_again(self) -> None:
        session = self.unnamed()
        self.transport.stall()
        self.channel.wake(self.log.commit(3))
        self.assertEqual(session.position, 13)
        session.send_queue.shed()
        self.assertEqual((session.state, session.position), (SessionState.CATCHING_UP, 10))
        self.channel.wake(self.log.commit())
        self.transport.drain()
        self.assertEqual(self.transport.ids, [11, 12, 13, 14])

    def test_a_session_whose_queue_is_emptied_by_its_own_event_has_no_gap(self) -> None:
        self.budget.limit = 150
        self.unnamed()
        self.transport.stall()
        for _ in range(5):
            self.channel.wake(self.log.commit(size=100))
        self.assertEqual(self.budget.held, 0)
        self.transport.drain()
        self.channel.wake(self.log.commit())
        self.assertEqual(self.transport.ids, [11, 12, 13, 14, 15, 16])

    def test_a_session_whose_queue_is_emptied_for_another_has_no_gap(self) -> None:
        lines = [FakeTransport() for _ in range(4)]
        for transport in lines:
            self.begin(terminal(), session_start(10), 10, transport=transport)
            transport.stall()
        self.budget.limit = 500
        for _ in range(5):
            self.channel.wake(self.log.commit(size=100))
            self.assertLessEqual(self.budget.held, 500)
        for transport in lines:
            transport.drain()
        self.assertEqual([transport.ids for transport in lines], [[11, 12, 13, 14, 15]] * 4)

    def test_a_session_accepts_only_the_event_after_its_position(self) -> None:
        session = self.unnamed()
        (encoded,) = self.successResultOf(self.channel.page(9))
        (chunk,) = chunks([(encoded.written(WEBSOCKET), encoded.seq)])
        self.assertFalse(session.send_queue.deliver(chunk))
        self.assertFalse(session.send_queue.deliver(evolve(chunk, first=12, last=12)))
        self.assertEqual((self.transport.ids, session.position), ([], 10))

    def test_an_unreachable_database_delays_the_replay(self) -> None:
        self.log.trouble = Unavailable("away")
        session = self.unnamed(after=7)
        self.channel.check(self.log.head)
        self.assertEqual((session.state, self.transport.ids), (SessionState.CATCHING_UP, []))
        self.log.trouble = None
        self.channel.check(self.log.head)
        self.assertEqual((session.state, self.transport.ids), (SessionState.LIVE, [8, 9, 10]))

    def test_a_session_reads_one_page_at_a_time(self) -> None:
        self.log.at_once = False
        session = self.unnamed(after=7)
        for _ in range(3):
            session.catch_up()
            session.on_room()
            self.channel.check(self.log.head)
        self.assertEqual(self.log.reads, [7])

    def test_missing_events_close_the_connection(self) -> None:
        del self.log.events[:9]
        self.unnamed(after=7)
        self.assertEqual((self.transport.closings, self.transport.ids), ([STREAM_CHANGED], []))

    def test_events_deleted_during_a_replay_close_the_connection(self) -> None:
        self.log.trouble = EventsPruned("long ago")
        self.unnamed(after=7)
        self.assertEqual((self.transport.closings, self.transport.ids), ([PRUNED], []))

    def test_a_failed_statement_closes_the_connection_and_is_logged(self) -> None:
        self.log.trouble = StatementFailed("no such column", "42703")
        self.unnamed(after=7)
        self.assertEqual(self.transport.closings, [FAILED])
        self.assertEqual(len(self.flushLoggedErrors(StatementFailed)), 1)

    def test_a_page_that_arrives_after_the_end_is_ignored(self) -> None:
        self.log.at_once = False
        session = self.unnamed(after=7)
        session.closed()
        self.log.answer()
        self.assertEqual(self.transport.ids, [])

    def test_replayed_events_count_as_delivered(self) -> None:
        self.unnamed(after=7)
        self.assertEqual(self.delivered, [10])

    def test_a_session_counts_sent_and_unsent_events(self) -> None:
        session = self.unnamed(after=7)
        self.transport.stall()
        self.channel.wake(self.log.commit(2))
        self.assertEqual((session.sent, session.backlog), (3, 2))
        self.transport.drain()
        self.assertEqual((session.sent, session.backlog), (5, 0))


class EndingTests(SessionCase):
    def test_an_ended_session_gets_nothing_more(self) -> None:
        session = self.unnamed()
        session.end(GOING_AWAY)
        self.channel.wake(self.log.commit())
        session.catch_up()
        self.assertEqual((self.transport.closings, self.transport.ids), ([GOING_AWAY], []))
        self.assertEqual(self.channel.sessions, set())

    def test_a_session_ends_once(self) -> None:
        session = self.unnamed()
        session.end(GOING_AWAY)
        session.end(FAILED)
        session.closed()
        self.assertEqual(self.transport.closings, [GOING_AWAY])

    def test_a_till_that_has_disconnected_is_not_closed(self) -> None:
        session = self.unnamed()
        session.closed()
        session.end(GOING_AWAY)
        self.assertEqual(self.transport.closings, [])

    def test_the_end_of_a_session_drops_waiting_bytes(self) -> None:
        session = self.unnamed()
        self.transport.stall()
        self.channel.wake(self.log.commit())
        session.closed()
        self.assertEqual(self.budget.held, 0)

    def test_a_session_without_progress_for_a_minute_is_closed(self) -> None:
        session = self.unnamed()
        self.transport.stall()
        self.clock.advance(60)
        session.check()
        self.assertEqual(self.transport.closings, [])
        self.clock.advance(1)
        session.check()
        self.assertEqual(self.transport.closings, [TOO_SLOW])

    def test_a_till_that_reads_slowly_stays(self) -> None:
        session = self.unnamed()
        for _ in range(10):
            self.transport.stall()
            self.clock.advance(50)
            session.check()
            self.transport.drain()
        self.assertEqual(self.transport.closings, [])


class AcknowledgementTests(SessionCase):
    def test_an_ack_moves_the_cursor(self) -> None:
        session = self.named(acked=4)
        self.hear(session, type="ack", id=7)
        self.assertEqual((self.progress_sink.acks, session.acked), ([7], 7))

    def test_the_cursor_never_moves_back(self) -> None:
        session = self.named(acked=4)
        self.hear(session, type="ack", id=7)
        self.hear(session, type="ack", id=5)
        self.assertEqual((self.progress_sink.acks, session.acked), ([7, 7], 7))

    def test_an_ack_beyond_the_head_is_an_error(self) -> None:
        session = self.named()
        self.hear(session, type="ack", id=11)
        self.hear(session, type="nack", id=11)
        self.assertEqual(self.transport.errors, ["beyond_head"] * 2)
        self.assertEqual((self.progress_sink.acks, self.progress_sink.nacks), ([], []))

    def test_an_ack_of_a_sent_event_is_not_beyond_the_head(self) -> None:
        session = self.named()
        self.channel.wake(self.log.commit())
        self.hear(session, type="ack", id=11)
        self.assertEqual(self.progress_sink.acks, [11])

    def test_an_ack_of_an_event_from_another_transport_is_not_beyond_the_head(self) -> None:
        session = self.named()
        self.transport.stall()
        self.log.trouble = Unavailable("away")
        self.channel.check(evolve(self.log.head, last_seq=self.log.commit(2)))
        self.hear(session, type="ack", id=12)
        self.assertEqual((self.progress_sink.acks, self.transport.errors), ([12], []))

    def test_a_till_without_a_device_name_has_no_cursor(self) -> None:
        session = self.unnamed()
        self.hear(session, type="ack", id=10)
        self.hear(session, type="nack", id=10)
        self.assertEqual(self.transport.errors, ["no_device"] * 2)
        self.assertIsNone(session.acked)

    def test_a_refused_event_is_stored_and_passed(self) -> None:
        session = self.named(acked=4)
        self.hear(session, type="nack", id=5, reason="no such printer")
        self.assertEqual(self.progress_sink.nacks, [(5, "no such printer")])
        self.assertEqual(self.progress_sink.acks, [5])

    def test_a_named_position_is_an_acknowledgement(self) -> None:
        asked = terminal("BAR", position=Position(6))
        session = self.begin(asked, session_start(10, 3, legacy=True), 6)
        self.assertEqual((self.progress_sink.acks, session.acked), ([6], 6))
        self.assertFalse(session.is_basic)

    def test_a_position_before_the_cursor_replays_and_does_not_move_the_cursor(self) -> None:
        asked = terminal("BAR", position=Position(2))
        session = self.begin(asked, session_start(10, 6), 2)
        self.assertEqual((session.acked, self.transport.ids), (6, [*range(3, 11)]))

    def test_after_a_resync_the_head_is_the_cursor(self) -> None:
        session = self.begin(
            terminal("BAR"), session_start(10, 2, pruned_seq=5), 10, Resync.RETENTION
        )
        self.assertEqual((self.progress_sink.acks, session.acked), ([10], 10))

    def test_a_till_that_names_no_position_acknowledges_nothing(self) -> None:
        self.named(acked=6)
        self.assertEqual((self.progress_sink.acks, self.progress_sink.follows), ([], []))

    def test_the_cursor_of_a_legacy_till_follows_the_sent_events(self) -> None:
        session = self.legacy()
        self.channel.wake(self.log.commit(2))
        self.assertEqual((self.progress_sink.follows, session.acked), ([10], 12))
        session.note_legacy_position()
        self.assertEqual(self.progress_sink.follows, [10, 12])
        self.assertEqual(self.progress_sink.acks, [])

    def test_the_end_of_a_connection_moves_the_cursor_of_a_legacy_till(self) -> None:
        session = self.legacy()
        self.channel.wake(self.log.commit(2))
        session.closed()
        session.closed()
        self.assertEqual(self.progress_sink.follows, [10, 12])

    def test_unsent_events_do_not_move_the_cursor_of_a_legacy_till(self) -> None:
        session = self.legacy()
        self.transport.stall()
        self.channel.wake(self.log.commit(2))
        session.note_legacy_position()
        self.assertEqual((self.progress_sink.follows, session.position), ([10, 10], 12))

    def test_the_first_ack_of_a_legacy_till_sets_its_cursor(self) -> None:
        session = self.legacy()
        self.channel.wake(self.log.commit(3))
        self.hear(session, type="ack", id=11)
        self.assertEqual((self.progress_sink.acks, session.acked), ([11], 11))
        self.channel.wake(self.log.commit())
        session.note_legacy_position()
        session.closed()
        self.assertEqual((self.progress_sink.follows, session.acked), ([10], 11))

    def test_the_first_ack_of_a_legacy_till_does_not_go_before_its_start(self) -> None:
        session = self.legacy()
        self.hear(session, type="ack", id=5)
        self.assertEqual(self.progress_sink.acks, [10])


class BasicTillTests(SessionCase):
    """Which tills count as basic. A drain drops them without a Close frame."""

    def test_a_till_that_uses_no_new_feature_is_basic(self) -> None:
        self.assertTrue(self.unnamed().is_basic)

    def test_a_till_whose_key_has_its_device_name_is_basic(self) -> None:
        self.assertTrue(self.legacy().is_basic)

    def test_a_till_that_sends_its_device_name_is_not_basic(self) -> None:
        self.assertFalse(
            self.begin(terminal("BAR"), session_start(10, 3, legacy=True), 10).is_basic
        )

    def test_a_till_that_names_a_position_is_not_basic(self) -> None:
        self.assertFalse(self.unnamed(after=10).is_basic)

    def test_a_till_that_acknowledges_is_not_basic(self) -> None:
        session = self.legacy()
        self.hear(session, type="ack", id=10)
        self.assertFalse(session.is_basic)


class MessageTests(SessionCase):
    def setUp(self) -> None:
        super().setUp()
        self.session = self.named()

    def answers(self) -> list[dict[str, Any]]:
        return self.transport.messages[1:]

    def test_a_ping_is_answered_at_once(self) -> None:
        self.hear(self.session, type="ping", id=3)
        pong = {"type": "pong", "timestamp": "2026-11-22T12:00:00.000Z", "echo": 3}
        self.assertEqual(self.answers(), [pong])

    def test_a_pong_is_not_answered(self) -> None:
        self.hear(self.session, type="pong")
        self.assertEqual(self.answers(), [])

    def test_a_print_report_is_stored(self) -> None:
        self.hear(self.session, type="print", orderId="A-1", status="failed", reason="paper")
        self.assertEqual(self.progress_sink.prints, [("A-1", PrintStatus.FAILED, "paper")])
        self.assertEqual(self.answers(), [])

    def test_a_print_report_of_an_unknown_order_is_an_error(self) -> None:
        answer: Deferred[bool] = Deferred()
        self.progress_sink.printing.append(answer)
        work = self.session.heard(b'{"type":"print","orderId":"A-1","status":"printed"}')
        assert work is not None
        done = Deferred.fromCoroutine(work)
        self.assertNoResult(done)
        answer.callback(False)
        self.successResultOf(done)
        self.assertEqual(self.transport.errors, ["unknown_order"])

    def test_a_print_report_that_cannot_be_stored_is_an_error(self) -> None:
        self.progress_sink.printing.append(fail(Unavailable("The database cannot be reached.")))
        self.hear(self.session, type="print", orderId="A-1", status="printed")
        self.assertEqual(self.transport.errors, ["unavailable"])

    def test_any_other_message_is_logged(self) -> None:
        self.hear(self.session, type="menu", items=2)
        self.assertEqual(self.progress_sink.words, [("menu", b'{"type":"menu","items":2}')])

    def test_an_invalid_message_is_an_error_and_the_connection_stays(self) -> None:
        for raw in (b"", b"{", b"[]", b"7", b"{}", b'{"type":7}', b"[" * 100):
            self.session.heard(raw)
        self.assertEqual(self.transport.errors, ["invalid_message"] * 7)
        self.assertEqual(self.transport.closings, [])

    def test_the_tenth_invalid_message_within_a_minute_closes_the_connection(self) -> None:
        for _ in range(9):
            self.session.heard(b"{")
        self.assertEqual(self.transport.closings, [])
        self.session.heard(b"{")
        self.assertEqual(self.transport.closings, [POLICY])
        self.assertEqual(len(self.transport.errors), 10)

    def test_ten_invalid_messages_in_more_than_a_minute_are_accepted(self) -> None:
        for _ in range(30):
            self.session.heard(b"{")
            self.clock.advance(7)
        self.assertEqual(self.transport.closings, [])

    def test_messages_that_cost_a_statement_are_charged_and_processed(self) -> None:
        charge_statement: list[None] = []
        self.session.charge_statement = lambda: charge_statement.append(None)
        for message in (
            {"type": "menu"},
            {"type": "nack", "id": 10},
            {"type": "print", "orderId": "1", "status": "printed"},
        ):
            self.hear(self.session, **message)
        self.assertEqual(len(charge_statement), 3)
        for message in ({"type": "ping"}, {"type": "pong"}, {"type": "ack", "id": 10}):
            self.hear(self.session, **message)
        self.assertEqual(len(charge_statement), 3)
        self.assertEqual((len(self.progress_sink.words), len(self.progress_sink.nacks)), (1, 1))

    def test_acknowledgements_are_not_charged_as_statements(self) -> None:
        self.channel.wake(self.log.commit(1000))
        for seq in range(11, 1011):
            self.hear(self.session, type="ack", id=seq)
        self.assertEqual((self.session.acked, self.transport.errors), (1010, []))

    def test_a_till_that_does_not_read_misses_only_answers(self) -> None:
        self.transport.stall()
        for _ in range(100):
            self.hear(self.session, type="ping", id="x" * 100)
            self.session.answer_ping(b"x" * 100)
        self.assertLessEqual(self.session.send_queue.held, self.limit)
        self.channel.wake(self.log.commit())
        self.transport.drain()
        self.assertEqual(self.transport.ids, [11])

    def test_messages_sent_before_the_till_disconnected_are_processed(self) -> None:
        self.channel.wake(self.log.commit())
        self.session.closed()
        self.hear(self.session, type="ack", id=11)
        self.hear(self.session, type="print", orderId="A-1", status="printed")
        self.assertEqual(self.progress_sink.acks, [11])
        self.assertEqual(len(self.progress_sink.prints), 1)

    def test_messages_after_posd_closed_the_session_are_ignored(self) -> None:
        self.session.end(POLICY)
        self.hear(self.session, type="ack", id=10)
        self.assertEqual(self.progress_sink.acks, [])
