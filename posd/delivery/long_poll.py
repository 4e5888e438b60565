"""The stream by polling: pages from a position on, and waiting for what comes next.

A poll has no session and no outbox: it reads pages of its tenant's channel, as sessions do that catch
up, and has its answer when there is one. While it waits it holds no connection to the database; the
channel tells it when there is more, and has that in memory then, for all who wait.

It stands on the same cursor as every other road. A terminal that names a position says with it that
it has everything up to there; one that names none goes on from its cursor, and relies on that from
then on, as if it had acknowledged it.
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
_MOST_EXAMINED: Final = 1000
"""Events that one call looks at, for those of the types that it wants."""
OnHold = Callable[[Callable[[], None]], Callable[[], None]]
"""Called when a poll begins to wait, with what to call if whoever asked goes away; what it returns is
called when the waiting is over."""


@frozen
class PollingTerminal:
    """Who polls: somebody with a valid key, at a tenant, perhaps with a name."""

    tenant: Tenant
    principal: Principal
    device_id: str | None


@frozen
class PollQuery:
    """What a poll wants: up to `limit` events, of some types or of all, within some seconds."""

    limit: int = 100
    seconds: float = 0.0
    types: frozenset[str] = frozenset()


@frozen
class PollPage:
    """What a poll gets: messages as JSON, and `position`, from which the next one goes on.

    `last` is the position of the last event there is.
    """

    messages: list[bytes]
    position: Seq
    last: Seq
    stream_id: UUID
    resync: Resync | None = None


@define(eq=False)
class Poll:
    """One poll that reads at a channel, and may wait there. Implements `delivery.hub.PollParticipant`."""

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
        """Whoever asked is gone."""
        self.is_abandoned = True
        self._stop_waiting()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.is_abandoned or self.ended is not None

    async def wait(self, channel: TenantChannel, seconds: float) -> None:
        """Until there may be more, the time is over, or there is nothing to wait for."""
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
    """What a poll has found so far."""

    query: PollQuery
    position: Seq
    messages: list[bytes] = field(factory=list)
    is_full: bool = False
    _size: int = 0
    _examined: int = 0

    async def read_up_to(self, channel: TenantChannel, last: Seq) -> None:
        """Read on to the end, which is at `last` at least, as far as there is room."""
        while not self.is_full and self.position < max(last, channel.head):
            page = await channel.page(self.position)
            if not page and self.position >= last:
                # It was only a hint.
                return
            if not page or page[0].seq != self.position + 1:
                raise StreamBroken(f"nothing follows position {self.position}")
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
    """Answers polls, and takes acknowledgements that come without a connection."""

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
        """What follows a position, or the caller's cursor where none is named.

        Raises `BadRequest`, `TooManyRequests`, `Unauthorized` and `Unavailable`.
        """
        session_start = await self._hub.look_up(poller.tenant, poller.device_id, requested)
        if requested is None:
            if session_start.acked is None:
                raise BadRequest(
                    "A terminal without a name has to say after which event.",
                    code="position_required",
                )
            requested = Position(session_start.acked)
        if requested.stream_id is None and not session_start.astray:
            requested = Position(requested.seq, session_start.head.stream_id)
        try:
            return await self._read(poller, session_start, requested, query, on_hold)
        except (StreamBroken, StreamRenamed, EventsPruned):
            # How that stands now is looked up again.
            session_start = await self._hub.look_up(poller.tenant, poller.device_id, requested)
        try:
            return await self._read(poller, session_start, requested, query, on_hold)
        except (StreamBroken, StreamRenamed, EventsPruned) as error:
            raise Unavailable("The stream cannot be read on.", retry_after=1) from error

    async def acknowledge(self, poller: PollingTerminal, seq: Seq, stream_id: UUID | None) -> Seq:
        """Note that a terminal has stored everything up to `seq`; its cursor, when that is written.

        Raises `Conflict`, `Unprocessable` and `Unavailable`.
        """
        tenant, device_id = poller.tenant, poller.device_id
        if device_id is None:
            raise Unprocessable("Only a named device has a position.", code="no_device")
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
            raise Unavailable("The position was not written.", retry_after=1)
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
                # It is there still.
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
        """Read what comes, until that is something or the time is over."""
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
            raise Unavailable("The stream cannot be read at the moment.", retry_after=1)

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
