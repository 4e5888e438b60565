"""The one way in: everything that is published is normalised, numbered and stored here.

One loop runs one transaction at a time, on a link of its own. What arrives meanwhile is collected for the
next transaction. So publishers share a commit, and none waits for a timer. The transaction locks a table, so
the sequencers of all nodes work one at a time.

The shops' tables are read on other connections, before the transaction (`posd.publishing.outbox`). So no code
of a shop runs here, and no tenant waits for another one's tables.

A publisher's request waits until the rows are numbered that its tenant has committed before
(`posd.publishing.request_order`).

If a batch fails, it is done again in parts, until only what is at fault fails (`posd.publishing.batches`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from posd.database.coalescing import fail_all
from posd.database.reconnecting import ReconnectingConnection
from posd.database.shop_readers import ShopReaders
from posd.errors import Conflict, StatementFailed, Unavailable
from posd.monitoring.counters import Counters
from posd.publishing.batches import BatchPublishing
from posd.publishing.outbox import OutboxPortion, OutboxReader
from posd.publishing.publication import Publication as Publication
from posd.publishing.publication import PublicationRequest, fail, tenant_unavailable
from posd.publishing.publication import PublicationResult as PublicationResult
from posd.publishing.publishing_log import PublishingLog
from posd.publishing.quarantine import TenantQuarantine
from posd.publishing.request_order import SOON_SECONDS, RequestOrder
from posd.publishing.request_queue import RequestQueue
from posd.publishing.transaction import BatchTransaction
from posd.values import AppendedEvents, TenantId
from posd.waiting import AttemptPulse

_MANY_WAITING: Final = 1000
"""So many requests are not all refused in one turn of the reactor."""
_LONGEST_QUARANTINE: Final = 300.0
"""For how long, at most, a tenant's rows stay in the outbox untried after they could not be numbered."""


