"""Commits batches. If one fails, everything in it that is not at fault is published all the same.

What follows depends on how the batch fails:

- The tables of some tenants cannot be read or written: the batch is done without the rows of these tenants,
  which stay in the outbox. If their requests fail without the rows too, these are refused.
- It is too much work for one transaction: its requests wait for the next batch, which has fewer rows.
- The connection is lost: its requests are refused, and its rows stay in the outbox.
- Anything else: it is done again in parts, and these in halves, until what is at fault fails alone. Orders of
  the shops' tables are read again for that.

A row that can never be published leaves the outbox as a `failed` row of the log, with the reason.
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
    """What the sequencer does with a batch, one after the other.

    `outbox_quarantine` has the tenants whose rows stay in the outbox, `request_quarantine` those whose
    requests are refused. `appended`
    is given what was committed, so that this node's tills get it without a read. `request_look` is called
    when the outbox has to be looked at again, and `fence_lost` when another node has become the doorman.
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
        """Publish requests and portions of the outbox. Each of them fails only for its own faults.

        Raises `Unavailable` if the database cannot be reached. Then the rest of the batch was not tried.
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
            # The rows go before the requests, since they are older.
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
        """Publish a portion of a batch that has failed, without the rest. `error`: there was no rest.

        Its orders, if it has any, are read again, since the shop may have changed them. That is only begun
        here.
        """
        if not portion.was_read:
            await self._publish_rows(portion.tenant_id, len(portion.ids))
        elif error is not None and portion.is_one:
            await self._fail_oldest_row(error)
        else:
            self.outbox.isolate(portion, was_alone=error is not None)
        self.request_look()

    async def _publish_rows(self, tenant_id: TenantId, rows: int) -> None:
        """Publish the oldest `rows` rows of one tenant's outbox, in halves if they fail together."""
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
            # The batch is committed. If this were raised, it would be published again in parts.
            self._log.failure("a batch that was published could not be counted")
        self.outbox.note_numbered(portions, seconds)
        self.request_order.postpone(outcome.early, [each.tenant_id for each in portions])
        self.queue.put_back(outcome.early)
        if outcome.taken or outcome.early:
            # The last look has passed by tenants that had a portion in this batch. They may have more rows.
            self.request_look()
        # The next batch begins when all have their answers, which for a hundred of them takes five turns.
        await answer(self.clock, [each for each in requests if not each.queued])

    async def _number(
        self, requests: Sequence[PublicationRequest], portions: Sequence[OutboxPortion]
    ) -> TransactionOutcome:
        """Number a batch in one transaction: in one round trip if all of it is requests that are plain.

        If rows of the outbox come before such requests, that transaction does nothing, and a second one
        follows.
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
        """Do the requests of a batch without the tenants that failed. Its rows are looked at again.

        A tenant that had rows in the batch may have failed for these alone. So only its rows are left out,
        and its requests are tried once more without them. If they fail then, it has no rows, and they are
        refused.
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
        """Refuse a request that has failed alone, and log it."""
        if not isinstance(error, StatementFailed):
            self._log.failure("an event could not be worked on")
        self.publishing_log.refused(request, error)
        refusal = Unprocessable("The event cannot be stored.", code="invalid_event")
        fail([request], refusal if is_about_data(error) else error)

    async def _fail_oldest_row(self, error: Exception) -> None:
        """Log the row that has failed alone as a failed event.

        If it has failed for another reason than its data, such as a full disk, leave its tenant out instead.
        """
        row = self.batch_transaction.oldest_row
        is_bad_data = is_about_data(error)
        if not isinstance(error, StatementFailed):
            self._log.failure("an event could not be worked on")
        if row is None:
            # The transaction has failed before it took a row, so no row is at fault.
            raise error
        if isinstance(error, StatementFailed) and not is_bad_data:
            self._exclude(self.outbox_quarantine, row.tenant_id, str(error))
        else:
            await self._reject(row, str(error) if is_bad_data else "posd failed at this event")

    async def _reject(self, row: OutboxRow, reason: str) -> None:
        """Log the outbox row that just failed alone as failed, since it cannot be published."""
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
            # The row was deleted or changed. `_retry` has the outbox looked at once more, which shows whether
            # another row is at fault.
            return
        else:
            self.publishing_log.rejected(row, reason)

    def _exclude(
        self, outbox_quarantine: TenantQuarantine[TenantId], tenant_id: TenantId, reason: str
    ) -> None:
        """Leave a tenant out for a while, and log that."""
        self.publishing_log.tenant_excluded(tenant_id, reason, outbox_quarantine.exclude(tenant_id))
