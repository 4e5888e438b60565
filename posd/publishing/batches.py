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

from posd.database.link import Link
from posd.errors import StatementFailed, Unavailable, Unprocessable, is_about_data
from posd.monitoring.counters import Instruments
from posd.publishing.following import Following
from posd.publishing.journal import Journal
from posd.publishing.outbox import Outbox, Portion
from posd.publishing.publication import Request, answer, fail, hand_on, not_served
from posd.publishing.quarantine import Aside
from posd.publishing.request_queue import RequestQueue
from posd.publishing.transaction import Numbering, OutboxChanged, Outcome, TenantsFailed
from posd.publishing.workload import TooMuch
from posd.store.numbering import FenceLost, OutboxRow
from posd.values import Appended, TenantId
from posd.waiting import Pulse


@define(eq=False)
class Batches:
    """What the sequencer does with a batch, one after the other.

    `aside` has the tenants whose rows stay in the outbox, `shut` those whose requests are refused. `appended`
    is given what was committed, so that this node's tills get it without a read. `look_again` is called when
    the outbox has to be looked at again, and `fence_lost` when another node has become the doorman.
    """

    clock: IReactorTime
    link: Link
    numbering: Numbering
    journal: Journal
    outbox: Outbox
    queue: RequestQueue
    following: Following
    aside: Aside[TenantId]
    shut: Aside[TenantId]
    pulse: Pulse
    instruments: Instruments
    appended: Callable[[Appended], None]
    look_again: Callable[[], None]
    fence_lost: Callable[[], None]

    _log = Logger()

    async def settle(self, requests: Sequence[Request], portions: Sequence[Portion] = ()) -> None:
        """Publish requests and portions of the outbox. Each of them fails only for its own faults.

        Raises `Unavailable` if the database cannot be reached. Then the rest of the batch was not tried.
        """
        if not requests and not portions:
            return
        try:
            await self._commit(requests, portions)
        except TenantsFailed as trouble:
            await self._leave_out(trouble.failures, requests, portions)
        except TooMuch as trouble:
            self.outbox.lighten(trouble.tenant_id, trouble.rows)
            self.look_again()
            self.queue.put_back(requests)
        except Unavailable as error:
            fail(requests, error)
            raise
        except Exception as error:
            # The rows go before the requests, since they are older.
            was_alone = len(portions) == 1 and not requests
            for each in portions:
                await self._again(each, error if was_alone else None)
            if portions:
                await self.settle(requests)
            elif len(requests) > 1:
                half = len(requests) // 2
                await self.settle(requests[:half])
                await self.settle(requests[half:])
            else:
                self._blame(requests[0], error)

    async def _again(self, portion: Portion, error: Exception | None) -> None:
        """Publish a portion of a batch that has failed, without the rest. `error`: there was no rest.

        Its orders, if it has any, are read again, since the shop may have changed them. That is only begun
        here.
        """
        if not portion.was_read:
            await self._settle_rows(portion.tenant_id, len(portion.ids))
        elif error is not None and portion.is_one:
            await self._blame_row(error)
        else:
            self.outbox.divide(portion, was_alone=error is not None)
        self.look_again()

    async def _settle_rows(self, tenant_id: TenantId, rows: int) -> None:
        """Publish the oldest `rows` rows of one tenant's outbox, in halves if they fail together."""
        portion = None if tenant_id in self.aside else await self.outbox.one(tenant_id, rows)
        if portion is None:
            return
        try:
            await self._commit([], [portion])
        except TenantsFailed as trouble:
            await self._leave_out(trouble.failures, [], [portion])
        except Unavailable:
            raise
        except Exception as error:
            if rows > 1:
                await self._settle_rows(tenant_id, rows // 2)
                await self._settle_rows(tenant_id, rows - rows // 2)
            else:
                await self._blame_row(error)

    async def _commit(self, requests: Sequence[Request], portions: Sequence[Portion]) -> None:
        self.pulse.beat()
        began = self.clock.seconds()
        self.following.try_now(requests)
        try:
            outcome = await self._number(requests, portions)
        except FenceLost:
            self.fence_lost()
            await self.settle(requests)
            return
        except TooMuch:
            raise
        except Exception:
            self.instruments.batch_failed()
            raise
        hand_on(outcome.appended, self.appended, self.journal.not_handed_on)
        seconds = self.clock.seconds() - began
        try:
            self.journal.committed(outcome, seconds)
        except Exception:
            # The batch is committed. If this were raised, it would be published again in parts.
            self._log.failure("a batch that was published could not be counted")
        self.outbox.accepted(portions, seconds)
        self.following.too_early(outcome.early, [each.tenant_id for each in portions])
        self.queue.put_back(outcome.early)
        if outcome.taken or outcome.early:
            # The last look has passed by tenants that had a portion in this batch. They may have more rows.
            self.look_again()
        # The next batch begins when all have their answers, which for a hundred of them takes five turns.
        await answer(self.clock, [each for each in requests if not each.queued])

    async def _number(self, requests: Sequence[Request], portions: Sequence[Portion]) -> Outcome:
        """Number a batch in one transaction: in one round trip if all of it is requests that are plain.

        If rows of the outbox come before such requests, that transaction does nothing, and a second one
        follows.
        """
        if not portions and self.numbering.is_plain(requests):
            outcome = await self.link.transaction(
                lambda session: self.numbering.number_plain(session, requests)
            )
            if outcome is not None:
                return outcome
        return await self.link.transaction(
            lambda session: self.numbering.number(session, requests, portions)
        )

    async def _leave_out(
        self,
        failures: Mapping[TenantId, str],
        requests: Sequence[Request],
        portions: Sequence[Portion],
    ) -> None:
        """Do the requests of a batch without the tenants that failed. Its rows are looked at again.

        A tenant that had rows in the batch may have failed for these alone. So only its rows are left out,
        and its requests are tried once more without them. If they fail then, it has no rows, and they are
        refused.
        """
        had_rows = {each.tenant_id for each in portions}
        try_requests = failures.keys() & had_rows
        if had_rows:
            self.look_again()
        for tenant_id, reason in failures.items():
            self._leave(self.aside if tenant_id in try_requests else self.shut, tenant_id, reason)
        refused = failures.keys() - try_requests
        fail((each for each in requests if each.tenant_id in refused), not_served())
        await self.settle([each for each in requests if each.tenant_id not in failures])
        await self.settle([each for each in requests if each.tenant_id in try_requests])

    def _blame(self, request: Request, error: Exception) -> None:
        """Refuse a request that has failed alone, and log it."""
        if not isinstance(error, StatementFailed):
            self._log.failure("an event could not be worked on")
        self.journal.refused(request, error)
        refusal = Unprocessable("The event cannot be stored.", code="invalid_event")
        fail([request], refusal if is_about_data(error) else error)

    async def _blame_row(self, error: Exception) -> None:
        """Log the row that has failed alone as a failed event.

        If it has failed for another reason than its data, such as a full disk, leave its tenant out instead.
        """
        row = self.numbering.oldest
        badly_made = is_about_data(error)
        if not isinstance(error, StatementFailed):
            self._log.failure("an event could not be worked on")
        if row is None:
            # The transaction has failed before it took a row, so no row is at fault.
            raise error
        if isinstance(error, StatementFailed) and not badly_made:
            self._leave(self.aside, row.tenant_id, str(error))
        else:
            await self._reject(row, str(error) if badly_made else "posd failed at this event")

    async def _reject(self, row: OutboxRow, reason: str) -> None:
        """Log the outbox row that just failed alone as failed, since it cannot be published."""
        try:
            await self.link.transaction(
                lambda session: self.numbering.reject(session, row, reason, self.outbox.fence)
            )
        except FenceLost:
            self.fence_lost()
        except StatementFailed as error:
            self._leave(self.aside, row.tenant_id, str(error))
        except OutboxChanged:
            # The row was deleted or changed. `_again` has the outbox looked at once more, which shows whether
            # another row is at fault.
            return
        else:
            self.journal.rejected(row, reason)

    def _leave(self, aside: Aside[TenantId], tenant_id: TenantId, reason: str) -> None:
        """Leave a tenant out for a while, and log that."""
        self.journal.unnumbered(tenant_id, reason, aside.add(tenant_id))
