"""Tests of polling: from a position or a cursor, and waits that hold no database connection."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

from attrs import evolve
from twisted.internet.defer import Deferred

from posd.delivery import long_poll as polls
from posd.delivery.hub import PollParticipant
from posd.delivery.long_poll import LongPolling, Poll, PollingTerminal, PollPage, PollQuery
from posd.delivery.registry import TillTransport
from posd.errors import (
    BadRequest,
    Conflict,
    EventsPruned,
    Refusal,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unprocessable,
)
from posd.security.connection_limits import ConnectionLimits
from posd.values import KeyKind, Position, Principal, Resync, Seq, SessionStart
from tests.database.test_checkout import stack_depth
from tests.delivery_case import (
    KITCHEN,
    NOON,
    OTHER_STREAM,
    STREAM,
    FakeTransport,
    event,
    session_start,
    terminal,
)
from tests.hub_case import HubCase, wake

PATIENT = PollQuery(seconds=20)


class PollCase(HubCase):
    """A tenant with ten events."""

    def setUp(self) -> None:
        super().setUp()
        self.connections = ConnectionLimits(total=10, per_tenant=2, per_device=1)
        self.polls = LongPolling(
            self.clock, self.hub, self.connections, self.progress_store.write_pending
        )
        self.holding: list[Callable[[], None]] = []
        """The functions that report that the client of a waiting poll has disconnected."""
        self.stands()

    def stands(self, acked: Seq | None = None, *, legacy: bool = False, pruned: Seq = 0) -> None:
        """Set the terminal's cursor in the database."""
        head = evolve(self.log.head, pruned_seq=pruned)
        self.store.session_start = SessionStart(head, acked, legacy, NOON)

    def hold(self, leave: Callable[[], None]) -> Callable[[], None]:
        self.holding.append(leave)
        return lambda: self.holding.remove(leave)

    def poller(self, device: str | None = None) -> PollingTerminal:
        return PollingTerminal(KITCHEN, Principal(1, KeyKind.TENANT, KITCHEN), device)

    def ask(
        self,
        after: Seq | None,
        query: PollQuery = PollQuery(),  # noqa: B008  frozen
        *,
        stream_id: UUID | None = None,
        device: str | None = None,
    ) -> Deferred[PollPage]:
        position = None if after is None else Position(after, stream_id)
        return Deferred.fromCoroutine(
            self.polls.answer(self.poller(device), position, query, self.hold)
        )

    def get(self, *arguments: Any, **more: Any) -> PollPage:
        return self.successResultOf(self.ask(*arguments, **more))

    def refusal(self, asking: Deferred[Any], kind: type[Refusal]) -> str:
        error = self.failureResultOf(asking, kind).value
        assert isinstance(error, Refusal)
        return error.code

    def commit(self, count: int = 1, size: int = 0) -> None:
        """Commit events and wake the channel."""
        wake(self.hub, KITCHEN.id, self.log.commit(count, size))

    def assert_nothing_left(self) -> None:
        self.assertEqual((self.hub.channels.tenants, self.hub._polls), ([], set()))
        self.assertEqual((self.holding, self.connections.open), ([], 0))
        self.assertEqual(self.clock.getDelayedCalls(), self.timers)

    @property
    def timers(self) -> list[Any]:
        """The timers of the hub itself."""
        call = self.hub._registry._timer.call
        return [] if call is None else [call]


def ids(batch: PollPage) -> list[Seq]:
    return [json.loads(each)["id"] for each in batch.messages]


