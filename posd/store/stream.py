"""The stream: heads, the log, and the sequencer's three statements (`sql/main/003_sequencer.sql`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from attrs import field, frozen

from posd.database.link import Row, Session
from posd.errors import Pruned, Renamed, returned
from posd.store import schema
from posd.values import Event, Head, PublishWarning, Seq, Tenant, TenantId

_HEAD_COLUMNS: Final = "tenant_id, stream_id, last_seq, pruned_seq"
_HEADS: Final = f"SELECT {_HEAD_COLUMNS} FROM dinedesk_main.pos_heads WHERE tenant_id = ANY (%s)"
# Any row of the outbox: each of them is due, and to find the oldest would read all of a long outbox twice a
# second, since the statistics know it empty.
_POLL: Final = f"""
    SELECT (SELECT greatest(0, extract(epoch FROM clock_timestamp() - o.created_at))::float8
              FROM dinedesk_main.pos_outbox AS o LIMIT 1), {_HEAD_COLUMNS}
      FROM (SELECT 1) AS always LEFT JOIN dinedesk_main.pos_heads ON tenant_id = ANY (%s)
"""
_PAGE_BYTES: Final = 256 * 1024
"""Of events in one page: as much as a terminal's send queue takes, so that nothing is read in vain."""
# The limit stands inside, so that no more rows are added up than may be needed. PostgreSQL evaluates the
# condition on the head once for the statement, not for each row.
_AFTER: Final = """
    SELECT seq, event_type, data, created_at, beside
      FROM (SELECT *, sum(octet_length(data)) OVER (ORDER BY seq) - octet_length(data) AS before
              FROM (SELECT seq, event_type, event_data::text AS data, created_at, beside::text AS beside
                      FROM {schema}.pos_events
                     WHERE seq > %s
                       AND EXISTS (SELECT FROM dinedesk_main.pos_heads
                                    WHERE tenant_id = %s AND stream_id = %s::uuid)
                     ORDER BY seq LIMIT %s) AS following) AS summed
     WHERE before < %s
     ORDER BY seq
"""
# No row: the stream has another name.
_FLOOR: Final = """
    SELECT pruned_seq FROM dinedesk_main.pos_heads WHERE tenant_id = %s AND stream_id = %s::uuid
"""
# The function is called once, and the clock is read after it: after the wait for the lock.
_TAKE: Final = """
    SELECT *, clock_timestamp() FROM dinedesk_main.pos_take(%s, %s::integer[], %s)
"""
# In here the shops' own code may run, and everybody waits for it.
_STATES: Final = """
    SET LOCAL statement_timeout = '1s';
    SELECT * FROM dinedesk_main.pos_order_states(%s::integer[], %s::text[], %s::boolean[])
"""
_RECORD: Final = """
    SELECT set_config('statement_timeout', current_setting('posd.statement_timeout'), true);
    SELECT dinedesk_main.pos_recognise();
    SELECT * FROM dinedesk_main.pos_record(%s::uuid, %s::integer[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[])
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
class Taken:
    """What was taken out of the outbox, and when, by the database's clock."""

    rows: Sequence[OutboxRow]
    now: datetime


@frozen
class StoredText:
    """An order as posd last published it; the snapshot is JSON text."""

    snapshot: str
    status: str
    version: int


@frozen
class OrderState:
    """One order as posd has it and, if a hook touched it, as the shop has it now (JSON text).

    An empty row is one that is too long to be read.
    """

    stored: StoredText | None
    row_now: str | None


@frozen
class Entry:
    """An event on its way into the log; the JSON members are text. `failure`: it gets no position.

    An order's entry has the snapshot that replaces the one before.
    """

    tenant_id: TenantId
    type: str
    data: str
    beside: str = "{}"
    failure: str | None = None
    order_id: str | None = None
    snapshot: str | None = None
    status: str | None = None
    version: int | None = None
    reuses_id: bool = False
    """Whether its order is another one than the stored one of this id."""
    about: str | None = None
    """The id of the order, for the log, where the entry has no `order_id`."""
    warnings: tuple[PublishWarning, ...] = ()


@frozen
class Recorded:
    """Where an entry went; `elsewhere` counts its tenant's connections on other nodes."""

    seq: Seq | None
    elsewhere: int


def load_head(row: Row) -> Head:
    """A head from its columns; psycopg2 brings a uuid as text."""
    tenant_id, stream_id, last_seq, pruned_seq = row
    return Head(tenant_id, UUID(stream_id), last_seq, pruned_seq)


