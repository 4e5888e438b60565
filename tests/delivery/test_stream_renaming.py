"""Tests of a stream that gets another id: which tills stay, which reconnect, and which reload."""

from __future__ import annotations

from uuid import UUID

from attrs import evolve
from twisted.internet.defer import Deferred

from posd.delivery import stream_renaming as renaming
from posd.delivery.session import Session, SessionState
from posd.errors import Unavailable
from posd.protocol.encodings import SERVER_SENT
from posd.values import RENAMED, AppendedEvents, Position, Seq, SessionStart, StreamHead, Terminal
from tests.delivery_case import (
    KITCHEN,
    OTHER_STREAM,
    STREAM,
    FakeTransport,
    session_start,
    terminal,
)
from tests.hub_case import HubCase, wake

THIRD_STREAM = UUID("5a1c2e00-0000-4000-8000-000000000003")


class RenamingCase(HubCase):
    """A tenant with ten events."""

    def rename(
        self, name: UUID = OTHER_STREAM, *, lost: int = 0, common: Seq | None = None
    ) -> None:
        """Give the stream a new id and let this node find it."""
        self.store.rename(name, lost=lost, common=common)
        self.successResultOf(self.check(self.log.head))

    def publish(self, count: int = 1) -> None:
        wake(self.hub, KITCHEN.id, self.log.commit(count))

    def positioned(
        self, device: str | None = "BAR", after: Seq = 10
    ) -> tuple[Session, FakeTransport]:
        """Connect a till that uses positions."""
        return self.connect(terminal(device, position=Position(after)), acked=after)

    def look_up(self, position: Position | None, device: str | None = None) -> SessionStart:
        looking = self.hub.look_up(KITCHEN, device, position)
        return self.successResultOf(Deferred.fromCoroutine(looking))


class ClosingTests(RenamingCase):
    def test_tills_that_use_positions_are_closed_with_1001(self) -> None:
        lines = [self.positioned()[1], self.positioned(None)[1]]
        self.rename()
        self.clock.advance(1)
        self.assertEqual([transport.closings for transport in lines], [[RENAMED], [RENAMED]])

    def test_a_till_that_has_acknowledged_uses_positions(self) -> None:
        session, transport = self.connect(terminal(key_device="BAR"), acked=10)
        session.heard(b'{"type":"ack","id":10}')
        self.rename()
        self.clock.advance(1)
        self.assertEqual(transport.closings, [RENAMED])

    def test_an_sse_connection_is_closed(self) -> None:
        transport = FakeTransport(wire_format=SERVER_SENT)
        self.hub.open(terminal(), session_start(10), transport)
        self.rename()
        self.clock.advance(1)
        self.assertEqual(transport.closings, [RENAMED])

    def test_tills_are_closed_one_after_the_other(self) -> None:
        lines = [self.positioned(f"BAR{number}")[1] for number in range(200)]
        self.rename()
        closed = []
        for _ in range(10):
            self.clock.advance(0.1)
            closed.append(sum(bool(transport.closings) for transport in lines))
        self.assertEqual(closed[-1], 200)
        self.assertTrue(0 < closed[0] < 100, closed)

    def test_any_number_of_tills_is_closed_within_seconds(self) -> None:
        self.patch(renaming, "_CLOSES_PER_SECOND", 1)
        lines = [self.positioned(f"BAR{number}")[1] for number in range(50)]
        self.rename()
        self.clock.advance(renaming._LONGEST_PAUSE)
        self.assertEqual({len(transport.closings) for transport in lines}, {1})

    def test_tills_that_wait_for_their_close_are_sent_nothing(self) -> None:
        session, transport = self.positioned()
        self.rename()
        self.publish()
        self.assertEqual((transport.ids, session.state), ([], SessionState.PARTING))

    def test_messages_of_tills_that_wait_for_their_close_are_processed(self) -> None:
        session, transport = self.positioned(after=8)
        self.rename()
        session.heard(b'{"type":"ack","id":10}')
        self.assertEqual((self.progress_store.acks[-1], transport.errors), (10, []))

    def test_the_waiting_bytes_of_a_slow_till_are_dropped(self) -> None:
        session, transport = self.positioned()
        transport.stall()
        self.publish()
        self.assertEqual(session.position, 11)
        self.rename(lost=1)
        transport.drain()
        self.assertEqual((transport.ids, session.furthest_sent), ([], 10))

    def test_a_till_may_disconnect_before_its_close(self) -> None:
        session, transport = self.positioned()
        self.rename()
        self.hub.closed(session)
        self.clock.advance(1)
        self.assertEqual((transport.closings, len(self.hub)), ([], 0))

    def test_positions_are_written_before_tills_are_closed(self) -> None:
        flush: Deferred[None] = Deferred()
        self.patch(self.progress_store, "flush", lambda: flush)
        _, transport = self.positioned()
        self.rename()
        self.clock.advance(1)
        self.assertEqual(transport.closings, [])
        flush.callback(None)
        self.clock.advance(1)
        self.assertEqual(transport.closings, [RENAMED])

    def test_tills_are_closed_without_a_database_too(self) -> None:
        flush: Deferred[None] = Deferred()
        self.patch(self.progress_store, "flush", lambda: flush)
        _, transport = self.positioned()
        self.rename()
        flush.errback(Unavailable("The database cannot be reached."))
        self.clock.advance(1)
        self.assertEqual(transport.closings, [RENAMED])