class Sequencer(Service):
    """Numbers what `publish` brings and what `wake` says is in the outbox."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        connection: ReconnectingConnection,
        readers: ShopReaders,
        node_id: UUID,
        *,
        event_bytes: int,
        connections_here: Callable[[TenantId], int],
        appended: Callable[[AppendedEvents], None] = lambda appended: None,
        fence_lost: Callable[[], None] = lambda: None,
        rows_seen: Callable[[int], None] = lambda rows: None,
        counters: Counters | None = None,
    ) -> None:
        self._reactor = reactor
        counters = counters or Counters()
        self._connection = connection
        # Called after each look, with the number of rows that it has seen.
        self._rows_seen = rows_seen
        self._batch_transaction = BatchTransaction(reactor, node_id, event_bytes, connections_here)
        self._publishing_log = PublishingLog(counters, self._batch_transaction.name_of)
        # Tenants whose rows stay in the outbox, since they could not be numbered.
        self._outbox_quarantine: TenantQuarantine[TenantId] = TenantQuarantine(
            reactor, _LONGEST_QUARANTINE
        )
        # Tenants whose requests are refused, since these could not be numbered either.
        self._request_quarantine: TenantQuarantine[TenantId] = TenantQuarantine(reactor)
        self._queue = RequestQueue()
        self._outbox = OutboxReader(
            reactor,
            connection,
            readers,
            shops=self._batch_transaction.shops,
            changed=self._on_orders_read,
            failed=self._publishing_log.unreadable,
        )
        # Whether the outbox is to be looked at.
        self._is_look_requested = False
        # Callers of `look`, who wait for the next look.
        self._look_waiters: list[Deferred[int]] = []
        self._working = False
        self._start_timer: IDelayedCall | None = None
        self._ended: Deferred[None] | None = None
        self._request_order = RequestOrder(reactor, self._outbox.is_reading, self._is_left_out)
        self._pulse = AttemptPulse()
        self._batches = BatchPublishing(
            clock=reactor,
            connection=connection,
            batch_transaction=self._batch_transaction,
            publishing_log=self._publishing_log,
            outbox=self._outbox,
            queue=self._queue,
            request_order=self._request_order,
            outbox_quarantine=self._outbox_quarantine,
            request_quarantine=self._request_quarantine,
            pulse=self._pulse,
            counters=counters,
            appended=appended,
            request_look=self._request_look,
            fence_lost=fence_lost,
        )
        # The Idempotency-Keys whose first call is not answered yet.
        self._running_keys: set[tuple[object, ...]] = set()

    def stopService(self) -> Deferred[None]:
        """Finish what was accepted. Nothing is accepted afterwards."""
        Service.stopService(self)
        if not self._working and not self._queue:
            return succeed(None)
        self._ended = Deferred()
        return self._ended

    @property
    def event_bytes(self) -> int:
        """The largest event that is published, from the next transaction on."""
        return self._batch_transaction.event_bytes

    @event_bytes.setter
    def event_bytes(self, most: int) -> None:
        self._batch_transaction.event_bytes = most

    @property
    def waiting(self) -> int:
        """How many publications wait for their transaction."""
        return len(self._queue)

    @property
    def left_out(self) -> int:
        """How many tenants are left out, or in quarantine."""
        return len(
            {
                *self._outbox_quarantine.now(),
                *self._request_quarantine.now(),
                *self._outbox.quarantine,
            }
        )

    @property
    def stalled(self) -> bool:
        """Whether it has tried nothing for a minute, though it has work or no connection."""
        is_stuck = self._working and self._pulse.stalled and self._connection.pulse.stalled
        return self._connection.stalled or is_stuck

    @property
    def serves_all(self) -> bool:
        """Whether no tenant is left out because its tables cannot be read or written."""
        return not self.left_out

    @property
    def fence(self) -> int | None:
        """The fence of the doorman's lease. None on other nodes, where only requests are numbered."""
        return self._outbox.fence

    @fence.setter
    def fence(self, fence: int | None) -> None:
        """Drop what was read under the lease before. With a new lease, look at the outbox."""
        self._outbox.fence = fence
        if fence is not None:
            self.wake()

    def wake(self) -> None:
        """Look at the outbox now, or after the transaction that is under way. Only the doorman looks."""
        if self.fence is not None:
            self._is_look_requested = True
            self._start()

    async def look(self) -> int:
        """Look as `wake` does. Returns how many rows were seen that are to be numbered.

        Raises `StatementFailed` and `Unavailable` if the look fails. Never returns if this node stops, or is
        not the doorman any more, before the look.
        """
        waiters: Deferred[int] = Deferred()
        self._look_waiters.append(waiters)
        self.wake()
        return await waiters

    async def publish(self, publication: Publication) -> PublicationResult:
        """Publish, and return after the COMMIT.

        Raises `Unprocessable`, `TooLarge` and `Conflict` (a first call with this `Idempotency-Key` is still
        running) about the publication, and `Unavailable` or a subclass when the database does not answer.
        Only after `OutcomeUnknown`, which is such a subclass, the events may have been published.
        """
        if not self.running:
            raise Unavailable("Publishing is not possible at the moment.", retry_after=2)
        if publication.tenant_id in self._request_quarantine:
            raise tenant_unavailable()
        call = publication.idempotency
        if call is not None and call.scope in self._running_keys:
            raise Conflict("The first call with this key is still running.", code="still_running")
        request = PublicationRequest(publication)
        self._queue.append(request)
        if call is not None:
            self._running_keys.add(call.scope)
        try:
            self._start()
            return await request.answer
        finally:
            if call is not None:
                self._running_keys.discard(call.scope)

    def _start(self) -> None:
        if not self._working and (self.running or self._queue):
            self._working = True
            self._pulse.beat()
            Deferred.fromCoroutine(self._loop())

    def _schedule_start(self) -> None:
        if self._start_timer is None or not self._start_timer.active():
            self._start_timer = self._reactor.callLater(SOON_SECONDS, self._start)

    def _request_look(self) -> None:
        self._is_look_requested = True

    def _on_orders_read(self, is_look_needed: bool) -> None:
        """A read of a tenant's orders is over: what is ready can be numbered."""
        self._is_look_requested = self._is_look_requested or is_look_needed
        self._start()

    async def _loop(self) -> None:
        try:
            while True:
                requests: list[PublicationRequest] = []
                is_unavailable = False
                try:
                    portions = await self._ready_portions()
                    if not self._outbox.is_isolated(portions):
                        requests = self._queue.next_batch(self._request_order.must_wait)
                    if not requests and not portions and not self._is_look_due:
                        break
                    await self._batches.publish(requests, portions)
                except Unavailable:
                    # The rows stay in the outbox. The feed's poll wakes the sequencer when the database is
                    # back.
                    is_unavailable = True
                    # If the look at the outbox has failed, no requests were taken. They would fail too.
                    requests = requests or self._queue.next_batch()
                except Exception:
                    self._log.failure("a batch of {count} requests failed", count=len(requests))
                # Nearly always all were answered. If a part of a divided batch has raised, the parts after it
                # were not tried, and their requests are refused here.
                untried = [each for each in requests if not each.queued]
                fail(untried, Unavailable("Publishing failed. Try again.", retry_after=1))
                if is_unavailable and len(self._queue) >= _MANY_WAITING:
                    # While the link is down each batch fails in the same turn. So other work comes between.
                    await deferLater(self._reactor, 0)
        finally:
            self._working = False
            if self._queue:
                self._schedule_start()
            elif self._ended is not None:
                self._ended.callback(None)
                self._ended = None

    @property
    def _is_look_due(self) -> bool:
        """Whether the outbox is to be looked at. Only the doorman does."""
        return (
            self._is_look_requested and self.fence is not None and bool(self.running or self._queue)
        )

    async def _ready_portions(self) -> list[OutboxPortion]:
        """What of the outbox is ready to be numbered. Looks at the outbox first if that is due."""
        if self._is_look_due:
            self._is_look_requested = False
            self._pulse.beat()
            waiters, self._look_waiters = self._look_waiters, []
            try:
                rows = await self._outbox.look(self._outbox_quarantine.now())
            except Exception as error:
                fail_all(waiters, error)
                if not isinstance(error, StatementFailed):
                    raise
                # The requests of this batch do not need the outbox, and are numbered.
                self._log.error("the outbox cannot be looked at: {error}", error=error)
            else:
                self._rows_seen(rows)
                for each in waiters:
                    each.callback(rows)
        return self._outbox.next_batch(others_wait=bool(self._queue))

    def _is_left_out(self, tenant_id: TenantId) -> bool:
        return tenant_id in self._outbox_quarantine or tenant_id in self._outbox.quarantine
