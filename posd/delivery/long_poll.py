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

from posd.delivery.channel import Channel, StreamBroken
from posd.delivery.hub import Exchange
from posd.errors import (
    BadRequest,
    Conflict,
    Pruned,
    Renamed,
    Unauthorized,
    Unavailable,
    Unprocessable,
)
from posd.protocol.cursor import resume
from posd.protocol.encodings import PLAIN
from posd.security.connection_limits import Connections, Lease
from posd.values import (
    GOING_AWAY,
    PRUNED,
    RENAMED,
    REVOKED,
    STREAM_CHANGED,
    Closing,
    Opening,
    Position,
    Principal,
    Resync,
    Seq,
    Tenant,
    TenantId,
    Terminal,
)

_MOST_BYTES: Final = 1024 * 1024
_MOST_LOOKED_AT: Final = 1000
"""Events that one call looks at, for those of the types that it wants."""
Hold = Callable[[Callable[[], None]], Callable[[], None]]
"""Called when a poll begins to wait, with what to call if whoever asked goes away; what it returns is
called when the waiting is over."""


@frozen
class Caller:
    """Who polls: somebody with a valid key, at a tenant, perhaps with a name."""

    tenant: Tenant
    principal: Principal
    device_id: str | None


@frozen
class Wish:
    """What a poll wants: up to `limit` events, of some types or of all, within some seconds."""

    limit: int = 100
    seconds: float = 0.0
    types: frozenset[str] = frozenset()


@frozen
class Batch:
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
    """One poll that reads at a channel, and may wait there. Implements `delivery.hub.Guest`."""

    terminal: Terminal
    position: Seq
    _clock: IReactorTime
    _channel: Channel | None = None
    _waiter: Deferred[None] | None = None
    ended: Closing | None = None
    left: bool = False

    def look(self) -> None:
        if self._channel is not None and self._channel.head > self.position:
            self._go_on()

    def end(self, closing: Closing) -> None:
        self.ended = closing
        self._go_on()

    def leave(self) -> None:
        """Whoever asked is gone."""
        self.left = True
        self._go_on()

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.left or self.ended is not None

    async def wait(self, channel: Channel, seconds: float) -> None:
        """Until there may be more, the time is over, or there is nothing to wait for."""
        if self.over:
            return
        self._channel = channel
        waiter: Deferred[None] = Deferred()
        self._waiter = waiter
        timer = self._clock.callLater(seconds, self._go_on)
        try:
            await waiter
        finally:
            if timer.active():
                timer.cancel()

    def _go_on(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)


@define(eq=False)
class Harvest:
    """What a poll has found so far."""

    wish: Wish
    position: Seq
    messages: list[bytes] = field(factory=list)
    full: bool = False
    _size: int = 0
    _looked_at: int = 0

    async def gather(self, channel: Channel, last: Seq) -> None:
        """Read on to the end, which is at `last` at least, as far as there is room."""
        while not self.full and self.position < max(last, channel.head):
            page = await channel.page(self.position)
            if not page and self.position >= last:
                # It was only a hint.
                return
            if not page or page[0].seq != self.position + 1:
                raise StreamBroken(f"nothing follows position {self.position}")
            for each in page:
                self._take(each.event.type, each.written(PLAIN), each.seq)
                if self.full:
                    return

    def _take(self, kind: str, message: bytes, seq: Seq) -> None:
        if not self.wish.types or kind in self.wish.types:
            if self.messages and self._size + len(message) > _MOST_BYTES:
                self.full = True
                return
            self.messages.append(message)
            self._size += len(message)
        self.position = seq
        self._looked_at += 1
        self.full = len(self.messages) == self.wish.limit or self._looked_at == _MOST_LOOKED_AT


