"""Tests of the channel: it reads once, encodes once, and writes every event to every till without a gap."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from types import FrameType, SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from posd.delivery import channel as channels
from posd.delivery.channel import StreamBroken, Subscriber, TenantChannel
from posd.delivery.encoded import EncodedEvent, chunks
from posd.delivery.send_queue import SendBudget, SendQueue
from posd.errors import Busy, EventsPruned, StatementFailed, StreamRenamed, Unavailable
from posd.protocol.encodings import WEBSOCKET, WireFormat
from posd.values import FAILED, GOING_AWAY, PRUNED, STREAM_CHANGED, CloseReason, Seq, StreamName
from tests.delivery_case import KITCHEN, STREAM, Log, event, head, said


class Listener:
    """A session with its connection.

    Implements `Subscriber`, `send_queue.ByteSink` and `send_queue.SendQueueOwner`.
    """

    def __init__(
        self,
        channel: TenantChannel,
        position: Seq = 0,
        budget: SendBudget | None = None,
        *,
        wire_format: WireFormat = WEBSOCKET,
        limit: int = 1_000_000,
    ) -> None:
        self.channel = channel
        self.wire_format = wire_format
        self.written: list[bytes] = []
        self.looks = 0
        self.endings: list[CloseReason] = []
        budget = budget or SendBudget(1_000_000)
        self.send_queue = SendQueue(
            self, limit, budget, 7, clock=Clock().seconds, position=position
        )
        self.send_queue.listener = self

    @property
    def position(self) -> Seq:
        return self.send_queue.position

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def catch_up(self) -> None:
        self.looks += 1

    def on_room(self) -> None:
        """Do nothing."""

    def on_shed(self) -> None:
        self.channel.leave_live(self)

    def end(self, closing: CloseReason) -> None:
        self.endings.append(closing)
        self.channel.leave(self)

    @property
    def ids(self) -> list[Seq]:
        return [message["id"] for data in self.written for message in said(data)]


class Broken(Listener):
    """A session whose methods raise an exception."""

    def write(self, data: bytes) -> None:
        raise ZeroDivisionError

    def end(self, closing: CloseReason) -> None:
        super().end(closing)
        raise ZeroDivisionError


class ChannelCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.log = Log()
        self.log.commit(10)
        self.delivered: list[Seq] = []
        self.ended: list[TenantChannel] = []
        self.channel = TenantChannel(
            KITCHEN, self.log.head, self.log.read, self.note_delivery, self.ended.append
        )

    def note_delivery(self, stream: StreamName, seq: Seq) -> None:
        self.assertEqual(stream, (KITCHEN.id, STREAM))
        self.delivered.append(seq)

    def listener(
        self,
        position: Seq = 10,
        budget: SendBudget | None = None,
        *,
        live: bool = True,
        wire_format: WireFormat = WEBSOCKET,
        limit: int = 1_000_000,
    ) -> Listener:
        listener = Listener(self.channel, position, budget, wire_format=wire_format, limit=limit)
        subscriber: Subscriber = listener
        self.channel.enter(subscriber)
        if live:
            self.assertTrue(self.channel.go_live(subscriber))
        return listener


class AppendTests(ChannelCase):
    """Events that this node has committed."""

    def append(self, first: Seq, last: Seq) -> None:
        self.channel.append([event(seq) for seq in range(first, last + 1)])

    def test_events_that_follow_the_tail_are_sent_without_a_read(self) -> None:
        listener = self.listener()
        self.log.commit(3)
        self.append(11, 13)
        self.assertEqual((listener.ids, self.log.reads), ([11, 12, 13], []))
        self.assertEqual((self.channel.tail, self.delivered), (13, [13]))

    def test_events_that_leave_a_gap_are_read_from_the_database(self) -> None:
        listener = self.listener()
        self.log.commit(3)
        self.append(12, 13)
        self.assertEqual(listener.ids, [11, 12, 13])
        self.assertEqual(len(self.log.reads), 1)

    def test_events_that_were_sent_are_not_sent_again(self) -> None:
        listener = self.listener()
        self.channel.wake(self.log.commit(3))
        self.append(11, 12)
        self.append(13, 13)
        self.assertEqual(listener.ids, [11, 12, 13])

    def test_events_that_come_during_a_read_are_sent_after_it(self) -> None:
        listener = self.listener()
        self.log.commit(2)
        self.log.at_once = False
        self.channel.wake(12)
        self.log.commit(1)
        self.append(13, 13)
        self.assertEqual(listener.ids, [])
        self.log.answer()
        self.log.answer()
        self.assertEqual(listener.ids, [11, 12, 13])


class FanOutTests(ChannelCase):
    def test_every_live_session_gets_new_events(self) -> None:
        first, second = self.listener(), self.listener()
        self.channel.wake(self.log.commit(3))
        self.assertEqual((first.ids, second.ids), ([11, 12, 13], [11, 12, 13]))
        self.assertEqual(self.delivered, [13])

    def test_all_sessions_get_the_same_bytes_in_one_write(self) -> None:
        first, second = self.listener(), self.listener()
        self.channel.wake(self.log.commit(3))
        self.assertIs(first.written[0], second.written[0])
        self.assertEqual(len(first.written), 1)

    def test_an_event_is_encoded_once_for_each_wire_format(self) -> None:
        written: list[str] = []

        def wire_format(name: str) -> WireFormat:
            return WireFormat(lambda kind, text, seq: written.append(name) or text)  # type: ignore[func-returns-value]

        one, other, unused = wire_format("one"), wire_format("other"), wire_format("unused")
        listeners = [self.listener(wire_format=each) for each in (one, other, one, other)]
        self.listener(9, live=False, wire_format=unused)
        self.channel.wake(self.log.commit(2))
        self.assertEqual(sorted(written), ["one"] * 2 + ["other"] * 2)
        self.assertIs(listeners[0].written[0], listeners[2].written[0])
        self.assertEqual([each.position for each in listeners], [12] * 4)

    def test_without_a_live_session_nothing_is_encoded(self) -> None:
        self.listener(9, live=False)
        self.channel.wake(self.log.commit())
        self.assertEqual([each._written for each in self.channel._recent], [{}])

    def test_the_database_is_read_once_for_all_sessions(self) -> None:
        for _ in range(3):
            self.listener()
        self.channel.wake(self.log.commit())
        self.assertEqual(self.log.reads, [10])

    def test_a_repeated_or_late_wake_changes_nothing(self) -> None:
        listener = self.listener()
        for seq in (self.log.commit(), 11, 9, 0):
            self.channel.wake(seq)
        self.assertEqual(listener.ids, [11])

    def test_wakes_during_a_read_cause_one_more_read(self) -> None:
        self.log.at_once = False
        listener = self.listener()
        self.channel.wake(self.log.commit())
        self.channel.wake(self.log.commit(2))
        self.assertEqual(self.log.reads, [10])
        self.log.answer()
        self.log.answer()
        self.assertEqual((self.log.reads, listener.ids), ([10, 11], [11, 12, 13]))

    def test_a_long_backlog_is_read_page_by_page(self) -> None:
        listener = self.listener()
        self.channel.wake(self.log.commit(250))
        self.assertEqual(listener.ids, list(range(11, 261)))
        self.assertEqual(self.log.reads, [10, 110, 210])

    def test_a_session_without_room_catches_up_and_delays_no_other(self) -> None:
        slow, quick = self.listener(limit=0), self.listener()
        slow.send_queue.pauseProducing()
        self.channel.wake(self.log.commit())
        self.assertEqual((slow.ids, quick.ids), ([], [11]))
        self.assertEqual(slow.looks, 1)

    def test_a_session_that_raises_is_closed_and_stops_no_other(self) -> None:
        broken, other = Broken(self.channel, 10), self.listener()
        self.channel.enter(broken)
        self.assertTrue(self.channel.go_live(broken))
        self.channel.wake(self.log.commit())
        self.assertEqual(other.ids, [11])
        # The session did not get the event. Its till asks for the event when it reconnects.
        self.assertEqual((broken.position, broken.endings), (10, [FAILED]))
        # One failure when the event was written, and one when the session was closed.
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_events_that_wait_in_a_send_queue_are_sent_in_order(self) -> None:
        slow, quick = self.listener(), self.listener()
        slow.send_queue.pauseProducing()
        self.channel.wake(self.log.commit(2))
        slow.send_queue.resumeProducing()
        self.channel.wake(self.log.commit())
        self.assertEqual((slow.ids, quick.ids), ([11, 12, 13], [11, 12, 13]))
        self.assertEqual((slow.looks, slow.position, slow.send_queue.written), (0, 13, 13))

    def test_a_session_gets_no_event_that_does_not_follow_its_position(self) -> None:
        listener = self.listener()
        self.channel.wake(self.log.commit(2))
        listener.send_queue.rewind(11)
        self.channel.wake(self.log.commit())
        self.assertEqual((listener.ids, listener.position, listener.looks), ([11, 12], 11, 1))

    def test_bytes_and_events_are_counted_for_all_tills(self) -> None:
        listeners = [self.listener() for _ in range(3)]
        self.channel.wake(self.log.commit(2))
        written = sum(len(data) for each in listeners for data in each.written)
        self.assertEqual(self.channel.counters.traffic.sent_bytes, written)

    def test_one_function_is_called_for_each_till_and_event(self) -> None:
        """Any other function would be called a thousand times for a thousand tills."""
        called: Counter[str] = Counter()
        for _ in range(100):
            self.listener()

        def note(frame: FrameType, event: str, argument: Any) -> None:
            if event in ("call", "c_call"):
                called[frame.f_code.co_name if event == "call" else argument.__qualname__] += 1

        last = self.log.commit()
        sys.setprofile(note)
        try:
            self.channel.append([event(last)])
        finally:
            sys.setprofile(None)
        often = {name for name, count in called.items() if count >= 100}
        # `Listener.write` calls `list.append`.
        self.assertEqual(often, {"write", "list.append"})
        self.assertEqual(called["write"], 100)

    def test_a_session_whose_queue_is_emptied_during_a_fan_out_gets_nothing_more(self) -> None:
        budget = SendBudget(400)
        rivals = [self.listener(budget=budget) for _ in range(3)]
        for rival in rivals:
            rival.send_queue.pauseProducing()
        # The last queue has the most bytes, of a message that is no event, and gets the event after the
        # others.
        rivals[2].send_queue.offer(b"x" * 300)
        self.channel.wake(self.log.commit(size=50))
        self.assertEqual([each.position for each in rivals], [11, 11, 10])
        self.assertEqual([each.looks for each in rivals], [0, 0, 1])

    def test_without_a_live_session_no_delivery_is_recorded(self) -> None:
        self.listener(5, live=False)
        self.channel.wake(self.log.commit())
        self.assertEqual((self.channel.tail, self.delivered), (11, []))


class GoingLiveTests(ChannelCase):
    def test_a_session_at_the_tail_goes_live(self) -> None:
        self.listener(10)

    def test_a_session_before_the_tail_does_not_go_live(self) -> None:
        self.assertFalse(self.channel.go_live(self.listener(9, live=False)))

    def test_a_session_ahead_of_the_tail_goes_live_after_the_channel_has_read_on(self) -> None:
        self.log.at_once = False
        self.log.commit(2)
        listener = self.listener(12, live=False)
        self.assertFalse(self.channel.go_live(listener))
        self.log.answer()
        self.assertEqual((self.channel.tail, listener.looks), (12, 1))
        self.log.at_once = True
        self.assertTrue(self.channel.go_live(listener))
        self.channel.wake(self.log.commit())
        self.assertEqual(listener.ids, [13])

    def test_a_session_that_has_left_gets_nothing_more(self) -> None:
        listener = self.listener()
        self.channel.leave(listener)
        self.channel.wake(self.log.commit())
        self.assertEqual((listener.ids, self.channel.sessions), ([], set()))


class PageTests(ChannelCase):
    """The pages of sessions that catch up."""

    def ids(self, position: Seq) -> list[Seq]:
        return [each.seq for each in self.successResultOf(self.channel.page(position))]

    def test_a_page_has_the_events_after_a_position(self) -> None:
        self.assertEqual(self.ids(7), [8, 9, 10])

    def test_a_page_has_a_limited_number_of_events(self) -> None:
        self.log.commit(500)
        self.assertEqual(self.ids(0), list(range(1, 251)))

    def test_a_page_after_the_last_event_is_empty(self) -> None:
        self.assertEqual(self.ids(10), [])

    def test_replayed_events_are_marked_and_otherwise_the_same(self) -> None:
        listener = self.listener()
        self.channel.wake(self.log.commit())
        (encoded,) = self.successResultOf(self.channel.page(10))
        (live,) = said(listener.written[0])
        (replayed,) = said(encoded.written(WEBSOCKET, replay=True))
        self.assertEqual(replayed.pop("replay"), True)
        self.assertEqual(replayed, live)

    def test_recent_events_are_not_read_again(self) -> None:
        self.listener()
        self.channel.wake(self.log.commit(5))
        del self.log.reads[:]
        self.assertEqual(self.ids(12), [13, 14, 15])
        self.assertEqual(self.log.reads, [])

    def test_recent_events_take_a_limited_number_of_bytes(self) -> None:
        self.listener()
        self.channel.wake(self.log.commit(150, size=4000))
        kept = sum(each.size for each in self.channel._recent)
        self.assertLessEqual(kept, channels._RECENT_BYTES)
        self.assertEqual(self.channel._recent[-1].seq, 160)

    def test_after_an_erasure_recent_events_are_read_again(self) -> None:
        self.listener()
        self.channel.wake(self.log.commit(5))
        del self.log.reads[:]
        self.channel.forget_recent()
        self.assertEqual(self.ids(12), [13, 14, 15])
        self.assertEqual(self.log.reads, [12])
        self.channel.wake(self.log.commit(1, size=channels._RECENT_BYTES - 1000))
        self.assertEqual(self.ids(15), [16])
        self.assertEqual(self.log.reads, [12, 15])

    def asked(self, position: Seq) -> Deferred[Sequence[EncodedEvent]]:
        return Deferred.fromCoroutine(self.channel.page(position))

    def test_sessions_at_the_same_position_share_one_read(self) -> None:
        self.log.at_once = False
        pages = [self.asked(4) for _ in range(3)]
        self.assertEqual(self.log.reads, [4])
        self.log.answer()
        for page in pages:
            self.assertEqual([each.seq for each in self.successResultOf(page)], [*range(5, 11)])

    def test_sessions_at_the_same_position_share_a_failed_read(self) -> None:
        self.log.at_once = False
        pages = [self.asked(4) for _ in range(2)]
        self.log.fail()
        for page in pages:
            self.failureResultOf(page, Unavailable)
        self.log.at_once = True
        self.assertEqual(self.ids(4), [*range(5, 11)])

    def test_a_gap_in_the_stream_is_an_error(self) -> None:
        del self.log.events[7]
        self.failureResultOf(self.channel.page(5), StreamBroken)


class TroubleTests(ChannelCase):
    def test_without_a_database_no_session_ends_and_the_next_check_reads_on(self) -> None:
        listener = self.listener()
        for trouble in (Unavailable("away"), Busy("busy")):
            self.log.trouble = trouble
            self.channel.wake(self.log.commit())
        self.assertEqual((listener.ids, listener.endings), ([], []))
        self.log.trouble = None
        self.channel.check(self.log.head)
        self.assertEqual(listener.ids, [11, 12])

    def test_a_session_that_could_not_read_is_woken_by_the_next_check(self) -> None:
        listener = self.listener(5, live=False)
        self.channel.check(self.log.head)
        self.assertEqual(listener.looks, 1)

    def test_a_wake_for_an_event_that_does_not_exist_ends_no_session(self) -> None:
        listener = self.listener()
        self.channel.wake(10**9)
        self.assertEqual((listener.endings, self.log.reads), ([], [10]))
        self.channel.wake(self.log.commit())
        self.assertEqual(listener.ids, [11])

    def test_an_event_during_a_read_for_a_wake_beyond_the_head_is_sent(self) -> None:
        self.log.at_once = False
        listener = self.listener()
        self.channel.wake(10**9)
        self.log.commit()
        self.channel.check(self.log.head)
        self.log.answer()
        self.assertEqual(listener.endings, [])
        self.log.answer()
        self.assertEqual(listener.ids, [11])

    def test_a_wake_during_a_read_that_finds_nothing_is_not_lost(self) -> None:
        self.log.at_once = False
        listener = self.listener()
        self.channel.wake(10**9)
        self.channel.wake(self.log.commit())
        self.log.answer()
        self.log.answer()
        self.assertEqual(listener.ids, [11])

    def test_events_missing_below_the_head_end_every_session(self) -> None:
        listener = self.listener()
        self.channel.check(head(12))
        self.assertEqual(listener.endings, [STREAM_CHANGED])
        self.assertEqual(self.ended, [self.channel])

    def test_a_tail_below_the_floor_ends_every_session_so_that_tills_reload(self) -> None:
        listener = self.listener()
        self.log.trouble = EventsPruned("long ago")
        with capturedLogs() as logged:
            self.channel.wake(self.log.commit())
        self.assertEqual(listener.endings, [PRUNED])
        self.assertEqual(self.ended, [self.channel])
        self.assertEqual([each["log_level"].name for each in logged], ["error"])

    def test_a_gap_in_the_stream_ends_every_session(self) -> None:
        listener = self.listener()
        self.log.events.append(event(12))
        self.channel.wake(12)
        self.assertEqual((listener.endings, listener.ids), ([STREAM_CHANGED], []))

    def test_a_stream_with_another_id_ends_no_session(self) -> None:
        listener = self.listener()
        self.log.trouble = StreamRenamed("the stream has another id")
        self.channel.wake(self.log.commit())
        self.assertEqual((listener.endings, listener.ids), ([], []))

    def test_a_failed_statement_ends_every_session_and_is_logged(self) -> None:
        listener = self.listener()
        self.log.trouble = StatementFailed("no such column", "42703")
        self.channel.wake(self.log.commit())
        self.assertEqual(listener.endings, [FAILED])
        self.assertEqual(len(self.flushLoggedErrors(StatementFailed)), 1)

    def test_a_session_that_fails_to_end_stops_no_other(self) -> None:
        self.channel.enter(Broken(self.channel, 10))
        listeners = [self.listener() for _ in range(3)]
        self.channel.end(GOING_AWAY)
        self.assertEqual([each.endings for each in listeners], [[GOING_AWAY]] * 3)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_an_older_head_does_not_move_the_channel_back(self) -> None:
        self.listener()
        self.channel.wake(self.log.commit(2))
        self.channel.check(head(11))
        self.assertEqual(self.channel.head, 12)


class ChunkTests(SynchronousTestCase):
    def test_no_events_make_no_chunk(self) -> None:
        self.assertEqual(list(chunks([])), [])

    def test_frames_are_joined_up_to_64_kib(self) -> None:
        framed = [(b"x" * 30_000, seq) for seq in range(1, 6)]
        joined = list(chunks(framed))
        self.assertEqual([(each.first, each.last) for each in joined], [(1, 2), (3, 4), (5, 5)])
        self.assertEqual([len(each.data) for each in joined], [60_000, 60_000, 30_000])

    def test_a_larger_frame_is_a_chunk_of_its_own(self) -> None:
        framed = [(b"a", 1), (b"x" * 100_000, 2), (b"b", 3)]
        self.assertEqual([each.first for each in chunks(framed)], [1, 2, 3])

    def test_chunks_contain_all_frames_in_order(self) -> None:
        framed = [(b"%d," % seq * 900, seq) for seq in range(1, 200)]
        joined = b"".join(each.data for each in chunks(framed))
        self.assertEqual(joined, b"".join(frame for frame, _ in framed))


class AcknowledgedTests(ChannelCase):
    def test_an_event_is_measured_when_the_first_terminal_acknowledges_it(self) -> None:
        measured: list[int] = []

        def reached(stage: str, moments: Sequence[object]) -> None:
            measured.append(len(moments))

        self.listener()
        self.log.commit(3)
        self.channel.append([event(seq) for seq in (11, 12, 13)])
        self.patch(self.channel, "counters", SimpleNamespace(reached=reached))
        for seq in (12, 11, 12, 13, 10, 13):
            self.channel.acknowledged(seq)
        self.assertEqual(measured, [2, 1])