class StayingTests(RenamingCase):
    """Basic tills use no positions, and do not reconnect after a Close frame."""

    def basic(self) -> tuple[Session, FakeTransport]:
        return self.connect()

    def test_a_basic_till_stays_and_misses_nothing(self) -> None:
        _, transport = self.basic()
        self.publish()
        self.rename()
        self.publish(2)
        self.clock.advance(10)
        self.assertEqual(
            (transport.ids, transport.closings, transport.drops), ([11, 12, 13], [], [])
        )

    def test_events_that_replace_lost_ones_are_sent_to_a_basic_till(self) -> None:
        _, transport = self.basic()
        self.publish(3)
        self.rename(lost=2)
        self.publish(3)
        self.assertEqual(transport.ids, [11, 12, 13, 12, 13, 14])

    def test_after_a_manual_reset_no_event_is_repeated(self) -> None:
        _, transport = self.basic()
        self.publish(2)
        self.rename(common=0)
        self.publish()
        self.assertEqual(transport.ids, [11, 12, 13])

    def test_after_an_unknown_stream_id_a_basic_till_continues_at_the_head(self) -> None:
        _, transport = self.basic()
        self.publish(2)
        self.log.stream_id = OTHER_STREAM
        del self.log.events[5:]
        self.successResultOf(self.check(self.log.head))
        self.publish()
        self.assertEqual(transport.ids, [11, 12, 6])

    def test_a_basic_till_that_catches_up_continues_under_the_new_id(self) -> None:
        _, transport = self.basic()
        transport.stall()
        # More bytes than the send queue accepts, and than the channel keeps.
        self.log.commit(3, size=40_000)
        self.publish()
        self.log.at_once = False
        transport.drain()
        (read,) = self.log.waiting
        self.rename(lost=2)
        self.log.at_once = True
        # The page of the old id arrives too late, and is read again.
        read[0].callback(read[1])
        self.publish()
        self.assertEqual((transport.ids, transport.closings), ([11, 12, 13], []))

    def test_a_basic_till_gets_the_new_id(self) -> None:
        session, _ = self.connect(terminal(key_device="BAR"))
        self.rename()
        self.assertEqual(session.terminal.stream_id, OTHER_STREAM)

    def test_a_basic_till_may_begin_to_use_positions(self) -> None:
        transport = FakeTransport()
        legacy = evolve(session_start(10, 3), legacy=True)
        session = self.hub.open(terminal(key_device="BAR"), legacy, transport)
        self.publish(3)
        self.rename(lost=3)
        self.publish()
        session.note_legacy_position()
        self.assertEqual((self.progress_store.follows, session.sent), ([10, 13, 11], 4))
        session.heard(b'{"type":"ack","id":11}')
        self.assertEqual((session.acked, transport.errors), (11, []))


