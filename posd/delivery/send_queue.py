"""What is on its way to one till: bounded, in order, and honest about a reader that is slow.

The outbox is its transport's push producer. While the transport takes bytes they are written at once;
while it does not, they wait here up to a limit. What does not fit is refused, and stays in
PostgreSQL, from where the session reads it when there is room again. So a till that stops reading
costs its limit and nothing more, and delays nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from attrs import define, field, frozen
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from posd.monitoring.counters import Traffic
from posd.values import Seq, TenantId


@frozen
class Chunk:
    """The events from `first` to `last` in one dialect, to be written at once.

    One write is one system call and one TLS record for each till, however many events are in it.
    """

    data: bytes
    first: Seq
    last: Seq


class Sink(Protocol):
    """The part of a transport that an outbox writes to."""

    def write(self, data: bytes) -> None:
        """Send or buffer bytes; may call `pauseProducing` at once."""


class Listener(Protocol):
    """Who fills an outbox."""

    def room(self) -> None:
        """Nothing waits any more: go on offering."""

    def given_up(self) -> None:
        """What waited was dropped: offer it again, from after `written`, when there is room."""


@define(eq=False)
class Share:
    """What one tenant's outboxes hold of a budget, and those that hold anything."""

    held: int = 0
    outboxes: set[Outbox] = field(factory=set)


@define(eq=False)
class Budget:
    """What all outboxes together may hold, in bytes. Beyond it the tenant that holds most gives way.

    So a shop whose tills do not read sends its own tills back to catching up, and nobody else's.
    """

    limit: int
    held: int = field(init=False, default=0)
    _shares: dict[TenantId, Share] = field(init=False, factory=dict)

    def count(self, outbox: Outbox, change: int) -> None:
        """Note that an outbox holds so many bytes more than before, or fewer."""
        self.held += change
        share = self._shares.setdefault(outbox.tenant_id, Share())
        share.held += change
        if outbox.held:
            share.outboxes.add(outbox)
        else:
            share.outboxes.discard(outbox)
            if not share.outboxes:
                del self._shares[outbox.tenant_id]

    def relieve(self) -> None:
        """Empty the fullest outbox of whoever holds most, until the limit is kept."""
        while self.held > self.limit:
            heaviest = max(self._shares.values(), key=lambda share: share.held)
            max(heaviest.outboxes, key=lambda outbox: outbox.held).shed()


@implementer(IPushProducer)
class Outbox:
    """The bytes for one till. `position` is the last event taken, `written` the last one written.

    `held` is how many bytes wait here. `traffic` counts what was written.

    `has_room` tells whether nothing waits, so that bytes go straight to the connection. It is kept up to date
    where that changes, and not computed where it is asked for, which is done for each till and event. While
    there is room a channel calls `write` itself (`Channel._give`), and then moves `position` and `written`.

    What was given to the transport cannot be taken back: what a transport keeps before it says that
    it has enough is what a slow till costs beyond the limit.
    """

    __slots__ = (
        *("has_room", "position", "written", "write"),
        *("limit", "tenant_id", "listener", "stalled_since", "held"),
        *("_budget", "_clock", "_waiting", "_open", "_traffic", "__weakref__"),
    )

    def __init__(
        self,
        sink: Sink,
        limit: int,
        budget: Budget,
        tenant_id: TenantId,
        *,
        clock: Callable[[], float],
        position: Seq = 0,
        traffic: Traffic | None = None,
    ) -> None:
        self.write = sink.write
        self._traffic = traffic or Traffic()
        self.limit = limit
        self._budget = budget
        self._clock = clock
        # An empty deque takes 760 bytes, and for most tills nothing ever waits.
        self._waiting: deque[tuple[bytes, Seq | None]] | tuple[()] = ()
        self._open = self.has_room = True
        self.tenant_id = tenant_id
        self.listener: Listener | None = None
        self.stalled_since: float | None = None
        self.held = 0
        self.position = position
        self.written = position

    def deliver(self, chunk: Chunk) -> bool:
        """Take the very next events; False if there is no room for them, or if they are others."""
        return chunk.first == self.position + 1 and self.offer(chunk.data, chunk.last)

    def offer(self, data: bytes, seq: Seq | None = None) -> bool:
        """Send bytes, or keep them until the transport takes more.

        `seq` is the position of the last event in them, None for messages that are not events.
        False: there is no room, and nothing was taken. What was taken may still be given up later,
        and of that the listener is told.
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
        self._budget.relieve()
        return True

    def shed(self) -> None:
        """Give up what waits, messages that are no events too."""
        self._forget()
        if self.listener is not None:
            self.listener.given_up()

    def go_back(self, seq: Seq) -> int:
        """Go on after an earlier event: what waits is dropped. By how many events it went back."""
        self._forget()
        back = max(0, self.written - seq)
        self.position = self.written = self.written - back
        return back

    def close(self) -> None:
        """Take nothing more and forget what waits."""
        self._open = False
        self._forget()
        self.listener = None

    def pauseProducing(self) -> None:
        """The transport has enough, and may say so more than once. The till counts as stalled."""
        if self.stalled_since is None:
            self.stalled_since = self._clock()
            self.has_room = False

    def resumeProducing(self) -> None:
        """The transport has sent all it had."""
        self.stalled_since = None
        self._look()
        while self._waiting and self.stalled_since is None:
            data, seq = self._waiting.popleft()
            self._count(-len(data))
            self._send(data, seq)
        if self.has_room and self.listener is not None:
            self.listener.room()

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

    def _forget(self) -> None:
        self._waiting = ()
        self._count(-self.held)
        self.position = self.written

    def _count(self, change: int) -> None:
        self.held += change
        self._look()
        self._budget.count(self, change)

    def _look(self) -> None:
        self.has_room = not self.held and self.stalled_since is None and self._open
