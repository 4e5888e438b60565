"""Prunes by itself what is older than it is kept for, on one node at a time.

Every few minutes it looks which tenants have what is due. That is once a day for each, at an hour at
which the shop is closed; after a night in which no posd ran, within minutes. Where little is kept it is more
often. What is deleted is in `store.retention`; that a till which comes too late is told so, in `cursor`.
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
"""The hours in which a restaurant is asleep, by its own clock."""
_EARLY, _LATE = 20 * HOUR, 28 * HOUR
"""How much may be due at night, and by day: in the night it is a day's worth, or the night was missed."""
_LEASE_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.1
_NOTED: Final = (
    "pruned: tenant={tenant_id} events={events} expired={expired} messages={messages}"
    " nacks={nacks} orders={orders}"
)


class Retention(Service):
    """Looks for what is due, and has it deleted in batches with a pause between them.

    `seconds` is how long events are kept; it may be changed at any time.
    """

    _log = Logger()

    def __init__(
        self, reactor: IReactorTime, database: Pool, node_id: UUID, seconds: float
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._node_id = node_id
        self.seconds = seconds
        # What is wrong with a tenant is told once.
        self._failed: set[TenantId] = set()
        self._pauses = RoundPauses(reactor)
        self._loop: Deferred[None] = succeed(None)

    def startService(self) -> None:
        Service.startService(self)
        self._loop = Deferred.fromCoroutine(self._prune_forever())
        self._loop.addErrback(lambda failure: self._log.failure("pruning has ended", failure))

    def stopService(self) -> Deferred[None]:
        """The batch that is being deleted still is."""
        Service.stopService(self)
        self._pauses.end()
        return self._loop

    async def _prune_forever(self) -> None:
        while await self._sleep(_LOOK_SECONDS):
            try:
                await self.look()
            except Refusal:
                # The database is away. What is due stays due.
                continue
            except Exception:
                self._log.failure("pruning failed")

    async def look(self) -> None:
        """Prune all that is due, unless another node is at it."""
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
            "pruning what is older than {kept}: tenants={tenants}",
            kept=format_duration(self.seconds),
            tenants=len(due),
        )
        for each in due:
            await self._prune_quietly(each)
            if not self.running:
                return
        await self._prune_answers(due[-1])

    async def _prune_deleted(self) -> None:
        """Delete what is left of tenants that were deleted."""
        total = 0
        while gone := await retention.prune_deleted(self._database):
            total += gone
            if not await self._lease() or not await self._sleep(_PAUSE_SECONDS):
                break
        if total:
            self._log.info("pruned rows of deleted tenants: rows={rows}", rows=total)

    async def _prune_quietly(self, due: DueTenant) -> None:
        """One tenant; what goes wrong with it stops no other."""
        try:
            await self._prune(due)
            self._failed.discard(due.tenant_id)
        except Busy:
            # Somebody has its rows or its head; it stays due.
            return
        except StatementFailed as error:
            if due.tenant_id not in self._failed:
                self._failed.add(due.tenant_id)
                self._log.error(
                    "tenant {tenant_id} cannot be pruned: {error}",
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
        """Let others have their turn; False when there is to be no more."""
        if self.running:
            await self._pauses.take(seconds * random.uniform(0.5, 1.5))
        return bool(self.running)
