"""Measures the work for the rows of a batch, and ends a batch that is too much work.

The size of the rows does not predict the work: a short row may be about a long order, and a row of some
kilobytes may have thousands of lines. The work runs in the reactor's thread, and all shops wait for it. If a
batch is too much work, its transaction is rolled back, and the tenant with most of the work has fewer rows in
the next batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from twisted.internet.interfaces import IReactorTime

from posd.errors import PosdError
from posd.values import TenantId

_MOST_BYTES: Final = 4 * 1024 * 1024
"""The limit of the bytes that are stored for the rows of a transaction."""
_MOST_SECONDS: Final = 0.1
"""The limit of each of the two steps, reading the rows and making their log entries."""


class BatchTooLarge(PosdError):
    """A batch is too much work. The next batch may have `rows` rows of `tenant_id`, which has most of it."""

    def __init__(self, tenant_id: TenantId, rows: int) -> None:
        super().__init__(f"a transaction may have {rows} rows of tenant {tenant_id} only")
        self.tenant_id = tenant_id
        self.rows = rows


class StepWorkload:
    """The work of a step, measured from the creation of the object. `tenants` has the tenant of each row."""

    def __init__(self, clock: IReactorTime, tenants: Iterable[TenantId]) -> None:
        self._clock = clock
        self._rows = Counter(tenants)
        self._rows_left = self._rows.total()
        self._rows_done: Counter[TenantId] = Counter()
        # The work of each tenant; 1.0 is the limit for the sum.
        self._work: dict[TenantId, float] = {}
        self._measured_at = clock.seconds()

    def done(self, tenant_id: TenantId, size: int = 0) -> None:
        """Add the work since the last call to a tenant. `size` bytes are to be stored for the row.

        Raises `BatchTooLarge` if the sum exceeds the limit, a row is left, and a tenant with more than one
        row has been worked for.
        """
        before, self._measured_at = self._measured_at, self._clock.seconds()
        self._rows_done[tenant_id] += 1
        self._rows_left -= 1
        part = (self._measured_at - before) / _MOST_SECONDS + size / _MOST_BYTES
        self._work[tenant_id] = self._work.get(tenant_id, 0.0) + part
        if self._rows_left and sum(self._work.values()) > 1:
            heaviest = max(
                (each for each in self._work if self._rows[each] > 1),
                key=lambda each: self._work[each],
                default=None,
            )
            if heaviest is not None:
                raise BatchTooLarge(heaviest, max(1, self._rows_done[heaviest] // 2))
