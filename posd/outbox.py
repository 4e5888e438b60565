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

from attrs import define, field
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from posd.values import Seq


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
class Budget:
    """What all outboxes together may hold, in bytes. Beyond it the fullest one gives way."""

    limit: int
    held: int = 0
    _outboxes: set[Outbox] = field(init=False, factory=set)

    def enter(self, outbox: Outbox) -> None:
        self._outboxes.add(outbox)

    def leave(self, outbox: Outbox) -> None:
        self._outboxes.discard(outbox)

    def relieve(self) -> None:
        """Empty the fullest outboxes until the limit is kept."""
        while self.held > self.limit and self._outboxes:
            max(self._outboxes, key=lambda outbox: outbox.held).shed()


@implementer(IPushProducer)
class Outbox:
    """The bytes for one till. `position` is the last event taken, `written` the last one written.

    Whoever offers hands over whole frames of at most some 64 KiB at a time: what was given to the
    transport cannot be taken back, so it is what a slow till costs beyond the limit.
    """

    def __init__(
        self,
        sink: Sink,
        limit: int,
        budget: Budget,
        *,
        clock: Callable[[], float],
        position: Seq = 0,
    ) -> None:
        self._sink = sink
        self._limit = limit
        self._budget = budget
        self._clock = clock
        self.listener: Listener | None = None
        self._waiting: deque[tuple[bytes, Seq | None]] = deque()
        self._open = True
        self.paused = False
        self.stalled_since: float | None = None
        self.held = 0
        self.position = position
        self.written = position

    @property
    def has_room(self) -> bool:
        """Whether what is offered now goes straight to the transport."""
        return self._open and not self.paused and not self._waiting

    def offer(self, data: bytes, seq: Seq | None = None) -> bool:
        """Send bytes, or keep them until the transport takes more.

        `seq` is the position of the last event in them, None for messages that are not events.
        False: there is no room, and nothing was taken.
        """
        if not self._open:
            return False
        if not self.has_room:
            if self.held + len(data) > self._limit:
                return False
            self._waiting.append((data, seq))
            self._hold(len(data))
        else:
            self._write(data, seq)
        if seq is not None:
            self.position = seq
        return True

    def shed(self) -> None:
        """Give up what waits, messages that are no events too."""
        self._waiting.clear()
        self._hold(-self.held)
        self.position = self.written
        if self._open and self.listener is not None:
            self.listener.given_up()

    def close(self) -> None:
        """Take nothing more and forget what waits."""
        self._open = False
        self.shed()
        self._budget.leave(self)

    def pauseProducing(self) -> None:
        """The transport has enough. From now on the till counts as stalled."""
        self.paused = True
        self.stalled_since = self._clock()

    def resumeProducing(self) -> None:
        """The transport has sent all it had."""
        self.paused = False
        self.stalled_since = None
        while self._waiting and not self.paused:
            data, seq = self._waiting.popleft()
            self._hold(-len(data))
            self._write(data, seq)
        if not self.paused and self._open and self.listener is not None:
            self.listener.room()

    def stopProducing(self) -> None:
        """The transport is gone."""
        self.close()

    def _write(self, data: bytes, seq: Seq | None) -> None:
        if seq is not None:
            self.written = seq
        self._sink.write(data)

    def _hold(self, change: int) -> None:
        self.held += change
        self._budget.held += change
        if change > 0:
            self._budget.enter(self)
            if self._budget.held > self._budget.limit:
                self._budget.relieve()
        elif self.held == 0:
            self._budget.leave(self)
