"""A tenant's stream on this node: read once for all tills, encoded once per dialect, written to every till.

Events that this node has committed are handed over (`append`), and are not read from the log.

`tail` is the last event that was given to the live sessions. A session is live when it has been given
everything up to the tail. From then on it is given new events in the same turn of the reactor as all other
live sessions. Before that it asks for pages that follow its own position. Only `_fan_out` moves the tail, and
it does not wait for anything. So a session that goes live misses no event and gets none twice.
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
"""In a page for a session that catches up. A page costs posd and PostgreSQL as much as forty events."""
_TAIL_EVENTS: Final = 100
"""In a page for the live sessions. One statement reads such a page for up to thirty channels."""
_RECENT_BYTES: Final = 64 * 1024
"""Of a channel's last events, kept in memory so that a till that was slow for a moment needs no statement."""

Read = Callable[[Seq, int], Awaitable[list[Event]]]
"""Reads up to so many events after a position from the log, in order.

Raises `EventsPruned` if the next one is not kept any more, and `StreamRenamed` if the stream has another
name."""


class StreamBroken(PosdError):
    """Events are missing in the log."""


class Subscriber(Protocol):
    """A session as its channel sees it."""

    @property
    def wire_format(self) -> WireFormat:
        """How its events are written. It is always the same."""

    @property
    def send_queue(self) -> SendQueue:
        """Its send queue. It is always the same."""

    def catch_up(self) -> None:
        """Stop being live, and read on from its own position. Does nothing if it reads already."""

    def end(self, closing: CloseReason) -> None:
        """Close it."""


class PageReader(Protocol):
    """Somebody who is told that there is something new, and reads it page by page."""

    def more_available(self) -> None:
        """There may be more now."""

    def end(self, closing: CloseReason) -> None:
        """The channel has ended."""


