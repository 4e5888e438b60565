"""Turns the items of a batch into log entries, without I/O.

The input is the items in the order in which they were published. The output is entries for
`posd.store.sequencing.record_entries`. If a batch has two events of an order, the second one is compared
with the snapshot of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from typing import Final, cast

from attrs import define, evolve, field, frozen

from posd.errors import InvalidMessage, Refusal, TooLarge, Unprocessable, returned
from posd.events import ledger_movements, normalise, orders
from posd.events.coercion import ID_LENGTH, NotCoercible, identifier
from posd.events.order_transitions import Condition
from posd.events.timezones import zone
from posd.protocol import jsontext
from posd.store.sequencing import LogEntry, OrderState, OutboxRow
from posd.values import EventDraft, StoredOrder, Tenant, TenantId

OrderKey = tuple[TenantId, str]
Shops = Mapping[TenantId, Tenant]
TOUCHED: Final = ("order", "placed")
"""The `type` of an outbox row that a hook has written for a changed or an inserted order."""
_LONG_ID: Final = f"The order's id has more than {ID_LENGTH} characters."
_FAILURE: Final = "failure"
_PASSED_OVER: Final = "passed_over"
_MISSING_COLUMNS: Final = "lacks"
"""The members that `pos_read_shop()` adds to the columns of a row (sql/main/013_adoptions.sql)."""


# posd creates an object for each event, and a frozen class takes three to five times as long to create.
@define
class BatchItem:
    """A draft to publish, or the id of an order that a hook has noted as changed (`touched`).

    `condition` raises a `Refusal` if a draft about an order must not be published.
    """

    tenant_id: TenantId
    draft: EventDraft | None = None
    touched: str | None = None
    condition: Condition | None = None
    partition_key: tuple[TenantId, str | None] = field(init=False)
    """The tenant, and the id of the order that the item is about; None if it is about no order."""

    def __attrs_post_init__(self) -> None:
        order_id, draft = self.touched, self.draft
        if order_id is None and draft is not None and draft.type in orders.ORDER_TYPES:
            order_id = str(draft.data["orderId"])
        self.partition_key = self.tenant_id, order_id


@frozen
class LedgerChange:
    """A row of a ledger, or a gift card, that a hook has noted as written.

    `kind` and `key` identify the row.
    """

    tenant_id: TenantId
    kind: str
    key: str

    @property
    def partition_key(self) -> tuple[TenantId, str | None]:
        """The tenant and None, because a ledger row is about no order."""
        return self.tenant_id, None


@frozen
class RejectedRow:
    """An outbox row that cannot become an event. It is logged with the reason, and gets no position."""

    row: OutboxRow
    reason: str
    logged_data: str | None = None
    """JSON text for the log if PostgreSQL could not store the row's data."""
    about: str | None = None
    """The id of the order that the row is about, if it is known."""

    @property
    def partition_key(self) -> tuple[TenantId, str | None]:
        return self.row.tenant_id, None

    def entry(self, most_bytes: int) -> LogEntry:
        data = self.logged_data or self.row.data or jsontext.encode({"key": self.row.key}).decode()
        size = len(data.encode())
        if size > most_bytes:
            data = jsontext.encode({"bytes": size}).decode()
        kind, about = self.row.type[:50] or "?", self.about or self.row.key
        return LogEntry(self.row.tenant_id, kind, data, failure=self.reason, about=about)


class EventTooLarge(TooLarge):
    """An event is larger than the limit."""

    code = "event_too_large"

    def __init__(self, entry: LogEntry, size: int, most_bytes: int) -> None:
        super().__init__(f"The event has {size} bytes; {most_bytes} are allowed.")
        self.entry = entry
        self.size = size


def source(item: BatchItem | LedgerChange | RejectedRow) -> str:
    """Return the source of an item of the outbox: `hook` for a shop's tables, `sql` for `pos_publish()`."""
    hooked = isinstance(item, LedgerChange) or (
        isinstance(item, BatchItem) and item.touched is not None
    )
    return "hook" if hooked else "sql"


def read(rows: Iterable[OutboxRow], shops: Shops) -> list[BatchItem | LedgerChange | RejectedRow]:
    """Turn outbox rows into items. Several rows about one touched order or ledger row become one item."""
    items: list[BatchItem | LedgerChange | RejectedRow] = []
    touched: set[tuple[TenantId, str, str]] = set()
    for row in rows:
        if row.key is None and row.data is None:
            items.append(RejectedRow(row, "The event is too large.", logged_data="{}"))
        elif row.key is None:
            items.append(_read_draft(row, zone_of(shops, row.tenant_id)))
        elif row.type in TOUCHED:
            if (partition_key := (row.tenant_id, "", row.key)) not in touched:
                touched.add(partition_key)
                if len(row.key) > ID_LENGTH:
                    items.append(RejectedRow(row, _LONG_ID))
                else:
                    items.append(BatchItem(row.tenant_id, touched=row.key))
        elif row.type not in ledger_movements.KINDS:
            items.append(
                RejectedRow(row, f"The type {row.type!r} is unknown for a row with a key.")
            )
        elif (partition_key := (row.tenant_id, row.type, row.key)) not in touched:
            touched.add(partition_key)
            items.append(LedgerChange(*partition_key))
    return items


