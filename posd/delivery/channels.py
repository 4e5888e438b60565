"""The channels of this node by their tenants: begun, woken, held against the database, forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database.coalescing import Coalescer
from posd.database.pool import Database
from posd.delivery.channel import Channel
from posd.errors import Unavailable
from posd.monitoring.counters import Instruments
from posd.store import stream
from posd.values import STREAM_CHANGED, Appended, Event, Head, Seq, Tenant, TenantId

_AT_ONCE: Final = 30
"""Streams in one statement. A page has up to 256 KiB."""
_READ_SECONDS: Final = 10.0

_Tail = tuple[stream.StreamPosition, int]
"""A position to read on from, and how many events are wanted."""

_log: Final = Logger()


@define(eq=False)
class Channels:
    """A channel for each tenant that has somebody here, made when the first comes.

    `delivered` is told by the channels how far each stream was sent to somebody.
    """

    _clock: IReactorTime
    _database: Database
    _delivered: Callable[[Tenant, Seq], None]
    _instruments: Instruments
    _by_tenant: dict[TenantId, Channel] = field(init=False, factory=dict)
    _tails: Coalescer[_Tail, stream.Page] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tails = Coalescer(self._clock, self._read_tails, most=_AT_ONCE, seconds=_READ_SECONDS)

    @property
    def positions(self) -> list[stream.StreamPosition]:
        """What the live sessions of each tenant have been given."""
        return [
            (tenant_id, channel.stream_id, channel.tail)
            for tenant_id, channel in self._by_tenant.items()
        ]

    @property
    def tenants(self) -> list[TenantId]:
        """Those that have a channel here."""
        return list(self._by_tenant)

    def of(self, tenant_id: TenantId) -> Channel | None:
        """A tenant's channel, if there is one."""
        return self._by_tenant.get(tenant_id)

    def join(self, tenant: Tenant, head: Head) -> tuple[Channel, bool]:
        """The channel of a tenant whose stream is at `head`, and whether it was made for that.

        Whoever had it made calls `look_again` when he belongs to it.
        """
        channel = self.of(tenant.id)
        if channel is not None and channel.stream_id == head.stream_id:
            return channel, False
        if channel is not None:
            channel.end(STREAM_CHANGED)
        read = partial(stream.after, self._database.of(tenant.id), tenant, head.stream_id)

        async def read_tail(seq: Seq, limit: int) -> list[Event]:
            position = tenant.id, head.stream_id, seq
            return stream.events_of(position, await self._tails.ask((position, limit)))

        channel = self._by_tenant[tenant.id] = Channel(
            *(tenant, head, read, self._delivered, self._forget, self._instruments, read_tail)
        )
        return channel, True

    def look_again(self, channel: Channel) -> None:
        """A wake may have come while the head, with which a channel began, was on its way here."""
        looked = Deferred.fromCoroutine(self._read_head(channel.tenant.id))
        looked.addErrback(lambda failure: _log.failure("a head was not read", failure))

    def left(self, channel: Channel) -> None:
        """Somebody has left it. One that nobody belongs to any more is forgotten."""
        if channel.deserted:
            self._forget(channel)

    def append(self, appended: Appended) -> None:
        """Events were committed on this node."""
        channel = self.of(appended.tenant_id)
        if channel is not None:
            channel.append(appended.stream_id, appended.events)

    def erased(self, tenant_id: TenantId) -> None:
        """Something was erased from a stream: what is remembered of it is read again."""
        channel = self.of(tenant_id)
        if channel is not None:
            channel.forget()

    def delivered(self) -> dict[TenantId, Head]:
        """How far each stream was delivered on this node."""
        return {
            tenant_id: Head(tenant_id, channel.stream_id, channel.tail)
            for tenant_id, channel in self._by_tenant.items()
        }

    async def check(self, heads: Iterable[Head]) -> None:
        """Compare the channels with the tenants' heads as they are in the database."""
        suspects = {}
        # All that have something new read it by one statement.
        with self._tails.gathering():
            for head in heads:
                channel = self.of(head.tenant_id)
                if channel is None:
                    continue
                if head.stream_id != channel.stream_id or head.last_seq < channel.tail:
                    suspects[channel] = channel.tail
                else:
                    channel.check(head)
        if suspects:
            await self._confirm(suspects)

    async def _confirm(self, suspects: dict[Channel, Seq]) -> None:
        """Look again at heads that do not go with what was already delivered.

        A poll may have looked just before the last events were committed, or before a channel began.
        A head that still is behind them means that a backup was restored under the same name; the
        stream is renamed, so that no till takes an old position for a valid one.
        """
        heads = await stream.heads(self._database, [each.tenant.id for each in suspects])
        for channel, tail in suspects.items():
            head = heads.get(channel.tenant.id)
            if head is None or self.of(channel.tenant.id) is not channel:
                continue
            if is_set_back(head, Head(head.tenant_id, channel.stream_id, tail)):
                await stream.reset(self._database, [channel.tenant.id])
                _log.error("the stream of {slug} was set back", slug=channel.tenant.slug)
                channel.end(STREAM_CHANGED)
            else:
                channel.check(head)

    async def _read_tails(self, wanted: Sequence[_Tail]) -> dict[_Tail, stream.Page]:
        """Read what is new for all channels that were woken in a turn, by one statement."""
        limit = max(each for _, each in wanted)
        pages = await stream.pages(self._database.for_all, [each for each, _ in wanted], limit)
        return {each: pages[each[0]] for each in wanted}

    async def _read_head(self, tenant_id: TenantId) -> None:
        try:
            heads = await stream.heads(self._database, [tenant_id])
            await self.check(heads.values())
        except Unavailable:
            # The poll sees it when the database is back.
            return

    def _forget(self, channel: Channel) -> None:
        if self.of(channel.tenant.id) is channel:
            del self._by_tenant[channel.tenant.id]


def is_set_back(head: Head, delivered: Head) -> bool:
    """Whether a head that was read after `delivered` was noted is behind it in the same history."""
    return head.stream_id == delivered.stream_id and head.last_seq < delivered.last_seq
