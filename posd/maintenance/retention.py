"""Delete rows that are older than the retention time, on one node at a time.

Every few minutes the service looks for tenants with expired rows. A tenant is pruned once a day, at an hour
at which the shop is closed. If no posd ran in that night, the tenant is pruned within minutes of the start.
With a retention of less than a few days, a tenant is pruned more often. `posd.store.retention` has the
statements. A till whose position was deleted receives a resync.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.config.units import HOUR, format_duration
from posd.database.pool import Pool
from posd.errors import Busy, Refusal, StatementFailed
from posd.events.orders import FINAL_STATUSES
from posd.store import retention
from posd.store.retention import DueTenant, PrunedCounts
from posd.values import TenantId
from posd.waiting import RoundPauses

_LOOK_SECONDS: Final = 300.0
_NIGHT: Final = (3, 4, 5)
"""The hours in which a restaurant is closed, in its own time zone."""
_EARLY, _LATE = 20 * HOUR, 28 * HOUR
"""How long rows may stay past their retention time before they are pruned: at night, and by day.

20 hours give one run each night; 28 hours mean that a night's run was missed.
"""
_LEASE_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.1
_NOTED: Final = (
    "pruned: tenant={tenant_id} events={events} expired={expired} messages={messages}"
    " nacks={nacks} orders={orders}"
)


class Retention(Service):
    """A service that deletes expired rows in batches, with a pause between batches.

    `seconds` is the retention time of events. It may be changed at any time.
    """

    _log = Logger()

    def __init__(
        self, reactor: IReactorTime, database: Pool, node_id: UUID, seconds: float
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._node_id = node_id
        self.seconds = seconds
        # The tenants whose failure has been logged: a failure is logged once, until a run succeeds.
        self._failed: set[TenantId] = set()
        self._pauses = RoundPauses(reactor)
        self._loop: Deferred[None] = succeed(None)

    def startService(self) -> None:
        Service.startService(self)
        self._loop = Deferred.fromCoroutine(self._prune_forever())
        self._loop.addErrback(
            lambda failure: self._log.failure("pruning has stopped; restart posd", failure)
        )

    def stopService(self) -> Deferred[None]:
        """Stop after the current batch. Fires when that batch has been deleted."""
        Service.stopService(self)
        self._pauses.end()
        return self._loop

    async def _prune_forever(self) -> None:
        while await self._sleep(_LOOK_SECONDS):
            try:
                await self.look()
            except Refusal:
                # The database is unavailable. The next round finds the same expired rows.
                continue
            except Exception:
                self._log.failure("pruning failed; posd tries again in some minutes")

    async def look(self) -> None:
        """Prune all tenants with expired rows, unless another node holds the lease."""
        keep = self.seconds
        due = await retention.due_tenants(
            self._database,
            keep,
            early=min(_EARLY, keep / 4),
            late=min(_LATE, keep / 4),
            night=_NIGHT,
        )
        if not await self._lease():
            return
        try:
            if due:
                await self._prune_due(due)
            await self._prune_deleted()
        finally:
            await retention.release_lease(self._database, self._node_id)

    async def _prune_due(self, due: Sequence[DueTenant]) -> None:
        self._log.info(
            "pruning rows older than {kept}: tenants={tenants}",
            kept=format_duration(self.seconds),
            tenants=len(due),
        )
        for each in due:
            await self._prune_quietly(each)
            if not self.running:
                return
        await self._prune_answers(due[-1])

    async def _prune_deleted(self) -> None:
        """Delete the remaining rows of tenants that were deleted."""
        total = 0
        while gone := await retention.prune_deleted(self._database):
            total += gone
            if not await self._lease() or not await self._sleep(_PAUSE_SECONDS):
                break
        if total:
            self._log.info("pruned rows of deleted tenants: rows={rows}", rows=total)

    async def _prune_quietly(self, due: DueTenant) -> None:
        """Prune one tenant. A failure is logged and does not stop the pruning of other tenants."""
        try:
            await self._prune(due)
            self._failed.discard(due.tenant_id)
        except Busy:
            # Another transaction has locked the rows or the head. The next round tries again.
            return
        except StatementFailed as error:
            if due.tenant_id not in self._failed:
                self._failed.add(due.tenant_id)
                self._log.error(
                    "tenant {tenant_id} cannot be pruned: {error}; posd tries again in some minutes",
                    tenant_id=due.tenant_id,
                    error=error,
                )

    async def _prune(self, due: DueTenant) -> None:
        total, done = PrunedCounts(), False
        try:
            while not done and await self._lease():
                gone, done = await retention.prune(
                    self._database.of(due.tenant_id), due.tenant_id, due.before, FINAL_STATUSES
                )
                total += gone
                if not done and not await self._sleep(_PAUSE_SECONDS):
                    return
        finally:
            if total:
                self._log.info(
                    _NOTED,
                    tenant_id=due.tenant_id,
                    events=total.events,
                    expired=total.expired,
                    messages=total.messages,
                    nacks=total.nacks,
                    orders=total.orders,
                )

    async def _prune_answers(self, due: DueTenant) -> None:
        total = 0
        while gone := await retention.prune_answers(self._database, due.before):
            total += gone
            if not await self._lease() or not await self._sleep(_PAUSE_SECONDS):
                break
        if total:
            self._log.info("pruned: answers={answers}", answers=total)

    async def _lease(self) -> bool:
        return await retention.renew_lease(self._database, self._node_id, _LEASE_SECONDS)

    async def _sleep(self, seconds: float) -> bool:
        """Pause so that other statements run. Return False when the service stops."""
        if self.running:
            await self._pauses.take(seconds * random.uniform(0.5, 1.5))
        return bool(self.running)