class ReadingTests(PollCase):
    def test_a_poll_returns_the_events_after_the_position(self) -> None:
        batch = self.get(7)
        self.assertEqual(ids(batch), [8, 9, 10])
        self.assertEqual((batch.position, batch.last, batch.stream_id), (10, 10, STREAM))
        self.assert_nothing_left()

    def test_each_event_is_the_message_of_a_websocket(self) -> None:
        _, transport = self.connect(at=10)
        self.commit()
        self.stands()
        (message,) = self.get(10).messages
        self.assertEqual(json.loads(message), transport.messages[-1])

    def test_at_the_end_of_the_stream_a_poll_is_empty_and_reads_nothing(self) -> None:
        batch = self.get(10)
        self.assertEqual((batch.messages, batch.position, batch.resync), ([], 10, None))
        self.assertEqual(self.log.reads, [])

    def test_a_poll_returns_at_most_the_requested_number_of_events(self) -> None:
        batch = self.get(0, PollQuery(limit=4))
        self.assertEqual((ids(batch), batch.position, batch.last), ([1, 2, 3, 4], 4, 10))

    def test_an_answer_may_have_several_pages(self) -> None:
        self.log.commit(290)
        self.stands()
        self.assertEqual(ids(self.get(0, PollQuery(limit=250))), list(range(1, 251)))

    def test_an_answer_has_a_limited_size(self) -> None:
        self.log.commit(20, size=100_000)
        self.stands()
        batch = self.get(10)
        self.assertEqual(ids(batch), list(range(11, 21)))
        self.assertLess(sum(map(len, batch.messages)), 1024 * 1024)
        self.assertEqual(ids(self.get(batch.position)), list(range(21, 31)))

    def test_an_answer_has_at_least_one_event(self) -> None:
        self.patch(polls, "_MOST_BYTES", 10)
        self.assertEqual(ids(self.get(7)), [8])

    def test_a_poll_returns_only_the_requested_types(self) -> None:
        self.log.events[3] = evolve(event(4), type="new_order")
        batch = self.get(0, PollQuery(types=frozenset({"new_order", "other"})))
        self.assertEqual((ids(batch), batch.position), ([4], 10))

    def test_a_poll_for_a_rare_type_examines_a_limited_number_of_events(self) -> None:
        self.patch(polls, "_MOST_EXAMINED", 6)
        batch = self.get(0, PollQuery(types=frozenset({"rare"}), seconds=20))
        self.assertEqual((batch.messages, batch.position, batch.last), ([], 6, 10))

    def test_a_poll_for_a_type_reports_the_last_event_that_it_examined(self) -> None:
        self.patch(polls, "_MOST_EXAMINED", 10)
        batch = self.get(0, PollQuery(types=frozenset({"rare"})))
        self.assertEqual((batch.position, batch.last), (10, 10))

    def test_events_of_a_poll_for_all_types_count_as_delivered(self) -> None:
        self.get(7, PollQuery(types=frozenset({"note"})))
        self.assertEqual(self.progress_store.furthest, {})
        self.get(7, PollQuery(limit=2))
        self.assertEqual(self.progress_store.furthest, {(KITCHEN.id, STREAM): 9})

    def test_without_a_database_a_poll_is_unavailable(self) -> None:
        self.log.trouble = Unavailable("away")
        self.assertEqual(self.refusal(self.ask(7), Unavailable), "unavailable")
        self.assert_nothing_left()


