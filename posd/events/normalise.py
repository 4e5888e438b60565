"""What somebody publishes, brought into the exact form that deployed tills can read.

The tables below are the contract's: a member a line, in the order in which it leaves. Whatever road
an event came by, its known members are read here and nowhere else; members that posd does not know
are kept as they are, after the known ones.

An order is never lost over a cosmetic problem. What has no safe reading is left out (a text or a
date becomes null) and stands in the member `unreadable` of the same object; a schedule in free text
stands in `scheduledText`; a quantity that is no whole number becomes 1, with a word about it in the
line's instructions, for the cook. Only what cannot be an event at all is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, tzinfo

from posd.errors import Unprocessable
from posd.events.addresses import address
from posd.events.coercion import (
    INT32,
    NotCoercible,
    amount,
    appointment,
    deadline,
    enum_word,
    identifier,
    integer,
    label,
    point_in_time,
    text,
)
from posd.events.fields import UNREADABLE, FieldTable, member, read_object, table
from posd.events.order_parts import check_parts, choices, objects
from posd.events.warnings import (
    NAME_MISSING,
    QUANTITY_REPLACED,
    SCHEDULE_AS_TEXT,
    WarningCollector,
    note_replaced,
)
from posd.events.warnings import UNREADABLE as NOT_READ
from posd.values import EventDraft

ORDER_TYPES = frozenset(("new_order", "order_updated"))
SCHEDULED_TEXT = "scheduledText"
"""The member with a schedule that names no point in time."""

SCHEDULE = ("scheduledFor", "scheduledTime")

_TYPE = re.compile(r"[a-z][a-z0-9_]{0,49}")
_RESERVED = frozenset(("connected", "ping", "pong", "ack", "nack", "error"))
_ENVELOPE = frozenset(("type", "id", "tenant", "timestamp", "replay", "data"))
"""What posd itself writes around the data; nobody else may."""

_REPEATED = {
    "order_updated": {"order_id": "orderId", "status": "status"},
    "gift_card_updated": {"card_number": "cardNumber", "balance": "balance"},
    "loyalty_updated": {"customer_phone": "customerPhone", "points": "newBalance"},
}
"""What deployed tills read beside the data, and the member of the data that it repeats."""

_NAMING = {
    "new_order": ("orderId",),
    "order_updated": ("orderId",),
    "gift_card_purchased": ("cardNumber",),
    "gift_card_updated": ("cardNumber",),
    "loyalty_updated": ("customerId", "customerPhone"),
}
"""One of these is needed, or nobody knows what the event is about."""


def draft(
    type: object,  # noqa: A002  the wire's word
    data: object,
    extra_members: Mapping[str, object] | None = None,
    *,
    zone: tzinfo = UTC,
    repaired: bool = False,
) -> EventDraft:
    """Read an event as it was published.

    `extra_members` has the members that stood next to the data, where a platform sent such; `zone` is the
    shop's, for dates that name no offset. `repaired`: characters of its text were replaced
    (`protocol.jsontext.needs_repair`), and the warnings name the members. An order may be a part of
    one: what it lacks is not made up here but by `events.orders.change`, which knows the rest.
    Raises `Unprocessable` (`invalid_event`) for what cannot be an event.
    """
    if not isinstance(type, str) or not _TYPE.fullmatch(type):
        raise _invalid("type must be 1 to 50 of a-z, 0-9 and _, and begin with a letter.")
    if type in _RESERVED or type.startswith("pos_"):
        raise _invalid(f"type {type} is reserved.")
    if not isinstance(data, Mapping):
        raise _invalid("data must be an object.")
    extra_members = extra_members or {}
    warnings = WarningCollector()
    if repaired:
        note_replaced(warnings, data)
    if type in _TABLES:
        try:
            data = _read_known_type(
                type, _fill_from_extra(type, data, extra_members), zone, warnings
            )
        except NotCoercible:
            raise _invalid("data has a value that JSON does not have.") from None
    return EventDraft(type, data, repeated_members(type, data, extra_members), warnings.all())


def repeated_members(
    type: str,  # noqa: A002
    data: Mapping[str, object],
    extra_members: Mapping[str, object],
) -> dict[str, object]:
    """What stands beside `data`: what deployed tills read there, and whatever else was given."""
    names = _REPEATED.get(type, {})
    read = {repeat: data[name] for repeat, name in names.items() if data.get(name) is not None}
    if extra_members:
        owned = _ENVELOPE | names.keys()
        read.update((name, value) for name, value in extra_members.items() if name not in owned)
    return read


def _read_known_type(
    type: str,  # noqa: A002
    data: Mapping[str, object],
    zone: tzinfo,
    warnings: WarningCollector,
) -> dict[str, object]:
    """The data of a known type. An order is completed later; the others are whole as they come."""
    is_order = type in ORDER_TYPES
    result = read_object(data, _TABLES[type], zone=zone, fill=not is_order, warnings=warnings)
    if is_order:
        _unify_twins(result, warnings)
    names = _NAMING[type]
    if not any(result.get(name) for name in names):
        raise _invalid(f"data has no usable {' or '.join(names)}.")
    return result


def _fill_from_extra(
    type: str,  # noqa: A002
    data: Mapping[str, object],
    extra_members: Mapping[str, object],
) -> Mapping[str, object]:
    """`data`, and what it lacks taken from beside it, where deployed platforms write it too."""
    missing = {
        name: extra_members[repeat]
        for repeat, name in _REPEATED.get(type, {}).items()
        if repeat in extra_members and data.get(name) is None and data.get(repeat) is None
    }
    return {**data, **missing} if missing else data


def _unify_twins(order: dict[str, object], warnings: WarningCollector) -> None:
    """Make the twins of an order one. Where instructions differ, none of them is lost."""
    for name, twin in (("discountAmount", "discount"), SCHEDULE):
        if order.get(name) is not None:
            order[twin] = order[name]
    instructions, notes = order.get("specialInstructions"), order.get("notes")
    if instructions != notes:
        order["specialInstructions"] = order["notes"] = _joined(instructions, notes)
    odd = order.get(UNREADABLE)
    if isinstance(odd, dict) and (schedule := odd.get("scheduledFor")) is not None:
        order.setdefault(SCHEDULED_TEXT, text(schedule))
        warnings.drop(NOT_READ, *SCHEDULE)
        warnings.add(SCHEDULE_AS_TEXT, "scheduledFor", schedule)
        rest = {name: value for name, value in odd.items() if name not in SCHEDULE}
        if rest:
            order[UNREADABLE] = rest
        else:
            del order[UNREADABLE]


def _items(value: object, warnings: WarningCollector) -> list[dict[str, object]]:
    """The items of an order. A line's id is its number in there, whatever the platform calls it."""
    items: list[dict[str, object]] = []
    parts = objects(value, ITEM_SPELLINGS)
    check_parts(parts)
    for part in parts:
        since = warnings.count()
        items.append({"id": len(items) + 1, **_item(part, warnings)})
        if warnings.count() > since:
            warnings.prefix_members(since, f"items[{len(items) - 1}]")
    return items


