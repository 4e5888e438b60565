"""Compares a published order with posd's record of it, and decides which event is published.

Orders from REST, SQL and hooks change the same snapshot. This module also filters the orders that are not
online.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from attrs import frozen

from posd.events.coercion import NotCoercible
from posd.events.fields import UNREADABLE, snake
from posd.events.normalise import (
    ADDON_SPELLINGS,
    ITEM_MEMBERS,
    ORDER_MEMBERS,
    SCHEDULE,
    SCHEDULED_TEXT,
    repeated_members,
)
from posd.events.normalise import ORDER_TYPES as ORDER_TYPES
from posd.events.order_parts import choices, objects
from posd.protocol.json_literals import timestamp
from posd.values import LEFT_OUT, EventDraft, StoredOrder

FINAL_STATUSES = frozenset(
    (
        *("completed", "complete", "fulfilled", "closed", "served"),
        *("delivered", "collected", "picked_up"),
        *("cancelled", "canceled", "rejected", "declined", "abandoned", "expired", "failed"),
        *("refunded", "voided", "void"),
    )
)
"""The statuses of finished orders. An order that is finished when posd first sees it is not published.

docs/protocol.md specifies no such words; these are the words that shops' software uses. An order with any
other status is published, because an extra ticket does less harm than a lost order.
"""

NOT_ONLINE, OVER, OLD, UNCHANGED, GONE, CONDITION = LEFT_OUT

_RECENT = timedelta(hours=24)
"""A hooked order that is older when posd first sees it existed before posd was installed."""

_CUSTOMER = ("customerName", "customerPhone", "customerEmail")

_MANAGED = frozenset(("version", "previousStatus", "updatedAt"))
"""The members that posd sets itself. They are not compared."""


@frozen
class OrderChange:
    """An event to publish, and the new record of its order."""

    draft: EventDraft
    snapshot: dict[str, object]
    status: str
    version: int
    reuses_id: bool = False
    """Whether a new order has the id of an earlier order."""


def change(
    draft: EventDraft,
    stored: StoredOrder | None,
    now: datetime,
    *,
    hooked: bool = False,
    left_out: Callable[[str], object] = lambda reason: None,
) -> OrderChange | None:
    """Return the event that `draft` (a `new_order` or `order_updated`) causes; None if there is none.

    No event is caused by an order that is not online (an order without an `orderSource` is online), by
    content that posd has already published (`12.30` equals `12.3`; `version` and `updatedAt` are not
    compared), and by a hooked order that is finished or more than a day old when posd first sees it.
    `left_out` is then called with the reason, one of `values.LEFT_OUT`.

    Members that the draft lacks are taken from the stored order, so each event has the whole order. A null
    in a hooked row or an `order_updated` erases the stored value; a null in another `new_order` is ignored.
    `now` is timezone-aware and the time of the database, whose clock also dates the shop's rows.

    A new order may have the id of an earlier order if a shop has emptied its table or restarted its numbers.
    posd publishes a `new_order` without the members of the earlier order, and counts `version` on.
    """
    if draft.type not in ORDER_TYPES:
        raise ValueError(f"{draft.type} is not about an order.")
    earlier = _content(stored.snapshot) if stored else {}
    reuses_id = draft.type == "new_order" and _is_reused_id(draft.data, earlier)
    if reuses_id:
        earlier = {}
    content = _merged(earlier, draft, null_erases=hooked or draft.type == "order_updated")
    _set_defaults(content)
    if not is_online(content):
        left_out(NOT_ONLINE)
        return None
    is_new = reuses_id or (stored is None and (hooked or draft.type == "new_order"))
    if is_new and content["createdAt"] is None:
        content["createdAt"] = timestamp(now)
    if stored is None or reuses_id:
        if hooked and (reason := _why_not_new(content, now)) is not None:
            left_out(reason)
            return None
    elif content == earlier and _is_same_json(content, earlier):
        left_out(UNCHANGED)
        return None
    version = stored.version + 1 if stored else 1
    snapshot = data = _ordered({**content, "version": version})
    if not is_new:
        previous = stored.status if stored else draft.data.get("previousStatus")
        updated = draft.data.get("updatedAt") or timestamp(now)
        data = _ordered({**snapshot, "previousStatus": previous, "updatedAt": updated})
    kind = "new_order" if is_new else "order_updated"
    event = EventDraft(
        kind, data, repeated_members(kind, data, draft.extra_members), draft.warnings
    )
    return OrderChange(event, snapshot, str(content["status"]), version, reuses_id)


def is_online(order: Mapping[str, object]) -> bool:
    """Whether a normalised order is online. Only online orders are sent to tills."""
    return order.get("orderSource", "online") == "online"


def is_final(status: str) -> bool:
    """Whether an order of this normalised status is finished."""
    return status in FINAL_STATUSES


def from_row(row: Mapping[str, object]) -> dict[str, object]:
    """Return the data of a `new_order` for a row of a shop's `orders`, with its `items` in an array.

    The data has the columns `ORDER_COLUMNS` and `ITEM_COLUMNS` and the known members of addons only, so that
    other data of the shop never reaches a till. `events.normalise.draft` reads the values.
    """
    order = _renamed(row, ORDER_COLUMNS)
    if (schedule := _schedule(order)) is not None:
        order["scheduledFor"] = order["scheduledTime"] = schedule
    order["items"] = [_from_item_row(item) for item in _objects(row.get("items"))]
    return order


def _renamed(row: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    """Return the values of the columns by member. Of several columns of a member, the last non-null wins."""
    members: dict[str, object] = {}
    for column, name in columns.items():
        if column in row and (row[column] is not None or name not in members):
            members[name] = row[column]
    return members


def _schedule(order: Mapping[str, object]) -> str | None:
    """Join a date in one column and a time of day in the other; None if the columns have other values."""
    day, clock = order.get("scheduledFor"), order.get("scheduledTime")
    if not isinstance(day, str) or not isinstance(clock, str) or not clock.strip():
        return None
    return f"{day} {clock}" if _DAY.fullmatch(day) and not _DAY.match(clock) else None


def _from_item_row(row: Mapping[str, object]) -> dict[str, object]:
    item = _renamed(row, ITEM_COLUMNS)
    chosen = [row[column] for column in ADDON_COLUMNS if row.get(column) is not None]
    try:
        item["selectedAddons"] = [
            {name: value for name, value in addon.items() if name in ADDON_SPELLINGS}
            for addons in chosen
            for addon in choices(addons, ADDON_SPELLINGS)
        ] or None
    except NotCoercible:
        # The value may be an allergy. `normalise` cannot read it either, and moves it to `unreadable`.
        item["selectedAddons"] = chosen[0] if len(chosen) == 1 else chosen
    return item


def _objects(value: object) -> list[Mapping[str, object]]:
    try:
        return objects(value)
    except NotCoercible:
        return []


_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

ORDER_COLUMNS: Mapping[str, str] = {
    "id": "orderId",
    "total": "totalAmount",
    "address": "deliveryAddress",
} | {snake(name): name for name, _ in ORDER_MEMBERS if name not in _MANAGED | {"orderId", "items"}}
"""The columns of a shop's `orders` that posd reads, and their members in the event."""
ITEM_COLUMNS: Mapping[str, str] = {
    **{snake(name): name for name in ITEM_MEMBERS if name != "selectedAddons"},
    **{name: name for name in ("notes", "note", "instructions", "comment", "comments")},
}
"""The columns of `order_items` that posd reads, and their members, without `ADDON_COLUMNS`."""
ADDON_COLUMNS = ("selected_addons", "addons", "modifiers", "extras", "toppings")
"""The columns of `order_items` with addons. An item has the addons of all of them."""