class PositionTests(PollCase):
    def test_a_client_without_a_device_name_must_name_a_position(self) -> None:
        self.assertEqual(self.refusal(self.ask(None), BadRequest), "position_required")

    def test_a_terminal_continues_at_its_cursor(self) -> None:
        self.stands(acked=6)
        self.assertEqual(ids(self.get(None, device="BAR")), [7, 8, 9, 10])

    def test_a_terminal_that_never_acknowledged_continues_at_its_cursor_too(self) -> None:
        self.stands(acked=6, legacy=True)
        self.assertEqual(ids(self.get(None, device="BAR")), [7, 8, 9, 10])

    def test_a_poll_without_a_position_acknowledges_the_cursor(self) -> None:
        self.stands(acked=6, legacy=True)
        self.get(None, device="BAR")
        self.assertEqual(self.progress_store.acks, [6])

    def test_a_named_position_acknowledges_the_events_up_to_it(self) -> None:
        self.stands(acked=2)
        self.assertEqual(ids(self.get(6, device="BAR")), [7, 8, 9, 10])
        self.assertEqual(self.progress_store.acks, [6])

    def test_returned_events_are_not_acknowledged(self) -> None:
        self.stands(acked=6)
        self.get(None, device="BAR")
        self.assertNotIn(10, self.progress_store.acks)

    def test_without_a_device_name_nothing_is_stored(self) -> None:
        self.get(6)
        self.assertEqual(self.progress_store.acks, [])

    def test_pending_acknowledgements_are_written_before_the_cursor_is_read(self) -> None:
        self.stands(acked=6)
        self.get(None, device="BAR")
        self.assertEqual(self.progress_store.settled, [(KITCHEN.id, "BAR")])

    def resync(self, *arguments: Any, **more: Any) -> Resync | None:
        batch = self.get(*arguments, **more)
        self.assertEqual((batch.messages, batch.position, batch.last), ([], 10, 10))
        return batch.resync

    def test_a_position_below_the_floor_gets_a_resync(self) -> None:
        self.stands(pruned=5)
        self.assertIs(self.resync(4), Resync.RETENTION)

    def test_a_position_of_an_unknown_stream_gets_a_resync(self) -> None:
        self.assertIs(self.resync(4, stream_id=OTHER_STREAM), Resync.RESET)
        self.assertEqual(ids(self.get(4, stream_id=STREAM))[0], 5)

    def test_a_position_beyond_the_head_gets_a_resync(self) -> None:
        self.assertIs(self.resync(11), Resync.AHEAD)

    def test_a_poll_that_gets_a_resync_does_not_wait(self) -> None:
        self.assertIs(self.resync(11, PATIENT), Resync.AHEAD)
        self.assert_nothing_left()

    def test_after_a_resync_the_head_is_the_cursor(self) -> None:
        self.stands(acked=3, pruned=5)
        self.assertIs(self.resync(None, device="BAR"), Resync.RETENTION)
        self.assertEqual(self.progress_store.acks, [10])

    def test_events_deleted_during_a_read_cause_a_resync(self) -> None:
        self.stands()
        self.log.at_once = False
        asking = self.ask(3)
        self.stands(pruned=5)
        self.log.at_once = True
        self.log.fail(EventsPruned("long ago"))
        self.assertIs(self.successResultOf(asking).resync, Resync.RETENTION)

    def test_a_gap_in_the_stream_is_unavailable(self) -> None:
        del self.log.events[4]
        with self.subTest("in a page"):
            self.refusal(self.ask(3), Unavailable)
        with self.subTest("before a page"):
            self.refusal(self.ask(4), Unavailable)
        self.assert_nothing_left()


