"""A stream that gets another name: who stays, who comes back, who has to reload."""

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
    """A stream with ten events."""

    def rename(
        self, name: UUID = OTHER_STREAM, *, lost: int = 0, common: Seq | None = None
    ) -> None:
        """Name the stream anew and let this node find it, without a pause."""
        self.store.rename(name, lost=lost, common=common)
        self.successResultOf(self.check(self.log.head))

    def publish(self, count: int = 1) -> None:
        wake(self.hub, KITCHEN.id, self.log.commit(count))

    def positioned(
        self, device: str | None = "BAR", after: Seq = 10
    ) -> tuple[Session, FakeTransport]:
        """A till that uses positions."""
        return self.connect(terminal(device, position=Position(after)), acked=after)

    def look_up(self, position: Position | None, device: str | None = None) -> SessionStart:
        looking = self.hub.look_up(KITCHEN, device, position)
        return self.successResultOf(Deferred.fromCoroutine(looking))


class ClosingTests(RenamingCase):
    def test_tills_that_use_positions_are_told_to_come_back(self) -> None:
        lines = [self.positioned()[1], self.positioned(None)[1]]
        self.rename()
        self.clock.advance(1)
        self.assertEqual([transport.closings for transport in lines], [[RENAMED], [RENAMED]])

    def test_one_that_has_acknowledged_uses_positions(self) -> None:
        session, transport = self.connect(terminal(key_device="BAR"), acked=10)
        session.heard(b'{"type":"ack","id":10}')
        self.rename()
        self.clock.advance(1)
        self.assertEqual(transport.closings, [RENAMED])

    def test_a_server_sent_stream_is_ended(self) -> None:
        transport = FakeTransport(wire_format=SERVER_SENT)
        self.hub.open(terminal(), session_start(10), transport)
        self.rename()
        self.clock.advance(1)
        self.assertEqual(transport.closings, [RENAMED])

    def test_they_are_closed_one_after_the_other(self) -> None:
        lines = [self.positioned(f"BAR{number}")[1] for number in range(200)]
        self.rename()
        closed = []
        for _ in range(10):
            self.clock.advance(0.1)
            closed.append(sum(bool(transport.closings) for transport in lines))
        self.assertEqual(closed[-1], 200)
        self.assertTrue(0 < closed[0] < 100, closed)

    def test_however_many_there_are_it_is_over_in_seconds(self) -> None:
        self.patch(renaming, "_CLOSES_PER_SECOND", 1)
        lines = [self.positioned(f"BAR{number}")[1] for number in range(50)]
        self.rename()
        self.clock.advance(renaming._LONGEST_PAUSE)
        self.assertEqual({len(transport.closings) for transport in lines}, {1})

    def test_until_then_they_are_sent_nothing_under_the_old_name(self) -> None:
        session, transport = self.positioned()
        self.rename()
        self.publish()
        self.assertEqual((transport.ids, session.state), ([], SessionState.PARTING))

    def test_what_they_say_until_then_still_counts(self) -> None:
        session, transport = self.positioned(after=8)
        self.rename()
        session.heard(b'{"type":"ack","id":10}')
        self.assertEqual((self.progress_store.acks[-1], transport.errors), (10, []))

    def test_what_waits_for_a_slow_till_is_dropped(self) -> None:
        session, transport = self.positioned()
        transport.stall()
        self.publish()
        self.assertEqual(session.position, 11)
        self.rename(lost=1)
        transport.drain()
        self.assertEqual((transport.ids, session.furthest_sent), ([], 10))

    def test_one_that_leaves_before_is_let_go(self) -> None:
        session, transport = self.positioned()
        self.rename()
        self.hub.closed(session)
        self.clock.advance(1)
        self.assertEqual((transport.closings, len(self.hub)), ([], 0))

    def test_how_far_each_was_sent_is_written_before_it_is_closed(self) -> None:
        flush: Deferred[None] = Deferred()
        self.patch(self.progress_store, "flush", lambda: flush)
        _, transport = self.positioned()
        self.rename()
        self.clock.advance(1)
        self.assertEqual(transport.closings, [])
        flush.callback(None)
        self.clock.advance(1)
        self.assertEqual(transport.closings, [RENAMED])

    def test_a_database_that_is_away_keeps_nobody(self) -> None:
        flush: Deferred[None] = Deferred()
        self.patch(self.progress_store, "flush", lambda: flush)
        _, transport = self.positioned()
        self.rename()
        flush.errback(Unavailable("The database is away."))
        self.clock.advance(1)
        self.assertEqual(transport.closings, [RENAMED])