class TenantChannel:
    """One tenant's sessions on this node, and who else waits for its events.

    It begins at `head` and lives as long as there is anybody. `read_tail` reads what is new, for all who are
    live; `read` reads for those who catch up.
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
        # The live sessions by dialect and send queue. The loop of `_write_chunk` needs only the queues.
        self._live: dict[WireFormat, dict[SendQueue, Subscriber]] = {}
        self._page_readers: set[PageReader] = set()
        self._read = read
        self._read_tail = read_tail or read
        self._delivered = delivered
        self._on_ended = ended
        # The last events up to the tail, without a gap.
        self._recent: deque[EncodedEvent] = deque()
        self._recent_bytes = 0
        # The last event of which the database has told, and so certainly in the log.
        self._head = self.tail
        # Where reading ends. A hint may have set it too high.
        self._target = self.tail
        # The last event that some till has acknowledged.
        self._acknowledged = self.tail
        self._reading = False
        # Whether `wake` was called since the last read began.
        self._woken = False
        # Who waits for the page that follows a position, which is being read.
        self._pages: dict[Seq, list[Deferred[list[EncodedEvent]]]] = {}

    @property
    def head(self) -> Seq:
        """The last event there is, as far as the channel knows."""
        return max(self._head, self.tail)

    @property
    def page_readers(self) -> list[PageReader]:
        """Those that wait now."""
        return list(self._page_readers)

    @property
    def is_deserted(self) -> bool:
        """Whether nobody is there any more."""
        return not self.sessions and not self._page_readers

    def watch(self, page_reader: PageReader) -> None:
        """Be told when there is more."""
        self._page_readers.add(page_reader)

    def unwatch(self, page_reader: PageReader) -> None:
        self._page_readers.discard(page_reader)

    def enter(self, session: Subscriber) -> None:
        """Belong to the channel, without being live yet."""
        self.sessions.add(session)

    def leave(self, session: Subscriber) -> None:
        self.sessions.discard(session)
        self.leave_live(session)

    def go_live(self, session: Subscriber) -> bool:
        """Make a session live if its position is the tail.

        Returns False if its position is before the tail, and it has to read on. Returns False too if its
        position is after the tail, since it read the log before the channel was woken. The channel then reads
        on, and calls `catch_up` when it has.
        """
        position = session.send_queue.position
        if position > self.tail:
            self.wake(position)
        if position != self.tail:
            return False
        self._live.setdefault(session.wire_format, {})[session.send_queue] = session
        return True

    def leave_live(self, session: Subscriber) -> None:
        """Give a session no new events until it goes live again."""
        self._live.get(session.wire_format, {}).pop(session.send_queue, None)

    def wake(self, seq: Seq) -> None:
        """Read on: there may be events up to `seq`, or not."""
        self._target = max(self._target, seq)
        self._woken = True
        if self._target > self.tail and not self._reading:
            self._reading = True
            Deferred.fromCoroutine(self._read_on())

    def append(self, events: Sequence[Event]) -> None:
        """Events of this name of the stream were committed on this node.

        If they follow the tail, they are given to the tills at once. Otherwise they are read from the log,
        after those between.
        """
        last = events[-1].seq
        if not self._reading and events[0].seq == self.tail + 1:
            try:
                self._fan_out([EncodedEvent(event, self.tenant.slug) for event in events])
            except Exception:
                self._log.failure("the events of {slug} were not sent", slug=self.tenant.slug)
                self.end(FAILED)
                return
        # This reads nothing if the tail has got there.
        self.wake(last)

    def check(self, head: StreamHead) -> None:
        """The database has events up to `head`. Read those that are missing here, for every session."""
        self._head = max(self._head, head.last_seq)
        self.wake(head.last_seq)
        # A session that could not read on while the database was away does so now.
        self._rouse_others()

    def end(self, closing: CloseReason) -> None:
        """Close every session; whoever comes later needs another channel."""
        self._on_ended(self)
        everyone: list[Subscriber | PageReader] = [*self.sessions, *self._page_readers]
        for each in everyone:
            self._end(each, closing)

    async def page(self, position: Seq) -> Sequence[EncodedEvent]:
        """The events that follow a position, up to one page; empty at the end of the log.

        Sessions at the same position share one read. Raises `StreamBroken` if events are missing,
        `EventsPruned` if
        the next one is not kept any more, `StreamRenamed` if the stream has another name, and what the
        database raises.
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
        """Forget the events that are kept in memory, since some of them may have been erased from the log."""
        self._recent.clear()
        self._recent_bytes = 0

    def replayed(self, seq: Seq) -> None:
        """A session that catches up was given the events up to `seq`."""
        self._delivered((self.tenant.id, self.stream_id), seq)

    def acknowledged(self, seq: Seq) -> None:
        """A terminal has everything up to `seq`. If it is the first, measure how long that took."""
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
                raise StreamBroken(f"after event {expected - 1} comes event {event.seq}")
        return [EncodedEvent(event, self.tenant.slug) for event in events]

    async def _read_on(self) -> None:
        """Read from the tail to the target, and give what is read to the live sessions."""
        try:
            while self.tail < self._target:
                # As it is before the read: an event up to it must be in what is read.
                head, self._woken = self._head, False
                events = await self._read_page(self._read_tail, self.tail, _TAIL_EVENTS)
                if events:
                    self._fan_out(events)
                elif self.tail < head:
                    raise StreamBroken(f"there is no event {self.tail + 1}, but {head}")
                elif not self._woken:
                    # The target was a hint, and nothing is there. If it was set during the read, the read may
                    # have been too early for it, and is done again.
                    self._target = self._head
        except (Refusal, StreamRenamed):
            # The database is away, or the stream has another name. The poll finds both: it wakes the channel
            # when the database is back, and replaces a channel whose name has ended.
            self._target = self.tail
        except EventsPruned:
            # This node had no connection to the database for as long as events are kept.
            self._log.error("{slug} is too far behind on this node", slug=self.tenant.slug)
            self.end(PRUNED)
        except StreamBroken as error:
            self._log.critical(
                "the stream of {slug} is broken: {error}", slug=self.tenant.slug, error=error
            )
            self.end(STREAM_CHANGED)
        except Exception:
            self._log.failure("reading the stream of {slug} failed", slug=self.tenant.slug)
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
        self._rouse_others()

    def _write_chunk(self, chunk: EventChunk, live: dict[SendQueue, Subscriber]) -> int:
        """Give a chunk to the live sessions of a dialect. Returns how many events they took, all together.

        The first loop is the hot path: its body runs for each till and chunk. It uses the send queue and what
        `write` needs, and not the session, since each further object of a till has to be fetched from memory:
        the objects of a thousand tills do not fit into the processor's caches. What is the same for all tills
        is done once, before the loop or after it.
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
                self._log.failure("a till of {slug} was not sent an event", slug=self.tenant.slug)
                # A part of it may have been sent, so nothing can follow it on this connection. The till
                # connects again and is sent what it has not acknowledged.
                self._end(live[send_queue], FAILED)
            else:
                send_queue.position = send_queue.written = last
                written += 1
        self.counters.traffic.sent_bytes += written * len(data)
        taken = written
        for send_queue in others:
            # All queues share a budget. So `deliver` of one may empty another one, whose session is then not
            # live.
            if send_queue in live:
                if send_queue.deliver(chunk):
                    taken += 1
                else:
                    # `_fan_out` calls `catch_up` of its session when all chunks were given.
                    live.pop(send_queue, None)
        return taken * (chunk.last - chunk.first + 1)

    def _end(self, each: Subscriber | PageReader, closing: CloseReason) -> None:
        try:
            each.end(closing)
        except Exception:
            self._log.failure("a session of {slug} did not end", slug=self.tenant.slug)

    def _rouse_others(self) -> None:
        """Have watchers look, and sessions that are not live read on."""
        for page_reader in list(self._page_readers):
            page_reader.more_available()
        live = self._live.values()
        # Nearly always all are live. To count them is quicker than to find those that are not.
        if sum(map(len, live)) == len(self.sessions):
            return
        for session in self.sessions.difference(*(each.values() for each in live)):
            try:
                session.catch_up()
            except Exception:
                self._log.failure("a session of {slug} failed", slug=self.tenant.slug)

    def _remember(self, events: list[EncodedEvent]) -> None:
        self._recent.extend(events)
        self._recent_bytes += sum(each.size for each in events)
        while self._recent_bytes > _RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= self._recent.popleft().size
