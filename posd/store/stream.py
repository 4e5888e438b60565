"""The stream: heads, the log, and the sequencer's three statements (`sql/main/004_sequencer.sql`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final
from uuid import UUID

from attrs import field, frozen

from posd.database.link import Row, Session
from posd.errors import PosdError, Pruned, Renamed, StatementFailed
from posd.values import Event, Head, PublishWarning, Seq, Tenant, TenantId

_HEAD_COLUMNS: Final = "tenant_id, stream_id, last_seq, pruned_seq"
_HEADS: Final = f"SELECT {_HEAD_COLUMNS} FROM dinedesk_main.pos_heads WHERE tenant_id = ANY (%s)"
# The heads of all tenants with a terminal here, in one row of four texts; the tenants are asked for in a text
# too. For a thousand rows, or arrays of a thousand, psycopg2 takes three times as long.
_HEAD_TEXTS: Final = """
    string_agg(h.tenant_id::text, ','), string_agg(h.stream_id::text, ','), string_agg(h.last_seq::text, ','),
    string_agg(h.pruned_seq::text, ',')
      FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = ANY (%s::integer[])
"""
# Any row of the outbox: each of them is due, and to find the oldest would read all of a long outbox twice a
# second, since the statistics know it empty.
_POLL: Final = f"""
    SELECT (SELECT greatest(0, extract(epoch FROM clock_timestamp() - o.created_at))::float8
              FROM dinedesk_main.pos_outbox AS o LIMIT 1), {_HEAD_TEXTS}
"""
_MOVED: Final = f"SELECT {_HEAD_TEXTS}"
_PAGE_BYTES: Final = 256 * 1024
"""Of events in one page: as much as a terminal's send queue takes, so that nothing is read in vain."""
# A page for each of several streams, where it is still that history. The limit stands inside, so that no more
# rows are added up than may be needed.
_PAGES: Final = """
    SELECT w.number, p.seq, p.event_type, p.data, p.created_at, p.beside
      FROM unnest(%s::integer[], %s::uuid[], %s::bigint[]) WITH ORDINALITY
           AS w(tenant_id, stream_id, seq, number)
      JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = w.tenant_id AND h.stream_id = w.stream_id
     CROSS JOIN LATERAL (
        SELECT f.*, sum(octet_length(f.data)) OVER (ORDER BY f.seq) - octet_length(f.data) AS before
          FROM (SELECT e.seq, e.event_type, e.event_data::text AS data, e.created_at, e.beside::text AS beside
                  FROM dinedesk_main.pos_events AS e
                 WHERE e.tenant_id = w.tenant_id AND e.seq > w.seq ORDER BY e.seq LIMIT %s) AS f) AS p
     WHERE p.before < %s
     ORDER BY w.number, p.seq
"""
# No row: the stream has another name.
_FLOORS: Final = """
    SELECT w.number, h.pruned_seq
      FROM unnest(%s::integer[], %s::uuid[]) WITH ORDINALITY AS w(tenant_id, stream_id, number)
      JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = w.tenant_id AND h.stream_id = w.stream_id
"""
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
        %s::integer[], %s::bigint[], %s::integer[], %s::bigint[], %s, %s::uuid, %s::bigint)
"""
_FENCED_OFF: Final = "PD001"
"""The SQLSTATE of pos_take() where another node has the lease of the doorman."""
_STATES: Final = """
    SELECT * FROM dinedesk_main.pos_order_states(%s::integer[], %s::text[])
