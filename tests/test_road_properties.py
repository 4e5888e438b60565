"""A till that changes between transports misses no event, and receives none twice if it names its position.

A state machine commits events, promotes a standby, and lets tills change between WebSocket, server-sent
events and polls at any time: during a read of the log, with a lost answer, with a connection that posd
believes open, with sent data that was not read. One kind of till names the last event that it stored. The
other kind relies on its cursor, which it moves by messages or by calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock
from uuid import UUID, uuid4

from attrs import define, field
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
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from posd.database.pool import Pool
from posd.delivery import channel as channels
from posd.delivery import encoded
from posd.delivery import long_poll as polls
from posd.delivery.hub import Hub
from posd.delivery.long_poll import LongPolling, PollingTerminal, PollPage, PollQuery
from posd.delivery.session import Session
from posd.errors import Unavailable
from posd.protocol.encodings import SERVER_SENT, WEBSOCKET, WireFormat
from posd.protocol.jsontext import decode
from posd.security.connection_limits import ConnectionLimits
from posd.store import credentials, epochs, presence, stream
from posd.values import KeyKind, Position, Principal, Seq, SessionStart, Tenant, Terminal
from tests.delivery_case import KITCHEN, NOON, FakeTransport, said, terminal
from tests.hub_case import FakeProgressStore, Store, wake
from tests.server_sent import events_in

OUTBOX_BYTES = 1_200
TRANSPORT_BYTES = 400
PAGE_EVENTS = 4
POLL_BYTES = 700

indexes = st.integers(0, 5)


@define(eq=False)
class Road(FakeTransport):
    """A connection. Data written to it is read at once, later, or never."""

    reading: bool = True
    stored: Callable[[Seq], None] = lambda seq: None
    unread: list[Seq] = field(factory=list)

    def write(self, data: bytes) -> None:
        self.unread += [seq for seq in self.positions(data) if seq is not None]
        if self.reading:
            self.read()
            return
        self.kept += len(data)
        if self.kept > TRANSPORT_BYTES and self.send_queue is not None:
            self.send_queue.pauseProducing()

    def positions(self, data: bytes) -> list[Seq | None]:
        if self.wire_format is WEBSOCKET:
            return [each["id"] for each in said(data) if "data" in each]
        return [None if each.id is None else int(each.id) for each in events_in(data)]

    def read(self) -> None:
        while self.unread:
            self.stored(self.unread.pop(0))

    def read_on(self) -> None:
        self.reading, self.kept = True, 0
        self.read()
        if self.send_queue is not None and self.send_queue.stalled_since is not None:
            self.send_queue.resumeProducing()


@define(eq=False)
class Till:
    """A till: its stored events, up to `last`, and its current connection."""

    device: str | None
    names: bool
    """Whether it names its position. If not, it relies on its cursor."""
    start: Seq
    stream_id: UUID
    last: Seq = field(init=False)
    session: Session | None = None
    road: Road | None = None
    poll: Deferred[PollPage] | None = None
    leave: Callable[[], None] | None = None

    def __attrs_post_init__(self) -> None:
        self.last = self.start

    def store(self, seq: Seq) -> None:
        if self.names:
            assert seq == self.last + 1, f"{seq} came after {self.last}"
        assert seq <= self.last + 1, f"between {self.last} and {seq} something is missing"
        self.last = max(self.last, seq)


@define
class Device:
    acked: Seq
    legacy: bool = True


class Books(FakeProgressStore):
    """Cursors, as the statements of `posd.store.presence` move them."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: dict[str, Device] = {}

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        device = self.devices[terminal.device_id or ""]
        device.acked = seq if device.legacy else max(device.acked, seq)
        device.legacy = False

    def sent_to_legacy(self, terminal: Terminal, seq: Seq) -> None:
        device = self.devices[terminal.device_id or ""]
        if device.legacy:
            device.acked = max(device.acked, seq)


class Shop(Store):
    """Returns the stored position of every device."""

    def __init__(self, progress_store: Books) -> None:
        super().__init__()
        self.progress_store = progress_store
        self.log.events = []

    async def find_opening(self, _: Any, tenant: Tenant, device: str | None, most: int) -> Any:
        await self.look()
        if device is None:
            return SessionStart(self.log.head, None, False, NOON)
        known = self.progress_store.devices.setdefault(device, Device(self.log.last))
        return SessionStart(self.log.head, known.acked, known.legacy, NOON)