class PositionTests(RenamingCase):
    """Positions of devices are stored, so that other nodes know them too."""

    def stored(self) -> dict[tuple[str, UUID], Seq]:
        return {
            (device, name): seq for (_, device, name), seq in self.progress_store.sent_to.items()
        }

    def test_positions_of_connected_devices_are_stored(self) -> None:
        self.positioned()
        self.publish(2)
        self.rename()
        self.assertEqual(self.stored(), {("BAR", STREAM): 12})

    def test_positions_of_departed_devices_are_stored(self) -> None:
        session, _ = self.positioned()
        self.publish(2)
        self.hub.closed(session)
        self.hub.record_all_positions()
        self.assertEqual(self.stored(), {("BAR", STREAM): 12})

    def test_positions_of_polling_devices_are_stored(self) -> None:
        self.hub.sent_by_poll(terminal("BAR"), 9)
        self.hub.sent_by_poll(terminal("BAR"), 7)
        self.hub.sent_by_poll(terminal(None), 10)
        self.hub.record_all_positions()
        self.assertEqual(self.stored(), {("BAR", STREAM): 9})

    def test_the_use_of_positions_is_stored(self) -> None:
        self.positioned("NAMES")
        self.connect(terminal("LISTENS"))
        self.hub.sent_by_poll(terminal("POLLS"), 9)
        left, _ = self.positioned("LEFT")
        self.hub.closed(left)
        self.hub.record_all_positions()
        self.assertEqual(self.progress_store.using_positions, {"NAMES", "POLLS", "LEFT"})

    def test_an_acknowledgement_counts_even_if_the_event_was_sent_elsewhere(self) -> None:
        session, _ = self.positioned(after=8)
        session.send_queue.written = 8
        session.heard(b'{"type":"ack","id":10}')
        self.assertEqual(session.furthest_sent, 10)

    def test_a_limited_number_of_departed_devices_is_remembered(self) -> None:
        self.patch(renaming, "_MOST_REMEMBERED", 2)
        for number in range(4):
            self.hub.sent_by_poll(terminal(f"BAR{number}"), number)
        self.hub.record_all_positions()
        self.assertEqual(self.stored(), {("BAR2", STREAM): 2, ("BAR3", STREAM): 3})