async def heads(session: Session, ids: Iterable[TenantId]) -> dict[TenantId, Head]:
    """The heads of these tenants."""
    return {row[0]: load_head(row) for row in await session.query(_HEADS, (list(ids),))}


async def poll(session: Session, ids: Iterable[TenantId]) -> tuple[float | None, list[Head]]:
    """How many seconds a row of the outbox has waited, None if the outbox is empty, and the
    heads of these tenants: all that a poll asks."""
    rows = await session.query(_POLL, (list(ids),))
    return rows[0][0], [load_head(row[1:]) for row in rows if row[1] is not None]


async def after(
    session: Session, tenant: Tenant, stream_id: UUID, seq: Seq, limit: int
) -> list[Event]:
    """Up to `limit` events after a position, in order.

    There are fewer where they have more than 256 KiB together, and one at least where there is any.

    Raises `Pruned` if the next one is kept no more, and `Renamed` if the stream has another name.
    """
    values = (seq, tenant.id, str(stream_id), limit, _PAGE_BYTES)
    rows = await session.query(_AFTER.format(schema=schema(tenant)), values)
    if not rows or rows[0][0] != seq + 1:
        # Events and floor go together, so a floor that is asked for later explains what lacks.
        floor = await session.query(_FLOOR, (tenant.id, str(stream_id)))
        if not floor:
            raise Renamed(f"the stream of {tenant.slug} is not {stream_id}")
        if seq < floor[0][0]:
            raise Pruned(f"what follows event {seq} is kept no more")
    return [
        Event(seq, kind, data.encode(), created_at, (beside or "{}").encode())
        for seq, kind, data, created_at, beside in rows
    ]


async def take(
    session: Session, limit: int, aside: Iterable[TenantId], *, patient: bool
) -> Taken | None:
    """Take up to `limit` rows out of the outbox under the sequencer's lock.

    None: another sequencer has the lock. `patient` waits for it instead, and raises `Busy` when that
    takes longer than lock_timeout.
    """
    rows = await session.query(_TAKE, (limit, list(aside), patient))
    if not rows[0][0]:
        return None
    return Taken([OutboxRow(*row[1:-1]) for row in rows if row[1] is not None], rows[0][-1])


@frozen
class States:
    """What `order_states` found: orders by tenant and id, and by tenant why it has none.

    `seconds` tells how long it took to read a tenant's own rows.
    """

    orders: Mapping[tuple[TenantId, str], OrderState] = field(factory=dict)
    failures: Mapping[TenantId, str] = field(factory=dict)
    seconds: Mapping[TenantId, float] = field(factory=dict)


async def order_states(
    session: Session, wanted: Sequence[tuple[TenantId, str | None, bool]]
) -> States:
    """The states of the named orders.

    `wanted` has tenant, order id and whether the shop's own row is to be read; without an order it
    asks only whether the tenant's tables can be written.
    """
    rows = await session.query(_STATES, tuple(list(column) for column in zip(*wanted, strict=True)))
    orders: dict[tuple[TenantId, str], OrderState] = {}
    failures: dict[TenantId, str] = {}
    seconds: dict[TenantId, float] = {}
    for tenant_id, order_id, row_now, snapshot, status, version, failure, took in rows:
        if failure is not None:
            failures[tenant_id] = returned(failure)
        else:
            stored = None if snapshot is None else StoredText(snapshot, status, version)
            orders[tenant_id, order_id] = OrderState(stored, row_now)
            seconds[tenant_id] = took
    return States(orders, failures, seconds)


async def record(session: Session, node_id: UUID, entries: Sequence[Entry]) -> list[Recorded]:
    """Number and store entries in their order, one answer each."""
    columns = (
        [entry.tenant_id for entry in entries],
        [entry.type for entry in entries],
        [entry.data for entry in entries],
        [entry.beside for entry in entries],
        [entry.failure for entry in entries],
        [entry.order_id for entry in entries],
        [entry.snapshot for entry in entries],
        [entry.status for entry in entries],
        [entry.version for entry in entries],
    )
    rows = await session.query(_RECORD, (str(node_id), *columns))
    placed = {ordinal: Recorded(seq, elsewhere) for ordinal, seq, elsewhere in rows}
    return [placed[ordinal] for ordinal in range(1, len(entries) + 1)]
