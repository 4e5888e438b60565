"""Commits batches. If a batch fails, publishes everything in the batch except the faulty rows and requests.

The next step depends on the failure:

- The tables of some tenants cannot be read or written: the batch is published without the rows of these
  tenants, which stay in the outbox. If requests of these tenants fail without the rows too, they are refused.
- The batch is too much work for one transaction: its requests wait for the next batch, which has fewer rows.
- The connection is lost: the requests are refused, and the rows stay in the outbox.
- Any other failure: the batch is published again in parts, and each part in halves, until the faulty row or
  request fails alone. Orders of the shops' tables are read again first.

A row that can never be published is moved from the outbox to the log, as a `failed` row with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import define
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database.reconnecting import ReconnectingConnection
from posd.errors import StatementFailed, Unavailable, Unprocessable, is_about_data
from posd.monitoring.counters import Counters
from posd.publishing.outbox import OutboxPortion, OutboxReader
from posd.publishing.publication import (
    PublicationRequest,
    answer,
    deliver_appended,
    fail,
    tenant_unavailable,
)
from posd.publishing.publishing_log import PublishingLog
from posd.publishing.quarantine import TenantQuarantine
from posd.publishing.request_order import RequestOrder
from posd.publishing.request_queue import RequestQueue
from posd.publishing.transaction import (
    BatchTransaction,
    OutboxChanged,
    TenantsFailed,
    TransactionOutcome,
)
from posd.publishing.workload import BatchTooLarge
from posd.store.sequencing import FenceLost, OutboxRow
from posd.values import AppendedEvents, TenantId
from posd.waiting import AttemptPulse


@define(eq=False)
class BatchPublishing:
    """Publishes the batches of the sequencer, one at a time.

    `outbox_quarantine` has the tenants whose rows stay in the outbox. `request_quarantine` has the tenants
    whose requests are refused. `appended` receives the committed events, so that this node's tills receive
    them without a read of the log. `request_look` is called when the outbox has to be looked at again, and
    `fence_lost` when another node has become the doorman.
    """

    clock: IReactorTime
    connection: ReconnectingConnection
    batch_transaction: BatchTransaction
    publishing_log: PublishingLog
    outbox: OutboxReader
    queue: RequestQueue
    request_order: RequestOrder
    outbox_quarantine: TenantQuarantine[TenantId]
    request_quarantine: TenantQuarantine[TenantId]
    pulse: AttemptPulse
    counters: Counters
    appended: Callable[[AppendedEvents], None]
    request_look: Callable[[], None]
    fence_lost: Callable[[], None]

    _log = Logger()

    async def publish(
        self, requests: Sequence[PublicationRequest], portions: Sequence[OutboxPortion] = ()
    ) -> None:
        """Publish requests and portions of the outbox. A request or row fails only for its own faults.

        Raises `Unavailable` if the database cannot be reached. The rest of the batch was then not tried.
        """
        if not requests and not portions:
            return
        try:
            await self._commit(requests, portions)
        except TenantsFailed as failure:
            await self._exclude_failed(failure.failures, requests, portions)
        except BatchTooLarge as failure:
            self.outbox.limit_rows(failure.tenant_id, failure.rows)
            self.request_look()
            self.queue.put_back(requests)
        except Unavailable as error:
            fail(requests, error)
            raise
        except Exception as error:
            # The rows come before the requests, because they are older.
            was_alone = len(portions) == 1 and not requests
            for each in portions:
                await self._retry(each, error if was_alone else None)
            if portions:
                await self.publish(requests)
            elif len(requests) > 1:
                half = len(requests) // 2
                await self.publish(requests[:half])
                await self.publish(requests[half:])
            else:
                self._fail_request(requests[0], error)

    async def _retry(self, portion: OutboxPortion, error: Exception | None) -> None:
        """Publish a portion of a failed batch without the rest of the batch.

        `error` is the failure if the portion was alone in the batch, and None otherwise. If the portion has
        orders of a shop's tables, this method only starts to read them again, since they may have changed.
        """
        if not portion.was_read:
            await self._publish_rows(portion.tenant_id, len(portion.ids))
        elif error is not None and portion.is_one:
            await self._fail_oldest_row(error)
        else:
            self.outbox.isolate(portion, was_alone=error is not None)
        self.request_look()

    async def _publish_rows(self, tenant_id: TenantId, rows: int) -> None:
        """Publish the oldest `rows` rows of a tenant's outbox, in halves if they fail together."""
        portion = (
            None
            if tenant_id in self.outbox_quarantine
            else await self.outbox.next_portion(tenant_id, rows)
        )
        if portion is None:
            return
        try:
            await self._commit([], [portion])
        except TenantsFailed as failure:
            await self._exclude_failed(failure.failures, [], [portion])
        except Unavailable:
            raise
        except Exception as error:
            if rows > 1:
                await self._publish_rows(tenant_id, rows // 2)
                await self._publish_rows(tenant_id, rows - rows // 2)
            else:
                await self._fail_oldest_row(error)

    async def _commit(
        self, requests: Sequence[PublicationRequest], portions: Sequence[OutboxPortion]
    ) -> None:
        self.pulse.beat()
        began = self.clock.seconds()
        self.request_order.begin_attempt(requests)
        try:
            outcome = await self._number(requests, portions)
        except FenceLost:
            self.fence_lost()
            await self.publish(requests)
            return
        except BatchTooLarge:
            raise
        except Exception:
            self.counters.batch_failed()
            raise
        deliver_appended(outcome.appended, self.appended, self.publishing_log.delivery_failed)
        seconds = self.clock.seconds() - began
        try:
            self.publishing_log.committed(outcome, seconds)
        except Exception:
            # The batch is committed. If the exception left this method, the batch would be published again.
            self._log.failure(
                "posd published a batch of events, but failed to count and log the batch; it goes on, and the"
                " metrics lack these events"
            )
        self.outbox.note_numbered(portions, seconds)
        self.request_order.postpone(outcome.early, [each.tenant_id for each in portions])
        self.queue.put_back(outcome.early)
        if outcome.taken or outcome.early:
            # The last look has excluded tenants with a portion in this batch. They may have more rows.
            self.request_look()
        # The next batch begins when all requests have their answers. 100 answers take 5 turns of the reactor.
        await answer(self.clock, [each for each in requests if not each.queued])

    async def _number(
        self, requests: Sequence[PublicationRequest], portions: Sequence[OutboxPortion]
    ) -> TransactionOutcome:
        """Number a batch in one transaction. Plain requests alone need one round trip.

        If rows of the outbox come before the plain requests, that transaction publishes nothing, and a
        second transaction follows.
        """
        if not portions and self.batch_transaction.is_plain(requests):
            outcome = await self.connection.transaction(
                lambda executor: self.batch_transaction.number_plain(executor, requests)
            )
            if outcome is not None:
                return outcome
        return await self.connection.transaction(
            lambda executor: self.batch_transaction.number(executor, requests, portions)
        )

    async def _exclude_failed(
        self,
        failures: Mapping[TenantId, str],
        requests: Sequence[PublicationRequest],
        portions: Sequence[OutboxPortion],
    ) -> None:
        """Put the failed tenants into quarantine, publish the requests of the batch, and request a new look.

        If a failed tenant has rows in the batch, the rows alone may have caused the failure. So only its rows
        are left out, and its requests are tried once more. If a failed tenant has no rows in the batch, its
        requests are refused.
        """
        had_rows = {each.tenant_id for each in portions}
        try_requests = failures.keys() & had_rows
        if had_rows:
            self.request_look()
        for tenant_id, reason in failures.items():
            self._exclude(
                self.outbox_quarantine if tenant_id in try_requests else self.request_quarantine,
                tenant_id,
                reason,
            )
        refused = failures.keys() - try_requests
        fail((each for each in requests if each.tenant_id in refused), tenant_unavailable())
        await self.publish([each for each in requests if each.tenant_id not in failures])
        await self.publish([each for each in requests if each.tenant_id in try_requests])

    def _fail_request(self, request: PublicationRequest, error: Exception) -> None:
        """Refuse a request that has failed alone, and log the failure."""
        if not isinstance(error, StatementFailed):
            self._log.failure(
                "posd failed to publish a request of tenant {tenant}, and refuses the request. This is a"
                " fault of posd; report it with this traceback",
                tenant=self.publishing_log.name_of(request.tenant_id),
            )
        self.publishing_log.refused(request, error)
        refusal = Unprocessable("The event cannot be stored.", code="invalid_event")
        fail([request], refusal if is_about_data(error) else error)

    async def _fail_oldest_row(self, error: Exception) -> None:
        """Log the row that has failed alone as a failed event.

        If the data of the row is not the reason, but for example a full disk, put the tenant into quarantine
        instead.
        """
        row = self.batch_transaction.oldest_row
        is_bad_data = is_about_data(error)
        if not isinstance(error, StatementFailed):
            self._log.failure(
                "posd failed to publish a row of the outbox, and logs the row as a failed event if it has"
                " taken the row. This is a fault of posd; report it with this traceback"
            )
        if row is None:
            # The transaction has failed before it took a row, so no row is at fault.
            raise error
        if isinstance(error, StatementFailed) and not is_bad_data:
            self._exclude(self.outbox_quarantine, row.tenant_id, str(error))
        else:
            await self._reject(
                row, str(error) if is_bad_data else "posd failed to process this event"
            )

    async def _reject(self, row: OutboxRow, reason: str) -> None:
        """Move an outbox row that cannot be published to the log, as a failed event with the reason."""
        try:
            await self.connection.transaction(
                lambda executor: self.batch_transaction.reject(
                    executor, row, reason, self.outbox.fence
                )
            )
        except FenceLost:
            self.fence_lost()
        except StatementFailed as error:
            self._exclude(self.outbox_quarantine, row.tenant_id, str(error))
        except OutboxChanged:
            # The row was deleted or changed. `_retry` requests another look at the outbox, which shows
            # whether another row is at fault.
            return
        else:
            self.publishing_log.rejected(row, reason)

    def _exclude(
        self, quarantine: TenantQuarantine[TenantId], tenant_id: TenantId, reason: str
    ) -> None:
        """Put a tenant into a quarantine, and log that."""
        self.publishing_log.tenant_excluded(tenant_id, reason, quarantine.exclude(tenant_id))
