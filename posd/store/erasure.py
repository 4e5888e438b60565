"""Read a tenant's documents that may contain a customer's data, in batches, and erase the data.

posd has no privilege to update events. The functions of `sql/main/011_erasure.sql` do it, and verify that
only texts are removed. They replace a document only if it has not changed since it was read, so concurrent
changes are not lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, Literal

from attrs import frozen

from posd.database.reconnecting import Executor
from posd.store import schema
from posd.values import Tenant

DocumentPlace = Literal["event", "message", "order", "answer", "outbox", "refusal"]
Part = Literal["event", "beside", "message", "order", "answer", "call", "outbox", "refusal"]
"""The column that is written: an event has two texts, and a stored answer has a body and a path."""

BATCH: Final = 500

_READ: Final[dict[DocumentPlace, str]] = {
    "event": """
        SELECT e.seq, e.seq::text, e.event_data::text, e.beside::text, NULL::text
          FROM dinedesk_main.pos_events AS e
         WHERE e.tenant_id = %(tenant)s AND e.seq > %(id)s ORDER BY e.seq LIMIT %(limit)s
    """,
    "message": """
        SELECT u.id, u.id::text, u.event_data::text, NULL::text, NULL::text
          FROM dinedesk_main.pos_unsequenced AS u
         WHERE u.tenant_id = %(tenant)s AND u.id > %(id)s ORDER BY u.id LIMIT %(limit)s
    """,
    "order": """
        SELECT o.order_id, o.order_id, o.snapshot::text, NULL::text, NULL::text
          FROM dinedesk_main.pos_orders AS o
         WHERE o.tenant_id = %(tenant)s AND o.order_id > %(id)s ORDER BY o.order_id LIMIT %(limit)s
    """,
    # The order of the index idempotency_keys_unique.
    "answer": """
        SELECT ARRAY[i.principal, i.operation, i.key],
               i.principal || chr(1) || i.operation || chr(1) || i.key, i.answer::text, NULL::text,
               i.operation
          FROM dinedesk_main.idempotency_keys AS i
         WHERE coalesce(i.tenant_id, 0) = %(tenant)s
           AND (i.principal, i.operation, i.key) > ((%(id)s)[1], (%(id)s)[2], (%(id)s)[3])
         ORDER BY coalesce(i.tenant_id, 0), i.principal, i.operation, i.key LIMIT %(limit)s
    """,
    "outbox": """
        SELECT o.id, o.id::text, o.data, NULL::text, NULL::text
          FROM dinedesk_main.pos_outbox_transactions AS t
          JOIN dinedesk_main.pos_outbox AS o
            ON o.tenant_id = t.tenant_id AND o.xact = t.xact AND o.kind = t.kind
         WHERE t.tenant_id = %(tenant)s AND t.kind = 'plain' AND o.data IS NOT NULL AND o.id > %(id)s
         ORDER BY o.id LIMIT %(limit)s
    """,
    # The reason is plain text. It is presented as notes of the order that the event is about.
    "refusal": """
        SELECT ARRAY[n.seq::text, n.device_id], n.seq || chr(1) || n.device_id,
               json_build_object('orderId', e.event_data->>'orderId', 'notes', n.reason)::text,
               NULL::text, NULL::text
          FROM dinedesk_main.pos_nacks AS n
          LEFT JOIN dinedesk_main.pos_events AS e ON e.tenant_id = n.tenant_id AND e.seq = n.seq
         WHERE n.tenant_id = %(tenant)s AND n.reason IS NOT NULL
           AND (n.seq, n.device_id) > ((%(id)s)[1]::bigint, (%(id)s)[2])
         ORDER BY n.seq, n.device_id LIMIT %(limit)s
    """,
}
_FIRST: Final[dict[DocumentPlace, object]] = {
    "event": 0,
    "message": 0,
    "order": "",
    "answer": ["", "", ""],
    "outbox": 0,
    "refusal": ["0", ""],
}
_KEEPS: Final = """
    SELECT dinedesk_main.pos_keeps(%s, 'gift_cards'), dinedesk_main.pos_keeps(%s, 'loyalty_accounts')
"""
_CARDS: Final = """
    SELECT card_number, purchased_by, recipient_name, recipient_email FROM {schema}.gift_cards
     WHERE num_nonnulls(purchased_by, recipient_name, recipient_email) > 0
"""
_ACCOUNTS: Final = """
    SELECT a.id, a.phone, a.email,
           coalesce((SELECT m.balance_after FROM {schema}.pos_loyalty_transactions AS m
                      WHERE m.account_id = a.id ORDER BY m.seq DESC LIMIT 1), 0)
      FROM {schema}.loyalty_accounts AS a WHERE a.phone IS NOT NULL
