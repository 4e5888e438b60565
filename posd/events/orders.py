"""What a published order changes: one snapshot per order, whatever road the order came by.

Here, and nowhere else, stands the filter that only online orders are pushed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from attrs import frozen

from posd.events.coercion import Unreadable
from posd.events.fields import UNREADABLE, snake
from posd.events.normalise import (
    ADDON_SPELLINGS,
    ITEM_MEMBERS,
    ORDER_MEMBERS,
    SCHEDULE,
    SCHEDULED_TEXT,
    repeats,
)
from posd.events.normalise import ORDER_TYPES as ORDER_TYPES
from posd.events.parts import choices, objects
from posd.protocol.jsontext import timestamp
from posd.values import LEFT_OUT, Draft, StoredOrder

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

NOT_ONLINE, OVER, OLD, UNCHANGED, GONE = LEFT_OUT

_RECENT = timedelta(hours=24)
"""A hooked order that is older when first seen was there before posd was."""

_MANAGED = frozenset(("version", "previousStatus", "updatedAt"))
"""What posd counts and dates itself: not part of an order's content."""


@frozen
class OrderChange:
    """An event to publish, and what is known of its order from now on."""

    draft: Draft
    snapshot: dict[str, object]
    status: str
    version: int


def change(
    draft: Draft,
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
    """
    if draft.type not in ORDER_TYPES:
        raise ValueError(f"{draft.type} is not about an order.")
    earlier = _content(stored.snapshot) if stored else {}
    content = _merged(earlier, draft, believes_null=hooked or draft.type == "order_updated")
    _complete(content)
    if not is_online(content):
        left_out(NOT_ONLINE)
        return None
    is_new = stored is None and (hooked or draft.type == "new_order")
    if is_new and content["createdAt"] is None:
        content["createdAt"] = timestamp(now)
    if stored is None:
        if hooked and (reason := _over(content, now)) is not None:
            left_out(reason)
            return None
    elif content == earlier and _alike(content, earlier):
        left_out(UNCHANGED)
        return None
    version = stored.version + 1 if stored else 1
    snapshot = data = _ordered({**content, "version": version})
    if not is_new:
        previous = stored.status if stored else draft.data.get("previousStatus")
        updated = draft.data.get("updatedAt") or timestamp(now)
        data = _ordered({**snapshot, "previousStatus": previous, "updatedAt": updated})
    kind = "new_order" if is_new else "order_updated"
    event = Draft(kind, data, repeats(kind, data, draft.beside), draft.warnings)
    return OrderChange(event, snapshot, str(content["status"]), version)


def is_online(order: Mapping[str, object]) -> bool:
    """Whether an order, in the contract's form, is one that tills are told of."""
    return order.get("orderSource", "online") == "online"


def is_final(status: str) -> bool:
    """Whether an order of this status, in the contract's spelling, is over."""
    return status in FINAL_STATUSES


def from_row(row: Mapping[str, object]) -> dict[str, object]:
    """The data of a `new_order` from a shop's own row of `orders`, with its `items` in an array.

    Only the columns that the contract has a member for are taken, in the order, its items and
    their addons alike: what else a shop keeps in there never reaches a till. The values are left
    to `events.normalise.draft`.
    """
    order = {name: row[column] for column, name in _ORDER_COLUMNS.items() if column in row}
    order["items"] = [_from_item_row(item) for item in _objects(row.get("items"))]
    return order


def _from_item_row(row: Mapping[str, object]) -> dict[str, object]:
    item = {name: row[column] for column, name in _ITEM_COLUMNS.items() if column in row}
    addons = row.get("selected_addons")
    try:
        item["selectedAddons"] = [
            {name: value for name, value in addon.items() if name in ADDON_SPELLINGS}
            for addon in ([] if addons is None else choices(addons, ADDON_SPELLINGS))
        ] or None
    except Unreadable:
        # It may be an allergy: `unreadable` of the line keeps it, whatever it is.
        item["selectedAddons"] = addons
    return item


def _objects(value: object) -> list[Mapping[str, object]]:
    try:
        return objects(value)
    except Unreadable:
        return []


_ORDER_COLUMNS = {"id": "orderId", "total": "totalAmount"} | {
    snake(name): name for name, _ in ORDER_MEMBERS if name not in _MANAGED | {"orderId", "items"}
}
_ITEM_COLUMNS = {snake(name): name for name in ITEM_MEMBERS}
_NULLABLE = tuple(name for name, nullable in ORDER_MEMBERS if nullable and name not in _MANAGED)


def _content(snapshot: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in snapshot.items() if name not in _MANAGED}


def _merged(
    earlier: Mapping[str, object], draft: Draft, *, believes_null: bool
) -> dict[str, object]:
    """What was known and what the draft says now."""
    given = _content(draft.data)
    if not earlier:
        return given
    odd, odd_before = given.get(UNREADABLE, {}), earlier.get(UNREADABLE, {})
    # A null that only stands for something unreadable erases nothing; nor is it ever forgotten
    # when an order was made.
    kept = {"createdAt", *(odd if isinstance(odd, dict) else ())}
    said = {
        name: value
        for name, value in given.items()
        if value is not None or (believes_null and name not in kept)
    }
    merged = {**earlier, **said}
    if SCHEDULED_TEXT in given:
        merged.update((name, given[name]) for name in SCHEDULE if name in given)
    elif "scheduledFor" in said:
        merged.pop(SCHEDULED_TEXT, None)
    if isinstance(odd, dict) and isinstance(odd_before, dict):
        still = {name: value for name, value in odd_before.items() if name not in said} | odd
        if still:
            merged[UNREADABLE] = still
        elif odd_before:
            del merged[UNREADABLE]
    return merged


def _complete(content: dict[str, object]) -> None:
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


def _over(order: Mapping[str, object], now: datetime) -> str | None:
    """Why a hooked order is none that a till needs to hear of."""
    if is_final(str(order["status"])):
        return OVER
    created = datetime.fromisoformat(str(order["createdAt"]))
    return OLD if now - created > _RECENT else None


def _alike(one: object, other: object) -> bool:
    """Whether equal values are the same JSON: to Python `True` equals 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_alike(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return all(map(_alike, one, other))
    return isinstance(one, bool) == isinstance(other, bool)
