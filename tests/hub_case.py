"""The fixtures of tests of a hub: a store in memory that a test fills, and a hub that reads from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from inspect import signature
from typing import Any
from uuid import UUID

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database.pool import Pool
from posd.delivery.hub import Hub, ProgressStore
from posd.delivery.registry import Heartbeat, TillTransport
from posd.delivery.session import Session
from posd.errors import EventsPruned, StreamRenamed, Unavailable
from posd.store import credentials, epochs, presence, replay, stream
from posd.store.epochs import StreamEnd
from posd.values import Event, Seq, SessionStart, StreamHead, StreamName, Tenant, TenantId, Terminal
from tests.delivery_case import (
    KITCHEN,
    OTHER_STREAM,
    FakeProgressSink,
    FakeTransport,
    Log,
    session_start,
    terminal,
)


class FakeProgressStore(FakeProgressSink):
    """Keeps the progress of a node in memory. Implements `hub.ProgressStore`."""

    def __init__(self) -> None:
        super().__init__()
        self.heartbeats: Callable[[], list[Heartbeat]] = list
        self.here: list[Terminal] = []
        self.furthest: dict[StreamName, Seq] = {}
        self.claims: list[Terminal] = []
        self.settled: list[tuple[TenantId, str]] = []
        self.sent_to: dict[tuple[TenantId, str, UUID], Seq] = {}
        self.using_positions: set[str] = set()
        self.flushes = 0

    def connected(self, terminal: Terminal) -> None:
        self.here.append(terminal)

    def disconnected(self, terminal: Terminal) -> None:
        # The stream may have another id now.
        (gone,) = [each for each in self.here if each.connection_id == terminal.connection_id]
        self.here.remove(gone)

    def delivered(self, stream: StreamName, seq: Seq) -> None:
        self.furthest[stream] = seq

    def sent(self, cursor: tuple[TenantId, str, UUID], seq: Seq, uses_positions: bool) -> None:
        self.sent_to[cursor] = max(seq, self.sent_to.get(cursor, 0))
        if uses_positions:
            self.using_positions.add(cursor[1])

    async def flush(self) -> None:
        self.flushes += 1

    def write_pending(self, tenant_id: TenantId, device_id: str) -> Awaitable[None]:
        self.settled.append((tenant_id, device_id))
        return succeed(None)

    def claim(self, terminal: Terminal) -> Awaitable[bool]:
        self.claims.append(terminal)
        return succeed(True)


def wake(hub: Hub, tenant_id: TenantId, seq: Seq) -> None:
    """Tell the tenant's channels that its stream has events up to `seq`."""
    for channel in hub.channels._all_of(tenant_id):
        channel.wake(seq)


