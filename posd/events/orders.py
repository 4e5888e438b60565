"""What a published order changes: one snapshot per order, whatever road the order came by.

Here, and nowhere else, stands the filter that only online orders are pushed.
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
"""An order in one of these is over: nothing is left to cook, and no till needs to hear of it first.

The contract names none; these are the words that shops' software uses. A status that is not among
them is taken for an order still to be made, since printing one too many is the smaller harm.
"""

NOT_ONLINE, OVER, OLD, UNCHANGED, GONE, CONDITION = LEFT_OUT

_RECENT = timedelta(hours=24)
"""A hooked order that is older when first seen was there before posd was."""

_CUSTOMER = ("customerName", "customerPhone", "customerEmail")

_MANAGED = frozenset(("version", "previousStatus", "updatedAt"))
"""What posd counts and dates itself: not part of an order's content."""


@frozen
class OrderChange:
    """An event to publish, and what is known of its order from now on."""

    draft: EventDraft
    snapshot: dict[str, object]
    status: str
    version: int
    reuses_id: bool = False
    """Whether it is another order than the one that had this id before."""


def change(
    draft: EventDraft,
    stored: StoredOrder | None,
    now: datetime,
    *,
    hooked: bool = False,
    left_out: Callable[[str], object] = lambda reason: None,
) -> OrderChange | None:
    """What `draft` (a `new_order` or `order_updated`) publishes; None when that is nothing.

    Nothing is: an order from elsewhere than online (an `orderSource` that is missing counts as
    online), content that is already known (`12.30` is `12.3`; version and clocks do not count), and
    a hooked order that is over or more than a day old when first seen. Then `left_out` is called with
    the reason, one of `values.LEFT_OUT`.

    What is known of the order stays unless the draft says otherwise, so that any one event heals a
    till. A null in a hooked row or an `order_updated` erases; in a `new_order` that came by another
    road it says nothing. `now` is aware, and by the clock that dates the shop's rows, the database's.

    A new order may come under the id of an earlier one, in a shop that has emptied its table or starts its
    numbers again. It is published as a `new_order` that owes nothing to the earlier one but counts its
    `version` on.
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
    """Whether an order, in the contract's form, is one that tills are told of."""
    return order.get("orderSource", "online") == "online"


def is_final(status: str) -> bool:
    """Whether an order of this status, in the contract's spelling, is over."""
    return status in FINAL_STATUSES


def from_row(row: Mapping[str, object]) -> dict[str, object]:
    """The data of a `new_order` from a shop's own row of `orders`, with its `items` in an array.

    Only the columns `ORDER_COLUMNS` and `ITEM_COLUMNS` are taken, and of an addon its known members: what
    else a shop keeps there never reaches a till. The values are left to `events.normalise.draft`.
    """
    order = _renamed(row, ORDER_COLUMNS)
    if (schedule := _schedule(order)) is not None:
        order["scheduledFor"] = order["scheduledTime"] = schedule
    order["items"] = [_from_item_row(item) for item in _objects(row.get("items"))]
    return order


def _renamed(row: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    """The values of some columns by member; of two columns for one member the one that has a value."""
    members: dict[str, object] = {}
    for column, name in columns.items():
        if column in row and (row[column] is not None or name not in members):
            members[name] = row[column]
    return members


def _schedule(order: Mapping[str, object]) -> str | None:
    """A day in one column and a time of day in the other as one text; None if that is not what they are."""
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
        # It may be an allergy: `unreadable` of the line keeps it, whatever it is.
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
"""The columns of a shop's `orders` that an event uses, and the members that they become."""
ITEM_COLUMNS: Mapping[str, str] = {
    **{snake(name): name for name in ITEM_MEMBERS if name != "selectedAddons"},
    **{name: name for name in ("notes", "note", "instructions", "comment", "comments")},
}
"""The same of `order_items`, but for the columns that hold addons."""
ADDON_COLUMNS = ("selected_addons", "addons", "modifiers", "extras", "toppings")
"""The columns of `order_items` that hold addons; those of all of them are the addons of the line."""

_NULLABLE = tuple(name for name, nullable in ORDER_MEMBERS if nullable and name not in _MANAGED)


def _content(snapshot: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in snapshot.items() if name not in _MANAGED}


def _merged(
    earlier: Mapping[str, object], draft: EventDraft, *, null_erases: bool
) -> dict[str, object]:
    """What was known and what the draft says now."""
    stated_members = _content(draft.data)
    if not earlier:
        return stated_members
    odd, odd_before = stated_members.get(UNREADABLE, {}), earlier.get(UNREADABLE, {})
    # A null that only stands for something unreadable erases nothing; nor is it ever forgotten
    # when an order was made.
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
    """Give an order what every till expects, where nobody has said it.

    Nothing is invented that a kitchen or a customer would pay for: the payment is pending, and an
    order without an address is picked up.
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
    """The contract's members in the contract's order, then all others."""
    known = {name: order[name] for name, _ in ORDER_MEMBERS if name in order}
    return {**known, **order} if len(known) < len(order) else known


def _why_not_new(order: Mapping[str, object], now: datetime) -> str | None:
    """Why a hooked order is none that a till needs to hear of."""
    if is_final(str(order["status"])):
        return OVER
    created = datetime.fromisoformat(str(order["createdAt"]))
    return OLD if now - created > _RECENT else None


def _is_reused_id(stated_members: Mapping[str, object], earlier: Mapping[str, object]) -> bool:
    """Whether a new order only shares its id with the one that is stored.

    It was created later, and the stored one was over, or another customer's, or older by a day. A shop that
    writes the time of the checkout over that of the cart means the same order.
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
    """Whether equal values are the same JSON: to Python `True` equals 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_is_same_json(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return all(map(_is_same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool)
