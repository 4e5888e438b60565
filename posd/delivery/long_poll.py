"""Long polling: a request returns the events after a position, and may wait for new ones.

A poll has no session and no send queue. It reads pages of its tenant's channel, as a session does that
catches up. While a poll waits, it uses no database connection. The channel wakes all waiting polls when it
has new events, which are then in memory.

Polls, WebSockets and SSE connections of a terminal share one cursor. A terminal that names a position
acknowledges all events up to it. A poll without a position continues at the cursor. The till relies on the
cursor from then on, so posd treats the poll as an acknowledgement of that position.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID, uuid4

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from posd.delivery.channel import StreamBroken, TenantChannel
from posd.delivery.hub import Hub
from posd.errors import (
    BadRequest,
    Conflict,
    EventsPruned,
    StreamRenamed,
    Unauthorized,
    Unavailable,
    Unprocessable,
)
from posd.protocol.cursor import resume
from posd.protocol.encodings import PLAIN
from posd.security.connection_limits import ConnectionLease, ConnectionLimits
from posd.values import (
    GOING_AWAY,
    PRUNED,
    RENAMED,
    REVOKED,
    STREAM_CHANGED,
    CloseReason,
    Position,
    Principal,
    Resync,
    Seq,
    SessionStart,
    Tenant,
    TenantId,
    Terminal,
)

_MOST_BYTES: Final = 1024 * 1024
"""The size of the messages in an answer. A longer message is sent alone."""
_MOST_EXAMINED: Final = 1000
"""Events that one poll examines when it looks for events of the requested types."""
OnHold = Callable[[Callable[[], None]], Callable[[], None]]
"""Called when a poll begins to wait, with a function to call if the client disconnects.

