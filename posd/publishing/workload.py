"""How much work the rows of a batch are, and the end of a batch that is too much.

A short row may change a long order, and a row of some kilobytes may have thousands of lines. So the work is
not known from the rows. It runs in the reactor's thread, and all shops wait for it. A batch that is too much
is rolled back, and the tenant with most of the work has fewer rows in the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from twisted.internet.interfaces import IReactorTime

from posd.errors import PosdError
from posd.values import TenantId

_MOST_BYTES: Final = 4 * 1024 * 1024
"""Of what is stored for the rows of one transaction."""
_MOST_SECONDS: Final = 0.1
"""For each of the two steps, reading the rows and making entries of them."""


class BatchTooLarge(PosdError):
    """A batch is too much work. `rows` of the rows of `tenant_id`, which has most of it, are enough."""

    def __init__(self, tenant_id: TenantId, rows: int) -> None:
        super().__init__(f"{rows} rows of tenant {tenant_id} are enough for a transaction")
        self.tenant_id = tenant_id
        self.rows = rows


class StepWorkload:
    """The work of one step for rows of these tenants, one element a row, measured from now on."""

    def __init__(self, clock: IReactorTime, tenants: Iterable[TenantId]) -> None:
        self._clock = clock
        self._rows = Counter(tenants)
        self._rows_left = self._rows.total()
        self._rows_done: Counter[TenantId] = Counter()
        # As parts of what is too much.
        self._work: dict[TenantId, float] = {}
        self._measured_at = clock.seconds()

    def done(self, tenant_id: TenantId, size: int = 0) -> None:
        """A row was worked on, and `size` bytes are to be stored of it. Raises `BatchTooLarge`.

        The batch goes on if no row is left, or if no tenant that has been worked for can have fewer.
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
