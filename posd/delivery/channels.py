"""The channels of this node by tenant: makes them, wakes them, and compares them with the database."""

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
"""A position to read on from, and how many events are wanted."""

_log: Final = Logger()


def _ignore_renaming(old: TenantChannel, new: TenantChannel, end: StreamEnd | None) -> None:
    """Stands for `ChannelRegistry.renamed` until it is set."""


@define(eq=False)
class ChannelRegistry:
    """A channel for each tenant that has a session or a poll on this node.

    `delivered` is called by the channels: so far a stream was written to at least one till. `renamed` is
    called when a stream has a new name: with the channel of the old name, the one of the new name, and how
    the old name has ended if that is known.

    A tenant has two channels for a moment if its stream got a new name while terminals connected: one was
    looked up before that, another after it. `_rivals` has the second channel, until `check` has asked the
    database.
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
        """How far the live sessions of each tenant have been given its stream."""
        return [
            (tenant_id, channel.stream_id, channel.tail)
            for tenant_id in self.tenants
            for channel in self._all_of(tenant_id)
        ]

    @property
    def tenants(self) -> list[TenantId]:
        """Those that have a channel here."""
        return list(self._by_tenant | self._rivals)

    def of(self, tenant_id: TenantId) -> TenantChannel | None:
        """A tenant's channel, if there is one."""
        return self._by_tenant.get(tenant_id)

    def join(self, tenant: Tenant, head: StreamHead) -> tuple[TenantChannel, bool]:
        """The channel of a tenant whose stream is at `head`, and whether it was made now.

        If it was made, the caller calls `recheck_head` after it has entered its session or watcher.
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
        """Read the head for a channel that was made.

        Events that were committed after its head was read, and before it was made, were given to no channel.
        """
        reading = Deferred.fromCoroutine(self._read_head(channel.tenant.id))
        reading.addErrback(lambda failure: _log.failure("a head was not read", failure))

    def left(self, channel: TenantChannel) -> None:
        """A session or a watcher has left it. Forget it if it has none any more."""
        if channel.is_deserted:
            self._forget(channel)

    def remove_empty(self, tenant_id: TenantId) -> None:
        """Forget those of a tenant's channels that have no session and no watcher any more."""
        for channel in self._all_of(tenant_id):
            self.left(channel)

    def append(self, appended: AppendedEvents) -> None:
        """Events were committed on this node. Give them to the channel of that stream's name, if any."""
        for channel in self._all_of(appended.tenant_id):
            if channel.stream_id == appended.stream_id:
                channel.append(appended.events)

    def erased(self, tenant_id: TenantId) -> None:
        """Something was erased from a stream. Forget the events of it that are kept in memory."""
        for channel in self._all_of(tenant_id):
            channel.forget_recent()

    def delivered(self) -> dict[TenantId, StreamHead]:
        """How far each stream was delivered on this node."""
        return {
            tenant_id: StreamHead(tenant_id, channel.stream_id, channel.tail)
            for tenant_id, channel in self._by_tenant.items()
        }

    async def check(self, heads: Iterable[StreamHead]) -> None:
        """Compare the channels with the tenants' heads as they are in the database.

        A channel that is behind its head reads on. One whose head has another name, or is behind the channel,
        is looked at again.
        """
        suspects = {}
        # All channels that are behind read by one statement.
        with self._tails.gathering():
            for head in heads:
                for channel in self._all_of(head.tenant_id):
                    if head.stream_id != channel.stream_id or head.last_seq < channel.tail:
                        suspects[channel] = channel.tail
                    else:
                        channel.check(head)
        if suspects:
            await self._confirm(suspects)

    async def _confirm(self, suspects: dict[TenantChannel, Seq]) -> None:
        """Read heads again that are behind what their channels have delivered, or have another name.

        The first read may have been made just before the last events were committed, or before a channel was
        made. If a head is still behind, a backup was restored and the stream has kept its name. Then the name
        is ended, so that no position of it that was lost is taken for a valid one.
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
            _log.error("the streams of tenants {ids} were set back", ids=sorted(set_back))
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
            # What was committed here under a new name was given to no channel before there was one of that
            # name.
            heads = await stream.load_heads(self._database, {each.tenant.id for each in old})
            await self.check(heads.values())

    def _replace_channel(self, old: TenantChannel, head: StreamHead, end: StreamEnd | None) -> None:
        """Replace a channel whose stream has another name now."""
        self._forget(old)
        new, _ = self.join(old.tenant, head)
        if self.of(head.tenant_id) is not new:
            # `old` was a rival. The tenant's first channel has an old name too, and becomes the rival until
            # it is handed over itself.
            self._rivals[head.tenant_id].remove(new)
            self._rivals[head.tenant_id].append(self._by_tenant[head.tenant_id])
            self._by_tenant[head.tenant_id] = new
        self.renamed(old, new, end)
        self.left(new)

    async def _read_tails(self, wanted: Sequence[_Tail]) -> dict[_Tail, stream.StreamPage]:
        """Read what is new for all channels that ask together, by one statement."""
        limit = max(each for _, each in wanted)
        pages = await stream.load_pages(self._database.for_all, [each for each, _ in wanted], limit)
        return {each: pages[each[0]] for each in wanted}

    async def _read_head(self, tenant_id: TenantId) -> None:
        try:
            heads = await stream.load_heads(self._database, [tenant_id])
            await self.check(heads.values())
        except Unavailable:
            # The poll sees it when the database is back.
            return

    def _new_channel(self, tenant: Tenant, head: StreamHead) -> TenantChannel:
        read = partial(stream.events_after, self._database.of(tenant.id), tenant, head.stream_id)

        async def read_tail(seq: Seq, limit: int) -> list[Event]:
            position = tenant.id, head.stream_id, seq
            return stream.page_events(position, await self._tails.ask((position, limit)))

        return TenantChannel(
            *(tenant, head, read, self._delivered, self._forget, self._counters, read_tail)
        )

    def _all_of(self, tenant_id: TenantId) -> list[TenantChannel]:
        channel = self.of(tenant_id)
        return [*([] if channel is None else [channel]), *self._rivals.get(tenant_id, ())]

    def _forget(self, channel: TenantChannel) -> None:
        tenant_id = channel.tenant.id
        rivals = [each for each in self._rivals.pop(tenant_id, ()) if each is not channel]
        if self.of(tenant_id) is channel:
            del self._by_tenant[tenant_id]
            if rivals:
                self._by_tenant[tenant_id] = rivals.pop(0)
        if rivals:
            self._rivals[tenant_id] = rivals


def is_set_back(head: StreamHead, delivered: StreamHead) -> bool:
    """Whether a head that was read after `delivered` was noted is behind it in the same history."""
    return head.stream_id == delivered.stream_id and head.last_seq < delivered.last_seq