class WaitingTests(PollCase):
    def test_a_waiting_poll_is_answered_when_there_is_an_event(self) -> None:
        asking = self.ask(10, PATIENT)
        self.assertNoResult(asking)
        self.commit(2)
        batch = self.successResultOf(asking)
        self.assertEqual((ids(batch), batch.position, batch.last), ([11, 12], 12, 12))
        self.assert_nothing_left()

    def test_a_poll_does_not_wait_if_there_are_events(self) -> None:
        self.assertEqual(ids(self.get(9, PATIENT)), [10])

    def test_a_poll_is_empty_when_its_time_is_over(self) -> None:
        asking = self.ask(10, PATIENT)
        self.clock.advance(19.9)
        self.assertNoResult(asking)
        self.clock.advance(0.1)
        batch = self.successResultOf(asking)
        self.assertEqual((batch.messages, batch.position, batch.resync), ([], 10, None))
        self.assert_nothing_left()

    def test_a_poll_waits_on_if_there_are_only_events_of_other_types(self) -> None:
        asking = self.ask(10, PollQuery(seconds=20, types=frozenset({"new_order"})))
        self.commit(2)
        self.assertNoResult(asking)
        self.clock.advance(20)
        self.assertEqual(self.successResultOf(asking).position, 12)

    def test_many_waiting_polls_share_one_read(self) -> None:
        self.connections.per_tenant = 5
        self.check(self.log.head)
        asking = [self.ask(10, PATIENT) for _ in range(5)]
        del self.log.reads[:]
        self.commit()
        self.assertEqual([ids(self.successResultOf(each)) for each in asking], [[11]] * 5)
        self.assertEqual(self.log.reads, [10])

    def test_waiting_polls_cause_no_read_without_events(self) -> None:
        self.ask(10, PATIENT)
        del self.store.asked[:]
        for _ in range(10):
            self.check(self.log.head)
        self.assertEqual((self.log.reads, self.store.asked), ([], []))

    def test_an_event_that_came_during_the_lookup_is_not_missed(self) -> None:
        self.log.commit()
        self.assertEqual(ids(self.get(10, PATIENT)), [11])

    def test_thousands_of_polls_are_answered_with_one_read_on_a_flat_stack(self) -> None:
        self.connections.total = self.connections.per_tenant = 2000
        depths: set[int] = set()

        def note(batch: PollPage) -> PollPage:
            depths.add(stack_depth())
            return batch

        waiting = [self.ask(10, PollQuery(seconds=20)).addCallback(note) for _ in range(2000)]
        reads = len(self.log.reads)
        self.commit()
        for each in waiting:
            self.assertEqual(self.successResultOf(each).position, 11)
        self.assertEqual(len(self.log.reads) - reads, 1)
        self.assertEqual(len(depths), 1)

    def test_a_wake_without_events_answers_no_poll(self) -> None:
        asking = self.ask(10, PATIENT)
        wake(self.hub, KITCHEN.id, 99)
        self.assertNoResult(asking)
        self.commit()
        self.assertEqual(ids(self.successResultOf(asking)), [11])

    def test_a_waiting_poll_survives_an_unreachable_database(self) -> None:
        asking = self.ask(10, PATIENT)
        self.log.trouble = Unavailable("away")
        self.commit()
        self.assertNoResult(asking)
        self.log.trouble = None
        self.check(self.log.head)
        self.assertEqual(ids(self.successResultOf(asking)), [11])

    def test_a_waiting_poll_counts_as_a_connection(self) -> None:
        asking = self.ask(10, PATIENT)
        self.assertEqual(self.connections.tenant_count(KITCHEN.id), 1)
        self.ask(10, PATIENT)
        self.assertEqual(
            self.refusal(self.ask(10, PATIENT), TooManyRequests), "too_many_connections"
        )
        self.commit()
        self.successResultOf(asking)
        self.assert_nothing_left()

    def test_a_poll_that_does_not_wait_is_no_connection(self) -> None:
        self.connections.per_tenant = 0
        self.assertEqual(ids(self.get(9)), [10])
        self.assertEqual(ids(self.get(9, PATIENT)), [10])

    def test_a_terminal_was_last_seen_at_the_end_of_its_wait(self) -> None:
        self.stands(acked=10)
        self.ask(None, PATIENT, device="BAR")
        self.assertEqual(self.progress_store.acks, [10])
        self.clock.advance(20)
        self.assertEqual(self.progress_store.acks, [10, 10])

    def test_a_poll_ends_when_its_client_disconnects(self) -> None:
        self.stands(acked=10)
        asking = self.ask(None, PATIENT, device="BAR")
        (leave,) = self.holding
        leave()
        self.assertEqual(self.successResultOf(asking).messages, [])
        self.assertEqual(self.progress_store.acks, [10])
        self.assert_nothing_left()

    def test_a_poll_whose_client_has_disconnected_does_not_wait(self) -> None:
        def gone(leave: Callable[[], None]) -> Callable[[], None]:
            leave()
            return lambda: None

        polling = self.polls.answer(self.poller(), Position(10), PATIENT, gone)
        self.successResultOf(Deferred.fromCoroutine(polling))
        self.assert_nothing_left()

    def test_a_drain_answers_all_polls_at_once(self) -> None:
        asking = self.ask(10, PATIENT)
        Deferred.fromCoroutine(self.hub.drain(5))
        self.assertEqual(self.successResultOf(asking).position, 10)
        self.assert_nothing_left()

    def test_no_poll_begins_to_wait_during_a_drain(self) -> None:
        self.log.at_once = False
        reading = self.ask(7, PollQuery(seconds=20, types=frozenset({"rare"})))
        Deferred.fromCoroutine(self.hub.drain(5))
        self.log.answer()
        self.assertEqual(self.successResultOf(reading).position, 10)
        self.assertEqual(self.refusal(self.ask(10, PATIENT), Unavailable), "unavailable")

    def test_a_poll_with_a_revoked_key_gets_nothing_more(self) -> None:
        asking = self.ask(10, PATIENT)
        self.store.ended = {1}
        self.successResultOf(Deferred.fromCoroutine(self.hub.recheck([1])))
        self.assertEqual(self.refusal(asking, Unauthorized), "unauthorized")
        self.assert_nothing_left()

    def test_a_new_stream_id_that_lost_events_causes_a_resync(self) -> None:
        asking = self.ask(10, PATIENT)
        self.log.stream_id = OTHER_STREAM
        self.stands()
        self.check(self.log.head)
        batch = self.successResultOf(asking)
        self.assertEqual((batch.resync, batch.stream_id), (Resync.RESET, OTHER_STREAM))

    def test_a_poll_waits_on_under_a_new_stream_id_that_lost_nothing(self) -> None:
        asking = self.ask(10, PATIENT)
        self.store.rename()
        self.stands()
        self.check(self.log.head)
        self.assertNoResult(asking)
        self.commit(2)
        batch = self.successResultOf(asking)
        self.assertEqual((batch.resync, batch.stream_id), (None, OTHER_STREAM))
        self.assertEqual((len(batch.messages), batch.position), (2, 12))
        self.assert_nothing_left()

    def test_the_position_of_a_device_that_polls_is_remembered(self) -> None:
        self.stands(acked=8)
        self.successResultOf(self.ask(8, device="BAR"))
        self.hub.record_all_positions()
        self.assertEqual(self.progress_store.sent_to, {(KITCHEN.id, "BAR", STREAM): 10})

    def test_an_unexpected_error_of_a_read_is_logged(self) -> None:
        asking = self.ask(10, PATIENT)
        self.log.trouble = ZeroDivisionError()
        self.commit()
        self.refusal(asking, Unavailable)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_poll_implements_the_interface_of_the_hub(self) -> None:
        guest: PollParticipant = Poll(terminal(), 10, self.clock)
        self.assertEqual(guest.terminal.tenant, KITCHEN)


