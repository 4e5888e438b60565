"""Normalises published events to the form that deployed tills can read.

The tables below specify the members of the known types, one member a line, in the order of the output. This
module reads the known members of all events, whether they are published by REST, by SQL or by a hook. Members
that posd does not know follow the known ones, unchanged.

An order with an odd value is published, not refused. A value that cannot be read safely is moved to the
member `unreadable` of its object, and is null or absent in its own place. A schedule in free text is moved to
`scheduledText`. A quantity that is not a whole number becomes 1, and the instructions of the line show the
sent quantity to the cook. An event is refused only if its type or its object is unusable or it has no id.
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
"""The member for a schedule that is not a point in time."""

SCHEDULE = ("scheduledFor", "scheduledTime")

_TYPE = re.compile(r"[a-z][a-z0-9_]{0,49}")
_RESERVED = frozenset(("connected", "ping", "pong", "ack", "nack", "error"))
_ENVELOPE = frozenset(("type", "id", "tenant", "timestamp", "replay", "data"))
"""The members that posd writes beside the data. Publishers cannot set them."""

_REPEATED = {
    "order_updated": {"order_id": "orderId", "status": "status"},
    "gift_card_updated": {"card_number": "cardNumber", "balance": "balance"},
    "loyalty_updated": {"customer_phone": "customerPhone", "points": "newBalance"},
}
"""The members beside the data that deployed tills read, and the members of the data that they repeat."""

_NAMING = {
    "new_order": ("orderId",),
    "order_updated": ("orderId",),
    "gift_card_purchased": ("cardNumber",),
    "gift_card_updated": ("cardNumber",),
    "loyalty_updated": ("customerId", "customerPhone"),
}
"""The members that identify the subject of an event. At least one of them is required."""


def draft(
    type: object,  # noqa: A002  the wire's word
    data: object,
    extra_members: Mapping[str, object] | None = None,
    *,
    zone: tzinfo = UTC,
    repaired: bool = False,
) -> EventDraft:
    """Normalise a published event.

    `extra_members` are the members beside the data in the request of a platform. `zone` is the shop's time
    zone, for dates without a UTC offset. `repaired`: characters of the text were replaced
    (`protocol.jsontext.needs_repair`), so the warnings name their members. An order may lack members;
    `events.orders.change` adds them from the stored order. Raises `Unprocessable` (`invalid_event`).
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
    """Return the members beside `data`: those that deployed tills read, and the other `extra_members`."""
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
    """Read the data of a known type. Missing members of an order are added later."""
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
    """Return `data` with missing members taken from `extra_members`, where deployed platforms write them."""
    missing = {
        name: extra_members[repeat]
        for repeat, name in _REPEATED.get(type, {}).items()
        if repeat in extra_members and data.get(name) is None and data.get(repeat) is None
    }
    return {**data, **missing} if missing else data


def _unify_twins(order: dict[str, object], warnings: WarningCollector) -> None:
    """Set both names of members that have two names. If two instructions differ, join them."""
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
    """Read the items of an order. The id of an item is its number in the order, not the platform's id."""
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
        # The loop follows the order of the members in the request, so that equal items give equal texts.
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
            # An addon has no instructions, so its name shows the sent quantity to the cook.
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
    """Join two texts, one on each line. If one text contains the other, return the longer text."""
    one, other = str(first or ""), str(second or "")
    if other in one:
        return one
    return other if one in other else f"{one}\n{other}"


def _int32(value: object) -> int | None:
    """Read an integer that deployed tills store in 32 bits."""
    return integer(value, INT32)


def _unreadable_quantity(part: Mapping[str, object], *names: str) -> object:
    """Return the quantity of a part if it is not a whole number; None if it is one, or is missing."""
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
"""Other names of an item's instructions. The texts of all of them are joined."""

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
"""The members of an order in the order of the output, each with True if it is null when unknown."""

ITEM_MEMBERS = tuple(member.name for member in _ITEM.members)
ITEM_SPELLINGS, ADDON_SPELLINGS = (
    frozenset(name for part in known.members for name in (part.name, *part.aliases))
    for known in (_ITEM, _ADDON)
)

TABLES: Mapping[str, FieldTable] = _TABLES
"""The members of the known types. `ITEM` and `ADDON` have those of `items` and `selectedAddons`."""
ITEM, ADDON = _ITEM, _ADDON

FORMS: Mapping[Callable[..., object], str] = {
    **dict.fromkeys((text, label, identifier, enum_word, address), "string"),
    **dict.fromkeys((point_in_time, appointment, deadline), "time"),
    **dict.fromkeys((integer, _int32), "integer"),
    amount: "number",
    _items: "items",
    _addons: "addons",
}
"""The form of a member by the function that reads it, for the schemas of the documentation."""
NAMING: Mapping[str, tuple[str, ...]] = _NAMING
RESERVED, REPEATED = _RESERVED, _REPEATED
