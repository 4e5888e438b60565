"""Stores the connections of a node, the cursors of its terminals, and the messages of tills.

Sessions only add pending writes in memory. A flush writes them with a few statements, however many tills
there are. One flush runs at a time. Callers that need to know that their data is written wait together for
the next flush (`posd.database.coalescing`).

A crash loses the acknowledgements of the last moment. The till is then sent those events again. While the
database cannot be reached, pending writes are kept and merged, and they are written when it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final
from uuid import UUID

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from posd.database.coalescing import Coalescer
from posd.database.pool import Pool
from posd.delivery.bulk_writer import BulkWriter
from posd.delivery.message_writer import MessageWriter
from posd.delivery.order_marks import OrderMarks
from posd.delivery.pending_writes import DeviceClaim, PendingWrites, Subscription, subscription
from posd.delivery.registry import Heartbeat
from posd.errors import StatementFailed, Unavailable
from posd.events.print_status import print_report
from posd.store import orders
from posd.store import presence as presence_store
from posd.values import PrintStatus, Seq, StreamName, TenantId, Terminal

_FLUSH_SECONDS: Final = 0.2
_LEASE_SECONDS: Final = 15.0
"""A lease that is not renewed ends after this time. A minute later other nodes delete the node's
connections.
"""
_RENEW_SECONDS: Final = 5.0
_MARK_SECONDS: Final = 1.0
"""Orders are updated less often than a flush, since each tenant's orders need their own statement."""
_WAIT_SECONDS: Final = 5.0
"""How long a caller waits for a flush. A connecting till waits at most ten seconds."""
_OVERDUE_SECONDS: Final = 30.0
"""After so long without a successful flush or lease, `/health/ready` reports `books`."""