class NamesTests(RenamingCase):
    """Two tills that were looked up before and after the change have different stream ids."""

    def opened(self, name: UUID, last_seq: Seq) -> tuple[Session, FakeTransport]:
        transport, head = FakeTransport(), StreamHead(KITCHEN.id, name, last_seq)
        connecting = terminal("BAR", position=Position(last_seq), stream_id=name)
        return self.hub.open(connecting, evolve(session_start(10), head=head), transport), transport

    def test_the_database_decides_which_stream_id_is_valid(self) -> None:
        _, old = self.positioned("OLD")
        self.store.rename()
        self.opened(OTHER_STREAM, 10)
        self.clock.advance(1)
        self.assertEqual(old.closings, [RENAMED])
        self.assertEqual(self.hub.connections(KITCHEN.id), 1)

    def test_the_database_decides_if_the_later_till_has_the_old_id(self) -> None:
        self.store.rename()
        _, new = self.opened(OTHER_STREAM, 10)
        _, old = self.opened(STREAM, 10)
        self.publish()
        self.clock.advance(1)
        self.assertEqual((new.closings, new.ids), ([], [11]))
        self.assertEqual((old.closings, old.ids), ([RENAMED], []))

    def test_without_a_database_no_session_gets_events_of_another_id(self) -> None:
        _, old = self.positioned("OLD")
        self.store.rename(lost=2)
        self.store.away = True
        _, new = self.opened(OTHER_STREAM, 8)
        self.publish(5)
        self.assertEqual((old.ids, old.closings), ([], []))
        self.store.away = False
        self.successResultOf(self.check(self.log.head))
        self.clock.advance(1)
        self.assertEqual((old.ids, old.closings), ([], [RENAMED]))
        self.assertEqual((new.ids, new.closings), ([*range(9, 14)], []))

    def test_a_stream_id_that_came_and_went_is_replaced(self) -> None:
        _, first = self.positioned("OLD")
        self.store.away = True
        self.store.rename()
        _, second = self.opened(OTHER_STREAM, 10)
        self.store.rename(THIRD_STREAM)
        _, third = self.opened(THIRD_STREAM, 10)
        self.store.away = False
        self.successResultOf(self.check(self.log.head))
        self.publish()
        self.clock.advance(1)
        self.assertEqual([each.closings for each in (first, second)], [[RENAMED], [RENAMED]])
        self.assertEqual((third.closings, third.ids), ([], [11]))
        self.assertEqual(self.hub.channels.tenants, [KITCHEN.id])

    def test_no_channel_is_left_without_sessions(self) -> None:
        self.store.away = True
        sessions = [self.positioned("OLD")[0]]
        self.store.rename()
        sessions.append(self.opened(OTHER_STREAM, 10)[0])
        for session in sessions:
            self.hub.closed(session)
        self.assertEqual(self.hub.channels.tenants, [])
        self.assertEqual(self.hub.channels._rivals, {})


class CommittedHereTests(RenamingCase):
    """Events that this node has committed and passes to its channels without a read."""

    def commit(self, name: UUID = OTHER_STREAM) -> None:
        """Commit an event under a stream id, and pass it to the channels."""
        self.log.commit()
        self.append(name)

    def append(self, name: UUID) -> None:
        self.hub.channels.append(AppendedEvents(KITCHEN.id, name, self.log.events[-1:]))

    def test_events_of_the_new_id_do_not_go_to_the_channel_of_the_old_id(self) -> None:
        """Their positions may directly follow the channel's tail."""
        _, transport = self.connect()
        self.store.rename(lost=2)
        self.log.commit(2)
        self.commit()
        self.assertEqual((self.log.last, transport.ids), (11, []))
        self.successResultOf(self.check(self.log.head))
        self.assertEqual(transport.ids, [9, 10, 11])
        self.store.pages.clear()
        self.commit()
        self.assertEqual((transport.ids, self.store.pages), ([9, 10, 11, 12], []))

    def test_events_of_the_old_id_do_not_go_to_the_channel_of_the_new_id(self) -> None:
        """The result of a COMMIT may arrive late."""
        _, transport = self.connect()
        self.rename()
        self.commit(STREAM)
        self.assertEqual(transport.ids, [])
        self.append(OTHER_STREAM)
        self.append(OTHER_STREAM)
        self.assertEqual(transport.ids, [11])

    def test_each_of_two_channels_gets_the_events_of_its_id(self) -> None:
        _, old = self.positioned("OLD")
        self.store.away = True
        self.store.rename()
        transport, head = FakeTransport(), StreamHead(KITCHEN.id, OTHER_STREAM, 10)
        self.hub.open(
            terminal("NEW", position=Position(10), stream_id=OTHER_STREAM),
            *(evolve(session_start(10), head=head), transport),
        )
        self.commit()
        self.assertEqual((old.ids, transport.ids), ([], [11]))
        self.store.away = False
        self.successResultOf(self.check(self.log.head))
        self.commit()
        self.assertEqual((old.ids, transport.ids), ([], [11, 12]))

    def test_events_committed_while_a_new_id_is_read_are_sent(self) -> None:
        _, transport = self.connect()
        self.store.rename()
        self.store.pending = []
        checking = self.check(self.log.head)
        # The heads have been read. The end of the old id is read next.
        self.commit()
        while self.store.pending:
            self.store.pending.pop().callback(None)
        self.successResultOf(checking)
        self.assertEqual(transport.ids, [11])


