"""The statements of the sequencer: read the outbox, take rows out of it, record events.

The functions that they call are in `sql/main/004_sequencer.sql` and `sql/main/005_outbox.sql`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from attrs import define, field, frozen

from posd.database.reconnecting import Executor, TransactionExecutor
from posd.errors import PosdError, StatementFailed
from posd.protocol import jsontext
from posd.store.stream import columns, stream_id_of
from posd.values import PublishWarning, Seq, TenantId

T = TypeVar("T")

_LOOK: Final = """
    SELECT tenant_id, id, type, key, ahead
      FROM dinedesk_main.pos_look(%s, %s::integer[], %s::integer[], %s::integer[], %s::integer[], %s::integer)
"""
_LOOK_AGAIN: Final = """
    SELECT tenant_id, id, type, key
      FROM dinedesk_main.pos_look_again(%s::integer[], %s::text[], %s::integer[], %s::text[])
"""
# PostgreSQL calls the function once, and reads the clock afterwards: after the wait for the lock.
_TAKE: Final = """
    SELECT *, clock_timestamp()
      FROM dinedesk_main.pos_take(
        %s::integer[], %s::bigint[], %s::integer[], %s::bigint[], %s::integer[], %s::text[], %s::uuid,
        %s::bigint)
"""
_FENCED_OFF: Final = "PD001"
"""The SQLSTATE that pos_take() raises if another node has the lease of the doorman."""
_STATES: Final = """
    SELECT * FROM dinedesk_main.pos_order_states(%s::integer[], %s::text[])
