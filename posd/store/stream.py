"""Streams: the heads of tenants, and pages of events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final
from uuid import UUID

from attrs import frozen

from posd.database.reconnecting import Executor, Row
from posd.errors import EventsPruned, StreamRenamed
from posd.values import Event, Seq, StreamHead, Tenant, TenantId

_HEAD_COLUMNS: Final = "tenant_id, stream_id, last_seq, pruned_seq"
_HEADS: Final = f"SELECT {_HEAD_COLUMNS} FROM dinedesk_main.pos_heads WHERE tenant_id = ANY (%s)"
# The heads of many tenants as one row of four texts; the tenant ids are sent as one text too. psycopg2 takes
# three times as long for a thousand rows or for arrays of a thousand elements.
_HEAD_TEXTS: Final = """
    string_agg(h.tenant_id::text, ','), string_agg(h.stream_id::text, ','), string_agg(h.last_seq::text, ','),
    string_agg(h.pruned_seq::text, ',')
      FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = ANY (%s::integer[])
"""
# Any row of the outbox will do: all of them are due.
_POLL: Final = f"""
    SELECT (SELECT greatest(0, extract(epoch FROM clock_timestamp() - o.since))::float8
              FROM dinedesk_main.pos_outbox_waiting(NULL) AS o WHERE o.rows > 0), {_HEAD_TEXTS}