class StayingTests(RenamingCase):
    """Deployed tills use no positions, and do not come back after a Close frame."""

    def deployed(self) -> tuple[Session, FakeTransport]:
        return self.connect()

    def test_a_deployed_till_stays_and_misses_nothing(self) -> None:
        _, transport = self.deployed()
        self.publish()
        self.rename()
        self.publish(2)
        self.clock.advance(10)
        self.assertEqual(
            (transport.ids, transport.closings, transport.drops), ([11, 12, 13], [], [])
        )

    def test_events_that_take_the_place_of_lost_ones_are_sent_to_it(self) -> None:
        _, transport = self.deployed()
        self.publish(3)
        self.rename(lost=2)
        self.publish(3)
        self.assertEqual(transport.ids, [11, 12, 13, 12, 13, 14])

    def test_after_a_reset_by_hand_nothing_is_repeated(self) -> None:
        _, transport = self.deployed()
        self.publish(2)
        self.rename(common=0)
        self.publish()
        self.assertEqual(transport.ids, [11, 12, 13])

    def test_an_old_name_that_nobody_knows_is_gone_on_from_the_head(self) -> None:
        _, transport = self.deployed()
        self.publish(2)
        self.log.stream_id = OTHER_STREAM
        del self.log.events[5:]
        self.successResultOf(self.check(self.log.head))
        self.publish()
        self.assertEqual(transport.ids, [11, 12, 6])

    def test_one_that_is_catching_up_goes_on_there(self) -> None:
        _, transport = self.deployed()
        transport.stall()
        # More than fits, and more than the node remembers.
        self.log.commit(3, size=40_000)
        self.publish()
        self.log.at_once = False
        transport.drain()
        (read,) = self.log.waiting
        self.rename(lost=2)
        self.log.at_once = True
        # What was read under the old name comes too late, and is read again.
        read[0].callback(read[1])
        self.publish()
        self.assertEqual((transport.ids, transport.closings), ([11, 12, 13], []))

    def test_the_name_is_in_the_books_from_then_on(self) -> None:
        session, _ = self.connect(terminal(key_device="BAR"))
        self.rename()
        self.assertEqual(session.terminal.stream_id, OTHER_STREAM)

    def test_it_may_begin_to_use_positions(self) -> None:
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


class KnowledgeTests(RenamingCase):
    """What this node knows of devices is written down, for other nodes too."""

    def known(self) -> dict[tuple[str, UUID], Seq]:
        return {
            (device, name): seq for (_, device, name), seq in self.progress_store.sent_to.items()
        }

    def test_of_those_that_are_here(self) -> None:
        self.positioned()
        self.publish(2)
        self.rename()
        self.assertEqual(self.known(), {("BAR", STREAM): 12})

    def test_of_those_that_have_left(self) -> None:
        session, _ = self.positioned()
        self.publish(2)
        self.hub.closed(session)
        self.hub.record_all_positions()
        self.assertEqual(self.known(), {("BAR", STREAM): 12})

    def test_of_those_that_were_answered(self) -> None:
        self.hub.sent_by_poll(terminal("BAR"), 9)
        self.hub.sent_by_poll(terminal("BAR"), 7)
        self.hub.sent_by_poll(terminal(None), 10)
        self.hub.record_all_positions()
        self.assertEqual(self.known(), {("BAR", STREAM): 9})

    def test_also_whether_they_have_ever_said_how_far_they_are(self) -> None:
        self.positioned("NAMES")
        self.connect(terminal("LISTENS"))
        self.hub.sent_by_poll(terminal("POLLS"), 9)
        left, _ = self.positioned("LEFT")
        self.hub.closed(left)
        self.hub.record_all_positions()
        self.assertEqual(self.progress_store.using_positions, {"NAMES", "POLLS", "LEFT"})

    def test_what_was_said_counts_though_it_was_sent_on_another_road(self) -> None:
        session, _ = self.positioned(after=8)
        session.send_queue.written = 8
        session.heard(b'{"type":"ack","id":10}')
        self.assertEqual(session.furthest_sent, 10)

    def test_of_some_only(self) -> None:
        self.patch(renaming, "_MOST_REMEMBERED", 2)
        for number in range(4):
            self.hub.sent_by_poll(terminal(f"BAR{number}"), number)
        self.hub.record_all_positions()
        self.assertEqual(self.known(), {("BAR2", STREAM): 2, ("BAR3", STREAM): 3})


class NamesTests(RenamingCase):
    """Two tills that were looked up before and after the change disagree about the name."""

    def opened(self, name: UUID, last_seq: Seq) -> tuple[Session, FakeTransport]:
        transport, head = FakeTransport(), StreamHead(KITCHEN.id, name, last_seq)
        connecting = terminal("BAR", position=Position(last_seq), stream_id=name)
        return self.hub.open(connecting, evolve(session_start(10), head=head), transport), transport

    def test_the_database_decides(self) -> None:
        _, old = self.positioned("OLD")
        self.store.rename()
        self.opened(OTHER_STREAM, 10)
        self.clock.advance(1)
        self.assertEqual(old.closings, [RENAMED])
        self.assertEqual(self.hub.connections(KITCHEN.id), 1)

    def test_also_when_the_one_that_comes_last_has_the_old_name(self) -> None:
        self.store.rename()
        _, new = self.opened(OTHER_STREAM, 10)
        _, old = self.opened(STREAM, 10)
        self.publish()
        self.clock.advance(1)
        self.assertEqual((new.closings, new.ids), ([], [11]))
        self.assertEqual((old.closings, old.ids), ([RENAMED], []))

    def test_while_it_cannot_be_asked_nobody_is_sent_anything_of_another_stream(self) -> None:
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

    def test_a_name_that_came_and_went_meanwhile(self) -> None:
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

    def test_nothing_is_left_when_everybody_has_gone(self) -> None:
        self.store.away = True
        sessions = [self.positioned("OLD")[0]]
        self.store.rename()
        sessions.append(self.opened(OTHER_STREAM, 10)[0])
        for session in sessions:
            self.hub.closed(session)
        self.assertEqual(self.hub.channels.tenants, [])
        self.assertEqual(self.hub.channels._rivals, {})