@frozen
class SkippedOrder:
    """An order that has become no event. `reason` is one of `values.LEFT_OUT`."""

    tenant_id: TenantId
    order_id: str
    reason: str


class OrderBatch:
    """The orders of a batch: the stored state, and the state after the items so far.

    `now` is the time by the database's clock; the age of the shops' orders is measured by it. `ledger_rows`
    has the rows of the shops' ledgers (gift cards, points) as JSON text, by tenant, kind and key.

    At the end, `left_out` has the orders that have become no event. `missing_columns` has the adopted
    columns that a shop's tables lack now, for each tenant whose tables were read.
    """

    def __init__(
        self,
        states: Mapping[OrderKey, OrderState],
        shops: Shops,
        most_bytes: int,
        now: datetime,
        ledger_rows: Mapping[tuple[TenantId, str, str], str] | None = None,
    ) -> None:
        self._states = states
        self._ledger_rows = ledger_rows or {}
        self._shops = shops
        self._most_bytes = most_bytes
        self._now = now
        self._changed: dict[OrderKey, StoredOrder] = {}
        # Touched orders for which the condition of `posctl adopt --where` is not true.
        self._passed_over: set[OrderKey] = set()
        self.left_out: list[SkippedOrder] = []
        self.missing_columns: dict[TenantId, frozenset[str]] = {}

    def outbox_entries(
        self, items: Sequence[BatchItem | LedgerChange | RejectedRow]
    ) -> list[LogEntry]:
        """Return the entries for items of the outbox. The entry of an item that cannot be published has a
        `failure`."""
        entries = []
        for item in items:
            entry = (
                item.entry(self._most_bytes)
                if isinstance(item, RejectedRow)
                else self._entry_or_failure(item)
            )
            if entry is not None:
                entries.append(entry)
        return entries

    def request(self, items: Sequence[BatchItem]) -> list[LogEntry | None]:
        """Return the entries for the events of a request; None for an event that would change nothing.

        Raises a `Refusal` if an event cannot be published. The request then has changed no order.
        """
        before, left_out = dict(self._changed), len(self.left_out)
        try:
            return [self._entry(item) for item in items]
        except Refusal:
            self._changed = before
            del self.left_out[left_out:]
            raise

    def order(self, key: OrderKey) -> StoredOrder | None:
        """Return an order after the items so far; None if there is no such order."""
        if key in self._changed:
            return self._changed[key]
        state = self._states.get(key)
        if state is None or state.stored is None:
            return None
        snapshot = cast("dict[str, object]", jsontext.decode_own(state.stored.snapshot))
        return StoredOrder(key[1], snapshot, state.stored.status, state.stored.version)

    def _entry_or_failure(self, item: BatchItem | LedgerChange) -> LogEntry | None:
        """Return `_entry`, or an entry with a `failure` if that raises an exception."""
        try:
            return self._entry(item)
        except EventTooLarge as refusal:
            # posd's record still has the whole order, so tills that poll for pending orders receive it.
            return evolve(
                refusal.entry,
                data=jsontext.encode({"bytes": refusal.size}).decode(),
                extra_members="{}",
                failure=refusal.message,
            )
        except (Unprocessable, InvalidMessage) as refusal:
            name, about = (
                ("key", item.key)
                if isinstance(item, LedgerChange)
                else ("orderId", item.partition_key[1])
            )
            kind = item.kind if isinstance(item, LedgerChange) else "order_updated"
            data = jsontext.encode({name: about}).decode()
            return LogEntry(item.tenant_id, kind, data, failure=str(refusal), about=about)

    def _entry(self, item: BatchItem | LedgerChange) -> LogEntry | None:
        """Return the entry of an item; None if it changes nothing. Raises a `Refusal` or `InvalidMessage`."""
        tenant_id, order_id = item.partition_key
        if isinstance(item, LedgerChange):
            movement = self._movement_draft(item)
            return None if movement is None else self._check_size(_plain_entry(tenant_id, movement))
        draft = self._touched_draft(item) if item.touched is not None else item.draft
        if order_id is None:
            return None if draft is None else self._check_size(_plain_entry(tenant_id, draft))

        def left_out(reason: str) -> None:
            self.left_out.append(SkippedOrder(tenant_id, order_id, reason))

        if draft is None:
            left_out(orders.GONE)
            return None
        key = tenant_id, order_id
        hooked = item.touched is not None
        draft = self._with_currency(tenant_id, draft)
        stored = self.order(key)
        change = orders.change(draft, stored, self._now, hooked=hooked, left_out=left_out)
        if item.condition is not None:
            item.condition(stored, change)
        if change is None:
            return None
        if key in self._passed_over and hooked and (stored is None or change.reuses_id):
            left_out(orders.CONDITION)
            return None
        self._changed[key] = StoredOrder(order_id, change.snapshot, change.status, change.version)
        entry = _plain_entry(tenant_id, change.draft)
        # The data of a new order is its snapshot. The data of an update also has the earlier values.
        same = change.draft.data is change.snapshot
        entry.order_id = order_id
        entry.snapshot = entry.data if same else jsontext.encode(change.snapshot).decode()
        entry.status, entry.version = change.status, change.version
        entry.payment_status = _text(change.snapshot.get("paymentStatus"))
        entry.created_at = _text(change.snapshot.get("createdAt"))
        entry.reuses_id = change.reuses_id
        return self._check_size(entry)

    def _movement_draft(self, item: LedgerChange) -> EventDraft | None:
        """Return the event for a row of a ledger; None if the row was deleted."""
        content = self._ledger_rows.get((item.tenant_id, item.kind, item.key))
        if content is None:
            return None
        row = cast("dict[str, object]", jsontext.decode_stored(content))
        shop = self._shops.get(item.tenant_id)
        return ledger_movements.draft(item.kind, row, shop.currency if shop else "")

    def _touched_draft(self, item: BatchItem) -> EventDraft | None:
        """Return the present state of a touched order; None if its row was deleted.

        Raises `Unprocessable` if the row could not be read.
        """
        state = self._states.get((item.tenant_id, cast(str, item.touched)))
        if state is None or state.row_now is None:
            return None
        if not state.row_now:
            raise Unprocessable("The order is too large.")
        row = cast("dict[str, object]", jsontext.decode_stored(state.row_now))
        if isinstance(failure := row.get(_FAILURE), str):
            raise Unprocessable(
                f"The row of order {item.touched} cannot be read: {returned(failure)}. Correct the row;"
                " its next change publishes the order."
            )
        missing = row.get(_MISSING_COLUMNS)
        self.missing_columns[item.tenant_id] = frozenset(
            map(str, missing if isinstance(missing, list) else ())
        )
        if row.get(_PASSED_OVER) is True:
            self._passed_over.add((item.tenant_id, cast(str, item.touched)))
        shop_zone = zone_of(self._shops, item.tenant_id)
        repaired = jsontext.needs_repair(state.row_now)
        data = orders.from_row(row)
        return normalise.draft("new_order", data, zone=shop_zone, repaired=repaired)

    def _with_currency(self, tenant_id: TenantId, draft: EventDraft) -> EventDraft:
        """Add the shop's currency to a new order without a currency."""
        shop = self._shops.get(tenant_id)
        if shop is None or draft.type != "new_order" or draft.data.get("currency") is not None:
            return draft
        return evolve(draft, data={**draft.data, "currency": shop.currency})

    def _check_size(self, entry: LogEntry) -> LogEntry:
        # A character has at most four bytes, so most events do not have to be encoded to be measured.
        if 4 * (len(entry.data) + len(entry.extra_members)) > self._most_bytes:
            size = len(entry.data.encode()) + len(entry.extra_members.encode())
            if size > self._most_bytes:
                raise EventTooLarge(entry, size, self._most_bytes)
        return entry


