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

from posd.database.link import Session
from posd.database.readers import Readers, Unreadable
from posd.errors import StatementFailed, Unavailable
from posd.publishing.batch import TOUCHED, Shops
from posd.publishing.quarantine import Aside
from posd.store import numbering, shop_rows
from posd.values import Tenant, TenantId

MOST_ROWS: Final = 200
"""In a look and in a batch. A tenant in a transaction costs about ten locks, of the 6,400 that a server has
as installed for everybody (max_locks_per_transaction), so there may be rows of as many tenants at most."""
_MOST_BYTES: Final = 1024 * 1024
_SOON_SECONDS: Final = 0.05
_LATE_SECONDS: Final = 0.1
# For how long, at most, the orders of a tenant are left alone that cannot be read.
_LONGEST_PAUSE: Final = 300.0
_ALONE_SECONDS: Final = 10.0


@frozen
class Portion:
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


class Outbox:
    """Looks at the outbox by `link` and has orders read by `readers`.

    `changed` is called when a read is over; with True if the outbox should be looked at again. `failed` is
    called when orders cannot be read: with the tenant, the order if it is one, why, and the length of the
    pause.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        link: Session,
        readers: Readers,
        *,
        shops: Callable[[Session, Collection[TenantId]], Awaitable[Shops]],
        changed: Callable[[bool], None],
        failed: Callable[[TenantId, str | None, str, float], None],
    ) -> None:
        self._clock = clock
        self._link = link
        self._readers = readers
        self._shops = shops
        self._changed = changed
        self._failed = failed
        self._fence: int | None = None
        self._reading: set[TenantId] = set()
        self._ready: list[Portion] = []
        # How many rows are seen at once of tenants whose tables are slow, or whose rows were refused.
        self._limits: dict[TenantId, int] = {}
        # And of those whose rows were too much work for one transaction.
        self._heavy: dict[TenantId, int] = {}
        # Tenants whose batch was refused are numbered alone, and until when at least.
        self._alone: dict[TenantId, float] = {}
        self._alone_is_next = True
        # The tenants in quarantine, and the order of each that was read last.
        self._quarantine: dict[TenantId, str] = {}
        self._pauses: Aside[TenantId] = Aside(clock, _LONGEST_PAUSE)
        self._odd: Aside[tuple[TenantId, str]] = Aside(clock, _LONGEST_PAUSE)

    @property
    def reading(self) -> int:
        """The tables of how many tenants are being read, or wait for that."""
        return len(self._reading)

    @property
    def quarantine(self) -> Collection[TenantId]:
        """The tenants whose orders cannot be read."""
        return self._quarantine.keys()

    def is_alone(self, portions: Sequence[Portion]) -> bool:
        """Whether no request may be in the same transaction, since an earlier one was refused."""
        return any(each.tenant_id in self._alone for each in portions)

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

    async def look(self, aside: Collection[TenantId]) -> int:
        """See what is there without the tenants that are `aside`; how many rows were seen.

        Begins to read what has to be read.
        """
        fence = self._fence
        ready = {each.tenant_id for each in self._ready}
        waiting = self._reading - self._quarantine.keys()
        found = await self._seen(MOST_ROWS, {*aside, *ready, *waiting})
        if fence is None or fence != self._fence:
            return 0
        for tenant, rows in found:
            self._begin(tenant, rows, fence)
        if due := {
            tenant_id: key
            for tenant_id, key in self._quarantine.items()
            if tenant_id not in {*aside, *ready, *self._reading} and tenant_id not in self._pauses
        }:
            found += await self._look_again(due, fence)
        return sum(len(rows) for _, rows in found)

    async def one(self, tenant_id: TenantId, most: int) -> Portion | None:
        """Up to `most` rows of one tenant that come before any that need reading; None if there are none."""
        fence = self._fence
        if fence is None:
            return None
        for _, rows in await self._seen(most, (), tenant_id):
            before = [*takewhile(lambda row: not _touched([row]), rows)]
            return _unread(before, fence) if before else None
        return None

    def divide(self, portion: Portion, *, was_alone: bool) -> None:
        """Have rows of a batch that was refused read again, and numbered alone; then fewer at once."""
        tenant_id, rows = portion.tenant_id, len(portion.ids)
        if was_alone:
            self._limits[tenant_id] = max(1, min(self._limits.get(tenant_id, MOST_ROWS), rows) // 2)
        self._alone[tenant_id] = self._clock.seconds() + _ALONE_SECONDS

    def lighten(self, tenant_id: TenantId, rows: int) -> None:
        """Have so many rows of a tenant seen at once, since more were too much work (`workload`)."""
        self._heavy[tenant_id] = rows

    def accepted(self, portions: Sequence[Portion], seconds: float = 0.0) -> None:
        """These were numbered, in so many seconds."""
        for each in portions:
            if seconds < _SOON_SECONDS and each.tenant_id in self._heavy:
                self._heavy[each.tenant_id] *= 2
                if self._heavy[each.tenant_id] >= MOST_ROWS:
                    del self._heavy[each.tenant_id]
            if each.tenant_id in self._alone and each.tenant_id in self._limits:
                self._limits[each.tenant_id] = min(MOST_ROWS, 2 * self._limits[each.tenant_id])
            if self._alone.get(each.tenant_id, math.inf) <= self._clock.seconds():
                del self._alone[each.tenant_id]

    def next_batch(self, *, others_wait: bool = False) -> list[Portion]:
        """Portions for one transaction, those first that were ready first.

        The portion of a tenant whose rows were refused is in a batch of its own. Such batches take turns with
        those of the others, and with requests that wait (`others_wait`).
        """
        alone = next((each for each in self._ready if each.tenant_id in self._alone), None)
        others = [each for each in self._ready if each.tenant_id not in self._alone]
        if alone is not None and (self._alone_is_next or not (others or others_wait)):
            self._alone_is_next = False
            self._ready.remove(alone)
            return [alone]
        self._alone_is_next = True
        portions: list[Portion] = []
        rows = size = 0
        for each in others:
            rows, size = rows + len(each.ids), size + each.size
            if portions and (rows > MOST_ROWS or size > _MOST_BYTES):
                break
            portions.append(each)
            self._ready.remove(each)
        return portions

    def _begin(self, tenant: Tenant | None, rows: Sequence[numbering.Seen], fence: int) -> None:
        if tenant is not None and _touched(rows):
            self._reading.add(tenant.id)
            Deferred.fromCoroutine(self._read_aside(tenant, rows, fence))
        else:
            self._ready.append(_unread(rows, fence))

    async def _look_again(
        self, due: Mapping[TenantId, str], fence: int
    ) -> list[tuple[Tenant | None, Sequence[numbering.Seen]]]:
        """Begin to read the next order of each tenant in quarantine whose pause is over."""
        odd = self._odd.now()
        found = await self._of_shops(await numbering.look_again(self._link, due, odd))
        if fence != self._fence:
            return []
        for tenant, rows in found:
            self._begin(tenant, rows, fence)
        for tenant_id in due.keys() - {rows[0].tenant_id for _, rows in found}:
            if due[tenant_id]:
                # All after this one were read. It goes on with the first.
                self._quarantine[tenant_id] = ""
                self._changed(True)
            elif not any(tenant_id == of for of, _ in self._odd.known()):
                del self._quarantine[tenant_id]
                self._pauses.remove(tenant_id)
                self._changed(True)
        return found

    async def _seen(
        self, most: int, aside: Collection[TenantId], only: TenantId | None = None
    ) -> list[tuple[Tenant | None, Sequence[numbering.Seen]]]:
        """The rows that are there, by their tenants; a tenant that is gone is None."""
        unreadable = self._quarantine.keys()
        limits = dict(self._limits)
        for tenant_id, rows in self._heavy.items():
            limits[tenant_id] = min(rows, limits.get(tenant_id, MOST_ROWS))
        return await self._of_shops(
            await numbering.look(self._link, most, aside, unreadable, limits, only)
        )

    async def _of_shops(
        self, rows: Sequence[numbering.Seen]
    ) -> list[tuple[Tenant | None, Sequence[numbering.Seen]]]:
        seen: dict[TenantId, list[numbering.Seen]] = defaultdict(list)
        for row in rows:
            seen[row.tenant_id].append(row)
        shops = await self._shops(self._link, seen.keys()) if seen else {}
        return [(shops.get(tenant_id), of_tenant) for tenant_id, of_tenant in seen.items()]

    async def _read_aside(self, tenant: Tenant, rows: Sequence[numbering.Seen], fence: int) -> None:
        again = False
        try:
            portion = await self._read(tenant, rows, fence)
            if portion is None or fence != self._fence:
                # Its rows that need no reading go on. Or it is read again, if this node has another lease.
                again = True
            else:
                self._ready.append(portion)
        except Unavailable:
            # The rows stay in the outbox. Without any connection, the feed looks again later.
            again = self._readers.up
        finally:
            self._reading.discard(tenant.id)
            self._changed(again)

    async def _read(
        self, tenant: Tenant, rows: Sequence[numbering.Seen], fence: int
    ) -> Portion | None:
        """The orders that these rows are about; None if they cannot be read.

        Raises `Unavailable` where the connection is lost.
        """
        touched = _touched(rows)
        began = self._clock.seconds()
        try:
            read = await shop_rows.read(self._readers, tenant, touched)
        except Unreadable as error:
            self._fails(tenant.id, touched, str(error), is_odd=True)
            return None
        except StatementFailed as error:
            self._fails(tenant.id, touched, str(error), is_odd=False)
            return None
        except Unavailable:
            raise
        except Exception:
            self._log.failure("the orders of a shop could not be read")
            self._fails(tenant.id, touched, "posd failed at reading its orders", is_odd=True)
            return None
        self._took(tenant.id, len(rows), self._clock.seconds() - began)
        if tenant.id in self._quarantine:
            self._quarantine[tenant.id] = touched[-1]
            self._pauses.remove(tenant.id)
            for order_id in touched:
                self._odd.remove((tenant.id, order_id))
        taken = _in_order(rows, set(read.unread))
        ids = [row.id for row in taken]
        is_one = len({_about(row) for row in taken}) == 1
        return Portion(tenant.id, ids, read.found, fence, was_read=True, is_one=is_one)

    def _fails(
        self, tenant_id: TenantId, order_ids: Sequence[str], reason: str, *, is_odd: bool
    ) -> None:
        """Put a tenant into quarantine, and an order that could not be read alone aside if it `is_odd`."""
        alone = order_ids[0] if len(order_ids) == 1 else None
        self._quarantine[tenant_id] = alone or ""
        if alone is not None and is_odd:
            self._odd.add((tenant_id, alone))
        self._failed(tenant_id, alone, reason, self._pauses.add(tenant_id))

    def _took(self, tenant_id: TenantId, rows: int, seconds: float) -> None:
        """Have so many rows read at once that it takes less than a tenth of a second."""
        limit = self._limits.get(tenant_id, MOST_ROWS)
        if seconds > _LATE_SECONDS:
            self._limits[tenant_id] = max(1, min(limit, rows) // 2)
        elif tenant_id in self._alone:
            # It grows again when rows of its were accepted.
            return
        elif seconds < _SOON_SECONDS and limit < MOST_ROWS:
            self._limits[tenant_id] = min(MOST_ROWS, 2 * limit)
            if self._limits[tenant_id] == MOST_ROWS:
                del self._limits[tenant_id]


def _touched(rows: Sequence[numbering.Seen]) -> list[str]:
    """The orders that were touched."""
    touched = [row for row in rows if row.key is not None and row.type in TOUCHED]
    # The first of them are read, if not all fit.
    touched.sort(key=lambda row: not row.ahead)
    return [*dict.fromkeys(row.key for row in touched if row.key is not None)]


def _unread(rows: Sequence[numbering.Seen], fence: int) -> Portion:
    return Portion(rows[0].tenant_id, [row.id for row in rows], fence=fence)


def _in_order(rows: Sequence[numbering.Seen], unread: Collection[str]) -> list[numbering.Seen]:
    """The rows before the first one that is about an order that was not read, and all with their keys.

    Also those that are ahead and were read.
    """

    def is_unread(row: numbering.Seen) -> bool:
        return row.key in unread and row.type in TOUCHED

    before = [*takewhile(lambda row: row.ahead or not is_unread(row), rows)]
    more = (row for row in rows[len(before) :] if row.ahead)
    taken = [row for row in (*before, *more) if not is_unread(row)]
    keys = {_about(row) for row in taken if row.key is not None}
    ids = {row.id for row in taken}
    return [row for row in rows if row.id in ids or _about(row) in keys]


def _about(row: numbering.Seen) -> tuple[str, str | int]:
    """The order or the row of a ledger that a row is about, or itself."""
    if row.key is None:
        return "", row.id
    return "order" if row.type in TOUCHED else row.type, row.key