"""
_MOVED: Final = f"SELECT {_HEAD_TEXTS}"
_PAGE_BYTES: Final = 256 * 1024
"""The size of a page's events: the capacity of a till's send queue, so that no event is read in vain."""
# One page per requested stream that still has the requested stream_id. Positions have no gaps, so the page is
# bounded by a position. With a LIMIT, PostgreSQL would read and sort all later events of the tenant when it
# expects few of them: its estimate is the average of all tenants.
_PAGES: Final = """
    SELECT w.number, p.seq, p.event_type, p.data, p.created_at, p.beside
      FROM unnest(%s::integer[], %s::uuid[], %s::bigint[]) WITH ORDINALITY
           AS w(tenant_id, stream_id, seq, number)
      JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = w.tenant_id AND h.stream_id = w.stream_id
     CROSS JOIN LATERAL (
        SELECT e.seq, e.event_type, e.event_data::text AS data, e.created_at, e.beside::text AS beside,
               sum(octet_length(e.event_data::text))
                   OVER (ORDER BY e.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
          FROM dinedesk_main.pos_events AS e
         WHERE e.tenant_id = w.tenant_id AND e.seq > w.seq AND e.seq <= w.seq + %s) AS p
     WHERE coalesce(p.before, 0) < %s
"""
# A stream that has been renamed has no row in the result.
_FLOORS: Final = """
    SELECT w.number, h.pruned_seq
      FROM unnest(%s::integer[], %s::uuid[]) WITH ORDINALITY AS w(tenant_id, stream_id, number)
      JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = w.tenant_id AND h.stream_id = w.stream_id
"""
StreamPosition = tuple[TenantId, UUID, Seq]
"""A position: tenant, `stream_id`, `seq`."""


@frozen
class StreamPage:
    """The events after a position, in order.

    `pruned` is true if the next event has been deleted; `renamed` if the stream has another `stream_id`.
    """

    events: Sequence[Event] = ()
    pruned: bool = False
    renamed: bool = False


def load_head(row: Row) -> StreamHead:
    """Return a head from its columns. psycopg2 returns a uuid as text."""
    tenant_id, stream_id, last_seq, pruned_seq = row
    return StreamHead(tenant_id, stream_id_of(stream_id), last_seq, pruned_seq)


# Parsing a UUID takes longer than the rest of the work with a head, so the results are cached.
stream_id_of: Final = lru_cache(maxsize=65536)(UUID)


async def load_heads(executor: Executor, ids: Iterable[TenantId]) -> dict[TenantId, StreamHead]:
    """Return the heads of these tenants."""
    return {row[0]: load_head(row) for row in await executor.query(_HEADS, (list(ids),))}


async def poll_heads(
    executor: Executor, ids: Iterable[TenantId]
) -> tuple[float | None, list[StreamHead]]:
    """Return the results of a poll: the age of an outbox row in seconds, and the heads of these tenants.

    The age is None if the outbox is empty.
    """
    ((waited, *texts),) = await executor.query(_POLL, (_array(ids),))
    return waited, [StreamHead(*columns) for columns in _heads(*texts)]


async def moved_heads(executor: Executor, known: Iterable[StreamPosition]) -> list[StreamHead]:
    """Return the heads that are above these positions, or that have another `stream_id`."""
    positions: dict[TenantId, list[tuple[UUID, Seq]]] = {}
    for tenant_id, stream_id, seq in known:
        positions.setdefault(tenant_id, []).append((stream_id, seq))
    (texts,) = await executor.query(_MOVED, (_array(positions),))
    return [
        StreamHead(tenant_id, name, last_seq, pruned_seq)
        for tenant_id, name, last_seq, pruned_seq in _heads(*texts)
        for named, seq in positions[tenant_id]
        if last_seq > seq or name != named
    ]


def _array(ids: Iterable[TenantId]) -> str:
    """Return an array in PostgreSQL's text format."""
    return f"{{{','.join(map(str, ids))}}}"


def _heads(*texts: str | None) -> Iterator[tuple[TenantId, UUID, Seq, Seq]]:
    """Split the texts of `_HEAD_TEXTS`, which are NULL if there are no heads."""
    ids, names, last, pruned = (text.split(",") if text else () for text in texts)
    return zip(
        map(int, ids), map(stream_id_of, names), map(int, last), map(int, pruned), strict=True
    )


async def load_pages(
    executor: Executor, requested: Sequence[StreamPosition], limit: int
) -> dict[StreamPosition, StreamPage]:
    """Return a page of up to `limit` events for each position, read by one statement.

    A page ends with the event that brings its size to 256 KiB or more.
    """
    found: dict[int, list[Event]] = {number: [] for number in range(1, len(requested) + 1)}
    values = (*columns(requested, 3), limit, _PAGE_BYTES)
    # Sorted here because PostgreSQL would copy the texts in order to sort them.
    for number, seq, kind, data, created_at, extra_members in sorted(
        await executor.query(_PAGES, values)
    ):
        found[number].append(
            Event(seq, kind, data.encode(), created_at, (extra_members or "{}").encode())
        )
    # An event is deleted in the same transaction that moves the floor, so a floor that is read later explains
    # the missing events.
    doubtful = [
        each
        for number, each in enumerate(requested, 1)
        if not found[number] or found[number][0].seq != each[2] + 1
    ]
    floors: dict[StreamPosition, Seq] = {}
    if doubtful:
        for number, floor in await executor.query(_FLOORS, columns(doubtful, 3)[:2]):
            floors[doubtful[number - 1]] = floor
    renamed = set(doubtful) - floors.keys()
    return {
        each: StreamPage(found[number], each[2] < floors.get(each, 0), each in renamed)
        for number, each in enumerate(requested, 1)
    }


async def events_after(
    executor: Executor, tenant: Tenant, stream_id: UUID, seq: Seq, limit: int
) -> list[Event]:
    """Return up to `limit` events after a position, in order.

    Raises `EventsPruned` if the next event has been deleted, and `StreamRenamed` if the stream has another
    `stream_id`.
    """
    position = tenant.id, stream_id, seq
    return page_events(position, (await load_pages(executor, [position], limit))[position])


def page_events(position: StreamPosition, page: StreamPage) -> list[Event]:
    """Return the events of a page. Raises `EventsPruned` or `StreamRenamed` if the page says so."""
    tenant_id, stream_id, seq = position
    if page.renamed:
        raise StreamRenamed(f"the stream of tenant {tenant_id} is not {stream_id}")
    if page.pruned:
        raise EventsPruned(f"what follows event {seq} is kept no more")
    return list(page.events)


def columns(rows: Iterable[tuple[object, ...]], width: int) -> tuple[list[object], ...]:
    """Return the columns of rows as lists, for unnest(). UUIDs become text, as psycopg2 requires."""
    arrays: tuple[list[object], ...] = tuple([] for _ in range(width))
    for row in rows:
        for array, value in zip(arrays, row, strict=True):
            array.append(str(value) if isinstance(value, UUID) else value)
    return arrays
