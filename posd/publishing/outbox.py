"""What waits in the outbox, and the shops' orders that it is about, read before anything is numbered.

A look at the outbox deletes nothing. The orders that hooks have noted are then read on the connections of
`posd_reader`, tenants side by side, while the sequencer goes on with what is ready. A portion has the ids of
the rows that were seen before its reading began; the sequencer takes exactly those.

Only the doorman looks (`posd.publishing.doorman`). What it has read is numbered under the lease that it had
when it looked, or not at all.

A tenant is in one portion at a time, so its rows keep their order. A tenant whose tables cannot be read keeps
its rows, and no other waits for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database.link import Session
from posd.database.readers import Readers, Unreadable
from posd.errors import StatementFailed, Unavailable
from posd.publishing.batch import TOUCHED_ORDER, Shops
from posd.store import bell, shop_rows, stream
from posd.values import Tenant, TenantId

MOST_ROWS: Final = 200
"""In a look and in a batch. A tenant in a transaction costs about ten locks, of the 6,400 that a server has
as installed for everybody (max_locks_per_transaction), so there may be rows of as many tenants at most."""
_MOST_BYTES: Final = 1024 * 1024
_SOON_SECONDS: Final = 0.05
_LATE_SECONDS: Final = 0.1


@frozen
class Portion:
    """Rows of a tenant's outbox by their ids, and the orders that they are about as JSON text by order id."""

    tenant_id: TenantId
    ids: Sequence[int]
    orders: Mapping[str, str] = field(factory=dict)
    fence: int | None = None
    """Of the lease that the node had when it looked."""

    @property
    def size(self) -> int:
        return sum(map(len, self.orders.values()))


class Outbox:
    """Looks at the outbox by `link` and has orders read by `readers`.

    `changed` is called when a portion has become ready by itself, `failed` with a tenant whose tables cannot
    be read and why.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        link: Session,
        readers: Readers,
        *,
        shops: Callable[[Session, Collection[TenantId]], Awaitable[Shops]],
        changed: Callable[[], None],
        failed: Callable[[TenantId, str], None],
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
        # How many rows are seen at once of tenants whose tables take long to read.
        self._limits: dict[TenantId, int] = {}

    @property
    def reading(self) -> int:
        """The tables of how many tenants are being read, or wait for that."""
        return len(self._reading)

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

    async def has_news(self, aside: Collection[TenantId]) -> bool:
        """Whether a look would see something. It may miss a tenant of which a part was seen."""
        busy = (each.tenant_id for each in self._ready)
        return await bell.has_news(self._link, {*aside, *self._reading, *busy})

    async def look(self, aside: Collection[TenantId]) -> int:
        """See what is there without the tenants that are `aside`; how many rows were seen.

        Begins to read what has to be read.
        """
        fence = self._fence
        busy = (*self._reading, *(each.tenant_id for each in self._ready))
        seen = await self._seen(MOST_ROWS, (*aside, *busy))
        if fence is None or fence != self._fence:
            return 0
        for tenant, rows in seen:
            if tenant is not None and _touched(rows):
                self._reading.add(tenant.id)
                Deferred.fromCoroutine(self._read_aside(tenant, rows, fence))
            else:
                self._ready.append(_unread(rows, fence))
        return sum(len(rows) for _, rows in seen)

    async def one(self, tenant_id: TenantId, most: int) -> Portion | None:
        """Up to `most` rows of one tenant, read now; None if there are none or they cannot be read."""
        fence = self._fence
        if fence is None:
            return None
        for tenant, rows in await self._seen(most, (), tenant_id):
            if tenant is not None and _touched(rows):
                return await self._read(tenant, rows, fence)
            return _unread(rows, fence)
        return None

    def next_batch(self) -> list[Portion]:
        """Portions for one transaction, those first that were ready first."""
        portions: list[Portion] = []
        rows = size = 0
        for each in self._ready:
            rows, size = rows + len(each.ids), size + each.size
            if portions and (rows > MOST_ROWS or size > _MOST_BYTES):
                break
            portions.append(each)
        del self._ready[: len(portions)]
        return portions

    async def _seen(
        self, most: int, aside: Collection[TenantId], only: TenantId | None = None
    ) -> list[tuple[Tenant | None, Sequence[stream.Seen]]]:
        """The rows that are there, by their tenants; a tenant that is gone is None."""
        seen: dict[TenantId, list[stream.Seen]] = defaultdict(list)
        for row in await stream.look(self._link, most, aside, self._limits, only):
            seen[row.tenant_id].append(row)
        shops = await self._shops(self._link, seen.keys()) if seen else {}
        return [(shops.get(tenant_id), rows) for tenant_id, rows in seen.items()]

    async def _read_aside(self, tenant: Tenant, rows: Sequence[stream.Seen], fence: int) -> None:
        try:
            portion = await self._read(tenant, rows, fence)
        finally:
            self._reading.discard(tenant.id)
        if portion is not None and portion.fence == self._fence:
            self._ready.append(portion)
            self._changed()

    async def _read(
        self, tenant: Tenant, rows: Sequence[stream.Seen], fence: int
    ) -> Portion | None:
        """The orders that these rows are about; None if they cannot be read."""
        touched = _touched(rows)
        began = self._clock.seconds()
        try:
            read = await shop_rows.read(self._readers, tenant, touched)
        except (Unreadable, StatementFailed) as error:
            self._limits[tenant.id] = 1
            self._failed(tenant.id, str(error))
            return None
        except Unavailable:
            # No connection. The rows stay in the outbox, and the feed looks again.
            return None
        except Exception:
            self._log.failure("the orders of a shop could not be read")
            self._failed(tenant.id, "posd failed at reading its orders")
            return None
        self._took(tenant.id, len(rows), self._clock.seconds() - began)
        unread = set(read.unread)
        ids = [row.id for row in rows if row.type != TOUCHED_ORDER or row.key not in unread]
        return Portion(tenant.id, ids, read.found, fence)

    def _took(self, tenant_id: TenantId, rows: int, seconds: float) -> None:
        """Have so many rows read at once that it takes less than a tenth of a second."""
        limit = self._limits.get(tenant_id, MOST_ROWS)
        if seconds > _LATE_SECONDS:
            self._limits[tenant_id] = max(1, min(limit, rows) // 2)
        elif seconds < _SOON_SECONDS and limit < MOST_ROWS:
            self._limits[tenant_id] = min(MOST_ROWS, 2 * limit)
            if self._limits[tenant_id] == MOST_ROWS:
                del self._limits[tenant_id]


def _touched(rows: Sequence[stream.Seen]) -> list[str]:
    """The orders that were touched."""
    keys = (row.key for row in rows if row.type == TOUCHED_ORDER and row.key is not None)
    return [*dict.fromkeys(keys)]


def _unread(rows: Sequence[stream.Seen], fence: int) -> Portion:
    return Portion(rows[0].tenant_id, [row.id for row in rows], fence=fence)
