"""The fixtures of the delivery tests: a stream whose reads a test answers, and a till's connection."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.delivery.channel import TenantChannel
from posd.delivery.send_queue import SendBudget, SendQueue
from posd.delivery.session import Session
from posd.delivery.session_interfaces import ProgressSink as ProgressSink
from posd.delivery.session_interfaces import SessionTransport
from posd.errors import Unavailable
from posd.protocol.encodings import WEBSOCKET, WireFormat
from posd.protocol.jsontext import decode
from posd.values import (
    CloseReason,
    Event,
    KeyKind,
    Position,
    Principal,
    PrintStatus,
    Resync,
    Seq,
    SessionStart,
    StreamHead,
    StreamName,
    Tenant,
    Terminal,
)

STREAM = UUID("5a1c2e00-0000-4000-8000-000000000001")
OTHER_STREAM = UUID("5a1c2e00-0000-4000-8000-000000000002")
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
KITCHEN = Tenant(7, "kitchen", "Kitchen", "dinedesk_kitchen")

PING, PONG, CLOSE, TEXT = 0x9, 0xA, 0x8, 0x1


def event(seq: Seq, size: int = 0) -> Event:
    """Return a committed event with at least `size` bytes of text."""
    return Event(seq, "note", b'{"n":%d,"text":"%b"}' % (seq, b"x" * size), NOON)


def head(last_seq: Seq, *, stream_id: UUID = STREAM, pruned_seq: Seq = 0) -> StreamHead:
    return StreamHead(KITCHEN.id, stream_id, last_seq, pruned_seq)


def session_start(
    last_seq: Seq, acked: Seq | None = None, *, legacy: bool = False, pruned_seq: Seq = 0
) -> SessionStart:
    return SessionStart(head(last_seq, pruned_seq=pruned_seq), acked, legacy, NOON)


def terminal(
    device: str | None = None,
    *,
    position: Position | None = None,
    key_device: str | None = None,
    tenant: Tenant = KITCHEN,
    key_id: int = 1,
    stream_id: UUID = STREAM,
    connected_at: datetime = NOON,
) -> Terminal:
    """Return an admitted terminal. It has a key of its own if `key_device` is given, else the tenant's."""
    kind = KeyKind.TENANT if key_device is None else KeyKind.DEVICE
    principal = Principal(key_id, kind, tenant, key_device)
    name = device or key_device
    return Terminal(uuid4(), tenant, principal, name, position, connected_at, stream_id)


def frames_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield opcode and payload of the complete, unmasked frames that a server wrote (RFC 6455 §5.2)."""
    while data:
        if data[0] & 0x70 or not data[0] & 0x80 or data[1] & 0x80:
            raise AssertionError(f"the frame is masked, compressed or a fragment: {data[:2]!r}")
        length, start = data[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(data[2:start], "big")
        yield data[0] & 0xF, data[start : start + length]
        data = data[start + length :]


def said(data: bytes) -> list[dict[str, Any]]:
    """Return the messages that a server wrote."""
    texts = [payload for opcode, payload in frames_in(data) if opcode == TEXT]
    return [message for text in texts if isinstance(message := decode(text), dict)]


@define
class Log:
    """A tenant's stream. It answers a read at once, when the test calls `answer`, or with an error."""

    events: list[Event] = field(factory=list)
    stream_id: UUID = STREAM
    at_once: bool = True
    trouble: Exception | None = None
    reads: list[Seq] = field(factory=list)
    waiting: list[tuple[Deferred[list[Event]], list[Event]]] = field(factory=list)

    @property
    def last(self) -> Seq:
        return self.events[-1].seq if self.events else 0

    @property
    def head(self) -> StreamHead:
        return head(self.last, stream_id=self.stream_id)

    def commit(self, count: int = 1, size: int = 0) -> Seq:
        """Add events. Return the position of the last one."""
        self.events += [event(seq, size) for seq in range(self.last + 1, self.last + 1 + count)]
        return self.last

    def read(self, position: Seq, limit: int) -> Awaitable[list[Event]]:
        """Implements `channel.Read`. The page has the events that are committed when the read begins."""
        self.reads.append(position)
        if self.trouble is not None:
            raise self.trouble
        page = [each for each in self.events if each.seq > position][:limit]
        if self.at_once:
            return succeed(page)
        answer: Deferred[list[Event]] = Deferred()
        self.waiting.append((answer, page))
        return answer

    def answer(self, index: int = 0) -> None:
        """Finish a read."""
        answer, page = self.waiting.pop(index)
        answer.callback(page)

    def fail(self, error: Exception | None = None, index: int = 0) -> None:
        """Fail a read. The default error is an unreachable database."""
        self.waiting.pop(index)[0].errback(error or Unavailable("The database cannot be reached."))