_NULLABLE = tuple(name for name, nullable in ORDER_MEMBERS if nullable and name not in _MANAGED)


def _content(snapshot: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in snapshot.items() if name not in _MANAGED}


def _merged(
    earlier: Mapping[str, object], draft: EventDraft, *, null_erases: bool
) -> dict[str, object]:
    """Return the stored content with the changes of the draft."""
    stated_members = _content(draft.data)
    if not earlier:
        return stated_members
    odd, odd_before = stated_members.get(UNREADABLE, {}), earlier.get(UNREADABLE, {})
    # A null in place of an unreadable value erases nothing. `createdAt` is never erased.
    kept = {"createdAt", *(odd if isinstance(odd, dict) else ())}
    stated = {
        name: value
        for name, value in stated_members.items()
        if value is not None or (null_erases and name not in kept)
    }
    merged = {**earlier, **stated}
    if SCHEDULED_TEXT in stated_members:
        merged.update((name, stated_members[name]) for name in SCHEDULE if name in stated_members)
    elif "scheduledFor" in stated:
        merged.pop(SCHEDULED_TEXT, None)
    if isinstance(odd, dict) and isinstance(odd_before, dict):
        unread_still = {
            name: value for name, value in odd_before.items() if name not in stated
        } | odd
        if unread_still:
            merged[UNREADABLE] = unread_still
        elif odd_before:
            del merged[UNREADABLE]
    return merged


def _set_defaults(content: dict[str, object]) -> None:
    """Set the missing members that tills expect.

    The defaults do not cost the shop or the customer anything: the payment is pending, and an order without
    an address is for pickup.
    """
    for name in _NULLABLE:
        content.setdefault(name, None)
    content.setdefault("orderNumber", content["orderId"])
    content.setdefault("orderType", "delivery" if content["deliveryAddress"] else "pickup")
    content.setdefault("orderSource", "online")
    content.setdefault("status", "confirmed")
    content.setdefault("paymentStatus", "pending")
    content.setdefault("items", [])


def _ordered(order: Mapping[str, object]) -> dict[str, object]:
    """Return the known members in the order of `ORDER_MEMBERS`, and then the others."""
    known = {name: order[name] for name, _ in ORDER_MEMBERS if name in order}
    return {**known, **order} if len(known) < len(order) else known


def _why_not_new(order: Mapping[str, object], now: datetime) -> str | None:
    """Return the reason for which a new hooked order is not published; None if it is published."""
    if is_final(str(order["status"])):
        return OVER
    created = datetime.fromisoformat(str(order["createdAt"]))
    return OLD if now - created > _RECENT else None


def _is_reused_id(stated_members: Mapping[str, object], earlier: Mapping[str, object]) -> bool:
    """Whether a new order is another order than the stored one, with the same id.

    This is so if the new order was created later, and the stored order was finished, or of another customer,
    or older by a day. A later creation alone is not enough: some shops replace the time of the cart with the
    time of the checkout.
    """
    created, before = stated_members.get("createdAt"), earlier.get("createdAt")
    if not isinstance(created, str) or not isinstance(before, str):
        return False
    age = datetime.fromisoformat(created) - datetime.fromisoformat(before)
    if age <= timedelta(0) or is_final(str(stated_members.get("status", ""))):
        return False
    if is_final(str(earlier.get("status", ""))) or age > _RECENT:
        return True
    known = [
        (stated_members[name], earlier[name])
        for name in _CUSTOMER
        if stated_members.get(name) and earlier.get(name)
    ]
    return bool(known) and all(now != then for now, then in known)


def _is_same_json(one: object, other: object) -> bool:
    """Whether two equal values are the same JSON. In Python, `True` equals 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_is_same_json(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return all(map(_is_same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool)