class AcknowledgingTests(PollCase):
    def acknowledge(
        self, seq: Seq, stream_id: UUID | None = None, device: str | None = "BAR"
    ) -> Deferred[Seq]:
        return Deferred.fromCoroutine(self.polls.acknowledge(self.poller(device), seq, stream_id))

    def written(self, acked: Seq) -> None:
        """Set the cursor in the database at the second write of pending acknowledgements."""
        write_pending = self.progress_store.write_pending

        def write(tenant_id: int, device_id: str) -> Any:
            if len(self.progress_store.settled) == 1:
                self.stands(acked=acked)
            return write_pending(tenant_id, device_id)

        self.polls._write_pending = write

    def test_an_acknowledgement_returns_the_written_cursor(self) -> None:
        self.stands(acked=3)
        self.written(acked=7)
        self.assertEqual(self.successResultOf(self.acknowledge(7)), 7)
        self.assertEqual(self.progress_store.acks, [7])

    def test_the_cursor_never_moves_back(self) -> None:
        self.stands(acked=9)
        self.written(acked=9)
        self.assertEqual(self.successResultOf(self.acknowledge(7)), 9)

    def test_an_acknowledgement_that_was_not_written_is_unavailable(self) -> None:
        self.stands(acked=3)
        self.assertEqual(self.refusal(self.acknowledge(7), Unavailable), "unavailable")

    def test_an_acknowledgement_beyond_the_head_is_refused(self) -> None:
        self.stands(acked=3)
        self.assertEqual(self.refusal(self.acknowledge(11), Unprocessable), "beyond_head")
        self.assertEqual(self.progress_store.acks, [])

    def test_an_acknowledgement_without_a_device_name_is_refused(self) -> None:
        refused = self.acknowledge(7, device=None)
        self.assertEqual(self.refusal(refused, Unprocessable), "no_device")

    def test_an_acknowledgement_of_an_unknown_stream_is_refused(self) -> None:
        self.stands(acked=3)
        refused = self.acknowledge(7, OTHER_STREAM)
        self.assertEqual(self.refusal(refused, Conflict), "stream_changed")
        self.assertEqual(self.progress_store.acks, [])

    def test_an_acknowledgement_of_an_earlier_stream_id_counts_if_nothing_was_lost(self) -> None:
        self.store.rename(lost=2)
        self.stands(acked=3)
        self.written(acked=8)
        self.assertEqual(self.successResultOf(self.acknowledge(8, STREAM)), 8)
        self.assertEqual(self.refusal(self.acknowledge(9, STREAM), Conflict), "stream_changed")

    def test_the_stream_id_may_change_while_an_acknowledgement_is_written(self) -> None:
        self.stands(acked=3)
        self.store.rename()
        self.written(acked=7)
        self.assertEqual(self.successResultOf(self.acknowledge(7, STREAM)), 7)

    def test_an_acknowledgement_of_an_event_that_is_lost_meanwhile_is_refused(self) -> None:
        self.stands(acked=3)
        self.log.stream_id = OTHER_STREAM
        self.written(acked=7)
        self.assertEqual(self.refusal(self.acknowledge(7, STREAM), Conflict), "stream_changed")

    def test_an_acknowledgement_moves_the_cursor_of_the_terminals_session(self) -> None:
        session, _ = self.connect(terminal("BAR"), acked=3)
        self.stands(acked=3)
        self.written(acked=7)
        self.successResultOf(self.acknowledge(7))
        self.assertEqual(session.acked, 7)

    def test_refused_events_right_after_the_acknowledgement_are_passed(self) -> None:
        session, _ = self.connect(terminal("BAR"), acked=3)
        session.heard(b'{"type":"nack","id":8,"reason":"odd"}')
        self.stands(acked=3)
        self.written(acked=8)
        self.assertEqual(self.successResultOf(self.acknowledge(7)), 8)
        self.assertEqual(self.progress_store.acks[-1], 8)

    def test_an_acknowledgement_does_not_reach_a_session_of_another_stream_id(self) -> None:
        session, _ = self.connect(terminal("BAR", stream_id=OTHER_STREAM), acked=3)
        self.stands(acked=3)
        self.written(acked=7)
        self.successResultOf(self.acknowledge(7))
        self.assertEqual(session.acked, 3)

    def test_an_acknowledgement_may_be_below_what_a_legacy_session_was_sent(self) -> None:
        transport: TillTransport = FakeTransport()
        legacy = session_start(10, 3, legacy=True)
        session = self.hub.open(terminal(key_device="BAR"), legacy, transport)
        self.assertEqual(session.acked, 10)
        self.stands(acked=10, legacy=True)
        self.written(acked=7)
        self.assertEqual(self.successResultOf(self.acknowledge(7)), 7)
        self.assertEqual((session.acked, self.progress_store.acks), (7, [7]))
        self.assertFalse(session.is_basic)