def zone_of(shops: Shops, tenant_id: TenantId) -> tzinfo:
    """Return the time zone of a shop, for dates without a UTC offset."""
    shop = shops.get(tenant_id)
    return UTC if shop is None else zone(shop.timezone)


def _read_draft(row: OutboxRow, shop_zone: tzinfo) -> BatchItem | RejectedRow:
    text = row.data or ""
    data: object = None
    try:
        data = jsontext.decode_stored(text)
        repaired = jsontext.needs_repair(text)
        return BatchItem(
            row.tenant_id, normalise.draft(row.type, data, zone=shop_zone, repaired=repaired)
        )
    except Unprocessable as refusal:
        return RejectedRow(row, str(refusal), about=_order_id(data))
    except InvalidMessage as refusal:
        # The text is logged as a JSON string, since PostgreSQL cannot write JSON that is nested too deeply.
        return RejectedRow(row, str(refusal), logged_data=jsontext.encode({"text": text}).decode())


def order_id_of(row: OutboxRow) -> str | None:
    """Return the id of the order that a row is about; None if it is not in the row."""
    if row.key is not None or row.data is None:
        return row.key
    try:
        return _order_id(jsontext.decode(row.data))
    except InvalidMessage:
        return None


def _order_id(data: object) -> str | None:
    """Return the order id in refused data; None if there is none."""
    if isinstance(data, Mapping):
        for name in ("orderId", "order_id", "id"):
            with suppress(NotCoercible):
                if (given := data.get(name)) is not None and (read := identifier(given)):
                    return read
    return None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _plain_entry(tenant_id: TenantId, draft: EventDraft) -> LogEntry:
    return LogEntry(
        tenant_id,
        draft.type,
        jsontext.encode(draft.data).decode(),
        jsontext.encode(draft.extra_members).decode() if draft.extra_members else "{}",
        warnings=draft.warnings,
    )