class ResumingTests(RenamingCase):
    """The greeting of a till that reconnects."""

    def resumed(self, position: Position | None) -> tuple[object, object, list[Seq]]:
        transport = FakeTransport()
        self.store.session_start = evolve(session_start(10), head=self.log.head)
        found = self.look_up(position)
        connecting: Terminal = terminal(position=position, stream_id=found.head.stream_id)
        self.hub.open(connecting, found, transport)
        greeting = transport.messages[0]
        self.assertEqual(greeting["streamId"], str(self.log.stream_id))
        return greeting["resumedFrom"], greeting["resync"], transport.ids

    def test_a_position_that_the_new_primary_has_stays_valid(self) -> None:
        """A till is at position 3 of 5 when a standby that has all 5 events is promoted."""
        del self.log.events[5:]
        self.store.rename()
        self.log.commit()
        self.assertEqual(self.resumed(Position(3, STREAM)), (3, None, [4, 5, 6]))

    def test_a_position_of_a_lost_event_gets_a_resync(self) -> None:
        self.store.rename(lost=2)
        self.log.commit(5)
        self.assertEqual(self.resumed(Position(8, STREAM)), (8, None, [*range(9, 14)]))
        self.assertEqual(self.resumed(Position(9, STREAM)), (None, "reset", []))

    def test_a_later_loss_counts_for_earlier_ids_too(self) -> None:
        self.store.rename()
        self.store.rename(THIRD_STREAM, lost=3)
        self.log.commit(5)
        self.assertEqual(self.resumed(Position(7, STREAM))[1], None)
        self.assertEqual(self.resumed(Position(8, STREAM))[1], "reset")

    def test_a_position_of_an_unknown_stream_gets_a_resync(self) -> None:
        self.assertEqual(self.resumed(Position(1, THIRD_STREAM))[1], "reset")

    def test_a_position_of_the_present_stream_is_not_looked_up(self) -> None:
        self.patch(self.store, "ends", None)
        self.assertEqual(self.resumed(Position(8, STREAM)), (8, None, [9, 10]))


class SettlingTests(RenamingCase):
    """A till that relies on its cursor connects right after a failover, before other nodes have reported."""

    def setUp(self) -> None:
        super().setUp()
        self.store.session_start = evolve(session_start(10, 3), renamed_ago=0.4)

    def looking(self, position: Position | None = None) -> Deferred[SessionStart]:
        return Deferred.fromCoroutine(self.hub.look_up(KITCHEN, "BAR", position))

    def test_a_till_waits_for_a_second_after_the_new_id(self) -> None:
        for position in (None, Position(3)):
            with self.subTest(position=position):
                looking = self.looking(position)
                self.clock.advance(0.59)
                self.assertNoResult(looking)
                self.store.session_start = evolve(
                    session_start(10, 3), renamed_ago=1.0, astray=True
                )
                self.clock.advance(0.02)
                self.assertTrue(self.successResultOf(looking).astray)
                self.store.session_start = evolve(session_start(10, 3), renamed_ago=0.4)

    def test_a_till_that_names_its_stream_does_not_wait(self) -> None:
        self.assertEqual(self.successResultOf(self.looking(Position(3, STREAM))).acked, 3)

    def test_a_till_that_reloads_or_starts_at_the_head_does_not_wait(self) -> None:
        now = evolve(session_start(10, 3), renamed_ago=0.4)
        for found in (evolve(now, astray=True), evolve(now, legacy=True), session_start(10, 3)):
            with self.subTest(found=found):
                self.store.session_start = found
                self.successResultOf(self.looking())
