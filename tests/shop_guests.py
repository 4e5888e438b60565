"""Random customers and their orders, and invalid values.

The telephone numbers are from ranges that are reserved for fiction.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from tests.shop_books import PLATFORM
from tests.shop_deeds import DATE, FRONT, OFFICE

NAMES: Final = ("Maya Stone", "Tom Ash", "Zoë O’Neil", "Ravi Rao", "Li Wei", "Ann")
PHONES: Final = tuple(f"+4477009001{number:02}" for number in range(len(NAMES)))
WISHES: Final = (None, "no onions", "ring twice", "extra hot 🌶", "cut in four")
_FEES: Final = (Decimal(), Decimal("1.99"), Decimal("2.50"))
_DISCOUNTS: Final = (Decimal(), Decimal(), Decimal("0.55"))
_DISHES: Final = (
    ("Naan", Decimal("3.50")),
    ("Dal", Decimal("7.95")),
    ("Thali", Decimal("14.10")),
    ("Mango lassi", Decimal("4.05")),
)
"""Names of different lengths, because the number of a dish is computed from its name."""
CONTENT: Final = (
    "orderNumber",
    "customerName",
    "customerPhone",
    "orderType",
    "status",
    "subtotal",
    "deliveryFee",
    "discount",
    "tax",
    "totalAmount",
    "paymentMethod",
    "paymentStatus",
    "specialInstructions",
    "deliveryAddress",
    "items",
)
_ORDER: Final = {"totalAmount": 5, "items": []}
MALFORMED: Final[tuple[tuple[str, str, str, object, int, str], ...]] = (
    (PLATFORM, "POST", "orders", b'{"orderId":', 400, "invalid_json"),
    (PLATFORM, "POST", "orders", {**_ORDER, "orderSource": "pos"}, 422, "not_online"),
    (FRONT, "POST", "orders", _ORDER, 403, "forbidden"),
    (PLATFORM, "PATCH", "orders/W-0", {"status": "ready"}, 404, "unknown_order"),
    (FRONT, "POST", "orders/print", {"orderId": "W-0", "status": "printed"}, 404, "unknown_order"),
    (FRONT, "POST", "gift-cards/NONE/deduct", {"amount": 1}, 404, "unknown_card"),
    (FRONT, "POST", "gift-cards/NONE/deduct", {"amount": 0}, 422, "invalid_amount"),
    (FRONT, "POST", "gift-cards/NONE/deduct", {"amount": Decimal("0.001")}, 422, "invalid_amount"),
    (OFFICE, "POST", "gift-cards/NONE/deduct", {"amount": True}, 422, "invalid_amount"),
    (OFFICE, "POST", "gift-cards/NONE/deduct", {}, 400, "missing_field"),
    (OFFICE, "POST", "gift-cards", {"amount": 10}, 403, "forbidden"),
    (OFFICE, "POST", "loyalty/nobody/add", {"points": 1}, 422, "invalid_phone"),
    (OFFICE, "POST", "loyalty/07700900999/redeem", {"points": 1}, 404, "unknown_customer"),
    (OFFICE, "POST", "loyalty/07700900999/add", {"points": Decimal("1.5")}, 422, "invalid_amount"),
    (PLATFORM, "POST", "reports/daily", {"reportDate": DATE}, 403, "forbidden"),
    (FRONT, "POST", "reports/daily", {"reportDate": "soon"}, 400, "invalid_field"),
)


def content(chance: random.Random, order_id: str) -> dict[str, Any]:
    """Return the content of an order. Its amounts add up."""
    lines = [_line(chance, number) for number in range(1, chance.randrange(2, 5))]
    subtotal = sum((_worth(line) for line in lines), Decimal())
    fee, discount = chance.choice(_FEES), chance.choice(_DISCOUNTS)
    method = chance.choice(("online", "cash", "card"))
    guest = chance.randrange(len(NAMES))
    return {
        "orderNumber": f"no {order_id}",
        "customerName": NAMES[guest],
        "customerPhone": PHONES[guest],
        "orderType": "delivery" if fee else "collection",
        "status": "pending",
        "subtotal": subtotal,
        "deliveryFee": fee,
        "discount": discount,
        "tax": (subtotal / 6).quantize(Decimal("0.01")),
        "totalAmount": subtotal + fee - discount,
        "paymentMethod": method,
        "paymentStatus": "paid" if method == "online" else "pending",
        "specialInstructions": chance.choice(WISHES),
        "deliveryAddress": "3 Quay Lane" if fee else None,
        "items": lines,
    }


def _line(chance: random.Random, number: int) -> dict[str, Any]:
    dish, price = chance.choice(_DISHES)
    line = {"id": number, "menuItemId": f"m{len(dish)}", "name": dish, "price": price}
    line["quantity"] = chance.randrange(1, 4)
    line["selectedAddons"] = [{"addon_id": "7", "name": "Chutney", "price": Decimal("0.35")}]
    return line


def _worth(line: Mapping[str, Any]) -> Decimal:
    addons = sum((addon["price"] for addon in line["selectedAddons"]), Decimal())
    return Decimal((line["price"] + addons) * line["quantity"])