def _item(part: Mapping[str, object], warnings: WarningCollector) -> dict[str, object]:
    odd = _unreadable_quantity(part, "quantity", *_QUANTITIES)
    if odd is not None or not _NOTES.isdisjoint(part):
        instructions = text(_first(part, "specialInstructions", "special_instructions") or "")
        # In the order in which they were sent: the same item has to give the same text.
        for name in (each for each in part if each in _NOTES):
            instructions = _joined(instructions, text(part[name] or ""))
        if odd is not None:
            warnings.add(QUANTITY_REPLACED, "quantity", odd)
            instructions = _joined(instructions, f"Quantity: {text(odd)}")
            part = {**part, "quantity": 1}
        part = {**part, "specialInstructions": instructions or None}
    item = read_object(part, _ITEM, sparse=True, warnings=warnings)
    _note_name(item, part, _ITEM_NAME, warnings)
    return item


def _addons(value: object, warnings: WarningCollector) -> list[dict[str, object]]:
    addons: list[dict[str, object]] = []
    for part in choices(value, ADDON_SPELLINGS):
        since = warnings.count()
        addons.append(read_object(part, _ADDON, sparse=True, warnings=warnings))
        if (odd := _unreadable_quantity(part, "quantity", "qty")) is not None:
            # An addon has no instructions in which a cook could be told.
            addons[-1]["name"] = f"{addons[-1]['name']} (quantity: {text(odd)})"
        _note_name(addons[-1], part, _ADDON_NAME, warnings)
        if warnings.count() > since:
            warnings.prefix_members(since, f"selectedAddons[{len(addons) - 1}]")
    return addons


def _note_name(
    made: Mapping[str, object], part: Mapping[str, object], default: str, warnings: WarningCollector
) -> None:
    if made["name"] == default and default not in part.values():
        warnings.add(NAME_MISSING, "name", None)


def _first(part: Mapping[str, object], *names: str) -> object:
    return next((part[name] for name in names if part.get(name) is not None), None)


def _joined(first: object, second: object) -> str:
    """Two texts as one, a line each; one that has the other within it says it all."""
    one, other = str(first or ""), str(second or "")
    if other in one:
        return one
    return other if one in other else f"{one}\n{other}"


def _int32(value: object) -> int | None:
    """An integer that deployed tills keep in 32 bits."""
    return integer(value, INT32)


def _unreadable_quantity(part: Mapping[str, object], *names: str) -> object:
    """The quantity that a part names and that is no whole number; None if it is one, or unknown."""
    odd = None
    for name in names:
        if (value := part.get(name)) is not None:
            try:
                _int32(value)
            except NotCoercible:
                odd = value if odd is None else odd
            else:
                return None
    return odd


