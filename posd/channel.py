"""A tenant's stream on this node: read once per wake, encoded once per event, written to every till.

`tail` is the last event that was handed to the live sessions. A session is live when it has been
given everything up to the tail; then it gets what comes next, in the same turn as all others. Until
then it asks for pages from its own position on. Because the tail moves only in `_fan_out`, which
nothing interrupts, there is no gap and no repeat at the hand-over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, Protocol

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from posd import frames, messages
from posd.errors import PosdError, Refusal
from posd.values import STREAM_CHANGED, Closing, Event, Head, Seq, Tenant

_PAGE_EVENTS: Final = 100
_CHUNK_BYTES: Final = 64 * 1024
_RECENT_BYTES: Final = 256 * 1024

Read = Callable[[Tenant, Seq, int], Awaitable[list[Event]]]
"""Reads up to so many events after a position from the log, in order."""


class StreamBroken(PosdError):
    """The log does not go on where it should: events are missing, or it is another history."""


class Subscriber(Protocol):
    """A session as its channel sees it."""

    @property
    def position(self) -> Seq:
        """The last event that it was given."""

    def deliver(self, chunk: bytes, last: Seq) -> bool:
        """Take frames up to the event `last`; False if there is no room."""

    def behind(self) -> None:
        """It is not live: look again where it stands."""

    def end(self, closing: Closing) -> None:
        """Close it."""


@define(eq=False)
class Encoded:
    """An event as it goes out. The replayed form is made when somebody needs it."""

    seq: Seq
    frame: bytes
    _event: Event
    _slug: str
    _replay_frame: bytes | None = field(init=False, default=None)

    @property
    def replay_frame(self) -> bytes:
        if self._replay_frame is None:
            text = messages.event_text(self._event, self._slug, replay=True)
            self._replay_frame = frames.text_frame(text)
        return self._replay_frame


class Channel:
    """One tenant's sessions on this node. It begins at `head` and lives as long as they do."""

    _log = Logger()

    def __init__(
        self,
        tenant: Tenant,
        head: Head,
        read: Read,
        delivered: Callable[[Tenant, Seq], None] = lambda tenant, seq: None,
        ended: Callable[[Channel], None] = lambda channel: None,
    ) -> None:
        self.tenant = tenant
        self.stream_id = head.stream_id
        self.tail = head.last_seq
        self.sessions: set[Subscriber] = set()
        self._live: set[Subscriber] = set()
        self._read = read
        self._delivered = delivered
        self._ended = ended
        self._recent: deque[Encoded] = deque()
        self._recent_bytes = 0
        self._target = self.tail
        self._reading = False
        self._pages: dict[Seq, list[Deferred[list[Encoded]]]] = {}

    def enter(self, session: Subscriber) -> None:
        """Belong to the channel, without being live yet."""
        self.sessions.add(session)

    def leave(self, session: Subscriber) -> None:
        self.sessions.discard(session)
        self._live.discard(session)

    def go_live(self, session: Subscriber) -> bool:
        """Get what comes next, if the session has everything up to now.

        False: it is behind and has to read on; or it is ahead, since it read the log before the
        wake came, and `behind` will be called when the channel has caught up with it.
        """
        if session.position == self.tail:
            self._live.add(session)
            return True
        if session.position > self.tail:
            self.wake(session.position)
        return False

    def slow_down(self, session: Subscriber) -> None:
        """Be live no more."""
        self._live.discard(session)

    def wake(self, seq: Seq) -> None:
        """There are events up to `seq`."""
        self._target = max(self._target, seq)
        if self._target > self.tail and not self._reading:
            self._reading = True
            Deferred.fromCoroutine(self._read_on())

    def check(self, head: Head) -> None:
        """Compare with what the database says: another history ends every session."""
        if head.stream_id != self.stream_id or head.last_seq < self.tail:
            self._log.error("the stream of {slug} is another one now", slug=self.tenant.slug)
            self.end(STREAM_CHANGED)
            return
        self.wake(head.last_seq)
        if len(self._live) < len(self.sessions):
            # Whoever could not read on while the database was away does so now.
            for session in self.sessions - self._live:
                session.behind()

    def end(self, closing: Closing) -> None:
        """Close every session; whoever comes later needs another channel."""
        self._ended(self)
        for session in list(self.sessions):
            session.end(closing)

    async def page(self, position: Seq) -> Sequence[Encoded]:
        """What follows a position, as far as one page goes; empty at the end of the log.

        Sessions at the same position share one read. Raises `StreamBroken` if the log does not go
        on there, and what the database raises.
        """
        if self._recent and self._recent[0].seq <= position + 1 <= self._recent[-1].seq:
            first = position + 1 - self._recent[0].seq
            return [self._recent[i] for i in range(first, len(self._recent))][:_PAGE_EVENTS]
        waiters = self._pages.get(position)
        if waiters is not None:
            waiter: Deferred[list[Encoded]] = Deferred()
            waiters.append(waiter)
            return await waiter
        waiters = self._pages[position] = []
        try:
            page = await self._read_page(position)
        except Exception as error:
            for each in self._pages.pop(position):
                each.errback(error)
            raise
        for each in self._pages.pop(position):
            each.callback(page)
        return page

    async def _read_page(self, position: Seq) -> list[Encoded]:
        events = await self._read(self.tenant, position, _PAGE_EVENTS)
        expected = range(position + 1, position + 1 + len(events))
        if any(event.seq != seq for event, seq in zip(events, expected, strict=True)):
            found = next(e.seq for e, seq in zip(events, expected, strict=True) if e.seq != seq)
            raise StreamBroken(f"after position {position} there is a gap before {found}")
        return [self._encode(event) for event in events]

    async def _read_on(self) -> None:
        try:
            while self.tail < self._target:
                events = await self._read_page(self.tail)
                if not events:
                    raise StreamBroken(f"there is no event {self.tail + 1}, but {self._target}")
                self._fan_out(events)
        except Refusal:
            # The database is away. The poll wakes the channel again when it is back.
            self._target = self.tail
        except StreamBroken as error:
            self._log.critical(
                "the stream of {slug} is broken: {error}", slug=self.tenant.slug, error=error
            )
            self.end(STREAM_CHANGED)
        except Exception:
            self._log.failure("reading the stream of {slug} failed", slug=self.tenant.slug)
            self._target = self.tail
        finally:
            self._reading = False

    def _fan_out(self, events: list[Encoded]) -> None:
        for chunk, last in chunks([(each.frame, each.seq) for each in events]):
            for session in list(self._live):
                try:
                    taken = session.deliver(chunk, last)
                except Exception:
                    self._log.failure("a session failed")
                    taken = False
                if not taken:
                    self._live.discard(session)
        self.tail = events[-1].seq
        self._remember(events)
        if self._live:
            self._delivered(self.tenant, self.tail)
        for session in self.sessions - self._live:
            session.behind()

    def _remember(self, events: list[Encoded]) -> None:
        self._recent.extend(events)
        self._recent_bytes += sum(len(each.frame) for each in events)
        while self._recent_bytes > _RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= len(self._recent.popleft().frame)

    def _encode(self, event: Event) -> Encoded:
        text = messages.event_text(event, self.tenant.slug)
        return Encoded(event.seq, frames.text_frame(text), event, self.tenant.slug)


def chunks(framed: Sequence[tuple[bytes, Seq]]) -> Iterator[tuple[bytes, Seq]]:
    """Join frames into writes of up to 64 KiB, each with its last event's position.

    One write is one system call and one TLS record for each till, however many events are in it.
    """
    start = size = 0
    for index, (frame, _) in enumerate(framed):
        if size and size + len(frame) > _CHUNK_BYTES:
            yield b"".join(f for f, _ in framed[start:index]), framed[index - 1][1]
            start, size = index, 0
        size += len(frame)
    if framed:
        yield b"".join(f for f, _ in framed[start:]), framed[-1][1]
