"""Updates `print_status` of orders whose events were sent or acknowledged since the last call."""

from __future__ import annotations

from typing import Final

from twisted.logger import Logger

from posd.database.pool import Database
from posd.delivery.bulk_writer import LOCKED, Troubles
from posd.errors import Busy, StatementFailed, Unavailable
from posd.store import orders
from posd.values import TenantId

_AT_ONCE: Final = 50
"""Tenants in one transaction, which has a subtransaction for each: PostgreSQL is quick with up to 64."""


class OrderMarks:
    """Tenants whose heads were moved and whose orders do not say so yet."""

    _log = Logger()

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unmarked: set[TenantId] = set()
        self._troubles = Troubles(self._log)

    def wanted(self, tenants: set[TenantId]) -> None:
        """Heads of these tenants were moved."""
        self._unmarked |= tenants

    async def mark(self) -> None:
        """Update the orders of all tenants that want it; what cannot be done now is done next time.

        Raises `Unavailable` or `StatementFailed` if that is so, after the other tenants were tried.
        """
        trouble: Exception | None = None
        wanted = sorted(self._unmarked)
        for first in range(0, len(wanted), _AT_ONCE):
            try:
                await self._mark(wanted[first : first + _AT_ONCE])
            except (Busy, StatementFailed) as error:
                trouble = trouble or error
        if trouble is not None:
            raise trouble

    async def mark_quietly(self) -> None:
        """The same for a timer: the database may be away, and other trouble is logged when it begins."""
        try:
            await self.mark()
        except Unavailable:
            return
        except StatementFailed as error:
            self._troubles.begun("marks of orders", error)
        except Exception:
            self._log.failure("orders could not be marked")
        else:
            self._troubles.over("marks of orders")

    async def _mark(self, tenants: list[TenantId]) -> None:
        self._unmarked.difference_update(tenants)
        try:
            failures = await orders.mark(self._database, tenants)
        except BaseException:
            self._unmarked.update(tenants)
            raise
        for tenant_id, why in failures.items():
            if why.startswith(LOCKED):
                self._unmarked.add(tenant_id)
            else:
                self._log.error(
                    "orders of tenant {tenant_id} were not marked: {reason}",
                    tenant_id=tenant_id,
                    reason=why,
                )
