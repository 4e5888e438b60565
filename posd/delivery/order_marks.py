"""What passes between heads of streams and orders, once a second.

What tills said of orders confirms events, which moves heads; and `print_status` of orders follows the heads.
Neither is part of a flush that tills wait for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Final

from twisted.logger import Logger

from posd.database.pool import Pool
from posd.delivery.bulk_writer import ProblemLog
from posd.errors import Busy, StatementFailed, Unavailable
from posd.events.orders import FINAL_STATUSES
from posd.store import orders
from posd.values import Seq, StreamName, TenantId

_MOST_TENANTS: Final = 50
"""Tenants in one transaction: the orders of so many are locked for the time of one UPDATE."""


class OrderMarks:
    """Tenants whose orders are to be looked at. `confirmed` is told how far a tenant's tills are."""

    _log = Logger()

    def __init__(self, database: Pool, confirmed: Callable[[StreamName, Seq], None]) -> None:
        self._database = database
        self._confirmed = confirmed
        self._reported: set[TenantId] = set()
        self._unmarked: set[TenantId] = set()
        # Tenants of statements that took too long. Each of them gets a statement of its own until that
        # succeeds, since one slow tenant fails the statement for all.
        self._alone: defaultdict[str, set[TenantId]] = defaultdict(set)
        self._problems = ProblemLog(self._log)

    def reported(self, tenant_id: TenantId) -> None:
        """A till of this tenant has said something about an order."""
        self._reported.add(tenant_id)

    def heads_moved(self, tenants: set[TenantId]) -> None:
        """Heads of these tenants were moved."""
        self._unmarked |= tenants

    async def mark(self) -> None:
        """Read what is confirmed, and update orders; what cannot be done now is done next time.

        Raises `Unavailable` or `StatementFailed` if there is such a thing, after all others were done.
        """
        problem: Exception | None = None
        for what, pending, work in (
            ("reports of orders", self._reported, self._confirm),
            ("marks of orders", self._unmarked, self._mark),
        ):
            alone = self._alone[what]
            for tenants in _parts(pending, alone):
                try:
                    await self._run(pending, tenants, work)
                except (Busy, StatementFailed) as error:
                    problem = problem or error
                    if isinstance(error, Busy):
                        alone.update(tenants)
                        if len(tenants) == 1:
                            self._problems.began(f"{what} of tenant {tenants[0]}", error)
                else:
                    alone.difference_update(tenants)
                    for tenant_id in tenants:
                        self._problems.ended(f"{what} of tenant {tenant_id}")
        if problem is not None:
            raise problem

    async def mark_and_log(self) -> None:
        """The same for a timer: the database may be away, and other trouble is logged when it begins."""
        try:
            await self.mark()
        except Unavailable:
            return
        except StatementFailed as error:
            self._problems.began("marks of orders", error)
        except Exception:
            self._log.failure("orders could not be marked")
        else:
            self._problems.ended("marks of orders")

    async def _run(
        self,
        pending: set[TenantId],
        tenants: list[TenantId],
        work: Callable[[list[TenantId]], Awaitable[None]],
    ) -> None:
        """Do `work` for some of those that are `pending`; if it fails they stay wanted."""
        pending.difference_update(tenants)
        try:
            await work(tenants)
        except BaseException:
            pending.update(tenants)
            raise

    async def _confirm(self, tenants: list[TenantId]) -> None:
        found = await orders.confirmed_positions(self._database, tenants, FINAL_STATUSES)
        for stream, seq in found.items():
            self._confirmed(stream, seq)

    async def _mark(self, tenants: list[TenantId]) -> None:
        await orders.update_print_status(self._database, tenants)


def _parts(pending: set[TenantId], alone: set[TenantId]) -> list[list[TenantId]]:
    """Divide tenants into statements: those that are not `alone` together, and then each of the others."""
    together = sorted(pending - alone)
    parts = [together[n : n + _MOST_TENANTS] for n in range(0, len(together), _MOST_TENANTS)]
    return [*parts, *([each] for each in sorted(pending & alone))]
