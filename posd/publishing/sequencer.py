"""The sequencer: it normalises, numbers and stores all events.

A loop runs one transaction at a time, on a connection of its own. Requests that arrive during a transaction
are collected for the next one. So publishers share a commit, and no publisher waits for a timer. The
transaction locks a table, so the sequencers of all nodes run one at a time.

Before the transaction, `posd.publishing.outbox` reads the shops' tables on other connections. So the
transaction runs no triggers or views of a shop, and no tenant waits for the tables of another tenant.

A publisher's request waits until the rows that its tenant has committed before are numbered
(`posd.publishing.request_order`).

If a batch fails, `posd.publishing.batches` publishes it again in parts, until only the faulty event fails.
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
"""Requests in the queue from which on the loop yields to the reactor after each batch that is refused."""
_LONGEST_QUARANTINE: Final = 300.0
"""The longest pause, in seconds, before rows that could not be numbered are tried again."""


class Sequencer(Service):
    """Numbers the publications of `publish`, and the rows of the outbox if this node is the doorman.

    `event_bytes` is the size of the largest event that is published. `connections_here` returns the number
    of a tenant's tills on this node. `appended` receives the committed events of each tenant. `fence_lost` is
    called when another node has become the doorman. `rows_seen` is called after each look at the outbox with
    the number of rows that can be numbered.
    """

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
        self._rows_seen = rows_seen
        self._batch_transaction = BatchTransaction(reactor, node_id, event_bytes, connections_here)
        self._publishing_log = PublishingLog(counters, self._batch_transaction.name_of)
        # Tenants whose rows stay in the outbox, because the rows could not be numbered.
        self._outbox_quarantine: TenantQuarantine[TenantId] = TenantQuarantine(
            reactor, _LONGEST_QUARANTINE
        )
        # Tenants whose requests are refused, because the requests could not be numbered either.
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
        self._is_look_requested = False
        # The calls of `look` that wait for the next look.
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
        # The Idempotency-Keys whose first call has no answer yet.
        self._running_keys: set[tuple[object, ...]] = set()

    def stopService(self) -> Deferred[None]:
        """Accept no more publications, and publish those that have been accepted."""
        Service.stopService(self)
        if not self._working and not self._queue:
            return succeed(None)
        self._ended = Deferred()
        return self._ended

    @property
    def event_bytes(self) -> int:
        """The size of the largest event that is published. A change applies to the next transaction."""
        return self._batch_transaction.event_bytes

    @event_bytes.setter
    def event_bytes(self, most: int) -> None:
        self._batch_transaction.event_bytes = most

    @property
    def waiting(self) -> int:
        """The number of publications that wait for their transaction."""
        return len(self._queue)

    @property
    def left_out(self) -> int:
        """The number of tenants in quarantine."""
        return len(
            {
                *self._outbox_quarantine.now(),
                *self._request_quarantine.now(),
                *self._outbox.quarantine,
            }
        )

    @property
    def stalled(self) -> bool:
        """Whether the sequencer has work or no connection, and has tried nothing for a minute."""
        is_stuck = self._working and self._pulse.stalled and self._connection.pulse.stalled
        return self._connection.stalled or is_stuck

    @property
    def serves_all(self) -> bool:
        """Whether no tenant is in quarantine."""
        return not self.left_out

    @property
    def fence(self) -> int | None:
        """The fence of the doorman's lease. None on other nodes, which number requests only."""
        return self._outbox.fence

    @fence.setter
    def fence(self, fence: int | None) -> None:
        """Drop the orders that were read under the earlier lease. With a new lease, look at the outbox."""
        self._outbox.fence = fence
        if fence is not None:
            self.wake()

    def wake(self) -> None:
        """Look at the outbox now, or after the current transaction. Only the doorman looks."""
        if self.fence is not None:
            self._is_look_requested = True
            self._start()

    async def look(self) -> int:
        """Look at the outbox as `wake` does. Return the number of rows that can be numbered.

        Raises `StatementFailed` or `Unavailable` if the look fails. Never returns if this node stops, or
        loses the lease of the doorman, before the look.
        """
        waiter: Deferred[int] = Deferred()
        self._look_waiters.append(waiter)
        self.wake()
        return await waiter

    async def publish(self, publication: Publication) -> PublicationResult:
        """Publish the events, and return after the COMMIT.

        Raises `Unprocessable` or `TooLarge` if the publication is invalid, `Conflict` if the first call with
        its `Idempotency-Key` is still running, and `Unavailable` or a subclass if the database does not
        answer. After `OutcomeUnknown`, such a subclass, the events may have been published. After any other
        error they have not been published.
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
        """Number the portions that are ready, since the read of a tenant's orders has ended."""
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
                    # The rows stay in the outbox. When the database can be reached again, the feed's poll
                    # wakes the sequencer.
                    is_unavailable = True
                    # If the look at the outbox has failed, no requests were taken. They would fail too, so
                    # the next ones are refused below.
                    requests = requests or self._queue.next_batch()
                except Exception:
                    self._log.failure(
                        "publishing a batch of {count} requests failed; posd refuses those of them that are"
                        " not published yet",
                        count=len(requests),
                    )
                # Requests without an answer are rare: when a part of a divided batch raises an exception, the
                # parts after it were not tried.
                untried = [each for each in requests if not each.queued]
                fail(untried, Unavailable("Publishing failed. Try again.", retry_after=1))
                if is_unavailable and len(self._queue) >= _MANY_WAITING:
                    # While the connection is down, each batch fails in the same turn of the reactor. This
                    # pause lets the reactor do other work.
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
        """Whether to look at the outbox now. Only the doorman looks."""
        return (
            self._is_look_requested and self.fence is not None and bool(self.running or self._queue)
        )

    async def _ready_portions(self) -> list[OutboxPortion]:
        """Look at the outbox if a look is due. Return the portions for the next transaction."""
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
                self._log.error(
                    "the outbox cannot be read: {error}. posd publishes requests and reads the outbox again"
                    " later. `posctl doctor` names what is wrong with the database",
                    error=error,
                )
            else:
                self._rows_seen(rows)
                for each in waiters:
                    each.callback(rows)
        return self._outbox.next_batch(others_wait=bool(self._queue))

    def _is_left_out(self, tenant_id: TenantId) -> bool:
        return tenant_id in self._outbox_quarantine or tenant_id in self._outbox.quarantine
