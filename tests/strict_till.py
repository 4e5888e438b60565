"""A till as strict as the deployed generation, which loses an order if one value has a wrong type.

It reads a whole message as bytes, with its own JSON reader. It raises `TillError` with the path of the
first wrong value, and ignores unknown members.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias

from posd.protocol.messages import encode, event_text
from posd.values import Event, EventDraft

Check: TypeAlias = Callable[[str, Any], None]

_NOW = datetime(2026, 11, 22, 10, 0, 0, 123456, UTC)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_PLAIN = re.compile(r"-?[0-9]+(\.[0-9]+)?")


class TillError(AssertionError):
    """The till raised an exception while it read a message, so the order is lost."""


def read(message: bytes) -> dict[str, Any]:
    """Read one message. Return all of it."""
    whole: dict[str, Any] = json.loads(
        message.decode(),
        object_pairs_hook=_object,
        parse_float=_decimal,
        parse_constant=_constant,
    )
    envelope = {"type": _text, "id": _int64, "tenant": _text, "timestamp": _date}
    _check_object(
        "message", whole, {**envelope, "data": _any_object}, ["type", "id", "tenant", "data"]
    )
    check, extra_members = _TYPES.get(whole["type"], (_any_object, {}))
    check("data", whole["data"])
    for name, (inner, kind) in extra_members.items():
        if whole["data"].get(inner) is not None or name in whole:
            _want(name in whole, f"message.{name}", "is missing")
            kind(f"message.{name}", whole[name])
            _want(whole[name] == whole["data"][inner], f"message.{name}", f"is not data.{inner}")
    return whole


def receive(draft: EventDraft) -> dict[str, Any]:
    """Publish `draft` as posd does, and read the message that is sent."""
    event = Event(7, draft.type, encode(draft.data), _NOW, encode(draft.extra_members))
    return read(event_text(event, "kitchen"))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    _want(len(members) == len(pairs), "message", "repeats a member")
    return members


def _decimal(token: str) -> Decimal:
    _want(bool(_PLAIN.fullmatch(token)), "message", f"has the number {token[:20]}")
    return Decimal(token)


def _constant(token: str) -> None:
    raise TillError(f"message has {token}")


def _want(condition: bool, path: str, complaint: str) -> None:
    if not condition:
        raise TillError(f"{path} {complaint}")


def _text(path: str, value: Any) -> None:
    _want(type(value) is str, path, f"is no string but {value!r}")


def _id(path: str, value: Any) -> None:
    _text(path, value)
    _want(value != "", path, "is empty")


def _text_or_null(path: str, value: Any) -> None:
    if value is not None:
        _text(path, value)


def _date(path: str, value: Any) -> None:
    _text(path, value)
    _want(bool(_RFC3339.fullmatch(value)), path, f"is no date but {value!r}")
    datetime.fromisoformat(value)


def _date_or_null(path: str, value: Any) -> None:
    if value is not None:
        _date(path, value)


def _amount(path: str, value: Any) -> None:
    _want(type(value) in (int, Decimal), path, f"is no number but {value!r}")
    _want(len(Decimal(value).as_tuple().digits) <= 28, path, "overflows a decimal")


def _int32(path: str, value: Any) -> None:
    _want(type(value) is int, path, f"is no integer but {value!r}")
    _want(-(2**31) <= value < 2**31, path, "overflows 32 bits")


def _int64(path: str, value: Any) -> None:
    _want(type(value) is int, path, f"is no integer but {value!r}")
    _want(-(2**63) <= value < 2**63, path, "overflows 64 bits")


def _any_object(path: str, value: Any) -> None:
    _want(type(value) is dict, path, "is no object")


def _check_object(path: str, value: Any, members: dict[str, Check], required: list[str]) -> None:
    _any_object(path, value)
    for name in required:
        _want(name in value, f"{path}.{name}", "is missing")
    for name, check in members.items():
        if name in value:
            check(f"{path}.{name}", value[name])


def _array(check: Check) -> Check:
    def check_all(path: str, value: Any) -> None:
        _want(type(value) is list, path, "is no array")
        for index, element in enumerate(value):
            check(f"{path}[{index}]", element)

    return check_all


def _addon(path: str, value: Any) -> None:
    members: dict[str, Check] = {"addon_id": _id, "name": _text, "price": _amount}
    _check_object(path, value, members, ["name"])
    _want(None not in value.values(), path, "has a null")


def _item(path: str, value: Any) -> None:
    _check_object(path, value, _ITEM, ["id", "name", "quantity"])
    _want(None not in value.values(), path, "has a null")


def _items(path: str, value: Any) -> None:
    _array(_item)(path, value)
    numbers = [item["id"] for item in value]
    _want(numbers == list(range(1, len(value) + 1)), path, f"has the lines {numbers}")


def _order(path: str, value: Any) -> None:
    _check_object(path, value, _ORDER, _ORDER_REQUIRED)
    for name, twin in (
        ("discount", "discountAmount"),
        ("notes", "specialInstructions"),
        ("scheduledFor", "scheduledTime"),
    ):
        _want(value.get(name) == value.get(twin), f"{path}.{name}", f"is not {twin}")


def _order_updated(path: str, value: Any) -> None:
    _order(path, value)
    _check_object(
        path,
        value,
        {"previousStatus": _text_or_null, "updatedAt": _date},
        ["previousStatus", "updatedAt"],
    )


def _members_of(members: dict[str, Check], optional: str) -> Check:
    required = [name for name in members if name not in optional.split()]
    return lambda path, value: _check_object(path, value, members, required)


_ITEM: dict[str, Check] = {
    "id": _int32,
    "menuItemId": _id,
    "name": _text,
    "displayName": _text,
    "variantId": _id,
    "variantName": _text,
    "price": _amount,
    "quantity": _int32,
    "selectedAddons": _array(_addon),
    "specialInstructions": _text,
}
_ORDER: dict[str, Check] = {
    "orderId": _id,
    "orderNumber": _id,
    "customerName": _text_or_null,
    "customerPhone": _text_or_null,
    "customerEmail": _text_or_null,
    "orderType": _text,
    "orderSource": _text,
    "status": _text,
    "totalAmount": _amount,
    "subtotal": _amount,
    "deliveryFee": _amount,
    "discount": _amount,
    "discountAmount": _amount,
    "tax": _amount,
    "paymentMethod": _text_or_null,
    "paymentStatus": _text,
    "amountPaid": _amount,
    "voucherCode": _text_or_null,
    "currency": _text_or_null,
    "items": _items,
    "specialInstructions": _text_or_null,
    "notes": _text_or_null,
    "deliveryAddress": _text_or_null,
    "scheduledFor": _date_or_null,
    "scheduledTime": _date_or_null,
    "createdAt": _date_or_null,
    "version": _int32,
}
_ORDER_REQUIRED = [name for name, check in _ORDER.items() if check is not _amount]
_TYPES: dict[str, tuple[Check, dict[str, tuple[str, Check]]]] = {
    "new_order": (_order, {}),
    "order_updated": (
        _order_updated,
        {"order_id": ("orderId", _id), "status": ("status", _text)},
    ),
    "gift_card_purchased": (
        _members_of(
            {
                "cardNumber": _id,
                "initialBalance": _amount,
                "currentBalance": _amount,
                "purchasedBy": _text_or_null,
                "recipientName": _text_or_null,
                "recipientEmail": _text_or_null,
                "expiryDate": _date_or_null,
                "purchasedAt": _date_or_null,
            },
            optional="initialBalance currentBalance",
        ),
        {},
    ),
    "gift_card_updated": (
        _members_of(
            {
                "cardNumber": _id,
                "balance": _amount,
                "change": _amount,
                "transactionType": _text_or_null,
                "updatedAt": _date_or_null,
            },
            optional="balance change",
        ),
        {"card_number": ("cardNumber", _id), "balance": ("balance", _amount)},
    ),
    "loyalty_updated": (
        _members_of(
            {
                "customerId": _id,
                "customerPhone": _text_or_null,
                "pointsChange": _int64,
                "newBalance": _int64,
                "transactionType": _text_or_null,
                "reason": _text_or_null,
                "updatedAt": _date_or_null,
            },
            optional="customerId pointsChange newBalance",
        ),
        {"customer_phone": ("customerPhone", _text), "points": ("newBalance", _int64)},
    ),
}
