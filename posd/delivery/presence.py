"""The node's bookkeeping, written in bulk: who is connected, how far each terminal is, what it said.

Sessions only note things here, in memory; a flush writes all of it with a few statements, however
many tills there are. What a crash takes with it are the acknowledgements of the last moment, and
for those the till is sent the events again. While the database is away notes are kept, merged where
they can be, and written when it is back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from posd.database.pool import Database
from posd.delivery.pending_writes import Nack, Notes, Subscription, Word, subscription
from posd.errors import StatementFailed, Unavailable
from posd.events.orders import FINAL_STATUSES
from posd.events.print_status import print_report
from posd.monitoring.log_sampler import LogSampler
from posd.store import orders
from posd.store import presence as books
from posd.values import PrintStatus, Seq, Tenant, TenantId, Terminal

_FLUSH_SECONDS: Final = 0.2
_LEASE_SECONDS: Final = 15.0
_RENEW_SECONDS: Final = 5.0
_MARK_SECONDS: Final = 1.0
"""Each tenant's orders cost a statement of their own, so they are marked less often."""
_MARKED_AT_ONCE: Final = 50
"""Tenants in one transaction, which has a subtransaction for each: PostgreSQL is quick with up to 64."""
_LOCKED: Final = "55P03"


class Presence(Service):
    """Notes, and the flush that writes them. Implements `delivery.session.Register`."""

    _log = Logger()

    def __init__(self, reactor: IReactorTime, database: Database, node_id: UUID) -> None:
        self._reactor = reactor
        self._database = database
        self._node_id = node_id
        self._turn = DeferredLock()
        self._flushing = LoopingCall(self._flush_quietly)
        self._renewing = LoopingCall(self._renew)
        self._marking = LoopingCall(self._mark_quietly)
        self._flushing.clock = self._renewing.clock = self._marking.clock = reactor
        self._leased = False
        self._notes = Notes()
        self._sampler = LogSampler(reactor.seconds)
        # Tenants whose orders are to be told how far their head is.
        self._unmarked: set[TenantId] = set()
        self._here: dict[UUID, Terminal] = {}
        self.sightings: Callable[[], list[tuple[UUID, float, Seq]]] = list
        """Tells what to renew of the connections: id, seconds since it was heard of, last sent."""

    def startService(self) -> None:
        Service.startService(self)
        self._flushing.start(_FLUSH_SECONDS, now=False)
        self._renewing.start(_RENEW_SECONDS)
        self._marking.start(_MARK_SECONDS, now=False)

    def stopService(self) -> Deferred[None]:
        """Write what is left and take the node out of the books."""
        Service.stopService(self)
        for timer in (self._flushing, self._renewing, self._marking):
            if timer.running:
                timer.stop()
        return Deferred.fromCoroutine(self._leave())

    def connected(self, terminal: Terminal) -> None:
        self._here[terminal.connection_id] = terminal
        self._notes.connected[terminal.connection_id] = terminal

    def disconnected(self, terminal: Terminal) -> None:
        if self._notes.connected.pop(terminal.connection_id, None) is None:
            self._notes.gone.add(terminal.connection_id)
        self._here.pop(terminal.connection_id, None)

    def delivered(self, tenant: Tenant, seq: Seq) -> None:
        """Events up to `seq` were written to a till of this tenant at least."""
        self._notes.sent[tenant.id] = max(seq, self._notes.sent.get(tenant.id, 0))

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        key = subscription(terminal)
        self._notes.acks[key] = max(seq, self._notes.acks.get(key, 0))

    def followed(self, terminal: Terminal, seq: Seq) -> None:
        self._notes.follows[subscription(terminal)] = seq

    def refused(self, terminal: Terminal, seq: Seq, reason: str) -> None:
        nack = Nack(seq, terminal.device_id or "", reason, terminal.stream_id)
        self._kept(terminal, self._notes.refuse(terminal.tenant, nack))

    def said(self, terminal: Terminal, kind: str, body: bytes) -> None:
        word = Word(f"pos_{kind}", body.decode(), terminal.device_id)
        self._kept(terminal, self._notes.say(terminal.tenant, word))

    async def printed(
        self, terminal: Terminal, order_id: str, status: PrintStatus, reason: str
    ) -> bool:
        """Written at once: the till is told if there is no such order, or no database."""
        report = print_report(order_id, status, reason)
        now = await orders.note(self._database, terminal.tenant, report, terminal.device_id)
        if now is not None:
            self.reported(terminal.tenant.id)
        return now is not None

    def reported(self, tenant_id: TenantId) -> None:
        """A till of this tenant has said something about an order: more may be confirmed now."""
        self._notes.reported.add(tenant_id)

    async def claim(self, terminal: Terminal) -> bool:
        """Make this connection its device's one; False if a newer one already is."""
        await self.flush()
        return await books.claim(
            self._database,
            terminal.connection_id,
            terminal.tenant.id,
            terminal.device_id or "",
            terminal.connected_at,
        )

    async def settle(self, tenant_id: TenantId, device_id: str) -> None:
        """Write down what a device acknowledged, now that it comes back and asks how far it is."""
        noted = any(key[:2] == (tenant_id, device_id) for key in self._notes.acks)
        if noted or self._turn.locked:
            await self.flush()

    async def flush(self) -> None:
        """Write what was noted. What cannot be written because the database is away is kept."""
        await self._turn.acquire()
        notes = Notes()
        try:
            if not self._leased:
                await self._lease()
            notes, self._notes = self._notes, notes
            await self._write(notes)
        except Unavailable:
            self._notes = notes.merged(self._notes)
            raise
        finally:
            self._turn.release()

    async def _write(self, notes: Notes) -> None:
        """Each kind of note once; a kind that is written is forgotten, whatever comes after."""
        if notes.connected:
            rows = [
                (each.connection_id, each.tenant.id, each.device_id, each.connected_at)
                for each in notes.connected.values()
            ]
            await self._attempt(books.connected(self._database, self._node_id, rows))
            notes.connected = {}
        if notes.gone:
            await self._attempt(books.disconnected(self._database, notes.gone))
            notes.gone = set()
        if notes.acks:
            await self._attempt(books.acknowledged(self._database, _moves(notes.acks)))
        if follows := {key: seq for key, seq in notes.follows.items() if key not in notes.acks}:
            await self._attempt(books.followed(self._database, _moves(follows)))
        if notes.acks or notes.sent or notes.reported:
            await self._progress(notes)
            notes.acks, notes.follows, notes.sent, notes.reported = {}, {}, {}, set()
        for tenant, words in list(notes.words.items()):
            said = [(each.kind, each.body, each.device_id) for each in words]
            await self._attempt(books.said(self._database, tenant, said))
            notes.written(tenant, notes.words.pop(tenant))
        for tenant, nacks in list(notes.nacks.items()):
            refused = [(each.seq, each.device_id, each.reason, each.stream_id) for each in nacks]
            await self._attempt(books.nacks(self._database, tenant, refused))
            notes.written(tenant, notes.nacks.pop(tenant))

    async def _progress(self, notes: Notes) -> None:
        """Move the heads on to what was sent, and to what was acknowledged or else confirmed."""
        received = notes.received()
        if notes.reported:
            await self._attempt(self._confirm(notes.reported, received))
        moved = sorted(notes.sent.keys() | received.keys())
        if moved:
            progress = [(each, notes.sent.get(each, 0), received.get(each, 0)) for each in moved]
            await self._attempt(books.progress(self._database, progress))
            self._unmarked.update(moved)

    async def _confirm(self, tenants: set[TenantId], received: dict[TenantId, Seq]) -> None:
        """Put into `received` what is confirmed by what tills said about orders."""
        found = await orders.confirmed(self._database, tenants, FINAL_STATUSES)
        for tenant_id, seq in found.items():
            received[tenant_id] = max(seq, received.get(tenant_id, 0))

    async def mark(self) -> None:
        """Note of the orders of tenants whose heads were moved that they were sent, or received.

        What cannot be done now is kept for the next time.
        """
        wanted = sorted(self._unmarked)
        for first in range(0, len(wanted), _MARKED_AT_ONCE):
            chunk = wanted[first : first + _MARKED_AT_ONCE]
            self._unmarked.difference_update(chunk)
            try:
                failures = await orders.mark(self._database, chunk)
            except Unavailable:
                self._unmarked.update(chunk)
                raise
            for tenant_id, why in failures.items():
                if why.startswith(_LOCKED):
                    self._unmarked.add(tenant_id)
                else:
                    self._log.error(
                        "orders of tenant {tenant_id} were not marked: {reason}",
                        tenant_id=tenant_id,
                        reason=why,
                    )

    async def _mark_quietly(self) -> None:
        try:
            await self.mark()
        except Unavailable:
            return
        except Exception:
            self._log.failure("orders could not be marked")

    async def _attempt(self, writing: Awaitable[None]) -> None:
        """A note that the database refuses is lost, loudly, and stops no other."""
        try:
            await writing
        except StatementFailed as error:
            self._leased = False
            self._log.error("the books were not written: {error}", error=error)

    async def _flush_quietly(self) -> None:
        try:
            if self._notes:
                await self.flush()
        except Unavailable:
            return
        except Exception:
            self._log.failure("the books could not be written")

    async def _renew(self) -> None:
        try:
            await self._lease()
            sightings = self.sightings()
            if sightings:
                await books.seen(self._database, sightings)
        except Unavailable:
            return
        except Exception:
            self._log.failure("the lease could not be renewed")

    def _kept(self, terminal: Terminal, kept: bool) -> None:
        unsaid = None if kept else self._sampler.take(terminal.tenant.id)
        if unsaid is not None:
            self._log.warn(
                "a message of a till was not stored, since too many wait for the database:"
                " tenant={tenant} unsaid={unsaid}",
                tenant=terminal.tenant.slug,
                unsaid=unsaid,
            )

    async def _lease(self) -> None:
        if await books.lease(self._database, self._node_id, _LEASE_SECONDS):
            # The books were lost: PostgreSQL crashed, or this node was taken for dead.
            self._notes.connected = dict(self._here)
        self._leased = True

    async def _leave(self) -> None:
        try:
            await self.flush()
            await self.mark()
            await books.leave(self._database, self._node_id)
        except (Unavailable, StatementFailed):
            # The lease runs out by itself, if there are any books.
            return


def _moves(cursors: dict[Subscription, Seq]) -> list[books.Move]:
    """In one order everywhere, so that two nodes do not wait for each other."""
    return [(*key, seq) for key, seq in sorted(cursors.items())]
