"""The send queue of one till: bytes in order, up to a limit.

The queue is the push producer of its transport. While the transport accepts bytes, they are written at
once. While it does not, they wait here up to the limit. Events beyond the limit are refused. The session
reads them from PostgreSQL when the queue is empty again. So a till that stops reading costs its limit and
the buffer of its transport, and delays no other till.
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
    """The encoded events from `first` to `last` in one wire format, which are written with one call.

    For each till, a chunk costs one TLS record and one system call for every 16 KiB, whatever the number of
    its events.
    """

    data: bytes
    first: Seq
    last: Seq


class ByteSink(Protocol):
    """The part of a transport that a send queue writes to."""

    def write(self, data: bytes) -> None:
        """Send or buffer bytes. The transport may call `pauseProducing` before it returns."""


class SendQueueOwner(Protocol):
    """The session that fills a send queue."""

    def on_room(self) -> None:
        """The queue is empty. Offer more data."""

    def on_shed(self) -> None:
        """The waiting data was dropped. Offer the events after `written` again when `on_room` is called."""


@define(eq=False)
class TenantShare:
    """The bytes of a budget that one tenant's send queues hold, and those queues that are not empty."""

    held: int = 0
    send_queues: set[SendQueue] = field(factory=set)


@define(eq=False)
class SendBudget:
    """The number of bytes that all send queues may hold together.

    When the limit is exceeded, queues of the tenant with the most bytes are emptied. So if the tills of one
    shop stop reading, only tills of that shop have to catch up again.
    """

    limit: int
    held: int = field(init=False, default=0)
    _shares: dict[TenantId, TenantShare] = field(init=False, factory=dict)

    def add_held(self, send_queue: SendQueue, change: int) -> None:
        """A send queue holds `change` more bytes than before, or fewer."""
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
        """While the limit is exceeded, empty the largest queue of the tenant with the most bytes."""
        while self.held > self.limit:
            heaviest = max(self._shares.values(), key=lambda share: share.held)
            max(heaviest.send_queues, key=lambda send_queue: send_queue.held).shed()


@implementer(IPushProducer)
class SendQueue:
    """The bytes for one till. `position` is the last event accepted, `written` the last event written.

    `held` is the number of waiting bytes. `traffic` counts the bytes written. `stalled_since` is the time
    at which the transport stopped accepting bytes, None while it accepts them.

    `has_room` is whether no bytes wait here and the transport accepts bytes, so that data can be written at
    once. It is a stored value and not a property, because it is read for each till and event. While it is
    true, a channel calls `write` itself (`TenantChannel._write_chunk`), and then sets `position` and
    `written`.

    Bytes that were written cannot be taken back. So a slow till costs the limit and the bytes that the
    transport buffers before it calls `pauseProducing` (`posd.web.http.sockets.bound_buffers`).
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
        # An empty deque takes 760 bytes, and for most tills no bytes ever wait.
        self._waiting: deque[tuple[bytes, Seq | None]] | tuple[()] = ()
        self._open = self.has_room = True
        self.tenant_id = tenant_id
        self.listener: SendQueueOwner | None = None
        self.stalled_since: float | None = None
        self.held = 0
        self.position = position
        self.written = position

    def deliver(self, chunk: EventChunk) -> bool:
        """Accept a chunk. Returns False if it does not begin right after `position`, or if it does not
        fit.
        """
        return chunk.first == self.position + 1 and self.offer(chunk.data, chunk.last)

    def offer(self, data: bytes, seq: Seq | None = None) -> bool:
        """Write bytes, or keep them until the transport accepts more.

        `seq` is the position of the last event in the bytes, None for other messages. Returns False if the
        bytes do not fit. Then none of them are accepted. Bytes that were accepted may be dropped later by
        `shed`, which calls the listener.
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
        """Drop the waiting events and other messages, and call the listener."""
        self._drop_waiting()
        if self.listener is not None:
            self.listener.on_shed()

    def rewind(self, seq: Seq) -> int:
        """Drop the waiting bytes and continue after event `seq`, if that is earlier.

        Returns the number of written events that are sent again.
        """
        self._drop_waiting()
        rewound = max(0, self.written - seq)
        self.position = self.written = self.written - rewound
        return rewound

    def close(self) -> None:
        """Accept nothing more and drop the waiting bytes."""
        self._open = False
        self._drop_waiting()
        self.listener = None

    def pauseProducing(self) -> None:
        """The transport's buffer is full. The till counts as stalled from the first of several calls on."""
        if self.stalled_since is None:
            self.stalled_since = self._clock()
            self.has_room = False

    def resumeProducing(self) -> None:
        """The transport's buffer is empty. Write the waiting bytes until the transport pauses again."""
        self.stalled_since = None
        self._update_has_room()
        while self._waiting and self.stalled_since is None:
            data, seq = self._waiting.popleft()
            self._count(-len(data))
            self._send(data, seq)
        if self.has_room and self.listener is not None:
            self.listener.on_room()

    def stopProducing(self) -> None:
        """The transport has ended."""
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