"""
# The shop's own tables: posd reads them but never writes them.
_REMAINS: Final = """
    SELECT n.nspname || '.' || c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'f', 'm')
       AND c.relname IN ('orders', 'order_items', 'gift_cards', 'loyalty_accounts')
       AND NOT dinedesk_main.pos_keeps(n.nspname::text, c.relname::text) ORDER BY 1
"""
_ERASE: Final = "SELECT dinedesk_main.pos_erase(%s, %s, %s::text[], %s::text[])"
_ERASE_PEOPLE: Final = "SELECT * FROM dinedesk_main.pos_erase_people(%s, %s::text[], %s::bigint[])"
_NOTE: Final = """
    INSERT INTO dinedesk_main.pos_erasures
        (tenant_id, sought, events, orders, answers, gift_cards, accounts)
    VALUES (%s, %s, %s, %s, %s, %s, %s)
"""


@frozen
class CustomerDocument:
    """JSON text that may contain a customer's data.

    `extra_members` is the second JSON text of an event. `operation` is the method and path that a stored
    answer belongs to; the path may contain a telephone number.
    """

    key: str
    text: str
    extra_members: str | None = None
    operation: str | None = None


@frozen
class CardHolder:
    """A gift card and the names and addresses of people stored with it."""

    number: str
    people: Sequence[str | None]


@frozen
class PointsAccount:
    """A customer's account of loyalty points."""

    id: int
    phone: str
    email: str | None
    points: int


@frozen
class ErasureCounts:
    """The number of changed rows of each kind. It does not identify the customer."""

    events: int = 0
    orders: int = 0
    answers: int = 0
    gift_cards: int = 0
    accounts: int = 0


async def next_documents(
    executor: Executor, tenant: Tenant, place: DocumentPlace, after: object = None
) -> tuple[list[CustomerDocument], object]:
    """Return the next `BATCH` documents of a place, and the value of `after` for the next call."""
    values = {
        "tenant": tenant.id,
        "id": _FIRST[place] if after is None else after,
        "limit": BATCH,
    }
    rows = await executor.query(_READ[place], values)
    found = [CustomerDocument(*row[1:]) for row in rows]
    return found, rows[-1][0] if rows else after


async def load_people(
    executor: Executor, tenant: Tenant
) -> tuple[list[CardHolder], list[PointsAccount]]:
    """Return the gift cards with personal data and the loyalty accounts, from tables that posd owns."""
    ((cards, accounts),) = await executor.query(_KEEPS, (tenant.schema, tenant.schema))
    name = schema(tenant)
    return (
        [
            CardHolder(number, names)
            for number, *names in (
                await executor.query(_CARDS.format(schema=name)) if cards else ()
            )
        ],
        [
            PointsAccount(*row)
            for row in (await executor.query(_ACCOUNTS.format(schema=name)) if accounts else ())
        ],
    )


async def erase(
    executor: Executor, tenant: Tenant, part: Part, texts: Sequence[tuple[str, str]]
) -> AsyncIterator[set[str]]:
    """Replace the texts with these keys. Yield, for each batch, the keys of the rows that were replaced.

    A row that has changed since it was read is not replaced. All nodes drop cached copies of the events.
    """
    for some in _batches(texts):
        keys, new = zip(*some, strict=True)
        rows = await executor.query(_ERASE, (tenant.id, part, list(keys), list(new)))
        yield {key for (key,) in rows}


async def erase_people(
    executor: Executor, tenant: Tenant, cards: Sequence[str], accounts: Sequence[int]
) -> tuple[int, int]:
    """Erase personal data of these gift cards and loyalty accounts. Return the number of each."""
    ((done_cards, done_accounts),) = await executor.query(
        _ERASE_PEOPLE, (tenant.id, list(cards), list(accounts))
    )
    return done_cards, done_accounts


async def remaining_tables(executor: Executor, tenant: Tenant) -> list[str]:
    """Return the names of the shop's own tables. They may contain the customer; posd does not write them."""
    return [name for (name,) in await executor.query(_REMAINS, (tenant.schema,))]


async def record_erasure(
    executor: Executor, tenant: Tenant, request: str, counts: ErasureCounts
) -> None:
    """Record an erasure in `pos_erasures`, without the customer's identity."""
    values = (counts.events, counts.orders, counts.answers, counts.gift_cards, counts.accounts)
    await executor.execute(_NOTE, (tenant.id, request, *values))


def _batches(texts: Sequence[tuple[str, str]]) -> Iterator[Sequence[tuple[str, str]]]:
    for start in range(0, len(texts), BATCH):
        yield texts[start : start + BATCH]
