"""A tenant's stream on this node: read once for all tills, encoded once per dialect, written to every till.

What this node has committed is handed over (`append`) and not read at all.

`tail` is the last event that was handed to the live sessions. A session is live when it has been
given everything up to the tail; then it gets what comes next, in the same turn as all others. Until
then it asks for pages from its own position on. Because the tail moves only in `_fan_out`, which
nothing interrupts, there is no gap and no repeat at the hand-over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from posd.database.coalescing import fail_all
from posd.delivery.encoded import Encoded, chunks
from posd.delivery.send_queue import Chunk, Outbox
from posd.errors import PosdError, Pruned, Refusal, Renamed
from posd.monitoring.counters import Instruments
from posd.protocol.encodings import Dialect
from posd.values import (
    FAILED,
    PRUNED,
    STREAM_CHANGED,
    Closing,
    Event,
    Head,
    Seq,
    StreamName,
    Tenant,
)

_PAGE_EVENTS: Final = 250
"""For a session that catches up. A page costs posd and PostgreSQL as much as forty events."""
_TAIL_EVENTS: Final = 100
"""For those that are live: up to thirty channels read a page each by one statement."""
_RECENT_BYTES: Final = 64 * 1024

Read = Callable[[Seq, int], Awaitable[list[Event]]]
"""Reads up to so many events after a position from the log, in order.

