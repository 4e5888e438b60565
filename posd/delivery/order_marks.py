"""Updates confirmed positions and the `print_status` of orders, once a second.

Reports of tills about orders confirm events, which moves heads. The `print_status` of orders follows the
heads. Tills do not wait for these statements, so they are not part of a flush.
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
"""Tenants in one transaction. Their orders are locked for the duration of one UPDATE."""


class OrderMarks:
    """Tenants whose orders must be checked. `confirmed` is called with the confirmed position of a stream."""

    _log = Logger()

    def __init__(self, database: Pool, confirmed: Callable[[StreamName, Seq], None]) -> None:
        self._database = database
        self._confirmed = confirmed
        self._reported: set[TenantId] = set()
        self._unmarked: set[TenantId] = set()
        # Tenants of a statement that timed out, by kind of work. Each gets its own statement until that
        # succeeds, since one slow tenant fails the statement for all tenants in it.
        self._alone: defaultdict[str, set[TenantId]] = defaultdict(set)
        self._problems = ProblemLog(self._log)

    def reported(self, tenant_id: TenantId) -> None:
        """A till of this tenant has reported on an order."""
        self._reported.add(tenant_id)

    def heads_moved(self, tenants: set[TenantId]) -> None:
        """The heads of these tenants were moved."""
        self._unmarked |= tenants

    async def mark(self) -> None:
        """Read the confirmed positions and update the orders. Work that fails is kept for the next call.

        Raises the first `Unavailable` or `StatementFailed`, after all other tenants were processed.
        """
        problem: Exception | None = None
        for what, pending, work in (
            ("confirmed positions", self._reported, self._confirm),
            ("print statuses of orders", self._unmarked, self._mark),
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
        """Call `mark` for the timer, and log errors other than an unreachable database once."""
        try:
            await self.mark()
        except Unavailable:
            return
        except StatementFailed as error:
            self._problems.began("confirmed positions and print statuses", error)
        except Exception:
            self._log.failure(
                "the print statuses of orders could not be updated; posd tries again in a second"
            )
        else:
            self._problems.ended("confirmed positions and print statuses")

    async def _run(
        self,
        pending: set[TenantId],
        tenants: list[TenantId],
        work: Callable[[list[TenantId]], Awaitable[None]],
    ) -> None:
        """Do `work` for some of the `pending` tenants. If it fails, these tenants stay pending."""
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
    """Divide tenants among statements: the tenants of `alone` get one each, the others share."""
    together = sorted(pending - alone)
    parts = [together[n : n + _MOST_TENANTS] for n in range(0, len(together), _MOST_TENANTS)]
    return [*parts, *([each] for each in sorted(pending & alone))]
