"""Every till receives every event after its position, in order, once, for all orders of actions.

A state machine commits events, connects tills of every kind, and lets them read slowly or not at all,
leave, acknowledge and refuse. It loses, repeats and invents wakes, polls late, delays reads of the log or
lets them fail, restores backups, and limits memory. The invariants must hold.
"""

from __future__ import annotations

from typing import Any
from unittest import mock
from uuid import uuid4

from attrs import define, evolve, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database.pool import Pool
from posd.delivery import channel as channels
from posd.delivery import encoded
from posd.delivery.hub import Hub
from posd.delivery.session import Session, SessionState
from posd.errors import Unavailable
from posd.store import credentials, epochs, presence, stream
from posd.values import (
    RENAMED,
    SUPERSEDED,
    AppendedEvents,
    CloseReason,
    Event,
    Position,
    Seq,
    SessionStart,
    Terminal,
)
from tests.delivery_case import KITCHEN, NOON, FakeTransport, event, said, terminal
from tests.hub_case import FakeProgressStore, Store, wake

# An event has about 200 to 1,000 bytes here.
OUTBOX_BYTES = 1_200
OUTBOX_TOTAL = 1_300
TRANSPORT_BYTES = 400
CHUNK_BYTES = 500
LARGEST_FRAME = 1_100
PAGE_EVENTS = 4
RECENT_BYTES = 600

indexes = st.integers(0, 11)


@define(eq=False)
class Till(FakeTransport):
    """A till's end of a connection: received data, and data that is under way."""

    start: Seq = 0
    asked: bool = False
    """Whether it named a position."""
    received: list[tuple[Seq, str]] = field(factory=list)
    """Positions, and the stream ids at the commit of the events."""
    shared: list[Seq] = field(factory=list)
    """The position up to which its stream was kept at each change of the id since its admission."""
    reading: bool = True
    device: str | None = None

    def write(self, data: bytes) -> None:
        self.most_written = max(self.most_written, len(data))
        for message in said(data):
            if "data" in message:
                name = message["data"]["text"].partition(" ")[0]
                self.received.append((message["id"], name))
        if not self.reading:
            self.kept += len(data)
            if self.kept > TRANSPORT_BYTES and self.send_queue is not None:
                self.send_queue.pauseProducing()

    def read_on(self) -> None:
        self.reading, self.kept = True, 0
        assert self.send_queue is not None
        if self.send_queue.stalled_since is not None:
            self.send_queue.resumeProducing()

    @property
    def stalled(self) -> bool:
        return self.send_queue is not None and self.send_queue.stalled_since is not None


@define
class Device:
    """A terminal with a device id, as stored in the database."""

    acked: Seq
    legacy: bool = True


