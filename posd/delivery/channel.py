"""The channel of a tenant's stream on this node.

A channel reads each event once, encodes it once for each wire format, and writes it to all connected tills.
Events that this node has committed are passed to `append` and are not read from the database.

`tail` is the last event that was given to the live sessions. A session becomes live when its position
equals the tail. From then on it gets new events in the same reactor turn as all other live sessions. Until
then it requests the pages that follow its position. Only `_fan_out` moves the tail, and `_fan_out` does not
wait. So a session that becomes live misses no event and gets no event twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from posd.database.coalescing import fail_all
from posd.delivery.encoded import EncodedEvent, chunks
from posd.delivery.send_queue import EventChunk, SendQueue
from posd.errors import EventsPruned, PosdError, Refusal, StreamRenamed
from posd.monitoring.counters import Counters
from posd.protocol.encodings import WireFormat
from posd.values import (
    FAILED,
    PRUNED,
    STREAM_CHANGED,
    CloseReason,
    Event,
    Seq,
    StreamHead,
    StreamName,
    Tenant,
)

_PAGE_EVENTS: Final = 250
"""Events in a page for a session that catches up. A page costs posd and PostgreSQL as much as forty events.
"""
_TAIL_EVENTS: Final = 100
"""Events in a page for the live sessions. One statement reads such pages for up to thirty channels."""
_RECENT_BYTES: Final = 64 * 1024
"""Bytes of recent events that a channel keeps, so that a till that was slow for a moment needs no
statement.
"""

Read = Callable[[Seq, int], Awaitable[list[Event]]]
"""Reads up to the given number of events after a position from the database, in order.

