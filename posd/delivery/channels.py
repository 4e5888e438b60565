"""The registry of a node's channels. It creates and wakes them, and compares them with the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database.coalescing import Coalescer
from posd.database.pool import Pool
from posd.delivery.channel import TenantChannel
from posd.errors import Unavailable
from posd.monitoring.counters import Counters
from posd.store import epochs, stream
from posd.store.epochs import StreamEnd
from posd.values import AppendedEvents, Event, Seq, StreamHead, StreamName, Tenant, TenantId

_MOST_STREAMS: Final = 30
"""Streams in one statement. A page has up to 256 KiB."""
_READ_SECONDS: Final = 10.0

_Tail = tuple[stream.StreamPosition, int]
"""A position to read on from, and the number of events to read."""

_log: Final = Logger()


def _ignore_renaming(old: TenantChannel, new: TenantChannel, end: StreamEnd | None) -> None:
    """The default of `ChannelRegistry.renamed`."""


@define(eq=False)
class ChannelRegistry:
    """The channel of each tenant that has a session or a poll on this node.

    Channels call `delivered` when a stream was written to at least one till up to a position. `renamed` is
    called when a stream has a new id, with the channel of the old id, the channel of the new id, and the
    end of the old id if it is known.

    A tenant may have two channels for a moment. This happens if its stream got a new id while terminals
    connected: one terminal was looked up before the change, another after it. `_rivals` has the second
    channel until `check` has read the head again.
    """

    _clock: IReactorTime
    _database: Pool
    _delivered: Callable[[StreamName, Seq], None]
    _counters: Counters
    renamed: Callable[[TenantChannel, TenantChannel, StreamEnd | None], None] = _ignore_renaming
    _by_tenant: dict[TenantId, TenantChannel] = field(init=False, factory=dict)
    _rivals: dict[TenantId, list[TenantChannel]] = field(init=False, factory=dict)
    _tails: Coalescer[_Tail, stream.StreamPage] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tails = Coalescer(
            self._clock, self._read_tails, most=_MOST_STREAMS, seconds=_READ_SECONDS
        )

    @property
    def positions(self) -> list[stream.StreamPosition]:
        """The position up to which the live sessions of each channel were sent its stream."""
        return [
            (tenant_id, channel.stream_id, channel.tail)
            for tenant_id in self.tenants
            for channel in self._all_of(tenant_id)
        ]

    @property
    def tenants(self) -> list[TenantId]:
        """The tenants that have a channel on this node."""
        return list(self._by_tenant | self._rivals)

    def of(self, tenant_id: TenantId) -> TenantChannel | None:
        """Return the channel of a tenant, or None."""
        return self._by_tenant.get(tenant_id)

    def join(self, tenant: Tenant, head: StreamHead) -> tuple[TenantChannel, bool]:
        """Return the channel of a tenant whose stream is at `head`, and whether the channel is new.

        If the channel is new, the caller calls `recheck_head` after it has added its session or poll.
        """
        for channel in self._all_of(tenant.id):
            if channel.stream_id == head.stream_id:
                return channel, False
        channel = self._new_channel(tenant, head)
        if tenant.id in self._by_tenant:
            self._rivals.setdefault(tenant.id, []).append(channel)
        else:
            self._by_tenant[tenant.id] = channel
        return channel, True

    def recheck_head(self, channel: TenantChannel) -> None:
        """Read the head for a new channel.

        Events that were committed after the terminal's head was read, and before the channel existed, were
        given to no channel.
        """
        reading = Deferred.fromCoroutine(self._read_head(channel.tenant.id))
        reading.addErrback(
            lambda failure: _log.failure(
                "the head of tenant {slug} was not read; posd reads it again at the next poll",
                failure,
                slug=channel.tenant.slug,
            )
        )

    def left(self, channel: TenantChannel) -> None:
        """A session or a poll has left the channel. Remove the channel if no other is left."""
        if channel.is_empty:
            self._remove(channel)

    def remove_empty(self, tenant_id: TenantId) -> None:
        """Remove those channels of a tenant that have no session and no poll."""
        for channel in self._all_of(tenant_id):
            self.left(channel)

    def append(self, appended: AppendedEvents) -> None:
        """Deliver events that this node has committed to the channel of their stream id, if there is one."""
        for channel in self._all_of(appended.tenant_id):
            if channel.stream_id == appended.stream_id:
                channel.append(appended.events)

    def erased(self, tenant_id: TenantId) -> None:
        """Some data was erased from a stream. Drop its recent events from memory."""
        for channel in self._all_of(tenant_id):
            channel.forget_recent()

    def delivered(self) -> dict[TenantId, StreamHead]:
        """Return the position up to which each stream was delivered on this node."""
        return {
            tenant_id: StreamHead(tenant_id, channel.stream_id, channel.tail)
            for tenant_id, channel in self._by_tenant.items()
        }

    async def check(self, heads: Iterable[StreamHead]) -> None:
        """Compare the channels with the heads of their streams in the database.

        A channel that is behind its head reads on. If the head has another stream id, or is before the
        channel's tail, the head is read again.
        """
        suspects = {}
        # One statement reads for all channels that are behind.
        with self._tails.gathering():
            for head in heads:
                for channel in self._all_of(head.tenant_id):
                    if head.stream_id != channel.stream_id or head.last_seq < channel.tail:
                        suspects[channel] = channel.tail
                    else:
                        channel.check(head)
        if suspects:
            await self._recheck(suspects)

    async def _recheck(self, suspects: dict[TenantChannel, Seq]) -> None:
        """Read the heads again that are before their channels' tails, or that have another stream id.

        The first read may have been made just before the last events were committed, or before a channel
        was created. If a head is still before the tail, a backup was restored and the stream has kept its
        id. The id is then ended, so that no till resumes at a position that was lost.
        """
        ids = {each.tenant.id for each in suspects}
        heads = await stream.load_heads(self._database, ids)
        set_back = {
            head.tenant_id: head
            for channel, tail in suspects.items()
            if (head := heads.get(channel.tenant.id)) is not None
            and is_set_back(head, StreamHead(head.tenant_id, channel.stream_id, tail))
        }
        if set_back:
            _log.error(
                "the streams of tenants {ids} end before events that posd has delivered; posd gives these"
                " streams new ids, and tills that have lost events reload",
                ids=sorted(set_back),
            )
            await epochs.begin_new_history(self._database, set_back.values())
            heads = await stream.load_heads(self._database, ids)
        old = [
            channel
            for channel in suspects
            if (head := heads.get(channel.tenant.id)) is not None
            and head.stream_id != channel.stream_id
        ]
        names = [(each.tenant.id, each.stream_id) for each in old]
        ends = await epochs.stream_ends(self._database, names) if names else {}
        for channel in suspects:
            head = heads.get(channel.tenant.id)
            if head is None or channel not in self._all_of(head.tenant_id):
                continue
            if channel in old:
                self._replace_channel(channel, head, ends.get((head.tenant_id, channel.stream_id)))
            else:
                channel.check(head)
        if old:
            # Events that this node committed under the new id before its channel existed were given to no
            # channel.
            heads = await stream.load_heads(self._database, {each.tenant.id for each in old})
            await self.check(heads.values())

    def _replace_channel(self, old: TenantChannel, head: StreamHead, end: StreamEnd | None) -> None:
        """Replace a channel whose stream has a new id."""
        self._remove(old)
        new, _ = self.join(old.tenant, head)
        if self.of(head.tenant_id) is not new:
            # `old` was a rival. The tenant's first channel has an old id too. It becomes the rival until
            # it is replaced itself.
            self._rivals[head.tenant_id].remove(new)
            self._rivals[head.tenant_id].append(self._by_tenant[head.tenant_id])
            self._by_tenant[head.tenant_id] = new
        self.renamed(old, new, end)
        self.left(new)

    async def _read_tails(self, wanted: Sequence[_Tail]) -> dict[_Tail, stream.StreamPage]:
        """Read the new events of several channels with one statement."""
        limit = max(each for _, each in wanted)
        pages = await stream.load_pages(self._database.for_all, [each for each, _ in wanted], limit)
        return {each: pages[each[0]] for each in wanted}

    async def _read_head(self, tenant_id: TenantId) -> None:
        try:
            heads = await stream.load_heads(self._database, [tenant_id])
            await self.check(heads.values())
        except Unavailable:
            # The feed's poll reads the head when the database is back.
            return

    def _new_channel(self, tenant: Tenant, head: StreamHead) -> TenantChannel:
        read = partial(stream.events_after, self._database.of(tenant.id), tenant, head.stream_id)

        async def read_tail(seq: Seq, limit: int) -> list[Event]:
            position = tenant.id, head.stream_id, seq
            return stream.page_events(position, await self._tails.ask((position, limit)))

        return TenantChannel(
            *(tenant, head, read, self._delivered, self._remove, self._counters, read_tail)
        )

    def _all_of(self, tenant_id: TenantId) -> list[TenantChannel]:
        channel = self.of(tenant_id)
        return [*([] if channel is None else [channel]), *self._rivals.get(tenant_id, ())]

    def _remove(self, channel: TenantChannel) -> None:
        tenant_id = channel.tenant.id
        rivals = [each for each in self._rivals.pop(tenant_id, ()) if each is not channel]
        if self.of(tenant_id) is channel:
            del self._by_tenant[tenant_id]
            if rivals:
                self._by_tenant[tenant_id] = rivals.pop(0)
        if rivals:
            self._rivals[tenant_id] = rivals


def is_set_back(head: StreamHead, delivered: StreamHead) -> bool:
    """Return whether a head is before events that were delivered earlier under the same stream id."""
    return head.stream_id == delivered.stream_id and head.last_seq < delivered.last_seq