class Store:
    """The results of the statements of `posd.store`. While `pending` is a list, results are delayed."""

    def __init__(self) -> None:
        self.log = Log()
        self.log.commit(10)
        self.session_start: SessionStart | None = None
        self.pending: list[Deferred[None]] | None = None
        self.away = False
        self.asked: list[list[TenantId]] = []
        self.pages: list[list[stream.StreamPosition]] = []
        """The positions that were read for live sessions, by statement."""
        self.set_back: list[StreamHead] = []
        self.ends: dict[UUID, StreamEnd] = {}
        self.ended: set[int] = set()
        self.disabled: set[tuple[TenantId, str]] = set()
        self.wished: set[tuple[TenantId, str]] = set()
        self.checked: list[set[int]] = []

    async def look(self) -> None:
        if self.away:
            raise Unavailable("The database cannot be reached.")
        if self.pending is not None:
            turn: Deferred[None] = Deferred()
            self.pending.append(turn)
            await turn

    async def find_opening(self, _: Any, tenant: Tenant, device: str | None, most: int) -> Any:
        await self.look()
        if self.session_start is None:
            return None
        return evolve(self.session_start, recalled=(tenant.id, device) in self.wished)

    async def find_openings(
        self, executor: Any, wanted: Sequence[presence.Place], most: int
    ) -> dict[presence.Place, SessionStart]:
        found = {}
        for tenant_id, device in wanted:
            tenant = evolve(KITCHEN, id=tenant_id)
            session_start = await self.find_opening(executor, tenant, device, most)
            if session_start is not None:
                found[tenant_id, device] = session_start
        return found

    async def find_refused(
        self, _: Any, tenant: Tenant, cursors: Sequence[tuple[str, Seq]]
    ) -> dict[str, frozenset[Seq]]:
        return {device: frozenset() for device, _ in cursors}

    async def find_heads(self, _: Any, ids: Iterable[TenantId]) -> dict[TenantId, StreamHead]:
        self.asked.append(list(ids))
        heads = {KITCHEN.id: self.log.head}
        await self.look()
        return heads

    async def find_events(
        self, _: Any, tenant: Tenant, stream_id: UUID, seq: Seq, limit: int
    ) -> list[Event]:
        if stream_id != self.log.stream_id:
            await self.look()
            raise StreamRenamed("the stream has another id")
        return await self.log.read(seq, limit)

    async def find_pages(
        self, executor: Any, wanted: Sequence[stream.StreamPosition], limit: int
    ) -> dict[stream.StreamPosition, stream.StreamPage]:
        self.pages.append(list(wanted))
        found = {}
        for tenant_id, stream_id, seq in wanted:
            tenant = evolve(KITCHEN, id=tenant_id)
            try:
                events = await self.find_events(executor, tenant, stream_id, seq, limit)
                found[tenant_id, stream_id, seq] = stream.StreamPage(events)
            except EventsPruned:
                found[tenant_id, stream_id, seq] = stream.StreamPage(pruned=True)
            except StreamRenamed:
                found[tenant_id, stream_id, seq] = stream.StreamPage(renamed=True)
        return found

    def rename(
        self, name: UUID = OTHER_STREAM, *, lost: int = 0, common: Seq | None = None
    ) -> UUID:
        """Give the stream another id. Delete the last `lost` events. Events after `common` may differ."""
        if lost:
            del self.log.events[-lost:]
        last = self.log.last
        shared = last if common is None else min(common, last)
        self.ends[self.log.stream_id] = StreamEnd(last, last)
        self.ends = {
            each: StreamEnd(min(end.shared, shared), min(end.resumed_after, last))
            for each, end in self.ends.items()
        }
        self.log.stream_id = name
        return name

    async def find_set_back(self, _: Any, found: Iterable[StreamHead]) -> None:
        self.set_back += found
        self.rename()

    async def find_ends(
        self, _: Any, names: Iterable[tuple[TenantId, UUID]]
    ) -> dict[tuple[TenantId, UUID], StreamEnd]:
        await self.look()
        return {name: self.ends[name[1]] for name in names if name[1] in self.ends}

    async def find_ended(self, _: Any, ids: Iterable[int]) -> set[int]:
        self.checked.append(set(ids))
        return self.ended & set(ids)

    async def find_disabled(self, _: Any, ids: Iterable[TenantId]) -> set[tuple[TenantId, str]]:
        await self.look()
        return {each for each in self.disabled if each[0] in ids}

    async def find_wished(self, _: Any, ids: Iterable[TenantId]) -> set[tuple[TenantId, str]]:
        return {each for each in self.wished if each[0] in ids}

    async def fulfil(self, _: Any, tenant_id: TenantId, device: str) -> None:
        self.wished.discard((tenant_id, device))


class HubCase(SynchronousTestCase):
    """A hub, and a tenant with ten events."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.progress_store = FakeProgressStore()
        self.store = Store()
        self.log = self.store.log
        for module, name, found in (
            (presence, "load_session_starts", self.store.find_openings),
            (presence, "load_refused_events", self.store.find_refused),
            (stream, "load_heads", self.store.find_heads),
            (stream, "events_after", self.store.find_events),
            (stream, "load_pages", self.store.find_pages),
            (epochs, "begin_new_history", self.store.find_set_back),
            (epochs, "stream_ends", self.store.find_ends),
            (credentials, "invalid_keys", self.store.find_ended),
            (credentials, "disabled_devices", self.store.find_disabled),
            (replay, "requested_replays", self.store.find_wished),
            (replay, "rewind_cursor", self.store.fulfil),
        ):
            real = signature(getattr(module, name)).parameters
            self.assertEqual(len(signature(found).parameters), len(real), name)
            self.patch(module, name, found)
        progress_store: ProgressStore = self.progress_store
        self.hub = Hub(
            self.clock,
            Pool(self.clock, "", size=1, statement_timeout=5),
            progress_store,
            heartbeat=30,
            send_queue_bytes=1000,
            send_queue_total=100_000,
        )
        self.hub.startService()
        self.addCleanup(self.hub.stopService)

    def connect(
        self, connecting: Terminal | None = None, acked: Seq | None = None, at: Seq | None = None
    ) -> tuple[Session, FakeTransport]:
        connecting = connecting or terminal()
        transport = FakeTransport(heard_at=self.clock.seconds())
        checked: TillTransport = transport
        last_seq = self.log.last if at is None else at
        return self.hub.open(connecting, session_start(last_seq, acked), checked), transport

    def check(self, *heads: StreamHead) -> Deferred[None]:
        return Deferred.fromCoroutine(self.hub.channels.check(heads))
