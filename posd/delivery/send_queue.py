"""The send queue of one till: bytes in order, up to a limit; what does not fit is refused.

The class is named `SendQueue`; it has nothing to do with the table `pos_outbox`
(`posd.publishing.send_queue`).

The queue is the push producer of its transport. While the transport takes bytes, they are written at once.
While it does not, they wait here up to a limit. What does not fit is refused. It stays in PostgreSQL, and the
session reads it from there when the queue is empty again. So a till that stops reading costs its limit and
what the transport keeps, and delays nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from attrs import define, field, frozen
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from posd.monitoring.counters import TrafficCounts
from posd.values import Seq, TenantId


@frozen
class EventChunk:
    """The events from `first` to `last` in one dialect, which are written by one call.

    For each till that takes one TLS record and one system call for every 16 KiB, so mostly one of each,
    however many events are in it.
    """

    data: bytes
    first: Seq
    last: Seq


class ByteSink(Protocol):
    """The part of a transport that an outbox writes to."""

    def write(self, data: bytes) -> None:
        """Send or buffer bytes. It may call `pauseProducing` before it returns."""


class SendQueueOwner(Protocol):
    """Who fills an outbox."""

    def on_room(self) -> None:
        """The queue is empty: offer more."""

    def on_shed(self) -> None:
        """What waited was dropped. Offer what follows `written` again when `on_room` is called."""


@define(eq=False)
class TenantShare:
    """What one tenant's outboxes hold of a budget, and those that hold anything."""

    held: int = 0
    send_queues: set[SendQueue] = field(factory=set)


@define(eq=False)
class SendBudget:
    """How many bytes all outboxes may hold. Above that, some of the tenant that holds most are emptied.

    So if the tills of one shop do not read, only tills of that shop have to catch up again.
    """

    limit: int
    held: int = field(init=False, default=0)
    _shares: dict[TenantId, TenantShare] = field(init=False, factory=dict)

    def add_held(self, send_queue: SendQueue, change: int) -> None:
        """Note that an outbox holds so many bytes more than before, or fewer."""
        self.held += change
        share = self._shares.setdefault(send_queue.tenant_id, TenantShare())
        share.held += change
        if send_queue.held:
            share.send_queues.add(send_queue)
        else:
            share.send_queues.discard(send_queue)
            if not share.send_queues:
                del self._shares[send_queue.tenant_id]

    def enforce_limit(self) -> None:
        """While the limit is exceeded, empty the fullest outbox of the tenant that holds most."""
        while self.held > self.limit:
            heaviest = max(self._shares.values(), key=lambda share: share.held)
            max(heaviest.send_queues, key=lambda send_queue: send_queue.held).shed()


@implementer(IPushProducer)
class SendQueue:
    """The bytes for one till. `position` is the last event taken, `written` the last one written.

    `held` is how many bytes wait here. `traffic` counts what was written. `stalled_since` is when the
    transport said that it has enough, None while it takes bytes.

    `has_room` tells whether nothing waits here and the transport takes bytes, so that they can be written at
    once. It is stored, and not computed when it is asked for, since it is asked for each till and event.
    While it is set a channel calls `write` itself (`Channel._give`), and then moves `position` and `written`.

    Bytes that were written cannot be taken back. So a slow till costs, beyond the limit, what the transport
    keeps before it calls `pauseProducing` (`posd.web.http.sockets.bound_buffers`).
    """

    __slots__ = (
        *("has_room", "position", "written", "write"),
        *("limit", "tenant_id", "listener", "stalled_since", "held"),
        *("_budget", "_clock", "_waiting", "_open", "_traffic", "__weakref__"),
    )

    def __init__(
        self,
        sink: ByteSink,
        limit: int,
        budget: SendBudget,
        tenant_id: TenantId,
        *,
        clock: Callable[[], float],
        position: Seq = 0,
        traffic: TrafficCounts | None = None,
    ) -> None:
        self.write = sink.write
        self._traffic = traffic or TrafficCounts()
        self.limit = limit
        self._budget = budget
        self._clock = clock
        # An empty deque takes 760 bytes, and for most tills nothing ever waits.
        self._waiting: deque[tuple[bytes, Seq | None]] | tuple[()] = ()
        self._open = self.has_room = True
        self.tenant_id = tenant_id
        self.listener: SendQueueOwner | None = None
        self.stalled_since: float | None = None
        self.held = 0
        self.position = position
        self.written = position

    def deliver(self, chunk: EventChunk) -> bool:
        """Take a chunk. False if it does not begin right after `position`, or if it does not fit."""
        return chunk.first == self.position + 1 and self.offer(chunk.data, chunk.last)

    def offer(self, data: bytes, seq: Seq | None = None) -> bool:
        """Send bytes, or keep them until the transport takes more.

        `seq` is the position of the last event in them, None for messages that are not events. Returns False
        if they do not fit; then nothing was taken. What was taken may be dropped later by `shed`, which tells
        the listener.
        """
        if self.has_room:
            self._send(data, seq)
            return True
        if not self._open or self.held + len(data) > self.limit:
            return False
        if not self._waiting:
            self._waiting = deque()
        self._waiting.append((data, seq))
        if seq is not None:
            self.position = seq
        self._count(len(data))
        self._budget.enforce_limit()
        return True

    def shed(self) -> None:
        """Drop what waits, events and other messages, and tell the listener."""
        self._drop_waiting()
        if self.listener is not None:
            self.listener.on_shed()

    def rewind(self, seq: Seq) -> int:
        """Drop what waits and go on after event `seq`, if that is earlier. Returns by how many events."""
        self._drop_waiting()
        rewound = max(0, self.written - seq)
        self.position = self.written = self.written - rewound
        return rewound

    def close(self) -> None:
        """Take nothing more and forget what waits."""
        self._open = False
        self._drop_waiting()
        self.listener = None

    def pauseProducing(self) -> None:
        """The transport has enough. The till counts as stalled from the first of several calls on."""
        if self.stalled_since is None:
            self.stalled_since = self._clock()
            self.has_room = False

    def resumeProducing(self) -> None:
        """The kernel has taken all that the transport had. Write what waits, until it pauses again."""
        self.stalled_since = None
        self._update_has_room()
        while self._waiting and self.stalled_since is None:
            data, seq = self._waiting.popleft()
            self._count(-len(data))
            self._send(data, seq)
        if self.has_room and self.listener is not None:
            self.listener.on_room()

    def stopProducing(self) -> None:
        """The transport is gone."""
        self.close()

    def _send(self, data: bytes, seq: Seq | None) -> None:
        if seq is not None:
            self.written = seq
            if seq > self.position:
                self.position = seq
        self._traffic.sent_bytes += len(data)
        self.write(data)

    def _drop_waiting(self) -> None:
        self._waiting = ()
        self._count(-self.held)
        self.position = self.written

    def _count(self, change: int) -> None:
        self.held += change
        self._update_has_room()
        self._budget.add_held(self, change)

    def _update_has_room(self) -> None:
        self.has_room = not self.held and self.stalled_since is None and self._open
