"""The fixtures of tests of `Presence` with thousands of tills: tables in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any
from uuid import UUID, uuid4

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database.pool import Pool
from posd.delivery.presence import Presence
from posd.errors import StatementFailed, Unavailable
from posd.store import cursors, orders
from posd.store import presence as store
from posd.values import Seq, StreamName, TenantId


class FakeTables:
    """The rows that the statements of `posd.store.presence` write. While `pending` is a list, they are
    delayed.

    `trouble` has the error that a statement raises, by its name. Rows of the devices in `bad` are refused
    for their data. For rows of the devices in `away` the database cannot be reached.
    """

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.pending: list[Deferred[None]] | None = None
        self.trouble: dict[str, Exception] = {}
        self.bad: set[str | None] = set()
        self.away: set[str | None] = set()
        self.nodes: set[UUID] = set()
        self.entered: dict[UUID, store.Connection] = {}
        self.cursors: dict[tuple[TenantId, str], Seq] = {}
        self.sent: dict[TenantId, Seq] = {}
        self.received: dict[TenantId, Seq] = {}
        self.claimed: set[UUID] = set()
        self.seen: list[UUID] = []
        self.logged: list[tuple[TenantId, str | None]] = []
        self.nacked: list[tuple[str, Seq]] = []
        self.astray: list[tuple[str, Seq]] = []
        self.marked: list[TenantId] = []

    async def statement(self, name: str, devices: Iterable[str | None] = ()) -> None:
        self.statements.append(name)
        if self.pending is not None:
            turn: Deferred[None] = Deferred()
            self.pending.append(turn)
            await turn
        if name in self.trouble:
            raise self.trouble[name]
        named = {*devices}
        if self.away & named and not self.bad & named:
            raise Unavailable("The database cannot be reached.")
        if self.bad & named:
            raise StatementFailed("invalid byte sequence", "22021")

    async def lease(self, _: Any, node: UUID, seconds: float) -> bool:
        await self.statement("renew_lease")
        new = node not in self.nodes
        self.nodes.add(node)
        return new

    async def leave(self, _: Any, node: UUID) -> None:
        await self.statement("remove_node")
        self.nodes.discard(node)

    async def connected(self, _: Any, node: UUID, rows: Sequence[store.Connection]) -> None:
        await self.statement("insert_connections", (row[2] for row in rows))
        if node not in self.nodes:
            raise StatementFailed("violates foreign key", "23503", store.NODE_KNOWN)
        self.entered |= {row[0]: row for row in rows}

    async def disconnected(self, _: Any, ids: Iterable[UUID]) -> None:
        await self.statement("delete_connections")
        for each in ids:
            self.entered.pop(each, None)

    async def claim(self, _: Any, rows: Sequence[store.Connection]) -> set[UUID]:
        await self.statement("claim_devices")
        self.claimed |= {row[0] for row in rows if row[0] in self.entered}
        return set()

    async def heartbeats(self, _: Any, rows: Sequence[tuple[UUID, Any, Seq]]) -> None:
        await self.statement("update_connections")
        self.seen += [row[0] for row in rows]

    async def moved(self, _: Any, moves: Sequence[cursors.Move]) -> list[tuple[StreamName, Seq]]:
        await self.statement("advance", (move[1] for move in moves))
        for tenant_id, device, _stream, seq in moves:
            self.cursors[tenant_id, device] = seq
        return [((tenant_id, stream), seq) for tenant_id, _, stream, seq in moves]

    async def sent_astray(self, _: Any, sent: Sequence[cursors.Reached]) -> None:
        await self.statement("mark_astray")
        self.astray += [(device, seq) for _tenant, device, _stream, seq, _spoke in sent]

    async def progress(self, _: Any, heads: Sequence[tuple[TenantId, UUID, Seq, Seq]]) -> None:
        await self.statement("update_progress")
        for tenant_id, _stream, sent, received in heads:
            self.sent[tenant_id] = max(sent, self.sent.get(tenant_id, 0))
            self.received[tenant_id] = max(received, self.received.get(tenant_id, 0))

    async def said(self, _: Any, rows: Sequence[tuple[TenantId, str, str, str | None]]) -> None:
        await self.statement("insert_messages", (row[3] for row in rows))
        self.logged += [(row[0], row[3]) for row in rows]

    async def nacks(self, _: Any, rows: Sequence[tuple[TenantId, Seq, str, str, UUID]]) -> None:
        await self.statement("insert_nacks", (row[2] for row in rows))
        self.nacked += [(row[2], row[1]) for row in rows]

    async def mark(self, _: Any, ids: Iterable[TenantId]) -> dict[TenantId, str]:
        chunk = list(ids)
        await self.statement(f"mark {chunk[0]}")
        self.marked += chunk
        return {}


class PresenceCase(SynchronousTestCase):
    """A node's `Presence` on tables in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.tables = FakeTables()
        for module, name, found in (
            (store, "renew_lease", self.tables.lease),
            (store, "remove_node", self.tables.leave),
            (store, "insert_connections", self.tables.connected),
            (store, "delete_connections", self.tables.disconnected),
            (store, "claim_devices", self.tables.claim),
            (store, "update_connections", self.tables.heartbeats),
            (cursors, "advance", self.tables.moved),
            (cursors, "mark_astray", self.tables.sent_astray),
            (store, "update_progress", self.tables.progress),
            (store, "insert_messages", self.tables.said),
            (store, "insert_nacks", self.tables.nacks),
            (orders, "update_print_status", self.tables.mark),
        ):
            real = signature(getattr(module, name)).parameters
            self.assertEqual(len(signature(found).parameters), len(real), name)
            self.patch(module, name, found)
        database = Pool(self.clock, "", size=1, statement_timeout=5)
        self.presence = Presence(self.clock, database, uuid4())

    def flush(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.presence.flush()))

    def fails(self, name: str, error: Exception | None = None) -> None:
        self.tables.trouble[name] = error or Unavailable("The database cannot be reached.")

    def answer(self) -> None:
        """Finish the delayed statements, until none is left."""
        while self.tables.pending:
            self.tables.pending.pop(0).callback(None)
