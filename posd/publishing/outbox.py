"""Reads the outbox, and the shops' orders that its rows are about, before the sequencer's transaction.

A look at the outbox deletes nothing. The orders that hooks have noted are then read on connections of
`posd_reader`, for several tenants at the same time, while the sequencer numbers the portions that are ready.
A portion has the ids of the rows that the look has seen, and the transaction takes exactly these rows.

Only the doorman looks (`posd.publishing.doorman`). A portion is numbered under the lease that the doorman had
at the look, or not at all.

The rows of a tenant keep their order: a tenant has one portion at a time, and its later rows wait until its
orders are read. Other tenants do not wait. If the connection of a read is lost, the read is repeated. When a
tenant changes many orders at once, its new orders come before the changes that wait.

A tenant is in quarantine if a read of its tables fails or is too slow. Its rows that need no read are
numbered without the others. Its orders are read one by one after a pause. An order that fails again gets a
pause of its own, and the other orders are read meanwhile. The quarantine ends when all orders have been read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from itertools import takewhile
from typing import Final

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database.reconnecting import Executor
from posd.database.shop_readers import ShopReaders, ShopTablesUnreadable
from posd.errors import StatementFailed, Unavailable
from posd.publishing.batch import TOUCHED, Shops
from posd.publishing.quarantine import TenantQuarantine
from posd.store import sequencing as numbering
from posd.store import shop_rows
from posd.values import Tenant, TenantId

MOST_ROWS: Final = 200
"""The rows of a look and of a batch, which may all be of different tenants. A tenant in a transaction needs
about 10 locks. A server with the default max_locks_per_transaction has 6,400 locks for all sessions."""
_MOST_BYTES: Final = 1024 * 1024
_FAST_SECONDS: Final = 0.05
_SLOW_SECONDS: Final = 0.1
# The longest pause before orders that could not be read are read again.
_LONGEST_PAUSE: Final = 300.0
# The time for which a tenant gets batches of its own after its rows were refused.
_ISOLATED_SECONDS: Final = 10.0


@frozen
class OutboxPortion:
    """Rows of a tenant in the outbox, ready for the transaction.

    `ids`: the ids of the rows. `orders`: the orders that the rows are about, as JSON text by order id.
    `was_read`: some rows are about orders, which were read. `is_one`: all rows are about the same order or
    the same row of a ledger.
    """

    tenant_id: TenantId
    ids: Sequence[int]
    orders: Mapping[str, str] = field(factory=dict)
    fence: int | None = None
    """The fence of the lease that the node had at the look."""
    was_read: bool = False
    is_one: bool = False

    @property
    def size(self) -> int:
        return sum(map(len, self.orders.values()))


class OutboxReader:
    """Looks at the outbox on `connection`, and reads orders with `readers`.

    `shops` returns tenants by their ids. `changed` is called when a read has ended; its argument is True if
    the outbox has to be looked at again. `failed` is called when orders cannot be read: with the tenant, the
    order id if it was a single order, the reason, and the pause in seconds.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        connection: Executor,
        readers: ShopReaders,
        *,
        shops: Callable[[Executor, Collection[TenantId]], Awaitable[Shops]],
        changed: Callable[[bool], None],
        failed: Callable[[TenantId, str | None, str, float], None],
    ) -> None:
        self._clock = clock
        self._connection = connection
        self._readers = readers
        self._shops = shops
        self._changed = changed
        self._failed = failed
        self._fence: int | None = None
        self._reading: set[TenantId] = set()
        self._ready: list[OutboxPortion] = []
        # The number of rows in a portion, for tenants whose tables are slow or whose rows were refused.
        self._limits: dict[TenantId, int] = {}
        # The number of rows in a portion, for tenants whose rows were too much work for one transaction.
        self._work_limits: dict[TenantId, int] = {}
        # The tenants that get batches of their own, since a batch was refused. The value is the earliest end.
        self._isolated: dict[TenantId, float] = {}
        self._isolated_is_next = True
        # The tenants in quarantine. The value is the order that was read last.
        self._quarantine: dict[TenantId, str] = {}
        self._pauses: TenantQuarantine[TenantId] = TenantQuarantine(clock, _LONGEST_PAUSE)
        self._unreadable_orders: TenantQuarantine[tuple[TenantId, str]] = TenantQuarantine(
            clock, _LONGEST_PAUSE
        )

    @property
    def reading(self) -> int:
        """The number of tenants whose orders are being read, or wait for a connection."""
        return len(self._reading)

    @property
    def quarantine(self) -> Collection[TenantId]:
        """The tenants whose orders cannot be read."""
        return self._quarantine.keys()

    def is_isolated(self, portions: Sequence[OutboxPortion]) -> bool:
        """Whether the portions have to be numbered without requests, because an earlier batch was refused."""
        return any(each.tenant_id in self._isolated for each in portions)

    def is_reading(self, tenant_id: TenantId) -> bool:
        """Whether the later rows of a tenant wait until its orders are read."""
        return tenant_id in self._reading and tenant_id not in self._quarantine

    def __bool__(self) -> bool:
        """Whether a portion is ready."""
        return bool(self._ready)

    @property
    def fence(self) -> int | None:
        """The fence of the doorman's lease. None if this node is not the doorman, and does not look."""
        return self._fence

    @fence.setter
    def fence(self, fence: int | None) -> None:
        """Set the fence, and drop the portions that were read under the earlier lease."""
        self._fence = fence
        self._ready.clear()

    async def look(self, excluded: Collection[TenantId]) -> int:
        """Look at the outbox, and begin to read orders. Return the number of rows seen.

        The look leaves out the `excluded` tenants, and the tenants that have a portion or a read already.
        """
        fence = self._fence
        ready = {each.tenant_id for each in self._ready}
        waiting = self._reading - self._quarantine.keys()
        found = await self._look_at_rows(MOST_ROWS, {*excluded, *ready, *waiting})
        if fence is None or fence != self._fence:
            return 0
        for tenant, rows in found:
            self._begin_reading(tenant, rows, fence)
        if due := {
            tenant_id: key
            for tenant_id, key in self._quarantine.items()
            if tenant_id not in {*excluded, *ready, *self._reading}
            and tenant_id not in self._pauses
        }:
            found += await self._read_quarantined(due, fence)
        return sum(len(rows) for _, rows in found)

    async def next_portion(self, tenant_id: TenantId, most: int) -> OutboxPortion | None:
        """Return up to `most` rows of a tenant before its first row that needs a read; None without such."""
        fence = self._fence
        if fence is None:
            return None
        for _, rows in await self._look_at_rows(most, (), tenant_id):
            before = [*takewhile(lambda row: not _touched_orders([row]), rows)]
            return _portion_without_orders(before, fence) if before else None
        return None

    def isolate(self, portion: OutboxPortion, *, was_alone: bool) -> None:
        """Give the tenant of a refused batch batches of its own. Its orders are read again.

        If the portion `was_alone` in the batch, the tenant's next portion has half as many rows.
        """
        tenant_id, rows = portion.tenant_id, len(portion.ids)
        if was_alone:
            self._limits[tenant_id] = max(1, min(self._limits.get(tenant_id, MOST_ROWS), rows) // 2)
        self._isolated[tenant_id] = self._clock.seconds() + _ISOLATED_SECONDS

    def limit_rows(self, tenant_id: TenantId, rows: int) -> None:
        """Limit the portions of a tenant to `rows` rows, since more rows were too much work (`workload`)."""
        self._work_limits[tenant_id] = rows

    def note_numbered(self, portions: Sequence[OutboxPortion], seconds: float = 0.0) -> None:
        """Note that the portions were numbered in `seconds`, and relax the limits of their tenants."""
        for each in portions:
            if seconds < _FAST_SECONDS and each.tenant_id in self._work_limits:
                self._work_limits[each.tenant_id] *= 2
                if self._work_limits[each.tenant_id] >= MOST_ROWS:
                    del self._work_limits[each.tenant_id]
            if each.tenant_id in self._isolated and each.tenant_id in self._limits:
                self._limits[each.tenant_id] = min(MOST_ROWS, 2 * self._limits[each.tenant_id])
            if self._isolated.get(each.tenant_id, math.inf) <= self._clock.seconds():
                del self._isolated[each.tenant_id]

    def next_batch(self, *, others_wait: bool = False) -> list[OutboxPortion]:
        """Remove and return the portions for the next transaction, in the order in which they became ready.

        The portion of a tenant whose rows were refused is alone in its batch. Such batches alternate with the
        batches of other tenants, and with requests if `others_wait`.
        """
        alone = next((each for each in self._ready if each.tenant_id in self._isolated), None)
        others = [each for each in self._ready if each.tenant_id not in self._isolated]
        if alone is not None and (self._isolated_is_next or not (others or others_wait)):
            self._isolated_is_next = False
            self._ready.remove(alone)
            return [alone]
        self._isolated_is_next = True
        portions: list[OutboxPortion] = []
        rows = size = 0
        for each in others:
            rows, size = rows + len(each.ids), size + each.size
            if portions and (rows > MOST_ROWS or size > _MOST_BYTES):
                break
            portions.append(each)
            self._ready.remove(each)
        return portions

    def _begin_reading(
        self, tenant: Tenant | None, rows: Sequence[numbering.SeenRow], fence: int
    ) -> None:
        if tenant is not None and _touched_orders(rows):
            self._reading.add(tenant.id)
            Deferred.fromCoroutine(self._read_in_background(tenant, rows, fence))
        else:
            self._ready.append(_portion_without_orders(rows, fence))

    async def _read_quarantined(
        self, due: Mapping[TenantId, str], fence: int
    ) -> list[tuple[Tenant | None, Sequence[numbering.SeenRow]]]:
        """Begin to read the next order of each tenant in quarantine whose pause is over."""
        unreadable_orders = self._unreadable_orders.now()
        found = await self._group_by_tenant(
            await numbering.read_next_of_tenants(self._connection, due, unreadable_orders)
        )
        if fence != self._fence:
            return []
        for tenant, rows in found:
            self._begin_reading(tenant, rows, fence)
        for tenant_id in due.keys() - {rows[0].tenant_id for _, rows in found}:
            if due[tenant_id]:
                # All orders after this one were read. The next round begins with the first order again.
                self._quarantine[tenant_id] = ""
                self._changed(True)
            elif not any(tenant_id == of for of, _ in self._unreadable_orders.known()):
                del self._quarantine[tenant_id]
                self._pauses.remove(tenant_id)
                self._changed(True)
        return found

    async def _look_at_rows(
        self, most: int, excluded: Collection[TenantId], only: TenantId | None = None
    ) -> list[tuple[Tenant | None, Sequence[numbering.SeenRow]]]:
        """Return the rows of the outbox by tenant. The tenant is None if it was deleted."""
        unreadable = self._quarantine.keys()
        limits = dict(self._limits)
        for tenant_id, rows in self._work_limits.items():
            limits[tenant_id] = min(rows, limits.get(tenant_id, MOST_ROWS))
        return await self._group_by_tenant(
            await numbering.read_outbox(self._connection, most, excluded, unreadable, limits, only)
        )

    async def _group_by_tenant(
        self, rows: Sequence[numbering.SeenRow]
    ) -> list[tuple[Tenant | None, Sequence[numbering.SeenRow]]]:
        seen: dict[TenantId, list[numbering.SeenRow]] = defaultdict(list)
        for row in rows:
            seen[row.tenant_id].append(row)
        shops = await self._shops(self._connection, seen.keys()) if seen else {}
        return [(shops.get(tenant_id), of_tenant) for tenant_id, of_tenant in seen.items()]

    async def _read_in_background(
        self, tenant: Tenant, rows: Sequence[numbering.SeenRow], fence: int
    ) -> None:
        is_look_needed = False
        try:
            portion = await self._read(tenant, rows, fence)
            if portion is None or fence != self._fence:
                # The next look numbers the rows that need no read. If the lease has changed, it reads the
                # orders again.
                is_look_needed = True
            else:
                self._ready.append(portion)
        except Unavailable:
            # The rows stay in the outbox. Without a connection, the feed requests a look later.
            is_look_needed = self._readers.up
        finally:
            self._reading.discard(tenant.id)
            self._changed(is_look_needed)

    async def _read(
        self, tenant: Tenant, rows: Sequence[numbering.SeenRow], fence: int
    ) -> OutboxPortion | None:
        """Read the orders that the rows are about. Return None if they cannot be read.

        Raises `Unavailable` if the connection is lost.
        """
        touched = _touched_orders(rows)
        began = self._clock.seconds()
        try:
            read = await shop_rows.read_orders(self._readers, tenant, touched)
        except ShopTablesUnreadable as error:
            self._quarantine_tenant(tenant.id, touched, str(error), is_order_fault=True)
            return None
        except StatementFailed as error:
            self._quarantine_tenant(tenant.id, touched, str(error), is_order_fault=False)
            return None
        except Unavailable:
            raise
        except Exception:
            self._log.failure(
                "posd failed to read orders of tenant {tenant}, and reads them one by one after a pause. This"
                " is a fault of posd; report it with this traceback",
                tenant=tenant.slug,
            )
            self._quarantine_tenant(
                tenant.id, touched, "posd failed to read its orders", is_order_fault=True
            )
            return None
        self._adapt_limit(tenant.id, len(rows), self._clock.seconds() - began)
        if tenant.id in self._quarantine:
            self._quarantine[tenant.id] = touched[-1]
            self._pauses.remove(tenant.id)
            for order_id in touched:
                self._unreadable_orders.remove((tenant.id, order_id))
        taken = _readable_rows(rows, set(read.unread))
        ids = [row.id for row in taken]
        is_one = len({_subject(row) for row in taken}) == 1
        return OutboxPortion(tenant.id, ids, read.found, fence, was_read=True, is_one=is_one)

    def _quarantine_tenant(
        self, tenant_id: TenantId, order_ids: Sequence[str], reason: str, *, is_order_fault: bool
    ) -> None:
        """Put a tenant into quarantine, and a single order too if the failure `is_order_fault`."""
        alone = order_ids[0] if len(order_ids) == 1 else None
        self._quarantine[tenant_id] = alone or ""
        if alone is not None and is_order_fault:
            self._unreadable_orders.exclude((tenant_id, alone))
        self._failed(tenant_id, alone, reason, self._pauses.exclude(tenant_id))

    def _adapt_limit(self, tenant_id: TenantId, rows: int, seconds: float) -> None:
        """Adapt the size of a tenant's portions, so that a read takes less than 100 ms."""
        limit = self._limits.get(tenant_id, MOST_ROWS)
        if seconds > _SLOW_SECONDS:
            self._limits[tenant_id] = max(1, min(limit, rows) // 2)
        elif tenant_id in self._isolated:
            # `note_numbered` raises the limit when rows of the tenant have been numbered.
            return
        elif seconds < _FAST_SECONDS and limit < MOST_ROWS:
            self._limits[tenant_id] = min(MOST_ROWS, 2 * limit)
            if self._limits[tenant_id] == MOST_ROWS:
                del self._limits[tenant_id]


def _touched_orders(rows: Sequence[numbering.SeenRow]) -> list[str]:
    """Return the ids of the orders that hooks have noted as changed or inserted, in the order of reading."""
    touched = [row for row in rows if row.key is not None and row.type in TOUCHED]
    # If not all orders fit, the first ones are read.
    touched.sort(key=lambda row: not row.ahead)
    return [*dict.fromkeys(row.key for row in touched if row.key is not None)]


def _portion_without_orders(rows: Sequence[numbering.SeenRow], fence: int) -> OutboxPortion:
    return OutboxPortion(rows[0].tenant_id, [row.id for row in rows], fence=fence)


def _readable_rows(
    rows: Sequence[numbering.SeenRow], unread: Collection[str]
) -> list[numbering.SeenRow]:
    """Return the rows before the first row about an unread order, and the rows `ahead` that were read.

    The result also has the later rows about the same orders, since the read covers them too.
    """

    def is_unread(row: numbering.SeenRow) -> bool:
        return row.key in unread and row.type in TOUCHED

    before = [*takewhile(lambda row: row.ahead or not is_unread(row), rows)]
    more = (row for row in rows[len(before) :] if row.ahead)
    taken = [row for row in (*before, *more) if not is_unread(row)]
    keys = {_subject(row) for row in taken if row.key is not None}
    ids = {row.id for row in taken}
    return [row for row in rows if row.id in ids or _subject(row) in keys]


def _subject(row: numbering.SeenRow) -> tuple[str, str | int]:
    """Return the order or the row of a ledger that a row is about, or the row itself."""
    if row.key is None:
        return "", row.id
    return "order" if row.type in TOUCHED else row.type, row.key