"""
# Returns one value, as `TransactionExecutor.finish` requires, which sends the COMMIT with the statement.
_RECORD: Final = """
    SELECT json_agg(json_build_array(r.seq, r.stream_id, r.created_at, r.elsewhere) ORDER BY r.ordinal)
      FROM dinedesk_main.pos_record(%s::uuid, %s::integer[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::text[],
        %s::text[]) AS r
"""
_RECORD_AT_ONCE: Final = """
    SELECT dinedesk_main.pos_record_at_once(
        %s::integer[], %s::bigint[], %s::uuid, %s::integer[], %s::text[], %s::text[], %s::text[])
"""


@frozen
class OutboxRow:
    """An event that was published by SQL (`data`), or the key of a row that a hook has noted (`key`)."""

    id: int
    tenant_id: TenantId
    type: str
    key: str | None
    data: str | None


@frozen
class SeenRow:
    """A row of the outbox that has not been taken yet. `key` is the key of a row that a hook has noted.

    `ahead` is true for a row about a new order that was read before older rows of its tenant.
    """

    tenant_id: TenantId
    id: int
    type: str
    key: str | None
    ahead: bool = False


@frozen
class StoredText:
    """The state of an order that posd published last; the snapshot is JSON text."""

    snapshot: str
    status: str
    version: int


@frozen
class TakenRows:
    """The rows that were taken out of the outbox, and the time by the database's clock."""

    rows: Sequence[OutboxRow]
    now: datetime
    behind: Mapping[tuple[TenantId, int | None], int] = field(factory=dict)
    """By element of `asking`: the id of the last outbox row that must be numbered before the request."""
    published: Mapping[tuple[TenantId, str], StoredText | None] = field(factory=dict)
    """The last published state of each order in `orders`; None for an order that was never published."""


class FenceLost(PosdError):
    """Another node has the lease of the doorman: this node must not take rows out of the outbox."""


@frozen
class OrderState:
    """The stored state of an order and, if a hook has noted it, its present row in the shop (JSON text).

    `row_now` is empty if the row is too large to be read.
    """

    stored: StoredText | None
    row_now: str | None


# Not frozen: an object is created per event, and creating a frozen one takes three to five times as long.
@define
class LogEntry:
    """An event to be stored in the log; the JSON members are text.

    An entry with a `failure` gets no position. The entry of an order has the new snapshot. `payment_status`
    and `created_at` repeat members of the snapshot, so that PostgreSQL need not parse it.
    """

    tenant_id: TenantId
    type: str
    data: str
    extra_members: str = "{}"
    failure: str | None = None
    order_id: str | None = None
    snapshot: str | None = None
    status: str | None = None
    version: int | None = None
    payment_status: str | None = None
    created_at: str | None = None
    reuses_id: bool = False
    """Whether this is a new order with the id of a stored order."""
    about: str | None = None
    """The order id for log messages if the entry has no `order_id`."""
    warnings: tuple[PublishWarning, ...] = ()

    @property
    def size(self) -> int:
        """The number of characters that are stored."""
        return len(self.data) + len(self.extra_members) + len(self.snapshot or "")


# Not frozen: an object is created per event, and creating a frozen one takes three to five times as long.
@define
class RecordedEntry:
    """The position of a stored entry; `elsewhere` is the number of the tenant's connections on other nodes.

    `stream_id` and `seq` are None if the tenant was deleted.
    """

    seq: Seq | None
    stream_id: UUID | None
    created_at: datetime
    elsewhere: int


async def read_outbox(
    executor: Executor,
    limit: int,
    excluded: Iterable[TenantId],
    unreadable: Iterable[TenantId],
    limits: Mapping[TenantId, int],
    only: TenantId | None = None,
) -> list[SeenRow]:
    """Return the next `limit` rows of the outbox, and the oldest 20 rows with each of their keys.

    The rows of `excluded` tenants are left out, and for `unreadable` tenants the rows about orders that hooks
    have noted. `limits` bounds the rows of single tenants. With `only`, return rows of that tenant only.
    """
    values = (limit, list(excluded), list(unreadable), [*limits], [*limits.values()], only)
    return [SeenRow(*row) for row in await executor.query(_LOOK, values)]


async def read_next_of_tenants(
    executor: Executor, tried: Mapping[TenantId, str], unusual: Iterable[tuple[TenantId, str]]
) -> list[SeenRow]:
    """Return the rows about one order per tenant: the order with the next id after the one in `tried`.

    Orders in `unusual` are left out.
    """
    values = ([*tried], [*tried.values()], *columns(unusual, 2))
    return [SeenRow(*row) for row in await executor.query(_LOOK_AGAIN, values)]


async def take_rows(
    executor: Executor,
    seen: Sequence[tuple[TenantId, int]],
    asking: Iterable[tuple[TenantId, int | None]] = (),
    orders: Collection[tuple[TenantId, str]] = (),
    *,
    node_id: UUID | None = None,
    fence: int | None = None,
) -> TakenRows:
    """Take the seen rows that still exist out of the outbox, under the sequencer's lock.

    `asking` has the tenants of publishing requests, with the last outbox row that the request must follow,
    if it is known. `orders` has the orders whose published states are returned. Raises `Busy` if the lock is
    not free within lock_timeout.

    `fence` is the fence of the lease that this node had when it read the rows. Raises `FenceLost` if `seen`
    is not empty and the node no longer has that lease.
    """
    node = None if node_id is None else str(node_id)
    values = (*columns(seen, 2), *columns(asking, 2), *columns(orders, 2), node, fence)
    try:
        rows = await executor.query(_TAKE, values)
    except StatementFailed as error:
        if error.sqlstate == _FENCED_OFF:
            raise FenceLost(str(error)) from error
        raise
    taken: list[OutboxRow] = []
    behind: dict[tuple[TenantId, int | None], int] = {}
    published: dict[tuple[TenantId, str], StoredText | None] = dict.fromkeys(orders)
    for tenant_id, row_id, kind, key, data, follows, last, status, version, _ in rows:
        if row_id is not None:
            taken.append(OutboxRow(row_id, tenant_id, kind, key, data))
        elif last is not None:
            behind[tenant_id, follows] = last
        elif key is not None:
            published[tenant_id, key] = StoredText(data, status, version)
    return TakenRows(taken, rows[0][-1], behind, published)


async def stored_orders(
    executor: Executor, requested: Collection[tuple[TenantId, str]]
) -> dict[tuple[TenantId, str], StoredText | None]:
    """Return the last published state of each order; None for an order that was never published."""
    rows = await executor.query(_STATES, columns(requested, 2))
    return {
        (tenant_id, order_id): None if snapshot is None else StoredText(snapshot, status, version)
        for tenant_id, order_id, snapshot, status, version in rows
    }


async def record_entries(
    executor: Executor, node_id: UUID, entries: Sequence[LogEntry]
) -> list[RecordedEntry]:
    """Number and store entries in order. Return one result per entry."""
    ((answer,),) = await executor.query(f"SELECT ({_RECORD})::text", _of(node_id, entries))
    return _recorded(answer)


async def record_plain_and_commit(
    transaction: TransactionExecutor,
    node_id: UUID,
    asking: Collection[tuple[TenantId, int | None]],
    entries: Sequence[LogEntry],
) -> list[RecordedEntry] | None:
    """Number and store entries that are not about orders, as the only statement of a transaction.

    Returns None, and stores nothing, if outbox rows must be numbered first. `take_rows` documents `asking`.
    """
    node, tenants, types, datas, besides, *_ = _of(node_id, entries)
    values = (*columns(asking, 2), node, tenants, types, datas, besides)
    return _recorded(await transaction.finish(_RECORD_AT_ONCE, values)) or None


async def record_and_commit(
    transaction: TransactionExecutor, node_id: UUID, entries: Sequence[LogEntry]
) -> list[RecordedEntry]:
    """Like `record_entries`, as the last statement of a transaction: see `TransactionExecutor.finish`."""
    return _recorded(await transaction.finish(_RECORD, _of(node_id, entries)))


def _of(node_id: UUID, entries: Sequence[LogEntry]) -> tuple[object, ...]:
    """Return the parameters of pos_record()."""
    return (
        str(node_id),
        [entry.tenant_id for entry in entries],
        [entry.type for entry in entries],
        [entry.data for entry in entries],
        _column(
            [None if entry.extra_members == "{}" else entry.extra_members for entry in entries]
        ),
        _column([entry.failure for entry in entries]),
        _column([entry.order_id for entry in entries]),
        # A new order's snapshot equals its data: send it once. pos_record() copies it.
        _column([None if entry.snapshot == entry.data else entry.snapshot for entry in entries]),
        _column([entry.status for entry in entries]),
        _column([entry.version for entry in entries]),
        _column([entry.payment_status for entry in entries]),
        _column([entry.created_at for entry in entries]),
    )


def _column(values: list[T | None]) -> list[T | None] | None:
    """Return None if all values are None: unnest() of several arrays reads a NULL array as NULLs."""
    return None if values.count(None) == len(values) else values


def _recorded(answer: str | None) -> list[RecordedEntry]:
    """Parse the JSON array of `_RECORD`, which is NULL if nothing was stored."""
    rows: Any = jsontext.decode_own(answer) if answer else ()
    if not rows:
        return []
    # All entries of a call have the same time.
    at = datetime.fromisoformat(rows[0][2])
    return [
        RecordedEntry(seq, stream_id and stream_id_of(stream_id), at, elsewhere)
        for seq, stream_id, _, elsewhere in rows
    ]