Raises `Pruned` if the next one is kept no more, and `Renamed` if the stream has another name."""


class StreamBroken(PosdError):
    """The log does not go on where it should: events are missing."""


class Subscriber(Protocol):
    """A session as its channel sees it."""

    @property
    def dialect(self) -> Dialect:
        """How its events are written. It is always the same."""

    @property
    def outbox(self) -> Outbox:
        """What it is given is put here. It is always the same."""

    def behind(self) -> None:
        """It is not live: look again where it stands."""

    def end(self, closing: Closing) -> None:
        """Close it."""


class Watcher(Protocol):
    """Somebody who is told that there is something new, and reads it page by page."""

    def look(self) -> None:
        """There may be more now."""

    def end(self, closing: Closing) -> None:
        """The channel has ended."""


class Channel:
    """One tenant's sessions on this node, and who else waits for its events.

    It begins at `head` and lives as long as there is anybody. `read_tail` reads what is new, for all who are
    live; `read` reads for those who catch up.
    """

    _log = Logger()

    def __init__(
        self,
        tenant: Tenant,
        head: Head,
        read: Read,
        delivered: Callable[[StreamName, Seq], None] = lambda stream, seq: None,
        ended: Callable[[Channel], None] = lambda channel: None,
        instruments: Instruments | None = None,
        read_tail: Read | None = None,
    ) -> None:
        self.tenant = tenant
        self.instruments = instruments or Instruments()
        self.stream_id = head.stream_id
        self.tail = head.last_seq
        self.sessions: set[Subscriber] = set()
        # The live sessions by dialect and outbox.
        self._live: dict[Dialect, dict[Outbox, Subscriber]] = {}
        self._watchers: set[Watcher] = set()
        self._read = read
        self._read_tail = read_tail or read
        self._delivered = delivered
        self._ended = ended
        self._recent: deque[Encoded] = deque()
        self._recent_bytes = 0
        self._head = self._target = self._acknowledged = self.tail
        self._reading = False
        self._woken = False
        self._pages: dict[Seq, list[Deferred[list[Encoded]]]] = {}

    @property
    def head(self) -> Seq:
        """The last event there is, as far as the channel knows."""
        return max(self._head, self.tail)

    @property
    def watchers(self) -> list[Watcher]:
        """Those that wait now."""
        return list(self._watchers)

    @property
    def deserted(self) -> bool:
        """Whether nobody is there any more."""
        return not self.sessions and not self._watchers

    def watch(self, watcher: Watcher) -> None:
        """Be told when there is more."""
        self._watchers.add(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def enter(self, session: Subscriber) -> None:
        """Belong to the channel, without being live yet."""
        self.sessions.add(session)

    def leave(self, session: Subscriber) -> None:
        self.sessions.discard(session)
        self.slow_down(session)

    def go_live(self, session: Subscriber) -> bool:
        """Get what comes next, if the session has everything up to now.

        False: it is behind and has to read on; or it is ahead, since it read the log before the
        wake came, and `behind` will be called when the channel has caught up with it.
        """
        position = session.outbox.position
        if position > self.tail:
            self.wake(position)
        if position != self.tail:
            return False
        self._live.setdefault(session.dialect, {})[session.outbox] = session
        return True

    def slow_down(self, session: Subscriber) -> None:
        """Be live no more."""
        self._live.get(session.dialect, {}).pop(session.outbox, None)

    def wake(self, seq: Seq) -> None:
        """There may be events up to `seq`. It is only a hint."""
        self._target = max(self._target, seq)
        self._woken = True
        if self._target > self.tail and not self._reading:
            self._reading = True
            Deferred.fromCoroutine(self._read_on())

    def append(self, events: Sequence[Event]) -> None:
        """Events of this name of the stream were committed on this node.

        If they follow the tail, they need not be read from the log.
        """
        last = events[-1].seq
        if not self._reading and events[0].seq == self.tail + 1:
            try:
                self._fan_out([Encoded(event, self.tenant.slug) for event in events])
            except Exception:
                self._log.failure("the events of {slug} were not sent", slug=self.tenant.slug)
                self.end(FAILED)
                return
        self.wake(last)

    def check(self, head: Head) -> None:
        """Look at how far the database is; see to it that nobody is left behind."""
        self._head = max(self._head, head.last_seq)
        self.wake(head.last_seq)
        # Whoever could not read on while the database was away does so now.
        self._look_again()

    def end(self, closing: Closing) -> None:
        """Close every session; whoever comes later needs another channel."""
        self._ended(self)
        everyone: list[Subscriber | Watcher] = [*self.sessions, *self._watchers]
        for each in everyone:
            self._end(each, closing)

    async def page(self, position: Seq) -> Sequence[Encoded]:
        """What follows a position, as far as one page goes; empty at the end of the log.

        Sessions at the same position share one read. Raises `StreamBroken` if the log does not go
        on there, `Pruned` if it is not kept that far back, `Renamed` if the stream has another name, and what
        the database raises.
        """
        if self._recent and self._recent[0].seq <= position + 1 <= self._recent[-1].seq:
            first = position + 1 - self._recent[0].seq
            return list(islice(self._recent, first, first + _PAGE_EVENTS))
        waiters = self._pages.get(position)
        if waiters is not None:
            waiter: Deferred[list[Encoded]] = Deferred()
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

    def forget(self) -> None:
        """Remember no event: what is in the log may be less by now."""
        self._recent.clear()
        self._recent_bytes = 0

    def replayed(self, seq: Seq) -> None:
        """Somebody who was catching up was given the events up to `seq`."""
        self._delivered((self.tenant.id, self.stream_id), seq)

    def acknowledged(self, seq: Seq) -> None:
        """A terminal has everything up to `seq`. How long that took is measured by who is the first."""
        if seq <= self._acknowledged:
            return
        moments = []
        for each in reversed(self._recent):
            if each.seq <= self._acknowledged:
                break
            if each.seq <= seq:
                moments.append(each.event.created_at)
        self._acknowledged = seq
        self.instruments.reached("ack", moments)

    async def _read_page(self, read: Read, position: Seq, limit: int) -> list[Encoded]:
        events = await read(position, limit)
        for expected, event in enumerate(events, position + 1):
            if event.seq != expected:
                raise StreamBroken(f"after event {expected - 1} comes event {event.seq}")
        return [Encoded(event, self.tenant.slug) for event in events]

    async def _read_on(self) -> None:
        try:
            while self.tail < self._target:
                head, self._woken = self._head, False
                events = await self._read_page(self._read_tail, self.tail, _TAIL_EVENTS)
                if events:
                    self._fan_out(events)
                elif self.tail < head:
                    raise StreamBroken(f"there is no event {self.tail + 1}, but {head}")
                elif not self._woken:
                    self._target = self._head
        except (Refusal, Renamed):
            # The database is away, and the poll wakes the channel again when it is back; or the poll finds
            # the new name.
            self._target = self.tail
        except Pruned:
            # This node was cut off for as long as events are kept.
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

    def _fan_out(self, events: list[Encoded]) -> None:
        given = 0
        for dialect, live in list(self._live.items()):
            if live:
                for chunk in chunks([(each.written(dialect), each.seq) for each in events]):
                    given += self._give(chunk, live)
        self.tail = events[-1].seq
        self._remember(events)
        if any(self._live.values()):
            self._delivered((self.tenant.id, self.stream_id), self.tail)
        if given:
            self.instruments.delivered("live", given)
            self.instruments.reached("socket", [each.event.created_at for each in events])
        self._look_again()

    def _give(self, chunk: Chunk, live: dict[Outbox, Subscriber]) -> int:
        """Give a chunk to the live sessions of a dialect. Returns how many events they took, all together.

        The first loop is the hot path: its body runs for each till and event. It touches the outbox and what
        `write` needs, and not the session: where there are a thousand tills, none of their objects is in the
        processor's caches. What can be done once for all tills is done before the loop or after it.
        """
        data, before, last = chunk.data, chunk.first - 1, chunk.last
        written = 0
        others: list[Outbox] = []
        for outbox in list(live):
            if not outbox.has_room or outbox.position != before:
                others.append(outbox)
                continue
            try:
                outbox.write(data)
            except Exception:
                self._log.failure("a till of {slug} was not sent an event", slug=self.tenant.slug)
                # A part of it may have been sent. The till comes back and gets what it has not got.
                self._end(live[outbox], FAILED)
            else:
                outbox.position = outbox.written = last
                written += 1
        self.instruments.traffic.sent_bytes += written * len(data)
        taken = written
        for outbox in others:
            # One that took the chunk may have cost another its place: all share a budget.
            if outbox in live:
                if outbox.deliver(chunk):
                    taken += 1
                else:
                    live.pop(outbox, None)
        return taken * (chunk.last - chunk.first + 1)

    def _end(self, each: Subscriber | Watcher, closing: Closing) -> None:
        try:
            each.end(closing)
        except Exception:
            self._log.failure("a session of {slug} did not end", slug=self.tenant.slug)

    def _look_again(self) -> None:
        for watcher in list(self._watchers):
            watcher.look()
        live = self._live.values()
        if sum(map(len, live)) == len(self.sessions):
            return
        for session in self.sessions.difference(*(each.values() for each in live)):
            try:
                session.behind()
            except Exception:
                self._log.failure("a session of {slug} failed", slug=self.tenant.slug)

    def _remember(self, events: list[Encoded]) -> None:
        self._recent.extend(events)
        self._recent_bytes += sum(each.size for each in events)
        while self._recent_bytes > _RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= self._recent.popleft().size