class Roads(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.progress_store = Books()
        self.store = Shop(self.progress_store)
        self.log = self.store.log
        self.log.at_once = False
        self.patches: list[Any] = [
            mock.patch.object(presence, "load_session_starts", self.store.find_openings),
            mock.patch.object(presence, "load_refused_events", self.store.find_refused),
            mock.patch.object(stream, "load_heads", self.store.find_heads),
            mock.patch.object(stream, "events_after", self.store.find_events),
            mock.patch.object(stream, "load_pages", self.store.find_pages),
            mock.patch.object(epochs, "stream_ends", self.store.find_ends),
            mock.patch.object(credentials, "invalid_keys", self.store.find_ended),
            mock.patch.object(encoded, "_CHUNK_BYTES", 500),
            mock.patch.object(channels, "_PAGE_EVENTS", PAGE_EVENTS),
            mock.patch.object(channels, "_TAIL_EVENTS", PAGE_EVENTS),
            mock.patch.object(channels, "_RECENT_BYTES", 900),
            mock.patch.object(polls, "_MOST_BYTES", POLL_BYTES),
        ]
        for patch in self.patches:
            patch.start()
        self.hub = Hub(
            self.clock,
            Pool(self.clock, "", size=1, statement_timeout=5),
            self.progress_store,
            heartbeat=30,
            send_queue_bytes=OUTBOX_BYTES,
            send_queue_total=100_000,
        )
        connections = ConnectionLimits(1000, 1000, 1000)
        self.polls = LongPolling(
            self.clock, self.hub, connections, self.progress_store.write_pending
        )
        self.tills: list[Till] = []
        self.ghosts: list[Session] = []

    def teardown(self) -> None:
        try:
            self.in_the_end_every_till_has_everything()
        finally:
            for patch in self.patches:
                patch.stop()

    @initialize(count=st.integers(0, 6))
    def begin(self, count: int) -> None:
        self.log.commit(count)
        for device, names in (("BAR", True), (None, True), ("KITCHEN", False)):
            till = Till(device, names, self.log.last, self.log.stream_id)
            self.tills.append(till)
        # From its first poll on, it relies on its cursor.
        self.begin_poll(self.tills[-1], PollQuery())
        assert self.tills[-1].poll is None

    # -- the shop and the database -----------------------------------------------------------

    @rule(count=st.integers(1, 6), size=st.sampled_from([0, 0, 100, 500]), wakes=st.booleans())
    def publish(self, count: int, size: int, wakes: bool) -> None:
        self.log.commit(count, size)
        if wakes:
            wake(self.hub, KITCHEN.id, self.log.last)

    @rule()
    def the_feed_looks(self) -> None:
        checked = Deferred.fromCoroutine(self.hub.channels.check([self.log.head]))
        checked.addErrback(lambda failure: failure.trap(Unavailable))

    @precondition(lambda self: self.log.waiting)
    @rule(index=indexes)
    def a_read_returns(self, index: int) -> None:
        self.log.answer(index % len(self.log.waiting))

    @rule()
    def reads_return(self) -> None:
        while self.log.waiting:
            self.log.answer()

    @precondition(lambda self: self.log.waiting)
    @rule(index=indexes)
    def a_read_fails(self, index: int) -> None:
        self.log.fail(index=index % len(self.log.waiting))

    @rule(looks=st.booleans())
    def a_standby_takes_over_that_has_everything(self, looks: bool) -> None:
        """No till reloads or misses an event: `resync` and gaps fail the test."""
        self.store.rename(uuid4())
        if looks:
            self.the_feed_looks()

    @rule(seconds=st.sampled_from([1.0, 10.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # -- the tills ---------------------------------------------------------------------------

    @rule(
        index=indexes,
        wire_format=st.sampled_from([WEBSOCKET, SERVER_SENT]),
        reading=st.booleans(),
        silently=st.booleans(),
    )
    def till_connects(
        self, index: int, wire_format: WireFormat, reading: bool, silently: bool
    ) -> None:
        till = self.pick(index)
        self.leave(till, silently)
        position = Position(till.last, till.stream_id) if till.names else None
        session_start = self.now(self.hub.look_up(KITCHEN, till.device, position))
        till.road = Road(wire_format=wire_format, reading=reading, stored=till.store)
        name = till.stream_id = session_start.head.stream_id
        connecting = terminal(till.device, position=position, stream_id=name)
        till.session = self.hub.open(connecting, session_start, till.road)

    @rule(
        index=indexes,
        limit=st.integers(1, 8),
        seconds=st.sampled_from([0.0, 20.0]),
        silently=st.booleans(),
    )
    def till_polls(self, index: int, limit: int, seconds: float, silently: bool) -> None:
        till = self.pick(index)
        self.leave(till, silently)
        self.begin_poll(till, PollQuery(limit, seconds))

    @rule(index=indexes, silently=st.booleans())
    def till_goes(self, index: int, silently: bool) -> None:
        self.leave(self.pick(index), silently)

    @rule(index=indexes)
    def till_reads_on(self, index: int) -> None:
        road = self.pick(index).road
        if road is not None:
            road.read_on()

    @rule(index=indexes, back=st.integers(0, 3), call=st.booleans())
    def till_acknowledges(self, index: int, back: int, call: bool) -> None:
        till = self.pick(index)
        seq = till.last - back
        if till.device is None or seq < 0:
            return
        if call or till.session is None or till.session.wire_format is SERVER_SENT:
            name = till.stream_id if back else None
            cursor = self.now(self.polls.acknowledge(self.poller(till), seq, name))
            assert seq <= cursor <= till.last
        else:
            till.session.heard(b'{"type":"ack","id":%d}' % seq)

    @precondition(lambda self: self.ghosts)
    @rule()
    def posd_notices_that_somebody_has_gone(self) -> None:
        self.hub.closed(self.ghosts.pop(0))

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def nobody_is_taken_to_have_what_it_has_not_stored(self) -> None:
        for till in self.tills:
            if till.device in self.progress_store.devices:
                assert self.progress_store.devices[till.device].acked <= till.last

    @invariant()
    def what_is_on_its_way_is_bounded(self) -> None:
        for till in self.tills:
            if till.session is not None:
                assert till.session.send_queue.held <= OUTBOX_BYTES

    @invariant()
    def nobody_waits_at_a_channel_who_has_gone(self) -> None:
        if not self.log.waiting:
            waiting = sum(till.poll is not None for till in self.tills)
            assert len(self.hub._polls) == waiting

    def in_the_end_every_till_has_everything(self) -> None:
        """A till that reconnects has all events, whatever happened before."""
        self.log.at_once = True
        self.reads_return()
        for till in self.tills:
            self.leave(till, silently=False)
            for _ in range(len(self.log.events) + 1):
                self.begin_poll(till, PollQuery(limit=3))
                if not till.names:
                    self.now(self.polls.acknowledge(self.poller(till), till.last, None))
            assert till.last == self.log.last, (till.last, self.log.last)

    # -- in between --------------------------------------------------------------------------

    def pick(self, index: int) -> Till:
        return self.tills[index % len(self.tills)]

    def poller(self, till: Till) -> PollingTerminal:
        return PollingTerminal(KITCHEN, Principal(1, KeyKind.TENANT, KITCHEN), till.device)

    def begin_poll(self, till: Till, query: PollQuery) -> None:
        def hold(leave: Callable[[], None]) -> Callable[[], None]:
            till.leave = leave
            return lambda: None

        position = Position(till.last, till.stream_id) if till.names else None
        asking = self.polls.answer(self.poller(till), position, query, hold)
        till.poll = polling = Deferred.fromCoroutine(asking)
        polling.addCallbacks(self.polled, self.not_polled, (till, polling), {}, (till, polling))

    def polled(self, batch: PollPage, till: Till, polling: Deferred[PollPage]) -> None:
        if till.poll is not polling:
            # It has gone meanwhile, so the answer is lost.
            return
        till.poll = till.leave = None
        assert batch.resync is None
        till.stream_id = batch.stream_id
        messages: list[Any] = [decode(each) for each in batch.messages]
        seqs = [each["id"] for each in messages]
        for seq in seqs:
            till.store(seq)
        assert batch.position == (seqs[-1] if seqs else batch.position)
        assert not till.names or batch.position == till.last

    def not_polled(self, failure: Failure, till: Till, polling: Deferred[PollPage]) -> None:
        failure.trap(Unavailable)
        if till.poll is polling:
            till.poll = till.leave = None

    def leave(self, till: Till, silently: bool) -> None:
        """Leave the connection. Data under way is lost. `silently`: posd does not notice."""
        if till.session is not None:
            assert till.road is not None
            till.road.stored = lambda seq: None
            if silently:
                self.ghosts.append(till.session)
            else:
                self.hub.closed(till.session)
        if till.leave is not None:
            till.leave()
        till.session = till.road = till.poll = till.leave = None

    def now(self, work: Any) -> Any:
        """Return the result of work that does not wait."""
        results: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(results.append)
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        return result


class RoadProperties(SynchronousTestCase):
    def test_a_till_may_change_its_road_at_any_moment(self) -> None:
        run_state_machine_as_test(
            Roads, settings=settings(max_examples=150, stateful_step_count=40, deadline=None)
        )