"""
_RECORD: Final = """
    SELECT dinedesk_main.pos_recognise();
    SELECT * FROM dinedesk_main.pos_record(%s::uuid, %s::integer[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::text[],
        %s::text[])
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
class Seen:
    """A row of the outbox that is still there: `key` names what was touched in the shop's tables.

    `ahead`: it is about a new order, and older rows are not seen.
    """

    tenant_id: TenantId
    id: int
    type: str
    key: str | None
    ahead: bool = False


@frozen
class Taken:
    """What was taken out of the outbox, and when, by the database's clock."""

    rows: Sequence[OutboxRow]
    now: datetime
    behind: Mapping[tuple[TenantId, int | None], int] = field(factory=dict)
    """By what was asked: the last row of the outbox that is older than what the tenant's publishers ask."""


class FenceLost(PosdError):
    """Another node has got the lease of the doorman, so this one may take nothing out of the outbox."""


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

    An order's entry has the snapshot that replaces the one before, and of it `payment_status` and the time
    `created_at`, as text, so that PostgreSQL need not parse it for them.
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
        return len(self.data) + len(self.beside) + len(self.snapshot or "")


@frozen
class Recorded:
    """Where an entry went; `elsewhere` counts its tenant's connections on other nodes.

    `stream_id` is None, and there is no `seq`, where the tenant was deleted.
    """

    seq: Seq | None
    stream_id: UUID | None
    created_at: datetime
    elsewhere: int


StreamPosition = tuple[TenantId, UUID, Seq]
"""A position in a tenant's stream of this name."""


@frozen
class Page:
    """The events that follow a position, in order.

    `pruned`: the next one is kept no more; `renamed`: the stream has another name than the position.
    """

    events: Sequence[Event] = ()
    pruned: bool = False
    renamed: bool = False


def load_head(row: Row) -> Head:
    """A head from its columns; psycopg2 brings a uuid as text."""
    tenant_id, stream_id, last_seq, pruned_seq = row
    return Head(tenant_id, _name(stream_id), last_seq, pruned_seq)


# To parse a name takes longer than all else that is done with a head.
_name: Final = lru_cache(maxsize=65536)(UUID)


async def heads(session: Session, ids: Iterable[TenantId]) -> dict[TenantId, Head]:
    """The heads of these tenants."""
    return {row[0]: load_head(row) for row in await session.query(_HEADS, (list(ids),))}


async def poll(session: Session, ids: Iterable[TenantId]) -> tuple[float | None, list[Head]]:
    """How many seconds a row of the outbox has waited, None if the outbox is empty, and the
    heads of these tenants: all that a poll asks."""
    ((waited, *texts),) = await session.query(_POLL, (_array(ids),))
    return waited, [Head(*columns) for columns in _heads(*texts)]


async def moved(session: Session, known: Iterable[StreamPosition]) -> list[Head]:
    """The heads that are beyond these positions, or that are of another history."""
    positions: dict[TenantId, list[tuple[UUID, Seq]]] = {}
    for tenant_id, stream_id, seq in known:
        positions.setdefault(tenant_id, []).append((stream_id, seq))
    (texts,) = await session.query(_MOVED, (_array(positions),))
    return [
        Head(tenant_id, name, last_seq, pruned_seq)
        for tenant_id, name, last_seq, pruned_seq in _heads(*texts)
        for named, seq in positions[tenant_id]
        if last_seq > seq or name != named
    ]


def _array(ids: Iterable[TenantId]) -> str:
    """An array as PostgreSQL writes it."""
    return f"{{{','.join(map(str, ids))}}}"


def _heads(*texts: str | None) -> Iterator[tuple[TenantId, UUID, Seq, Seq]]:
    """The columns of heads from the texts of `_HEAD_TEXTS`, which are NULL where there are none."""
    ids, names, last, pruned = (text.split(",") if text else () for text in texts)
    return zip(map(int, ids), map(_name, names), map(int, last), map(int, pruned), strict=True)


async def pages(
    session: Session, wanted: Sequence[StreamPosition], limit: int
) -> dict[StreamPosition, Page]:
    """For each position a page of up to `limit` events after it, by one statement for all.

    A page ends where its events have more than 256 KiB, and has one event at least where there is any.
    """
    found: dict[int, list[Event]] = {number: [] for number in range(1, len(wanted) + 1)}
    values = (*_columns(wanted, 3), limit, _PAGE_BYTES)
    for number, seq, kind, data, created_at, beside in await session.query(_PAGES, values):
        found[number].append(Event(seq, kind, data.encode(), created_at, (beside or "{}").encode()))
    # Events and floor go together, so a floor that is asked for later explains what lacks.
    doubtful = [
        each
        for number, each in enumerate(wanted, 1)
        if not found[number] or found[number][0].seq != each[2] + 1
    ]
    floors: dict[StreamPosition, Seq] = {}
    if doubtful:
        columns = _columns(doubtful, 3)[:2]
        for number, floor in await session.query(_FLOORS, columns):
            floors[doubtful[number - 1]] = floor
    renamed = set(doubtful) - floors.keys()
    return {
        each: Page(found[number], each[2] < floors.get(each, 0), each in renamed)
        for number, each in enumerate(wanted, 1)
    }


async def after(
    session: Session, tenant: Tenant, stream_id: UUID, seq: Seq, limit: int
) -> list[Event]:
    """Up to `limit` events after a position, in order.

    Raises `Pruned` if the next one is kept no more, and `Renamed` if the stream has another name.
    """
    position = tenant.id, stream_id, seq
    return events_of(position, (await pages(session, [position], limit))[position])


def events_of(position: StreamPosition, page: Page) -> list[Event]:
    """The events of a page. Raises `Pruned` or `Renamed` where the page says so."""
    tenant_id, stream_id, seq = position
    if page.renamed:
        raise Renamed(f"the stream of tenant {tenant_id} is not {stream_id}")
    if page.pruned:
        raise Pruned(f"what follows event {seq} is kept no more")
    return list(page.events)


async def look(
    session: Session,
    limit: int,
    aside: Iterable[TenantId],
    unreadable: Iterable[TenantId],
    limits: Mapping[TenantId, int],
    only: TenantId | None = None,
) -> list[Seen]:
    """The next rows of the outbox, up to `limit` of them and the oldest 20 with each of their keys.

    Without those of tenants that are `aside`, and of `unreadable` tenants without those that hooks have noted
    about orders; of a tenant that is in `limits` up to so many. With `only`, those of that tenant.
    """
    values = (limit, list(aside), list(unreadable), [*limits], [*limits.values()], only)
    return [Seen(*row) for row in await session.query(_LOOK, values)]


async def look_again(
    session: Session, tried: Mapping[TenantId, str], odd: Iterable[tuple[TenantId, str]]
) -> list[Seen]:
    """The rows about one order of each tenant: the next one by its id after the one that was tried.

    Without orders that are `odd`.
    """
    values = ([*tried], [*tried.values()], *_columns(odd, 2))
    return [Seen(*row) for row in await session.query(_LOOK_AGAIN, values)]


async def take(
    session: Session,
    seen: Sequence[tuple[TenantId, int]],
    asking: Iterable[tuple[TenantId, int | None]] = (),
    *,
    patient: bool,
    node_id: UUID | None = None,
    fence: int | None = None,
) -> Taken | None:
    """Take rows that were seen out of the outbox under the sequencer's lock, as far as they are there.

    `asking` names tenants whose publishers ask for something, with the last row that it follows, if that is
    known. None: another sequencer has the lock. `patient` waits for it instead, and raises `Busy` when that
    takes longer than lock_timeout.

    `fence` is that of the lease that this node had when it looked. Raises `FenceLost` if rows were seen and
    it does not have that lease any more.
    """
    node = None if node_id is None else str(node_id)
    values = (*_columns(seen, 2), *_columns(asking, 2), patient, node, fence)
    try:
        rows = await session.query(_TAKE, values)
    except StatementFailed as error:
        if error.sqlstate == _FENCED_OFF:
            raise FenceLost(str(error)) from error
        raise
    if not rows[0][0]:
        return None
    behind = {(row[2], row[6]): row[7] for row in rows if row[7] is not None}
    taken = [OutboxRow(*row[1:6]) for row in rows if row[1] is not None]
    return Taken(taken, rows[0][-1], behind)


async def order_states(
    session: Session,
    wanted: Collection[tuple[TenantId, str]],
    rows_now: Mapping[tuple[TenantId, str], str],
) -> dict[tuple[TenantId, str], OrderState]:
    """The states of the named orders. `rows_now` has those that were read in the shops' tables."""
    rows = await session.query(_STATES, _columns([*wanted], 2))
    orders: dict[tuple[TenantId, str], OrderState] = {}
    for tenant_id, order_id, snapshot, status, version in rows:
        stored = None if snapshot is None else StoredText(snapshot, status, version)
        orders[tenant_id, order_id] = OrderState(stored, rows_now.get((tenant_id, order_id)))
    return orders


async def record(session: Session, node_id: UUID, entries: Sequence[Entry]) -> list[Recorded]:
    """Number and store entries in their order, one answer each."""
    columns = (
        [entry.tenant_id for entry in entries],
        [entry.type for entry in entries],
        [entry.data for entry in entries],
        [entry.beside for entry in entries],
        [entry.failure for entry in entries],
        [entry.order_id for entry in entries],
        # A new order's snapshot is its data: it is sent, and copied, once.
        [None if entry.snapshot == entry.data else entry.snapshot for entry in entries],
        [entry.status for entry in entries],
        [entry.version for entry in entries],
        [entry.payment_status for entry in entries],
        [entry.created_at for entry in entries],
    )
    rows = await session.query(_RECORD, (str(node_id), *columns))
    placed = {
        ordinal: Recorded(seq, stream_id and UUID(stream_id), created_at, elsewhere)
        for ordinal, seq, stream_id, created_at, elsewhere in rows
    }
    return [placed[ordinal] for ordinal in range(1, len(entries) + 1)]


def _columns(rows: Iterable[tuple[object, ...]], width: int) -> tuple[list[object], ...]:
    """Rows as the arrays of a statement with unnest(). psycopg2 is given a uuid as text."""
    columns: tuple[list[object], ...] = tuple([] for _ in range(width))
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(str(value) if isinstance(value, UUID) else value)
    return columns
