"""Sample orders of the demonstration, as rows for SQL and as data for REST."""

from __future__ import annotations

import random
from decimal import Decimal

from attrs import frozen

_MENU = (
    ("Tomato soup", "5.20"),
    ("Mushroom risotto", "12.40"),
    ("Lamb kofta", "13.75"),
    ("Grilled aubergine", "9.60"),
    ("Flatbread", "2.30"),
    ("Lemon tart", "6.10"),
)
_DELIVERY_FEE = Decimal("2.50")

INSERT_ORDER = """
    INSERT INTO dinedesk_kitchen.orders
        (order_number, customer_name, order_type, status, subtotal, delivery_fee, total_amount,
         payment_method, payment_status, currency, delivery_address)
    VALUES (%s, %s, 'delivery', 'confirmed', %s, %s, %s, 'card', 'paid', 'GBP', %s)
    RETURNING id
"""
INSERT_ITEM = """
    INSERT INTO dinedesk_kitchen.order_items (order_id, name, price, quantity)
    VALUES (%s, %s, %s, %s)
"""


@frozen
class SampleItem:
    """A dish, its unit price and its quantity."""

    name: str
    price: Decimal
    quantity: int


@frozen
class SampleOrder:
    """A generated order."""

    number: str
    customer: str
    address: str
    lines: tuple[SampleItem, ...]

    @property
    def subtotal(self) -> Decimal:
        return sum((line.price * line.quantity for line in self.lines), Decimal(0))

    @property
    def total(self) -> Decimal:
        return self.subtotal + _DELIVERY_FEE

    def row(self) -> tuple[object, ...]:
        """Return the parameters of `INSERT_ORDER`."""
        money = (self.subtotal, _DELIVERY_FEE, self.total)
        return (self.number, self.customer, *money, self.address)

    def item_rows(self, order_id: object) -> list[tuple[object, ...]]:
        """Return the parameters of `INSERT_ITEM` for each line."""
        return [(order_id, line.name, line.price, line.quantity) for line in self.lines]

    def data(self) -> dict[str, object]:
        """Return the data of a `new_order` event."""
        return {
            "orderId": self.number,
            "orderNumber": self.number,
            "orderSource": "online",
            "orderType": "delivery",
            "status": "confirmed",
            "customerName": self.customer,
            "deliveryAddress": self.address,
            "items": [
                {"name": line.name, "price": line.price, "quantity": line.quantity}
                for line in self.lines
            ],
            "subtotal": self.subtotal,
            "deliveryFee": _DELIVERY_FEE,
            "totalAmount": self.total,
            "currency": "GBP",
            "paymentMethod": "card",
            "paymentStatus": "paid",
        }


def sample_order(number: int) -> SampleOrder:
    """Return the order with a number. The same number gives the same order."""
    chance = random.Random(number)
    dishes = chance.sample(_MENU, chance.randint(1, 4))
    return SampleOrder(
        f"DEMO-{number:04}",
        f"Customer {number}",
        f"{chance.randint(1, 99)} Harbour Street",
        tuple(SampleItem(name, Decimal(price), chance.randint(1, 3)) for name, price in dishes),
    )