class Polls:
    """Answers polls, and takes acknowledgements that come without a connection."""

    def __init__(
        self,
        reactor: IReactorTime,
        exchange: Exchange,
        connections: Connections,
        settle: Callable[[TenantId, str], Awaitable[None]],
    ) -> None:
        self._reactor = reactor
        self._exchange = exchange
        self._connections = connections
        self._settle = settle

    async def answer(
        self,
        caller: Caller,
        asked: Position | None,
        wish: Wish,
        hold: Hold,
    ) -> Batch:
        """What follows a position, or the caller's cursor where none is named.

        Raises `BadRequest`, `TooManyRequests`, `Unauthorized` and `Unavailable`.
        """
        opening = await self._exchange.look_up(caller.tenant, caller.device_id, asked)
        if asked is None:
            if opening.acked is None:
                raise BadRequest(
                    "A terminal without a name has to say after which event.",
                    code="position_required",
                )
            asked = Position(opening.acked)
        if asked.stream_id is None and not opening.astray:
            asked = Position(asked.seq, opening.head.stream_id)
        try:
            return await self._read(caller, opening, asked, wish, hold)
        except (StreamBroken, Renamed, Pruned):
            # How that stands now is looked up again.
            opening = await self._exchange.look_up(caller.tenant, caller.device_id, asked)
        try:
            return await self._read(caller, opening, asked, wish, hold)
        except (StreamBroken, Renamed, Pruned) as error:
            raise Unavailable("The stream cannot be read on.", retry_after=1) from error

    async def acknowledge(self, caller: Caller, seq: Seq, stream_id: UUID | None) -> Seq:
        """Note that a terminal has stored everything up to `seq`; its cursor, when that is written.

        Raises `Conflict`, `Unprocessable` and `Unavailable`.
        """
        tenant, device_id = caller.tenant, caller.device_id
        if device_id is None:
            raise Unprocessable("Only a named device has a position.", code="no_device")
        asked = Position(seq, stream_id)
        opening = await self._exchange.look_up(tenant, device_id, asked, resuming=False)
        head = opening.head
        if resume(opening, asked)[1] is Resync.RESET:
            raise Conflict("The stream has lost that event.", code="stream_changed")
        if seq > head.last_seq:
            raise Unprocessable(f"There is no event {seq} yet.", code="beyond_head")
        self._exchange.acknowledged(_terminal(caller, opening, Position(seq)), seq)
        await self._settle(tenant.id, device_id)
        noted = Position(seq, head.stream_id)
        written = await self._exchange.look_up(tenant, device_id, noted, resuming=False)
        if resume(written, noted)[1] is Resync.RESET:
            raise Conflict("The stream has lost that event.", code="stream_changed")
        if written.acked is None or written.acked < seq:
            raise Unavailable("The position was not written.", retry_after=1)
        return written.acked

    async def _read(
        self,
        caller: Caller,
        opening: Opening,
        asked: Position,
        wish: Wish,
        hold: Hold,
    ) -> Batch:
        head = opening.head
        start, resync = resume(opening, asked)
        terminal = _terminal(caller, opening, asked)
        self._note(terminal, start)
        harvest = Harvest(wish, start)
        if resync is not None or (start == head.last_seq and not wish.seconds):
            return Batch([], start, head.last_seq, head.stream_id, resync)
        poll = Poll(terminal, start, self._reactor)
        channel = self._exchange.watch(poll, opening)
        try:
            await harvest.gather(channel, head.last_seq)
            if wish.seconds and not harvest.messages and not harvest.full:
                lease = self._connections.admit(caller.tenant.id, caller.device_id)
                await self._wait(poll, harvest, channel, lease, hold)
            channel.instruments.delivered("poll", len(harvest.messages))
            if harvest.messages and not wish.types:
                channel.replayed(harvest.position)
            last = max(head.last_seq, channel.head, harvest.position)
        finally:
            self._exchange.unwatch(poll, channel)
        if not poll.left:
            self._exchange.answered(terminal, harvest.position)
            if wish.seconds:
                # It is there still.
                self._note(terminal, start)
        return Batch(harvest.messages, harvest.position, last, head.stream_id)

    async def _wait(
        self,
        poll: Poll,
        harvest: Harvest,
        channel: Channel,
        lease: Lease,
        hold: Hold,
    ) -> None:
        """Read what comes, until that is something or the time is over."""
        deadline = self._reactor.seconds() + harvest.wish.seconds
        over = hold(poll.leave)
        try:
            while not harvest.messages and not harvest.full and not poll.over:
                seconds = deadline - self._reactor.seconds()
                if seconds <= 0:
                    break
                poll.position = harvest.position
                await poll.wait(channel, seconds)
                if poll.ended in (None, GOING_AWAY) and not poll.left:
                    await harvest.gather(channel, harvest.position)
        finally:
            over()
            lease.release()
        if poll.ended == REVOKED:
            raise Unauthorized
        if poll.ended in (STREAM_CHANGED, RENAMED, PRUNED):
            raise StreamBroken(poll.ended.reason)
        if poll.ended not in (None, GOING_AWAY):
            raise Unavailable("The stream cannot be read at the moment.", retry_after=1)

    def _note(self, terminal: Terminal, seq: Seq) -> None:
        if terminal.device_id is not None:
            self._exchange.acknowledged(terminal, seq)


def _terminal(caller: Caller, opening: Opening, position: Position) -> Terminal:
    return Terminal(
        uuid4(),
        caller.tenant,
        caller.principal,
        caller.device_id,
        position,
        opening.at,
        opening.head.stream_id,
    )