def _invalid(message: str) -> Unprocessable:
    return Unprocessable(message, code="invalid_event")


_ITEM_NAME, _ADDON_NAME = "Item", "Addon"
_QUANTITIES = ("qty", "count")
_NOTES = frozenset(("notes", "note", "instructions", "comment", "comments"))
"""What else platforms call a line's instructions. None of several texts is lost."""

_ADDON = table(
    member("addon_id", identifier, "addonId", "id", "optionId", "option_id"),
    member("name", label, "title", "label", "optionName", "option_name", default=_ADDON_NAME),
    member("price", amount),
    member("quantity", _int32, "qty"),
    extra_names=("addonId",),
)
_ITEM = table(
    member("menuItemId", identifier),
    member(
        "name",
        label,
        *("displayName", "display_name", "title", "productName", "product_name"),
        *("itemName", "item_name"),
        default=_ITEM_NAME,
    ),
    member("displayName", text),
    member("variantId", identifier),
    member("variantName", text),
    member("price", amount),
    member("quantity", _int32, *_QUANTITIES, default=1),
    member("selectedAddons", _addons, "addons", "modifiers", "extras", "toppings", nested=True),
    member("specialInstructions", text),
    extra_names=("id",),
)
_ORDER = table(
    member("orderId", identifier, "id"),
    member("orderNumber", identifier),
    member("customerName", text, nullable=True),
    member("customerPhone", text, nullable=True),
    member("customerEmail", text, nullable=True),
    member("orderType", enum_word),
    member("orderSource", enum_word),
    member("status", enum_word),
    member("totalAmount", amount, "total"),
    member("subtotal", amount),
    member("deliveryFee", amount),
    member("discount", amount, "discountAmount", "discount_amount"),
    member("discountAmount", amount, "discount"),
    member("tax", amount),
    member("paymentMethod", text, nullable=True),
    member("paymentStatus", enum_word),
    member("amountPaid", amount),
    member("voucherCode", text, nullable=True),
    member("currency", text, nullable=True),
    member("items", _items, "orderItems", "order_items", nested=True),
    member("specialInstructions", text, "notes", nullable=True),
    member("notes", text, "specialInstructions", "special_instructions", nullable=True),
    member("deliveryAddress", address, "address", nullable=True),
    member("scheduledFor", appointment, "scheduledTime", "scheduled_time", nullable=True),
    member("scheduledTime", appointment, "scheduledFor", "scheduled_for", nullable=True),
    member("createdAt", point_in_time, nullable=True),
    member("version", _int32),
    member("previousStatus", enum_word, nullable=True),
    member("updatedAt", point_in_time, nullable=True),
)
_TABLES = {
    "new_order": _ORDER,
    "order_updated": _ORDER,
    "gift_card_purchased": table(
        member("cardNumber", identifier),
        member("initialBalance", amount),
        member("currentBalance", amount),
        member("purchasedBy", text, nullable=True),
        member("recipientName", text, nullable=True),
        member("recipientEmail", text, nullable=True),
        member("expiryDate", deadline, nullable=True),
        member("purchasedAt", point_in_time, nullable=True),
    ),
    "gift_card_updated": table(
        member("cardNumber", identifier),
        member("balance", amount),
        member("change", amount),
        member("transactionType", enum_word, nullable=True),
        member("updatedAt", point_in_time, nullable=True),
    ),
    "loyalty_updated": table(
        member("customerId", identifier),
        member("customerPhone", text, nullable=True),
        member("pointsChange", integer),
        member("newBalance", integer),
        member("transactionType", enum_word, nullable=True),
        member("reason", text, nullable=True),
        member("updatedAt", point_in_time, nullable=True),
    ),
}

ORDER_MEMBERS = tuple((member.name, member.nullable) for member in _ORDER.members)
"""The members of an order in the contract's order, and whether each is null when unknown."""

ITEM_MEMBERS = tuple(member.name for member in _ITEM.members)
ITEM_SPELLINGS, ADDON_SPELLINGS = (
    frozenset(name for part in known.members for name in (part.name, *part.aliases))
    for known in (_ITEM, _ADDON)
)

TABLES: Mapping[str, FieldTable] = _TABLES
"""The members of the known types; an order's `items` and their `selectedAddons` have their own."""
ITEM, ADDON = _ITEM, _ADDON

FORMS: Mapping[Callable[..., object], str] = {
    **dict.fromkeys((text, label, identifier, enum_word, address), "string"),
    **dict.fromkeys((point_in_time, appointment, deadline), "time"),
    **dict.fromkeys((integer, _int32), "integer"),
    amount: "number",
    _items: "items",
    _addons: "addons",
}
"""What a member is, by the way it is read."""
NAMING: Mapping[str, tuple[str, ...]] = _NAMING
RESERVED, REPEATED = _RESERVED, _REPEATED