class CommittedHereTests(RenamingCase):
    """Events that this node has committed and gives to its channels without a read."""

    def commit(self, name: UUID = OTHER_STREAM) -> None:
        """Number an event, and give it to the channels as one of the stream's name."""
        self.log.commit()
        self.hand_on(name)

    def hand_on(self, name: UUID) -> None:
        self.hub.channels.append(AppendedEvents(KITCHEN.id, name, self.log.events[-1:]))

    def test_those_of_the_new_name_do_not_go_to_the_channel_of_the_old_one(self) -> None:
        """Though their positions may follow what that channel has sent."""
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

    def test_those_of_the_old_name_do_not_go_to_the_channel_of_the_new_one(self) -> None:
        """The answer to a COMMIT may come late."""
        _, transport = self.connect()
        self.rename()
        self.commit(STREAM)
        self.assertEqual(transport.ids, [])
        self.hand_on(OTHER_STREAM)
        self.hand_on(OTHER_STREAM)
        self.assertEqual(transport.ids, [11])

    def test_while_a_stream_has_two_channels_each_is_given_its_own(self) -> None:
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

    def test_what_is_committed_while_a_new_name_is_looked_at_comes_with_it(self) -> None:
        _, transport = self.connect()
        self.store.rename()
        self.store.pending = []
        checking = self.check(self.log.head)
        # The heads have been read; how the old name has ended is asked next.
        self.commit()
        while self.store.pending:
            self.store.pending.pop().callback(None)
        self.successResultOf(checking)
        self.assertEqual(transport.ids, [11])


class ResumingTests(RenamingCase):
    """What a till is told that comes back."""

    def told(self, position: Position | None) -> tuple[object, object, list[Seq]]:
        transport = FakeTransport()
        self.store.session_start = evolve(session_start(10), head=self.log.head)
        found = self.look_up(position)
        connecting: Terminal = terminal(position=position, stream_id=found.head.stream_id)
        self.hub.open(connecting, found, transport)
        greeting = transport.messages[0]
        self.assertEqual(greeting["streamId"], str(self.log.stream_id))
        return greeting["resumedFrom"], greeting["resync"], transport.ids

    def test_the_issue(self) -> None:
        """A till at position 3 of 5, when a standby takes over that has all of them."""
        del self.log.events[5:]
        self.store.rename()
        self.log.commit()
        self.assertEqual(self.told(Position(3, STREAM)), (3, None, [4, 5, 6]))

    def test_a_position_beyond_what_is_left_is_of_no_use(self) -> None:
        self.store.rename(lost=2)
        self.log.commit(5)
        self.assertEqual(self.told(Position(8, STREAM)), (8, None, [*range(9, 14)]))
        self.assertEqual(self.told(Position(9, STREAM)), (None, "reset", []))

    def test_a_later_loss_counts_for_earlier_names_too(self) -> None:
        self.store.rename()
        self.store.rename(THIRD_STREAM, lost=3)
        self.log.commit(5)
        self.assertEqual(self.told(Position(7, STREAM))[1], None)
        self.assertEqual(self.told(Position(8, STREAM))[1], "reset")

    def test_a_name_that_is_not_known_is_of_no_use(self) -> None:
        self.assertEqual(self.told(Position(1, THIRD_STREAM))[1], "reset")

    def test_the_present_name_is_not_looked_up(self) -> None:
        self.patch(self.store, "ends", None)
        self.assertEqual(self.told(Position(8, STREAM)), (8, None, [9, 10]))


class SettlingTests(RenamingCase):
    """A till that relies on its cursor comes right after a failover, before another node has told of it."""

    def setUp(self) -> None:
        super().setUp()
        self.store.session_start = evolve(session_start(10, 3), renamed_ago=0.4)

    def looking(self, position: Position | None = None) -> Deferred[SessionStart]:
        return Deferred.fromCoroutine(self.hub.look_up(KITCHEN, "BAR", position))

    def test_it_waits_for_a_second_after_the_change_of_the_name(self) -> None:
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

    def test_one_that_names_its_stream_does_not(self) -> None:
        self.assertEqual(self.successResultOf(self.looking(Position(3, STREAM))).acked, 3)

    def test_nor_one_that_is_told_to_reload_or_begins_at_the_head_anyway(self) -> None:
        now = evolve(session_start(10, 3), renamed_ago=0.4)
        for found in (evolve(now, astray=True), evolve(now, legacy=True), session_start(10, 3)):
            with self.subTest(found=found):
                self.store.session_start = found
                self.successResultOf(self.looking())