class Books(FakeProgressStore):
    """Cursors, as the statements of `posd.store.presence` move them."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: dict[str, Device] = {}

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        device = self.devices.get(terminal.device_id or "")
        if device is not None:
            device.acked = seq if device.legacy else max(device.acked, seq)
            device.legacy = False

    def sent_to_legacy(self, terminal: Terminal, seq: Seq) -> None:
        device = self.devices.get(terminal.device_id or "")
        if device is not None and device.legacy:
            device.acked = max(device.acked, seq)


class Delivery(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = Store()
        self.log = self.store.log
        self.log.at_once = False
        self.log.events = []
        self.progress_store = Books()
        self.patches: list[Any] = [
            mock.patch.object(presence, "load_session_starts", self.store.find_openings),
            mock.patch.object(presence, "load_refused_events", self.store.find_refused),
            mock.patch.object(stream, "load_heads", self.store.find_heads),
            mock.patch.object(stream, "events_after", self.store.find_events),
            mock.patch.object(stream, "load_pages", self.store.find_pages),
            mock.patch.object(epochs, "begin_new_history", self.store.find_set_back),
            mock.patch.object(epochs, "stream_ends", self.store.find_ends),
            mock.patch.object(credentials, "invalid_keys", self.store.find_ended),
            mock.patch.object(encoded, "_CHUNK_BYTES", CHUNK_BYTES),
            mock.patch.object(channels, "_PAGE_EVENTS", PAGE_EVENTS),
            mock.patch.object(channels, "_TAIL_EVENTS", PAGE_EVENTS),
            mock.patch.object(channels, "_RECENT_BYTES", RECENT_BYTES),
        ]
        for patch in self.patches:
            patch.start()
        self.hub = Hub(
            self.clock,
            Pool(self.clock, "", size=1, statement_timeout=5),
            self.progress_store,
            heartbeat=30,
            send_queue_bytes=OUTBOX_BYTES,
            send_queue_total=OUTBOX_TOTAL,
        )
        self.tills: dict[Till, Session] = {}
        self.pruned: Seq = 0
        self.trouble = False
        """Whether a read may have failed since the last query of the database."""
        self.looked_up: list[tuple[Terminal, SessionStart]] = []
        self.polled: list[Any] = []
        self.logs: list[dict[Seq, str]] = []
        """The content of the log under its earlier ids."""

    def teardown(self) -> None:
        try:
            self.everything_is_delivered_when_all_is_well()
        finally:
            for patch in self.patches:
                patch.stop()

    # -- the shop ----------------------------------------------------------------------------

    @initialize(count=st.integers(0, 20))
    def begin(self, count: int) -> None:
        for _ in range(count):
            self.commit(0)

    @rule(count=st.integers(1, 6), size=st.sampled_from([0, 0, 0, 100, 800]))
    def publish(self, count: int, size: int) -> None:
        """Publish normally."""
        for _ in range(count):
            self.commit(size)
        self.wake()
        self.reads_return()

    @rule(count=st.integers(1, 6), size=st.sampled_from([0, 0, 0, 100, 800]))
    def publish_here(self, count: int, size: int) -> None:
        """Publish with the sequencer of this node."""
        for _ in range(count):
            self.commit(size)
        self.hub.channels.append(
            AppendedEvents(KITCHEN.id, self.log.stream_id, self.log.events[-count:])
        )

    @rule(size=st.sampled_from([0, 0, 0, 100, 800]))
    def commit(self, size: int) -> None:
        self.log.events.append(self.signed(event(self.log.last + 1), size))

    def signed(self, event: Event, size: int = 0) -> Event:
        """Return an event that contains its stream id."""
        history = self.log.stream_id.hex.encode()
        return evolve(event, data=b'{"text":"%b %b"}' % (history, b"x" * size))

    @rule(keep=st.integers(0, 20))
    def prune(self, keep: int) -> None:
        # A connected till that is behind loses pruned events and is told to reload. Prune only events that
        # no connected till needs, so that gaps are always faults.
        needed = [session.position for session in self.tills.values()]
        needed += [
            seq for _, session_start in self.looked_up for seq in [session_start.head.pruned_seq]
        ]
        floor = min([self.log.last - keep, *needed])
        if floor > self.pruned:
            self.pruned = floor

    @rule(lost=st.sampled_from([0, 0, 0, 1, 2, 5]), looks=st.booleans())
    def a_standby_takes_over(self, lost: int, looks: bool) -> None:
        self.logs.append(self.names)
        self.store.rename(uuid4(), lost=min(lost, self.log.last - self.pruned))
        for till in self.tills:
            till.shared.append(self.log.last)
        self.progress_store.devices.clear()
        if looks and not self.store.away:
            self.exchange_looks()

    @property
    def names(self) -> dict[Seq, str]:
        """Return the stream ids at the commit of the events, by position."""
        return {each.seq: each.data[9:41].decode() for each in self.log.events}

    # -- the feed ----------------------------------------------------------------------------

    @rule()
    def wake(self) -> None:
        wake(self.hub, KITCHEN.id, self.log.last)

    @rule(seq=st.integers(0, 60))
    def wake_for_nothing(self, seq: int) -> None:
        wake(self.hub, KITCHEN.id, seq)

    @rule()
    def poll(self) -> None:
        self.polled.append(self.log.head)

    @precondition(lambda self: self.polled)
    @rule(index=indexes)
    def poll_arrives(self, index: int) -> None:
        head = self.polled.pop(index % len(self.polled))
        Deferred.fromCoroutine(self.hub.channels.check([head])).addErrback(
            lambda failure: failure.trap(Unavailable)
        )

    @precondition(lambda self: self.log.waiting)
    @rule(index=indexes)
    def read_returns(self, index: int) -> None:
        self.log.answer(index % len(self.log.waiting))

    @rule()
    def reads_return(self) -> None:
        while self.log.waiting:
            self.log.answer()

    @precondition(lambda self: self.log.waiting)
    @rule(index=indexes)
    def read_fails(self, index: int) -> None:
        self.trouble = True
        self.log.fail(index=index % len(self.log.waiting))

    @rule(away=st.booleans())
    def database_goes_or_comes(self, away: bool) -> None:
        self.trouble = self.trouble or away
        self.log.trouble = Unavailable("The database is away.") if away else None
        self.store.away = away

    # -- the tills ---------------------------------------------------------------------------

    @rule(
        name=st.sampled_from([None, "BAR", "KITCHEN"]),
        asked=st.none() | st.integers(0, 40),
        history=st.sampled_from(["unnamed", "this", "earlier", "another"]),
    )
    def till_is_looked_up(self, name: str | None, asked: Seq | None, history: str) -> None:
        earlier = [*self.store.ends, uuid4()][0]
        names = {
            "unnamed": None,
            "this": self.log.stream_id,
            "earlier": earlier,
            "another": uuid4(),
        }
        position = None if asked is None else Position(asked, names[history])
        acked = legacy = None
        if name is not None:
            device = self.progress_store.devices.setdefault(name, Device(self.log.last))
            acked, legacy = device.acked, device.legacy
        head = evolve(self.log.head, pruned_seq=self.pruned)
        session_start = SessionStart(head, acked, bool(legacy), NOON)
        if position is not None and position.stream_id in self.store.ends:
            session_start = evolve(session_start, shared=self.store.ends[position.stream_id].shared)
        connecting = terminal(name, position=position, stream_id=head.stream_id)
        self.looked_up.append((connecting, session_start))

    @precondition(lambda self: len(self.tills) < 8)
    @rule(back=st.none() | st.integers(0, 12), reading=st.booleans())
    def till_comes(self, back: int | None, reading: bool) -> None:
        """Connect a till as usual: with a recent position, or without one."""
        asked = None if back is None else max(self.pruned, self.log.last - back)
        self.till_is_looked_up(None, asked, "this")
        self.till_is_connected(-1, reading)

    @precondition(lambda self: self.looked_up and len(self.tills) < 8)
    @rule(index=indexes, reading=st.booleans())
    def till_is_connected(self, index: int, reading: bool) -> None:
        connecting, session_start = self.looked_up.pop(index % len(self.looked_up))
        if connecting.device_id is not None:
            self.progress_store.devices.setdefault(
                connecting.device_id, Device(session_start.acked or 0, session_start.legacy)
            )
        till = Till(reading=reading, device=connecting.device_id)
        till.asked = connecting.position is not None
        till.start = expected_start(connecting, session_start)
        if session_start.head.stream_id != self.log.stream_id:
            # It was looked up before the id changed.
            till.shared.append(self.store.ends[session_start.head.stream_id].shared)
        session = self.hub.open(connecting, session_start, till)
        self.tills[till] = session
        greeting = session_start.head.last_seq
        assert session.terminal.connection_id == connecting.connection_id
        assert till.start <= greeting

    @precondition(lambda self: self.tills)
    @rule(index=indexes)
    def till_leaves(self, index: int) -> None:
        till = self.pick(index)
        self.hub.closed(self.tills.pop(till))

    @precondition(lambda self: self.tills)
    @rule(index=indexes)
    def till_stops_reading(self, index: int) -> None:
        self.pick(index).reading = False

    @rule(count=st.integers(1, 4))
    def the_network_is_slow_for_all(self, count: int) -> None:
        for till in self.tills:
            till.reading = False
        for _ in range(count):
            self.publish(1, 100)

    @precondition(lambda self: self.tills)
    @rule(index=indexes)
    def till_reads_on(self, index: int) -> None:
        self.pick(index).read_on()

    @precondition(lambda self: self.tills)
    @rule(index=indexes, back=st.integers(0, 5), refused=st.booleans())
    def till_speaks(self, index: int, back: int, refused: bool) -> None:
        till = self.pick(index)
        if not till.received:
            return
        seq, _ = till.received[max(0, len(till.received) - 1 - back)]
        session = self.tills[till]
        kind = b"nack" if refused else b"ack"
        session.heard(b'{"type":"%b","id":%d}' % (kind, seq))
        self.hub.heard(session)

    @precondition(lambda self: self.tills)
    @rule(index=indexes)
    def till_pings(self, index: int) -> None:
        session = self.tills[self.pick(index)]
        session.heard(b'{"type":"ping"}')
        session.answer_ping(b"x" * 100)

    @precondition(lambda self: self.tills)
    @rule(index=indexes)
    def memory_is_taken_from(self, index: int) -> None:
        send_queue = self.tills[self.pick(index)].send_queue
        if send_queue.held:
            send_queue.shed()

    def pick(self, index: int) -> Till:
        return list(self.tills)[index % len(self.tills)]

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def nobody_is_closed_without_a_reason(self) -> None:
        for till, session in list(self.tills.items()):
            for closing in till.closings:
                assert closing in self.reasons(till), closing
                self.hub.closed(session)
                self.tills.pop(till, None)

    def reasons(self, till: Till) -> list[CloseReason]:
        reasons = [SUPERSEDED] if till.device is not None else []
        if till.shared and not self.tills[till].is_basic:
            reasons.append(RENAMED)
        return reasons

    @invariant()
    def every_event_comes_once_and_in_order(self) -> None:
        for till in self.tills:
            before: tuple[Seq, str] | None = None
            for seq, name in till.received:
                if before is None or seq <= before[0]:
                    # Only a legacy till, which has no positions, may receive other events with the same
                    # positions.
                    first = before is None and seq == till.start + 1
                    assert first or (not till.asked and seq - 1 in till.shared), till.received
                else:
                    assert seq == before[0] + 1, till.received
                    assert any(
                        log.get(before[0]) == before[1] and log.get(seq) == name
                        for log in (self.names, *self.logs)
                    ), till.received
                before = seq, name

    @invariant()
    def memory_is_bounded(self) -> None:
        held = [session.send_queue.held for session in self.tills.values()]
        assert max(held, default=0) <= OUTBOX_BYTES
        assert sum(held) == self.hub._send_budget.held <= OUTBOX_TOTAL
        for till in self.tills:
            assert till.most_written <= LARGEST_FRAME
            assert till.kept <= TRANSPORT_BYTES + LARGEST_FRAME
        kept = [
            each
            for channel in self.hub.channels._all_of(KITCHEN.id)[:1]
            for each in channel._recent
        ]
        assert sum(each.size for each in kept) <= RECENT_BYTES + LARGEST_FRAME

    @invariant()
    def a_live_till_has_everything_unless_it_does_not_read(self) -> None:
        for till, session in self.tills.items():
            if session.state is SessionState.LIVE:
                assert session.position == session._channel.tail
                if not till.stalled:
                    assert session.send_queue.written == session._channel.tail

    @invariant()
    def whoever_has_room_and_lacks_something_is_being_read_for(self) -> None:
        if self.trouble:
            return
        for session in self.tills.values():
            if session._channel.stream_id != self.log.stream_id:
                # There is nothing to read under its id. The next poll finds the new id.
                continue
            if session.state is SessionState.CATCHING_UP and session.send_queue.has_room:
                ahead = session.position > session._channel.tail
                assert session._channel._reading if ahead else session._is_reading_page

    @invariant()
    def nothing_is_counted_as_done_that_was_not_sent(self) -> None:
        for session in self.tills.values():
            if session.acked is not None and not self.superseded_or_old(session):
                assert session.acked <= max(session.position, self.log.last)

    def superseded_or_old(self, session: Session) -> bool:
        return session._channel.stream_id != self.log.stream_id

    @rule()
    def those_who_read_have_everything_though_others_do_not(self) -> None:
        self.let_the_database_work()
        for till, session in list(self.tills.items()):
            if not till.stalled:
                self.assert_complete(till, session)

    def everything_is_delivered_when_all_is_well(self) -> None:
        for till in self.tills:
            till.read_on()
        self.let_the_database_work()
        for till, session in list(self.tills.items()):
            self.assert_complete(till, session)

    def let_the_database_work(self) -> None:
        self.database_goes_or_comes(False)
        for _ in range(2):
            self.exchange_looks()
            while self.log.waiting:
                self.log.answer()
        # Tills that must reconnect are closed one after the other.
        self.clock.advance(5)
        self.nobody_is_closed_without_a_reason()

    def exchange_looks(self) -> None:
        done = Deferred.fromCoroutine(self.hub.channels.check([self.log.head]))
        assert done.called
        self.trouble = False

    def assert_complete(self, till: Till, session: Session) -> None:
        assert session.state is SessionState.LIVE, (session.state, session.position, self.log.last)
        assert session.send_queue.written == self.log.last
        assert session.terminal.stream_id == self.log.stream_id
        first = min([till.start, *till.shared]) + 1
        latest = dict(till.received)
        for seq, name in self.names.items():
            assert seq < first or latest[seq] == name, (seq, first, till.received)


def expected_start(connecting: Terminal, session_start: SessionStart) -> Seq:
    """Return where a till starts, computed independently of `posd.protocol.cursor`."""
    head, asked = session_start.head, connecting.position
    if asked is None:
        if session_start.acked is None or session_start.legacy:
            return head.last_seq
        wanted, same = session_start.acked, True
    else:
        wanted, same = asked.seq, asked.stream_id in (None, head.stream_id)
        same = same or (session_start.shared is not None and wanted <= session_start.shared)
    possible = same and head.pruned_seq <= wanted <= head.last_seq
    return wanted if possible else head.last_seq


class DeliveryProperties(SynchronousTestCase):
    def test_every_till_sees_every_event_after_its_position_once_and_in_order(self) -> None:
        run_state_machine_as_test(
            Delivery,
            settings=settings(max_examples=150, stateful_step_count=50, deadline=None),
        )
