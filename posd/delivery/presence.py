"""The node's bookkeeping, written in bulk: who is connected, how far each terminal is, what it said.

Sessions only note things here, in memory; a flush writes all of it with a few statements, however
many tills there are. There is one flush at a time: callers that need to know that something is written
wait for the next one together (`posd.database.coalescing`).

A crash loses the acknowledgements of the last moment, and the till is sent those events again. While
the database is away notes are kept, merged where they can be, and written when it is back.
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
_RENEW_SECONDS: Final = 5.0
_MARK_SECONDS: Final = 1.0
"""Each tenant's orders cost a statement of their own, so they are marked less often."""
_WAIT_SECONDS: Final = 5.0
"""How long a caller waits for a flush. A till waits ten seconds to be let in."""
_OVERDUE_SECONDS: Final = 30.0


class Presence(Service):
    """Notes, and the flush that writes them. Implements `delivery.executor.ProgressSink`."""

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
        # What the flush that is under way is writing.
        self._in_flight = PendingWrites()
        self._connected_terminals: dict[UUID, Terminal] = {}
        self._renewed_at = reactor.seconds()
        self._unwritten_since: float | None = None
        self.heartbeats: Callable[[], list[Heartbeat]] = list
        """Tells what to renew of the connections."""

    def startService(self) -> None:
        Service.startService(self)
        self._renewed_at = self._reactor.seconds()
        self._flushing.start(_FLUSH_SECONDS, now=False)
        self._renewing.start(_RENEW_SECONDS)
        self._marking.start(_MARK_SECONDS, now=False)

    def stopService(self) -> Deferred[None]:
        """Write what is left and take the node out of the books.

        `daemon.stopping` bounds the time. What is not written by then is lost as in a crash.
        """
        Service.stopService(self)
        for timer in (self._flushing, self._renewing, self._marking):
            if timer.running:
                timer.stop()
        return Deferred.fromCoroutine(self._leave())

    @property
    def is_overdue(self) -> bool:
        """Whether for half a minute the lease could not be renewed, or a flush did not succeed."""
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
        """Events up to `seq` were written to one of the tenant's tills at least."""
        self._pending_writes.delivered(stream, seq)

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        self._pending_writes.acknowledged(subscription(terminal), seq)

    def sent(self, cursor: Subscription, seq: Seq, uses_positions: bool) -> None:
        """A device was sent a stream up to `seq`, and the stream may have another name by now."""
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
        """Written at once: the till is told if there is no such order, or no database."""
        report = print_report(order_id, status, reason)
        executor = self._database.of(terminal.tenant.id)
        now = await orders.record_report(executor, terminal.tenant, report, terminal.device_id)
        if now is not None:
            self.reported(terminal.tenant.id)
        return now is not None

    def reported(self, tenant_id: TenantId) -> None:
        """A till of this tenant has said something about an order: more may be confirmed now."""
        self._marks.reported(tenant_id)

    async def claim(self, terminal: Terminal) -> bool:
        """Make this connection its device's one; False if a newer one already is.

        All connections that claim at the same time do so with the next flush, in one statement.
        """
        claim = self._pending_writes.claims[terminal.connection_id] = DeviceClaim(terminal)
        await self._flushes.ask(None)
        if claim.won is None:
            raise Unavailable("The claim was not written.", retry_after=1)
        return claim.won

    async def write_pending(self, tenant_id: TenantId, device_id: str) -> None:
        """Write down what a device acknowledged and refused, now that it asks how far it is.

        Waits for the flush that is under way if that writes it, and for nothing if nothing is noted.
        """
        device = (tenant_id, device_id)
        if device in self._pending_writes.acknowledging or device in self._in_flight.acknowledging:
            await self._flushes.ask(None)
        await self._messages.write_pending(device)

    async def flush(self) -> None:
        """Write everything that was noted. Raises `Unavailable` if the books cannot be written now.

        What cannot be written is kept.
        """
        await self._flushes.ask(None)
        await self._messages.write()

    async def mark(self) -> None:
        """Read what tills confirmed, and update orders whose events were sent; see `OrderMarks.mark`."""
        await self._marks.mark()

    def _confirmed(self, stream: StreamName, seq: Seq) -> None:
        self._pending_writes.confirmed(stream, seq)

    async def _write(self, keys: Sequence[None]) -> Mapping[None, None]:
        """One flush, for all who wait for it."""
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
            self._log.failure("the books could not be written")

    async def _renew(self) -> None:
        try:
            await self._lease_or_unavailable()
        except Unavailable:
            return
        except Exception:
            self._log.failure("the lease could not be renewed")
        else:
            self._pending_writes.heartbeats.update((each[0], each) for each in self.heartbeats())

    async def _lease_or_unavailable(self) -> None:
        """Renew the lease. What PostgreSQL refuses is logged once, and `Unavailable` for callers."""
        try:
            await self._lease()
        except StatementFailed as error:
            self._writer.problems.began("the lease and the books", error)
            raise Unavailable("The books cannot be written.", retry_after=5) from error
        self._writer.problems.ended("the lease and the books")

    async def _lease(self) -> None:
        if await presence_store.renew_lease(self._database.for_all, self._node_id, _LEASE_SECONDS):
            # The books were lost: PostgreSQL crashed, or this node was taken for dead.
            self._pending_writes.connected = dict(self._connected_terminals)
        self._leased, self._renewed_at = True, self._reactor.seconds()

    async def _leave(self) -> None:
        try:
            await self.flush()
            # A shop's table that cannot be written does not keep the node in the books.
            await self._marks.mark_and_log()
            if self._pending_writes:
                # What tills said of orders has confirmed more.
                await self.flush()
            await presence_store.remove_node(self._database, self._node_id)
        except (Unavailable, StatementFailed):
            # The lease runs out by itself, if there are any books.
            return