@define(eq=False)
class FakeTransport:
    """A till's connection and the data written to it. Implements `registry.TillTransport`."""

    heard_at: float = 0.0
    wire_format: WireFormat = WEBSOCKET
    enough: float = float("inf")
    """The bytes that the transport buffers before it pauses its producer."""
    kept: int = 0
    send_queue: SendQueue | None = None
    written: bytearray = field(factory=bytearray)
    most_written: int = 0
    closings: list[CloseReason] = field(factory=list)
    pings: int = 0
    drops: list[bool] = field(factory=list)

    def write(self, data: bytes) -> None:
        self.written += data
        self.most_written = max(self.most_written, len(data))
        self.kept += len(data)
        if self.kept > self.enough and self.send_queue is not None:
            self.send_queue.pauseProducing()

    def attach(self, send_queue: SendQueue) -> None:
        self.send_queue = send_queue

    def stall(self) -> None:
        """The till stops reading. The transport pauses its producer at once."""
        self.enough = -1
        assert self.send_queue is not None
        self.send_queue.pauseProducing()

    def drain(self, enough: float = float("inf")) -> None:
        """The till has read everything. From now on the transport buffers `enough` bytes."""
        self.kept, self.enough = 0, enough
        assert self.send_queue is not None
        self.send_queue.resumeProducing()

    def close(self, closing: CloseReason) -> None:
        self.closings.append(closing)

    def ping(self) -> None:
        self.pings += 1

    def drop(self, *, abort: bool) -> None:
        self.drops.append(abort)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages that the till was sent."""
        return said(bytes(self.written))

    @property
    def ids(self) -> list[Seq]:
        """The positions of the events that the till was sent, in order."""
        return [each["id"] for each in self.messages if "data" in each]

    @property
    def errors(self) -> list[str]:
        """The codes of the errors that the till was sent."""
        return [each["code"] for each in self.messages if each["type"] == "error"]


@define
class FakeProgressSink:
    """Records what a session stores. Implements `session_interfaces.ProgressSink`."""

    acks: list[Seq] = field(factory=list)
    follows: list[Seq] = field(factory=list)
    nacks: list[tuple[Seq, str]] = field(factory=list)
    words: list[tuple[str, bytes]] = field(factory=list)
    prints: list[tuple[str, PrintStatus, str]] = field(factory=list)
    printing: list[Deferred[bool]] = field(factory=list)
    """The results of print reports. If the list is empty, every order is known."""

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        self.acks.append(seq)

    def sent_to_legacy(self, terminal: Terminal, seq: Seq) -> None:
        self.follows.append(seq)

    def refused(self, terminal: Terminal, seq: Seq, reason: str) -> None:
        self.nacks.append((seq, reason))

    def said(self, terminal: Terminal, kind: str, body: bytes) -> None:
        self.words.append((kind, body))

    def printed(
        self, terminal: Terminal, order_id: str, status: PrintStatus, reason: str
    ) -> Awaitable[bool]:
        self.prints.append((order_id, status, reason))
        return self.printing.pop(0) if self.printing else succeed(True)


class SessionCase(SynchronousTestCase):
    """A tenant with ten events, and sessions of its tills."""

    limit = 1000

    def setUp(self) -> None:
        self.clock = Clock()
        self.log = Log()
        self.log.commit(10)
        self.delivered: list[Seq] = []
        self.channel = TenantChannel(KITCHEN, self.log.head, self.log.read, self.note_delivery)
        self.budget = SendBudget(1_000_000)
        self.progress_sink = FakeProgressSink()
        self.transport = FakeTransport()

    def note_delivery(self, stream: StreamName, seq: Seq) -> None:
        self.delivered.append(seq)

    def begin(
        self,
        terminal: Terminal,
        session_start: SessionStart,
        start: Seq,
        resync: Resync | None = None,
        transport: FakeTransport | None = None,
    ) -> Session:
        session_transport: SessionTransport = transport or self.transport
        send_queue = SendQueue(
            transport or self.transport,
            self.limit,
            self.budget,
            KITCHEN.id,
            clock=self.clock.seconds,
            position=start,
        )
        kept: ProgressSink = self.progress_sink
        session = Session(
            terminal,
            self.channel,
            send_queue,
            session_transport,
            kept,
            self.clock.seconds,
            lambda: NOON,
        )
        send_queue.listener = session
        (transport or self.transport).attach(send_queue)
        session.begin(session_start, resync, heartbeat=30)
        return session

    def unnamed(self, after: Seq | None = None) -> Session:
        """Begin the session of a till without a device name. `after` is the position that it names."""
        position = None if after is None else Position(after)
        start = 10 if after is None else after
        return self.begin(terminal(position=position), session_start(10), start)

    def named(self, acked: Seq = 10) -> Session:
        """Begin the session of a till that acknowledges."""
        return self.begin(terminal("BAR"), session_start(10, acked), acked)

    def legacy(self) -> Session:
        """Begin the session of a till with a device name that never acknowledged. Its cursor is old."""
        return self.begin(terminal(key_device="BAR"), session_start(10, 3, legacy=True), 10)

    def hear(self, session: Session, **message: Any) -> None:
        work = session.heard(json.dumps(message).encode())
        if work is not None:
            self.successResultOf(work)
