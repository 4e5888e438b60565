"""What waits in the outbox, and the shops' orders that it is about, read before anything is numbered.

A look at the outbox deletes nothing. The orders that hooks have noted are then read on the connections of
`posd_reader`, tenants side by side, while the sequencer goes on with what is ready. A portion has the ids of
the rows that were seen before its reading began; the sequencer takes exactly those.

Only the doorman looks (`posd.publishing.doorman`). What it has read is numbered under the lease that it had
when it looked, or not at all.

The rows of a tenant keep their order, whether or not they need reading: a tenant is in one portion at a time,
and later rows wait until its orders are read. Other tenants do not wait. A read whose connection is lost is
done again. When a tenant changes many orders at once, its new orders come before the changes that wait.

A tenant whose own tables make a read fail, or are too slow, is in quarantine. Its rows that need no reading
go on without the others. Its orders are read one by one after a pause. An order that fails again is left
alone for a time of its own, and the others go on. The quarantine ends when all orders that wait have been
read.
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
"""In a look and in a batch. A tenant in a transaction costs about ten locks, of the 6,400 that a server has
as installed for everybody (max_locks_per_transaction), so there may be rows of as many tenants at most."""
_MOST_BYTES: Final = 1024 * 1024
_FAST_SECONDS: Final = 0.05
_SLOW_SECONDS: Final = 0.1
# For how long, at most, the orders of a tenant are left alone that cannot be read.
_LONGEST_PAUSE: Final = 300.0
_ISOLATED_SECONDS: Final = 10.0


@frozen
class OutboxPortion:
    """Rows of a tenant's outbox by their ids, and the orders that they are about as JSON text by order id.

    `was_read`: some are about orders, which were read. `is_one`: all are about the same thing.
    """

    tenant_id: TenantId
    ids: Sequence[int]
    orders: Mapping[str, str] = field(factory=dict)
    fence: int | None = None
    """Of the lease that the node had when it looked."""
    was_read: bool = False
    is_one: bool = False

    @property
    def size(self) -> int:
        return sum(map(len, self.orders.values()))


class OutboxReader:
    """Looks at the outbox by `connection` and has orders read by `readers`.

    `changed` is called when a read is over; with True if the outbox should be looked at again. `failed` is
    called when orders cannot be read: with the tenant, the order if it is one, why, and the length of the
    pause.
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
        # How many rows are seen at once of tenants whose tables are slow, or whose rows were refused.
        self._limits: dict[TenantId, int] = {}
        # And of those whose rows were too much work for one transaction.
        self._work_limits: dict[TenantId, int] = {}
        # Tenants whose batch was refused are numbered alone, and until when at least.
        self._isolated: dict[TenantId, float] = {}
        self._isolated_is_next = True
        # The tenants in quarantine, and the order of each that was read last.
        self._quarantine: dict[TenantId, str] = {}
        self._pauses: TenantQuarantine[TenantId] = TenantQuarantine(clock, _LONGEST_PAUSE)
        self._unreadable_orders: TenantQuarantine[tuple[TenantId, str]] = TenantQuarantine(
            clock, _LONGEST_PAUSE
        )

    @property
    def reading(self) -> int:
        """The tables of how many tenants are being read, or wait for that."""
        return len(self._reading)

    @property
    def quarantine(self) -> Collection[TenantId]:
        """The tenants whose orders cannot be read."""
        return self._quarantine.keys()

    def is_isolated(self, portions: Sequence[OutboxPortion]) -> bool:
        """Whether no request may be in the same transaction, since an earlier one was refused."""
        return any(each.tenant_id in self._isolated for each in portions)

    def is_reading(self, tenant_id: TenantId) -> bool:
        """Whether later rows of a tenant wait until its orders are read."""
        return tenant_id in self._reading and tenant_id not in self._quarantine

    def __bool__(self) -> bool:
        """Whether a portion is ready."""
        return bool(self._ready)

    @property
    def fence(self) -> int | None:
        """That of the doorman's lease, if this node has it; without it there is nothing to look at."""
        return self._fence

    @fence.setter
    def fence(self, fence: int | None) -> None:
        """Another lease, or none: what was read under the one before is dropped."""
        self._fence = fence
        self._ready.clear()

    async def look(self, excluded: Collection[TenantId]) -> int:
        """See what is there without the tenants that are `excluded`; how many rows were seen.

        Begins to read what has to be read.
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
        """Up to `most` rows of one tenant that come before any that need reading; None if there are none."""
        fence = self._fence
        if fence is None:
            return None
        for _, rows in await self._look_at_rows(most, (), tenant_id):
            before = [*takewhile(lambda row: not _touched_orders([row]), rows)]
            return _portion_without_orders(before, fence) if before else None
        return None

    def isolate(self, portion: OutboxPortion, *, was_alone: bool) -> None:
        """Have rows of a batch that was refused read again, and numbered alone; then fewer at once."""
        tenant_id, rows = portion.tenant_id, len(portion.ids)
        if was_alone:
            self._limits[tenant_id] = max(1, min(self._limits.get(tenant_id, MOST_ROWS), rows) // 2)
        self._isolated[tenant_id] = self._clock.seconds() + _ISOLATED_SECONDS

    def limit_rows(self, tenant_id: TenantId, rows: int) -> None:
        """Have so many rows of a tenant seen at once, since more were too much work (`workload`)."""
        self._work_limits[tenant_id] = rows

    def note_numbered(self, portions: Sequence[OutboxPortion], seconds: float = 0.0) -> None:
        """These were numbered, in so many seconds."""
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
        """Portions for one transaction, those first that were ready first.

        The portion of a tenant whose rows were refused is in a batch of its own. Such batches take turns with
        those of the others, and with requests that wait (`others_wait`).
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
                # All after this one were read. It goes on with the first.
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
        """The rows that are there, by their tenants; a tenant that is gone is None."""
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
                # Its rows that need no reading go on. Or it is read again, if this node has another lease.
                is_look_needed = True
            else:
                self._ready.append(portion)
        except Unavailable:
            # The rows stay in the outbox. Without any connection, the feed looks again later.
            is_look_needed = self._readers.up
        finally:
            self._reading.discard(tenant.id)
            self._changed(is_look_needed)

    async def _read(
        self, tenant: Tenant, rows: Sequence[numbering.SeenRow], fence: int
    ) -> OutboxPortion | None:
        """The orders that these rows are about; None if they cannot be read.

        Raises `Unavailable` where the connection is lost.
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
            self._log.failure("the orders of a shop could not be read")
            self._quarantine_tenant(
                tenant.id, touched, "posd failed at reading its orders", is_order_fault=True
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
        """Put a tenant into quarantine, and an order that could not be read alone aside if it
        `is_order_fault`.
        """
        alone = order_ids[0] if len(order_ids) == 1 else None
        self._quarantine[tenant_id] = alone or ""
        if alone is not None and is_order_fault:
            self._unreadable_orders.exclude((tenant_id, alone))
        self._failed(tenant_id, alone, reason, self._pauses.exclude(tenant_id))

    def _adapt_limit(self, tenant_id: TenantId, rows: int, seconds: float) -> None:
        """Have so many rows read at once that it takes less than a tenth of a second."""
        limit = self._limits.get(tenant_id, MOST_ROWS)
        if seconds > _SLOW_SECONDS:
            self._limits[tenant_id] = max(1, min(limit, rows) // 2)
        elif tenant_id in self._isolated:
            # It grows again when rows of its were accepted.
            return
        elif seconds < _FAST_SECONDS and limit < MOST_ROWS:
            self._limits[tenant_id] = min(MOST_ROWS, 2 * limit)
            if self._limits[tenant_id] == MOST_ROWS:
                del self._limits[tenant_id]


def _touched_orders(rows: Sequence[numbering.SeenRow]) -> list[str]:
    """The orders that were touched."""
    touched = [row for row in rows if row.key is not None and row.type in TOUCHED]
    # The first of them are read, if not all fit.
    touched.sort(key=lambda row: not row.ahead)
    return [*dict.fromkeys(row.key for row in touched if row.key is not None)]


def _portion_without_orders(rows: Sequence[numbering.SeenRow], fence: int) -> OutboxPortion:
    return OutboxPortion(rows[0].tenant_id, [row.id for row in rows], fence=fence)


def _readable_rows(
    rows: Sequence[numbering.SeenRow], unread: Collection[str]
) -> list[numbering.SeenRow]:
    """The rows before the first one that is about an order that was not read, and all with their keys.

    Also those that are ahead and were read.
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
    """The order or the row of a ledger that a row is about, or itself."""
    if row.key is None:
        return "", row.id
    return "order" if row.type in TOUCHED else row.type, row.key
