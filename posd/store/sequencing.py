"""The statements of the sequencer (`sql/main/004_sequencer.sql` and `005_outbox.sql`): look, take, record."""

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
# The function is called once, and the clock is read after it: after the wait for the lock.
_TAKE: Final = """
    SELECT *, clock_timestamp()
      FROM dinedesk_main.pos_take(
        %s::integer[], %s::bigint[], %s::integer[], %s::bigint[], %s::integer[], %s::text[], %s::uuid,
        %s::bigint)
"""
_FENCED_OFF: Final = "PD001"
"""The SQLSTATE of pos_take() where another node has the lease of the doorman."""
_STATES: Final = """
    SELECT * FROM dinedesk_main.pos_order_states(%s::integer[], %s::text[])
"""
# In one row, so that it can be the last statement of a transaction.
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
    """What was published by SQL (`data`) or touched in the shop's tables (`key`)."""

    id: int
    tenant_id: TenantId
    type: str
    key: str | None
    data: str | None


@frozen
class SeenRow:
    """A row of the outbox that is still there: `key` names what was touched in the shop's tables.

    `ahead`: it is about a new order, and older rows are not seen.
    """

    tenant_id: TenantId
    id: int
    type: str
    key: str | None
    ahead: bool = False


@frozen
class StoredText:
    """An order as posd last published it; the snapshot is JSON text."""

    snapshot: str
    status: str
    version: int


@frozen
class TakenRows:
    """What was taken out of the outbox, and when, by the database's clock."""

    rows: Sequence[OutboxRow]
    now: datetime
    behind: Mapping[tuple[TenantId, int | None], int] = field(factory=dict)
    """By what was asked: the last row of the outbox that is older than what the tenant's publishers ask."""
    published: Mapping[tuple[TenantId, str], StoredText | None] = field(factory=dict)
    """Each of the orders that were named, as posd last published it; None for one that it has not."""


class FenceLost(PosdError):
    """Another node has got the lease of the doorman, so this one may take nothing out of the outbox."""


@frozen
class OrderState:
    """One order as posd has it and, if a hook touched it, as the shop has it now (JSON text).

    An empty row is one that is too long to be read.
    """

    stored: StoredText | None
    row_now: str | None


# One is made of every event. A frozen class takes three to five times as long for that.
@define
class LogEntry:
    """An event on its way into the log; the JSON members are text. `failure`: it gets no position.

    An order's entry has the snapshot that replaces the one before, and of it `payment_status` and the time
    `created_at`, as text, so that PostgreSQL need not parse it for them.
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
    """Whether its order is another one than the stored one of this id."""
    about: str | None = None
    """The id of the order, for the log, where the entry has no `order_id`."""
    warnings: tuple[PublishWarning, ...] = ()

    @property
    def size(self) -> int:
        """Characters that are stored."""
        return len(self.data) + len(self.extra_members) + len(self.snapshot or "")


# One is made of every event. A frozen class takes three to five times as long for that.
@define
class RecordedEntry:
    """Where an entry went; `elsewhere` counts its tenant's connections on other nodes.

    `stream_id` is None, and there is no `seq`, where the tenant was deleted.
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
    """The next rows of the outbox, up to `limit` of them and the oldest 20 with each of their keys.

    Without those of tenants that are `excluded`, and of `unreadable` tenants without those that hooks have
    noted about orders; of a tenant that is in `limits` up to so many. With `only`, those of that tenant.
    """
    values = (limit, list(excluded), list(unreadable), [*limits], [*limits.values()], only)
    return [SeenRow(*row) for row in await executor.query(_LOOK, values)]


async def read_next_of_tenants(
    executor: Executor, tried: Mapping[TenantId, str], unusual: Iterable[tuple[TenantId, str]]
) -> list[SeenRow]:
    """The rows about one order of each tenant: the next one by its id after the one that was tried.

    Without orders that are `unusual`.
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
    """Take rows that were seen out of the outbox under the sequencer's lock, as far as they are there.

    `asking` names tenants whose publishers ask for something, with the last row that it follows, if that is
    known. `orders` names orders whose published states are wanted. Raises `Busy` if the lock cannot be had
    within lock_timeout.

    `fence` is that of the lease that this node had when it looked. Raises `FenceLost` if rows were seen and
    it does not have that lease any more.
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
    """Each of the named orders as posd last published it; None for one that it has not."""
    rows = await executor.query(_STATES, columns(requested, 2))
    return {
        (tenant_id, order_id): None if snapshot is None else StoredText(snapshot, status, version)
        for tenant_id, order_id, snapshot, status, version in rows
    }


async def record_entries(
    executor: Executor, node_id: UUID, entries: Sequence[LogEntry]
) -> list[RecordedEntry]:
    """Number and store entries in their order, one answer each."""
    ((answer,),) = await executor.query(f"SELECT ({_RECORD})::text", _of(node_id, entries))
    return _recorded(answer)


async def record_plain_and_commit(
    transaction: TransactionExecutor,
    node_id: UUID,
    asking: Collection[tuple[TenantId, int | None]],
    entries: Sequence[LogEntry],
) -> list[RecordedEntry] | None:
    """Number and store entries that are about no order, as the only statement of a transaction.

    Returns None, and stores nothing, if rows of the outbox come first: see `take_rows`, which takes
    `asking` too.
    """
    node, tenants, types, datas, besides, *_ = _of(node_id, entries)
    values = (*columns(asking, 2), node, tenants, types, datas, besides)
    return _recorded(await transaction.finish(_RECORD_AT_ONCE, values)) or None


async def record_and_commit(
    transaction: TransactionExecutor, node_id: UUID, entries: Sequence[LogEntry]
) -> list[RecordedEntry]:
    """The same as the last statement of a transaction: see `TransactionExecutor.finish`."""
    return _recorded(await transaction.finish(_RECORD, _of(node_id, entries)))


def _of(node_id: UUID, entries: Sequence[LogEntry]) -> tuple[object, ...]:
    """The parameters of pos_record()."""
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
        # A new order's snapshot is its data: it is sent, and copied, once.
        _column([None if entry.snapshot == entry.data else entry.snapshot for entry in entries]),
        _column([entry.status for entry in entries]),
        _column([entry.version for entry in entries]),
        _column([entry.payment_status for entry in entries]),
        _column([entry.created_at for entry in entries]),
    )


def _column(values: list[T | None]) -> list[T | None] | None:
    """None for what no entry has, which unnest() of several arrays reads as so many NULLs."""
    return None if values.count(None) == len(values) else values


def _recorded(answer: str | None) -> list[RecordedEntry]:
    """The answers from the JSON array of `_RECORD`, NULL where there were no entries."""
    rows: Any = jsontext.decode_own(answer) if answer else ()
    if not rows:
        return []
    # All entries of a call are stored with one time.
    at = datetime.fromisoformat(rows[0][2])
    return [
        RecordedEntry(seq, stream_id and stream_id_of(stream_id), at, elsewhere)
        for seq, stream_id, _, elsewhere in rows
    ]