Returns a function that is called when the wait is over.
"""


@frozen
class PollingTerminal:
    """The caller of a poll: a principal at a tenant, with or without a device name."""

    tenant: Tenant
    principal: Principal
    device_id: str | None


@frozen
class PollQuery:
    """The parameters of a poll: up to `limit` events, of some types or of all types, within `seconds`."""

    limit: int = 100
    seconds: float = 0.0
    types: frozenset[str] = frozenset()


@frozen
class PollPage:
    """The answer of a poll: messages as JSON, and `position`, at which the next poll continues.

    `last` is the position of the last event of the stream.
    """

    messages: list[bytes]
    position: Seq
    last: Seq
    stream_id: UUID
    resync: Resync | None = None


@define(eq=False)
class Poll:
    """A poll that reads from a channel and may wait there. Implements `delivery.hub.PollParticipant`."""

    terminal: Terminal
    position: Seq
    _clock: IReactorTime
    _channel: TenantChannel | None = None
    _waiter: Deferred[None] | None = None
    ended: CloseReason | None = None
    is_abandoned: bool = False

    def more_available(self) -> None:
        if self._channel is not None and self._channel.head > self.position:
            self._stop_waiting()

    def end(self, closing: CloseReason) -> None:
        self.ended = closing
        self._stop_waiting()

    def abandon(self) -> None:
        """The client has disconnected."""
        self.is_abandoned = True
        self._stop_waiting()

    @property
    def is_over(self) -> bool:
        """Whether the poll has ended for another reason than time or events."""
        return self.is_abandoned or self.ended is not None

    async def wait(self, channel: TenantChannel, seconds: float) -> None:
        """Wait until there may be new events, the time is over, or the poll has ended."""
        if self.is_over:
            return
        self._channel = channel
        waiter: Deferred[None] = Deferred()
        self._waiter = waiter
        timer = self._clock.callLater(seconds, self._stop_waiting)
        try:
            await waiter
        finally:
            if timer.active():
                timer.cancel()

    def _stop_waiting(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)


@define(eq=False)
class PageBuilder:
    """Collects the events for the answer of a poll."""

    query: PollQuery
    position: Seq
    messages: list[bytes] = field(factory=list)
    is_full: bool = False
    _size: int = 0
    _examined: int = 0

    async def read_up_to(self, channel: TenantChannel, last: Seq) -> None:
        """Read to the end of the stream, which is `last` or later, until the answer is full."""
        while not self.is_full and self.position < max(last, channel.head):
            page = await channel.page(self.position)
            if not page and self.position >= last:
                # The channel's head was a hint, and there is no such event.
                return
            if not page or page[0].seq != self.position + 1:
                raise StreamBroken(f"event {self.position + 1} is missing")
            for each in page:
                self._add(each.event.type, each.written(PLAIN), each.seq)
                if self.is_full:
                    return

    def _add(self, kind: str, message: bytes, seq: Seq) -> None:
        if not self.query.types or kind in self.query.types:
            if self.messages and self._size + len(message) > _MOST_BYTES:
                self.is_full = True
                return
            self.messages.append(message)
            self._size += len(message)
        self.position = seq
        self._examined += 1
        self.is_full = len(self.messages) == self.query.limit or self._examined == _MOST_EXAMINED


class LongPolling:
    """Answers polls, and processes acknowledgements that come as requests."""

    def __init__(
        self,
        reactor: IReactorTime,
        hub: Hub,
        connections: ConnectionLimits,
        write_pending: Callable[[TenantId, str], Awaitable[None]],
    ) -> None:
        self._reactor = reactor
        self._hub = hub
        self._connections = connections
        self._write_pending = write_pending

    async def answer(
        self,
        poller: PollingTerminal,
        requested: Position | None,
        query: PollQuery,
        on_hold: OnHold,
    ) -> PollPage:
        """Return the events after a position, or after the terminal's cursor if `requested` is None.

        Raises `BadRequest`, `TooManyRequests`, `Unauthorized` and `Unavailable`.
        """
        session_start = await self._hub.look_up(poller.tenant, poller.device_id, requested)
        if requested is None:
            if session_start.acked is None:
                raise BadRequest(
                    "The parameter after is required, since a client without a device name has no cursor.",
                    code="position_required",
                )
            requested = Position(session_start.acked)
        if requested.stream_id is None and not session_start.astray:
            requested = Position(requested.seq, session_start.head.stream_id)
        try:
            return await self._read(poller, session_start, requested, query, on_hold)
        except (StreamBroken, StreamRenamed, EventsPruned):
            # The stream has changed during the read. Look up the start again and retry once.
            session_start = await self._hub.look_up(poller.tenant, poller.device_id, requested)
        try:
            return await self._read(poller, session_start, requested, query, on_hold)
        except (StreamBroken, StreamRenamed, EventsPruned) as error:
            raise Unavailable("The stream is changing. Try again.", retry_after=1) from error

    async def acknowledge(self, poller: PollingTerminal, seq: Seq, stream_id: UUID | None) -> Seq:
        """Store that a terminal has stored all events up to `seq`. Return its cursor when it is written.

        Raises `Conflict`, `Unprocessable` and `Unavailable`.
        """
        tenant, device_id = poller.tenant, poller.device_id
        if device_id is None:
            raise Unprocessable("A client without a device name has no cursor.", code="no_device")
        requested = Position(seq, stream_id)
        session_start = await self._hub.look_up(tenant, device_id, requested, resuming=False)
        head = session_start.head
        if resume(session_start, requested)[1] is Resync.RESET:
            raise Conflict("The stream has lost that event.", code="stream_changed")
        if seq > head.last_seq:
            raise Unprocessable(f"There is no event {seq} yet.", code="beyond_head")
        self._hub.acknowledged(_terminal(poller, session_start, Position(seq)), seq)
        await self._write_pending(tenant.id, device_id)
        named_position = Position(seq, head.stream_id)
        written = await self._hub.look_up(tenant, device_id, named_position, resuming=False)
        if resume(written, named_position)[1] is Resync.RESET:
            raise Conflict("The stream has lost that event.", code="stream_changed")
        if written.acked is None or written.acked < seq:
            raise Unavailable("The acknowledgement was not stored. Try again.", retry_after=1)
        return written.acked

    async def _read(
        self,
        poller: PollingTerminal,
        session_start: SessionStart,
        requested: Position,
        query: PollQuery,
        on_hold: OnHold,
    ) -> PollPage:
        head = session_start.head
        start, resync = resume(session_start, requested)
        terminal = _terminal(poller, session_start, requested)
        self._note_position(terminal, start)
        builder = PageBuilder(query, start)
        if resync is not None or (start == head.last_seq and not query.seconds):
            return PollPage([], start, head.last_seq, head.stream_id, resync)
        poll = Poll(terminal, start, self._reactor)
        channel = self._hub.watch(poll, session_start)
        try:
            await builder.read_up_to(channel, head.last_seq)
            if query.seconds and not builder.messages and not builder.is_full:
                lease = self._connections.admit(poller.tenant.id, poller.device_id)
                await self._wait(poll, builder, channel, lease, on_hold)
            channel.counters.delivered("poll", len(builder.messages))
            if builder.messages and not query.types:
                channel.replayed(builder.position)
            last = max(head.last_seq, channel.head, builder.position)
        finally:
            self._hub.unwatch(poll, channel)
        if not poll.is_abandoned:
            self._hub.sent_by_poll(terminal, builder.position)
            if query.seconds:
                # The wait may have been long. This keeps the device's last-seen time current.
                self._note_position(terminal, start)
        return PollPage(builder.messages, builder.position, last, head.stream_id)

    async def _wait(
        self,
        poll: Poll,
        builder: PageBuilder,
        channel: TenantChannel,
        lease: ConnectionLease,
        on_hold: OnHold,
    ) -> None:
        """Read new events until the answer has one, or the time is over."""
        deadline = self._reactor.seconds() + builder.query.seconds
        is_over = on_hold(poll.abandon)
        try:
            while not builder.messages and not builder.is_full and not poll.is_over:
                seconds = deadline - self._reactor.seconds()
                if seconds <= 0:
                    break
                poll.position = builder.position
                await poll.wait(channel, seconds)
                if poll.ended in (None, GOING_AWAY) and not poll.is_abandoned:
                    await builder.read_up_to(channel, builder.position)
        finally:
            is_over()
            lease.release()
        if poll.ended == REVOKED:
            raise Unauthorized
        if poll.ended in (STREAM_CHANGED, RENAMED, PRUNED):
            raise StreamBroken(poll.ended.reason)
        if poll.ended not in (None, GOING_AWAY):
            raise Unavailable("The stream cannot be read now. Try again.", retry_after=1)

    def _note_position(self, terminal: Terminal, seq: Seq) -> None:
        if terminal.device_id is not None:
            self._hub.acknowledged(terminal, seq)


def _terminal(poller: PollingTerminal, session_start: SessionStart, position: Position) -> Terminal:
    return Terminal(
        uuid4(),
        poller.tenant,
        poller.principal,
        poller.device_id,
        position,
        session_start.at,
        session_start.head.stream_id,
    )
