"""Convert a platform's orders, gift cards and loyalty changes to the JSON that is published.

A platform has them as mappings or objects, with names such as `customer_name` or `customerName`. posd
accepts both spellings and normalises types and dates. So this module converts only what JSON requires:
members of a mapping keep their names, attributes of an object get the names of the protocol, and values
become JSON values.
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
    """Return the names of the protocol, each with the attributes that may have its value, in order."""
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
"""The attributes of an object that are published. Other attributes are not."""

_PARTS = {"items": "items", "selectedAddons": "selectedAddons", "selected_addons": "selectedAddons"}
"""Members whose elements may be objects, and the key of their attributes in `_ATTRIBUTES`."""


def event_data(kind: str, subject: object) -> dict[str, object]:
    """Return the data of an event of type `kind` about `subject`.

    The data has all members of a mapping, or the attributes of an object that the protocol has a name
    for, without methods. Raises TypeError for a value without a form in JSON, and for an object without
    any such attribute.
    """
    found = _members(kind, subject)
    if not found:
        raise TypeError(f"a {type(subject).__name__} has no attribute of a {kind} event")
    return found


def plain_members(data: Mapping[str, object]) -> dict[str, object]:
    """Return the members of `data` as JSON values. Raises TypeError for a value without a form in JSON."""
    return {_name(name): _plain_value(name, value) for name, value in data.items()}


def is_offline(data: Mapping[str, object]) -> bool:
    """Return whether the source of an order is not "online". The tills already have such orders."""
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
    """Return a value as JSON has it. An object whose class defines `__str__` becomes a string."""
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
        raise TypeError(f"the name of a member must be a string, not {name!r}")
    return name


def _has_words(value: object) -> bool:
    """Return whether the class defines `__str__`, as that of a phone number does."""
    own = type(value)
    return own.__str__ is not object.__str__ and not isinstance(value, bytes | bytearray)


def _is_related(value: object) -> bool:
    """Return whether this is a relation of Django. Its method `all()` returns the rows."""
    return callable(getattr(value, "all", None))