Raises `EventsPruned` if the next event has been deleted, and `StreamRenamed` if the stream has another id.
"""


class StreamBroken(PosdError):
    """Events are missing in the stream."""


class Subscriber(Protocol):
    """The part of a session that its channel uses."""

    @property
    def wire_format(self) -> WireFormat:
        """The wire format of its events. It does not change."""

    @property
    def send_queue(self) -> SendQueue:
        """Its send queue. It does not change."""

    def catch_up(self) -> None:
        """Leave the live state and read from its own position. Does nothing if it is already reading."""

    def end(self, closing: CloseReason) -> None:
        """Close the session."""


class PageReader(Protocol):
    """A waiting poll: it is told about new events and reads them page by page."""

    def more_available(self) -> None:
        """There may be new events."""

    def end(self, closing: CloseReason) -> None:
        """The channel has ended."""


class TenantChannel:
    """The sessions and polls of one tenant on this node.

    A channel starts at `head` and exists while it has a session or a poll. `read_tail` reads new events for
    the live sessions. `read` reads pages for the sessions that catch up and for polls.
    """

    _log = Logger()

    def __init__(
        self,
        tenant: Tenant,
        head: StreamHead,
        read: Read,
        delivered: Callable[[StreamName, Seq], None] = lambda stream, seq: None,
        ended: Callable[[TenantChannel], None] = lambda channel: None,
        counters: Counters | None = None,
        read_tail: Read | None = None,
    ) -> None:
        self.tenant = tenant
        self.counters = counters or Counters()
        self.stream_id = head.stream_id
        self.tail = head.last_seq
        self.sessions: set[Subscriber] = set()
        # The live sessions by wire format and send queue. The loop of `_write_chunk` needs only the
        # queues.
        self._live: dict[WireFormat, dict[SendQueue, Subscriber]] = {}
        self._page_readers: set[PageReader] = set()
        self._read = read
        self._read_tail = read_tail or read
        self._delivered = delivered
        self._on_ended = ended
        # The most recent events up to the tail, without a gap.
        self._recent: deque[EncodedEvent] = deque()
        self._recent_bytes = 0
        # The last event that a read of the database has reported. It is certainly stored.
        self._head = self.tail
        # The position up to which `_read_on` reads. A hint may have set it too high.
        self._target = self.tail
        # The highest event that a till has acknowledged.
        self._acknowledged = self.tail
        self._reading = False
        # Whether `wake` was called after the last read began.
        self._woken = False
        # The waiters for a page that is being read, by the position that the page follows.
        self._pages: dict[Seq, list[Deferred[list[EncodedEvent]]]] = {}

    @property
    def head(self) -> Seq:
        """The last event of the stream that the channel knows of."""
        return max(self._head, self.tail)

    @property
    def page_readers(self) -> list[PageReader]:
        """The polls that are waiting now."""
        return list(self._page_readers)

    @property
    def is_empty(self) -> bool:
        """Whether the channel has no session and no poll."""
        return not self.sessions and not self._page_readers

    def watch(self, page_reader: PageReader) -> None:
        """Add a poll. Its `more_available` is called when there may be new events."""
        self._page_readers.add(page_reader)

    def unwatch(self, page_reader: PageReader) -> None:
        self._page_readers.discard(page_reader)

    def enter(self, session: Subscriber) -> None:
        """Add a session. It is not live yet."""
        self.sessions.add(session)

    def leave(self, session: Subscriber) -> None:
        self.sessions.discard(session)
        self.leave_live(session)

    def go_live(self, session: Subscriber) -> bool:
        """Make a session live if its position equals the tail. Return whether it is live.

        A session before the tail has to read on. A session may be after the tail if it read the database
        before the channel was woken. The channel then reads on and calls `catch_up`.
        """
        position = session.send_queue.position
        if position > self.tail:
            self.wake(position)
        if position != self.tail:
            return False
        self._live.setdefault(session.wire_format, {})[session.send_queue] = session
        return True

    def leave_live(self, session: Subscriber) -> None:
        """Give a session no new events until it becomes live again."""
        self._live.get(session.wire_format, {}).pop(session.send_queue, None)

    def wake(self, seq: Seq) -> None:
        """Read on, since there may be events up to `seq`."""
        self._target = max(self._target, seq)
        self._woken = True
        if self._target > self.tail and not self._reading:
            self._reading = True
            Deferred.fromCoroutine(self._read_on())

    def append(self, events: Sequence[Event]) -> None:
        """Deliver events that this node has committed under this stream id.

        Events that directly follow the tail are written to the tills at once. Otherwise the channel reads
        them from the database, after the events before them.
        """
        last = events[-1].seq
        if not self._reading and events[0].seq == self.tail + 1:
            try:
                self._fan_out([EncodedEvent(event, self.tenant.slug) for event in events])
            except Exception:
                self._log.failure(
                    "events of tenant {slug} were not sent; posd closes the tenant's sessions on this"
                    " node, whose tills reconnect and resume",
                    slug=self.tenant.slug,
                )
                self.end(FAILED)
                return
        # Reads nothing if the tail has reached `last`.
        self.wake(last)

    def check(self, head: StreamHead) -> None:
        """Compare the channel with the stream's head in the database, and read the missing events."""
        self._head = max(self._head, head.last_seq)
        self.wake(head.last_seq)
        # Sessions whose read failed while the database could not be reached try again.
        self._wake_others()

    def end(self, closing: CloseReason) -> None:
        """Close all sessions and polls, and remove the channel. A later session gets a new channel."""
        self._on_ended(self)
        members: list[Subscriber | PageReader] = [*self.sessions, *self._page_readers]
        for each in members:
            self._end(each, closing)

    async def page(self, position: Seq) -> Sequence[EncodedEvent]:
        """Return the events after a position, up to one page. The page is empty at the end of the stream.

        Sessions at the same position share one read. Raises `StreamBroken` if events are missing,
        `EventsPruned` if the next event has been deleted, `StreamRenamed` if the stream has another id, and
        the database's errors.
        """
        if self._recent and self._recent[0].seq <= position + 1 <= self._recent[-1].seq:
            first = position + 1 - self._recent[0].seq
            return list(islice(self._recent, first, first + _PAGE_EVENTS))
        waiters = self._pages.get(position)
        if waiters is not None:
            waiter: Deferred[list[EncodedEvent]] = Deferred()
            waiters.append(waiter)
            return await waiter
        self._pages[position] = []
        try:
            page = await self._read_page(self._read, position, _PAGE_EVENTS)
        except Exception as error:
            fail_all(self._pages.pop(position), error)
            raise
        for each in self._pages.pop(position):
            each.callback(page)
        return page

    def forget_recent(self) -> None:
        """Drop the recent events from memory, because some of them may have been erased in the database."""
        self._recent.clear()
        self._recent_bytes = 0

    def replayed(self, seq: Seq) -> None:
        """A session that catches up was sent the events up to `seq`."""
        self._delivered((self.tenant.id, self.stream_id), seq)

    def acknowledged(self, seq: Seq) -> None:
        """A terminal has acknowledged all events up to `seq`. Measure the delay of the first
        acknowledgement.
        """
        if seq <= self._acknowledged:
            return
        moments = []
        for each in reversed(self._recent):
            if each.seq <= self._acknowledged:
                break
            if each.seq <= seq:
                moments.append(each.event.created_at)
        self._acknowledged = seq
        self.counters.reached("ack", moments)

    async def _read_page(self, read: Read, position: Seq, limit: int) -> list[EncodedEvent]:
        events = await read(position, limit)
        for expected, event in enumerate(events, position + 1):
            if event.seq != expected:
                raise StreamBroken(f"event {event.seq} follows event {expected - 1}")
        return [EncodedEvent(event, self.tenant.slug) for event in events]

    async def _read_on(self) -> None:
        """Read from the tail to the target, and write the events to the live sessions."""
        try:
            while self.tail < self._target:
                # The head before the read. The read must return every event up to it.
                head, self._woken = self._head, False
                events = await self._read_page(self._read_tail, self.tail, _TAIL_EVENTS)
                if events:
                    self._fan_out(events)
                elif self.tail < head:
                    raise StreamBroken(f"event {self.tail + 1} is missing, and the head is {head}")
                elif not self._woken:
                    # The target was a hint, and there is no such event. If `wake` was called during the
                    # read, the read may have been too early, and is repeated.
                    self._target = self._head
        except (Refusal, StreamRenamed):
            # The database cannot be reached, or the stream has another id. The feed's poll handles both:
            # it wakes the channel when the database is back, and replaces a channel whose stream id has
            # ended.
            self._target = self.tail
        except EventsPruned:
            # This node had no connection to the database for longer than events are kept.
            self._log.error(
                "the next events of tenant {slug} were deleted before this node read them; posd closes"
                " the tenant's sessions on this node, whose tills reconnect and reload",
                slug=self.tenant.slug,
            )
            self.end(PRUNED)
        except StreamBroken as error:
            self._log.critical(
                "the stream of tenant {slug} is broken: {error}; posd closes the tenant's sessions on"
                " this node. Check the tables with posctl audit",
                slug=self.tenant.slug,
                error=error,
            )
            self.end(STREAM_CHANGED)
        except Exception:
            self._log.failure(
                "the stream of tenant {slug} could not be read; posd closes the tenant's sessions on"
                " this node, whose tills reconnect and resume",
                slug=self.tenant.slug,
            )
            self.end(FAILED)
        finally:
            self._reading = False

    def _fan_out(self, events: list[EncodedEvent]) -> None:
        delivered_count = 0
        for wire_format, live in list(self._live.items()):
            if live:
                for chunk in chunks([(each.written(wire_format), each.seq) for each in events]):
                    delivered_count += self._write_chunk(chunk, live)
        self.tail = events[-1].seq
        self._remember(events)
        if any(self._live.values()):
            self._delivered((self.tenant.id, self.stream_id), self.tail)
        if delivered_count:
            self.counters.delivered("live", delivered_count)
            self.counters.reached("socket", [each.event.created_at for each in events])
        self._wake_others()

    def _write_chunk(self, chunk: EventChunk, live: dict[SendQueue, Subscriber]) -> int:
        """Write a chunk to the live sessions of a wire format. Return the number of events that they took
        in total.

        The first loop is the hot path: its body runs for each till and chunk. It uses the send queue and
        not the session, because every further object of a till costs a memory access: the objects of a
        thousand tills do not fit into the processor's caches. Work that is the same for all tills is done
        outside the loop.
        """
        data, before, last = chunk.data, chunk.first - 1, chunk.last
        written = 0
        others: list[SendQueue] = []
        for send_queue in list(live):
            if not send_queue.has_room or send_queue.position != before:
                others.append(send_queue)
                continue
            try:
                send_queue.write(data)
            except Exception:
                self._log.failure(
                    "a till of tenant {slug} was not sent an event; posd closes its connection, and the"
                    " till reconnects and resumes",
                    slug=self.tenant.slug,
                )
                # A part of the chunk may have been sent, so nothing can follow on this connection. The
                # till reconnects and gets the events that it has not acknowledged.
                self._end(live[send_queue], FAILED)
            else:
                send_queue.position = send_queue.written = last
                written += 1
        self.counters.traffic.sent_bytes += written * len(data)
        taken = written
        for send_queue in others:
            # All queues share a budget. `deliver` of one queue may therefore empty another queue, whose
            # session is then no longer live.
            if send_queue in live:
                if send_queue.deliver(chunk):
                    taken += 1
                else:
                    # `_fan_out` calls `catch_up` of this session when all chunks are written.
                    live.pop(send_queue, None)
        return taken * (chunk.last - chunk.first + 1)

    def _end(self, each: Subscriber | PageReader, closing: CloseReason) -> None:
        try:
            each.end(closing)
        except Exception:
            self._log.failure(
                "a session of tenant {slug} could not be closed", slug=self.tenant.slug
            )

    def _wake_others(self) -> None:
        """Wake the polls, and let the sessions that are not live read on."""
        for page_reader in list(self._page_readers):
            page_reader.more_available()
        live = self._live.values()
        # Nearly always all sessions are live. Counting them is faster than searching for those that are
        # not.
        if sum(map(len, live)) == len(self.sessions):
            return
        for session in self.sessions.difference(*(each.values() for each in live)):
            try:
                session.catch_up()
            except Exception:
                self._log.failure(
                    "a session of tenant {slug} could not read on; posd tries again at the next poll",
                    slug=self.tenant.slug,
                )

    def _remember(self, events: list[EncodedEvent]) -> None:
        self._recent.extend(events)
        self._recent_bytes += sum(each.size for each in events)
        while self._recent_bytes > _RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= self._recent.popleft().size
