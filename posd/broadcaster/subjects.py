"""A platform's own orders, gift cards and loyalty changes, as the JSON that is published.

A platform has them as mappings or as objects, spelled `customer_name` or `customerName`; posd reads
both and does all the rest (exact types, twins, dates without an offset). So nothing is guessed here:
members of a mapping keep their names, attributes of an object get the contract's, and values only
become what JSON has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from enum import Enum
from uuid import UUID

_ORDER = """
    orderId=id orderNumber customerName customerPhone customerEmail orderType orderSource status
    totalAmount=total subtotal deliveryFee discount discountAmount tax paymentMethod paymentStatus
    amountPaid voucherCode currency items specialInstructions notes deliveryAddress=address
    scheduledFor scheduledTime createdAt previousStatus updatedAt
"""
_ITEM = """
    menuItemId name displayName variantId variantName price quantity selectedAddons
    specialInstructions
"""
_ADDON = "addon_id=addonId=id=optionId name price quantity"
_GIFT_CARD = """
    cardNumber initialBalance currentBalance purchasedBy recipientName recipientEmail expiryDate
    purchasedAt
"""
_LOYALTY = "customerId customerPhone pointsChange newBalance transactionType reason updatedAt"


def _snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)


def _table(names: str) -> Mapping[str, tuple[str, ...]]:
    """The names of the contract, each with the attributes in which it is looked for, in turn."""
    table = {}
    for entry in names.split():
        spellings = entry.split("=")
        table[spellings[0]] = tuple(
            dict.fromkeys(form for name in spellings for form in (name, _snake_case(name)))
        )
    return table


_ATTRIBUTES = {
    "new_order": _table(_ORDER),
    "order_updated": _table(_ORDER),
    "gift_card_purchased": _table(_GIFT_CARD),
    "loyalty_updated": _table(_LOYALTY),
    "items": _table(_ITEM),
    "selectedAddons": _table(_ADDON),
}
"""What is looked for in an object: only this is published of it, not whatever else it has."""

_PARTS = {"items": "items", "selectedAddons": "selectedAddons", "selected_addons": "selectedAddons"}
"""Members whose elements may be objects too, and the names that those have."""


def event_data(kind: str, subject: object) -> dict[str, object]:
    """The data of an event of type `kind` about `subject`.

    All members of a mapping are published, and of an object the attributes that the contract has a
    name for; methods are not. Raises TypeError for a value that has no form in JSON, and for a
    subject without a single such attribute, which can only be a mistake.
    """
    found = _members(kind, subject)
    if not found:
        raise TypeError(f"a {type(subject).__name__} has nothing of a {kind} event")
    return found


def plain_members(data: Mapping[str, object]) -> dict[str, object]:
    """All members of `data`, as JSON has them. Raises TypeError where it has no such thing."""
    return {_name(name): _plain_value(name, value) for name, value in data.items()}


def is_offline(data: Mapping[str, object]) -> bool:
    """Whether an order says that it came from elsewhere than online; tills have those already."""
    for name in ("orderSource", "order_source"):
        source = data.get(name)
        if isinstance(source, str) and source.strip():
            return source.strip().lower() != "online"
    return False


def _members(kind: str, subject: object) -> dict[str, object]:
    if isinstance(subject, Mapping):
        return {_name(name): _member(name, value) for name, value in subject.items()}
    found: dict[str, object] = {}
    for name, spellings in _ATTRIBUTES[kind].items():
        values = (getattr(subject, spelling, None) for spelling in spellings)
        for value in values:
            if value is not None and (not callable(value) or _is_related(value)):
                found[name] = _member(name, value)
                break
    return found


def _member(name: str, value: object) -> object:
    kind = _PARTS.get(name)
    if kind is None or isinstance(value, str | Mapping) or value is None:
        return _plain_value(name, value)
    parts = value.all() if _is_related(value) else value  # type: ignore[attr-defined]
    if not isinstance(parts, Iterable):
        return _plain_value(name, value)
    return [
        _plain_value(name, part) if isinstance(part, str) else _members(kind, part)
        for part in parts
    ]


def _plain_value(name: str, value: object) -> object:
    """A value that JSON has; an object that can say itself in words is those words."""
    if isinstance(value, Enum):
        return _plain_value(name, value.value)
    if value is None or isinstance(value, bool | int | float | Decimal):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, date):  # and datetime, which is one
        return value.isoformat()
    if isinstance(value, Mapping):
        return plain_members(value)
    if isinstance(value, list | tuple):
        return [_plain_value(name, member) for member in value]
    if isinstance(value, UUID) or _has_words(value):
        return str(value)
    raise TypeError(f"{name} is a {type(value).__name__}, which has no form in JSON")


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a member cannot be named by {name!r}")
    return name


def _has_words(value: object) -> bool:
    """Whether `str()` of it is meant for people, as a phone number's is and an object's is not."""
    own = type(value)
    return own.__str__ is not object.__str__ and not isinstance(value, bytes | bytearray)


def _is_related(value: object) -> bool:
    """Whether this is a relation as Django has it: its rows are what its `all()` gives."""
    return callable(getattr(value, "all", None))