class Presence(Service):
    """The pending writes of a node, and the flush that writes them. Implements
    `delivery.hub.ProgressStore`.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime, database: Pool, node_id: UUID) -> None:
        self._reactor = reactor
        self._database = database
        self._node_id = node_id
        self._marks = OrderMarks(database, self._confirmed)
        self._messages = MessageWriter(reactor, database)
        self._writer = BulkWriter(
            database, node_id, heads_moved=self._marks.heads_moved, lease=self._lease
        )
        self._flushes: Coalescer[None, None] = Coalescer(
            reactor, self._write, seconds=_WAIT_SECONDS
        )
        self._flushing = LoopingCall(self._flush_quietly)
        self._renewing = LoopingCall(self._renew)
        self._marking = LoopingCall(self._marks.mark_and_log)
        self._flushing.clock = self._renewing.clock = self._marking.clock = reactor
        self._leased = False
        self._pending_writes = PendingWrites()
        # The writes of the running flush.
        self._in_flight = PendingWrites()
        self._connected_terminals: dict[UUID, Terminal] = {}
        self._renewed_at = reactor.seconds()
        self._unwritten_since: float | None = None
        self.heartbeats: Callable[[], list[Heartbeat]] = list
        """Returns the connections that have changed since the last call."""

    def startService(self) -> None:
        Service.startService(self)
        self._renewed_at = self._reactor.seconds()
        self._flushing.start(_FLUSH_SECONDS, now=False)
        self._renewing.start(_RENEW_SECONDS)
        self._marking.start(_MARK_SECONDS, now=False)

    def stopService(self) -> Deferred[None]:
        """Write everything that is pending and delete the node's row.

        `daemon.shutdown` bounds the time. Writes that are not done by then are lost, as in a crash.
        """
        Service.stopService(self)
        for timer in (self._flushing, self._renewing, self._marking):
            if timer.running:
                timer.stop()
        return Deferred.fromCoroutine(self._leave())

    @property
    def is_overdue(self) -> bool:
        """Whether for 30 seconds the lease was not renewed, or no flush succeeded."""
        since = self._renewed_at + _RENEW_SECONDS
        if self._unwritten_since is not None:
            since = min(since, self._unwritten_since)
        return self._reactor.seconds() - since >= _OVERDUE_SECONDS

    def connected(self, terminal: Terminal) -> None:
        self._connected_terminals[terminal.connection_id] = terminal
        self._pending_writes.connected[terminal.connection_id] = terminal

    def disconnected(self, terminal: Terminal) -> None:
        self._pending_writes.left(terminal.connection_id)
        self._connected_terminals.pop(terminal.connection_id, None)

    def delivered(self, stream: StreamName, seq: Seq) -> None:
        """Events up to `seq` were written to at least one till of the tenant."""
        self._pending_writes.delivered(stream, seq)

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        self._pending_writes.acknowledged(subscription(terminal), seq)

    def sent(self, cursor: Subscription, seq: Seq, uses_positions: bool) -> None:
        """A device was sent a stream up to `seq`. The stream may have another id now."""
        self._pending_writes.note_sent_position(cursor, seq, uses_positions)

    def sent_to_legacy(self, terminal: Terminal, seq: Seq) -> None:
        self._pending_writes.sent_to_legacy(subscription(terminal), seq)

    def refused(self, terminal: Terminal, seq: Seq, reason: str) -> None:
        self._messages.refused(terminal, seq, reason)

    def said(self, terminal: Terminal, kind: str, body: bytes) -> None:
        self._messages.said(terminal, kind, body)

    async def printed(
        self, terminal: Terminal, order_id: str, status: PrintStatus, reason: str
    ) -> bool:
        """Store a print status at once, so that the till gets an error if that fails."""
        report = print_report(order_id, status, reason)
        executor = self._database.of(terminal.tenant.id)
        now = await orders.record_report(executor, terminal.tenant, report, terminal.device_id)
        if now is not None:
            self.reported(terminal.tenant.id)
        return now is not None

    def reported(self, tenant_id: TenantId) -> None:
        """A till of this tenant has reported on an order, which may confirm events."""
        self._marks.reported(tenant_id)

    async def claim(self, terminal: Terminal) -> bool:
        """Give this connection its device. Returns False if a newer connection has the device.

        All connections that claim at the same time share one statement of the next flush.
        """
        claim = self._pending_writes.claims[terminal.connection_id] = DeviceClaim(terminal)
        await self._flushes.ask(None)
        if claim.won is None:
            raise Unavailable("The claim was not written.", retry_after=1)
        return claim.won

    async def write_pending(self, tenant_id: TenantId, device_id: str) -> None:
        """Write the acknowledgements and refusals of a device, before its cursor is read.

        Waits for the running flush if it writes them. Returns at once if nothing is pending.
        """
        device = (tenant_id, device_id)
        if device in self._pending_writes.acknowledging or device in self._in_flight.acknowledging:
            await self._flushes.ask(None)
        await self._messages.write_pending(device)

    async def flush(self) -> None:
        """Write everything that is pending. Writes that fail are kept.

        Raises `Unavailable` if the presence tables cannot be written now.
        """
        await self._flushes.ask(None)
        await self._messages.write()

    async def mark(self) -> None:
        """Read the confirmed positions, and update orders whose events were sent (`OrderMarks.mark`)."""
        await self._marks.mark()

    def _confirmed(self, stream: StreamName, seq: Seq) -> None:
        self._pending_writes.confirmed(stream, seq)

    async def _write(self, keys: Sequence[None]) -> Mapping[None, None]:
        """Run one flush for all callers that wait."""
        if self._unwritten_since is None:
            self._unwritten_since = self._reactor.seconds()
        if not self._leased:
            await self._lease_or_unavailable()
        self._in_flight, self._pending_writes = self._pending_writes, PendingWrites()
        try:
            await self._writer.write(self._in_flight)
        finally:
            left, self._in_flight = self._in_flight, PendingWrites()
            self._pending_writes = left.merged(self._pending_writes)
        if not self._writer.problems:
            self._unwritten_since = None
        return {None: None}

    async def _flush_quietly(self) -> None:
        try:
            self._messages.start_write()
            if self._pending_writes or self._unwritten_since is not None:
                await self._flushes.ask(None)
        except Unavailable:
            return
        except Exception:
            self._log.failure(
                "connections and acknowledgements were not written; posd keeps them and tries again"
            )

    async def _renew(self) -> None:
        try:
            await self._lease_or_unavailable()
        except Unavailable:
            return
        except Exception:
            self._log.failure(
                "the lease of this node was not renewed; posd tries again in {seconds:.0f} s",
                seconds=_RENEW_SECONDS,
            )
        else:
            self._pending_writes.heartbeats.update((each[0], each) for each in self.heartbeats())

    async def _lease_or_unavailable(self) -> None:
        """Renew the lease. If PostgreSQL refuses, log the error once and raise `Unavailable`."""
        try:
            await self._lease()
        except StatementFailed as error:
            self._writer.problems.began("the lease and the connections", error)
            raise Unavailable("The presence tables cannot be written.", retry_after=5) from error
        self._writer.problems.ended("the lease and the connections")

    async def _lease(self) -> None:
        if await presence_store.renew_lease(self._database.for_all, self._node_id, _LEASE_SECONDS):
            # The presence tables are empty: PostgreSQL crashed, or another node took this node for dead.
            self._pending_writes.connected = dict(self._connected_terminals)
        self._leased, self._renewed_at = True, self._reactor.seconds()

    async def _leave(self) -> None:
        try:
            await self.flush()
            # A failing table of a shop must not keep the node's row.
            await self._marks.mark_and_log()
            if self._pending_writes:
                # The reports of tills have confirmed more events.
                await self.flush()
            await presence_store.remove_node(self._database, self._node_id)
        except (Unavailable, StatementFailed):
            # The lease ends by itself.
            return
