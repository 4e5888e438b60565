from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from types import MappingProxyType, SimpleNamespace
from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from posd.broadcaster.subjects import event_data, is_offline, plain_members
from posd.events.normalise import ITEM_MEMBERS, ORDER_MEMBERS, draft
from posd.protocol.jsontext import encode

NUMBER = UUID("6f1f2c52-8f2d-4b59-9a1b-0f0d6f3f8a11")


class Source(enum.Enum):
    ONLINE = "online"
    TILL = "till"


class Kind(enum.StrEnum):
    PICKUP = "pickup"


class Related:
    """A relation of an object-relational mapper, which is not a list."""

    def __init__(self, *rows: object) -> None:
        self.rows = rows

    def all(self) -> Iterable[object]:
        return iter(self.rows)


class Phone:
    def __str__(self) -> str:
        return "+442079460000"


@dataclass
class Line:
    name: str
    price: Decimal
    quantity: int
    selected_addons: object = ()
    cost_price: Decimal = Decimal("1.00")


@dataclass
class Order:
    id: UUID
    order_number: str
    customer_phone: Phone
    order_source: Source
    order_type: Kind
    total: Decimal
    created_at: datetime
    items: Related
    payment_intent: str = "pi_secret"
    scheduled_for: datetime | None = None
    _state: object = field(default_factory=object)

    def subtotal(self) -> Decimal:
        return self.total


class Objects(SynchronousTestCase):
    def setUp(self) -> None:
        addon = SimpleNamespace(id=3, name="Extra hot", price=Decimal("0.50"))
        self.order = Order(
            id=NUMBER,
            order_number="A-17",
            customer_phone=Phone(),
            order_source=Source.ONLINE,
            order_type=Kind.PICKUP,
            total=Decimal("12.50"),
            created_at=datetime(2026, 11, 22, 10, tzinfo=UTC),
            items=Related(Line("Dal", Decimal("6.00"), 2, [addon, {"name": "Rice"}])),
        )

    def test_only_the_attributes_of_the_protocol_are_published(self) -> None:
        self.assertEqual(
            event_data("new_order", self.order),
            {
                "orderId": str(NUMBER),
                "orderNumber": "A-17",
                "customerPhone": "+442079460000",
                "orderType": "pickup",
                "orderSource": "online",
                "totalAmount": Decimal("12.50"),
                "items": [
                    {
                        "name": "Dal",
                        "price": Decimal("6.00"),
                        "quantity": 2,
                        "selectedAddons": [
                            {"addon_id": 3, "name": "Extra hot", "price": Decimal("0.50")},
                            {"name": "Rice"},
                        ],
                    }
                ],
                "createdAt": "2026-11-22T10:00:00+00:00",
            },
        )

    def test_the_server_reads_what_was_published(self) -> None:
        read = draft("new_order", event_data("new_order", self.order)).data
        self.assertEqual(
            (read["orderId"], read["totalAmount"], read["createdAt"]),
            (str(NUMBER), Decimal("12.50"), "2026-11-22T10:00:00.000Z"),
        )

    def test_camel_case_attributes_are_found_too(self) -> None:
        order = SimpleNamespace(orderId=17, totalAmount=5, deliveryAddress="1 High St")
        self.assertEqual(event_data("order_updated", order), vars(order))

    def test_the_server_knows_every_attribute_name(self) -> None:
        class Everything:
            def __getattr__(self, name: str) -> object:
                return [self] if name in ("items", "selectedAddons") else 1

        data = event_data("new_order", Everything())
        data["scheduledTime"] = data["scheduledFor"] = "2026-11-22T18:30:00Z"
        read = draft("new_order", data).data
        self.assertEqual(read.keys() - {"unreadable"} - {name for name, _ in ORDER_MEMBERS}, set())
        items = read["items"]
        assert isinstance(items, list)
        self.assertEqual(items[0].keys() - {"id", *ITEM_MEMBERS}, set())
        for kind in ("gift_card_purchased", "loyalty_updated"):
            data = event_data(kind, Everything())
            self.assertEqual(draft(kind, data).data.keys() - {"unreadable"}, data.keys())

    def test_an_object_without_a_known_attribute_is_refused(self) -> None:
        for subject in (object(), None, 17, {}):
            with self.assertRaisesRegex(TypeError, "has no attribute of a new_order event"):
                event_data("new_order", subject)


class Mappings(SynchronousTestCase):
    def test_all_members_of_a_mapping_are_kept_under_their_names(self) -> None:
        order = MappingProxyType({"order_id": 17, "customerName": "Ann", "table": {"no": 4}})
        self.assertEqual(event_data("new_order", order), dict(order))

    def test_items_in_a_mapping_may_be_objects(self) -> None:
        order = {"orderId": 17, "items": (Line("Dal", Decimal(6), 1, '[{"name":"Rice"}]'), "Naan")}
        self.assertEqual(
            event_data("new_order", order)["items"],
            [
                {"name": "Dal", "price": 6, "quantity": 1, "selectedAddons": '[{"name":"Rice"}]'},
                "Naan",
            ],
        )

    def test_items_as_text_are_published_unchanged(self) -> None:
        self.assertEqual(event_data("new_order", {"items": "[]"}), {"items": "[]"})

    def test_every_value_becomes_a_json_value(self) -> None:
        data = plain_members(
            {
                "none": None,
                "yes": True,
                "amount": Decimal("1E+2"),
                "float": 0.1,
                "kind": Kind.PICKUP,
                "day": date(2026, 11, 22),
                "naive": datetime(2026, 11, 22, 18, 30),
                "id": NUMBER,
                "nested": {"list": [(Source.TILL,), {"id": NUMBER}]},
            }
        )
        self.assertEqual(
            encode(data).decode(),
            '{"none":null,"yes":true,"amount":100,"float":0.1,"kind":"pickup",'
            '"day":"2026-11-22","naive":"2026-11-22T18:30:00",'
            f'"id":"{NUMBER}","nested":{{"list":[["till"],{{"id":"{NUMBER}"}}]}}}}',
        )

    def test_an_object_without_str_is_refused_with_the_name_of_its_member(self) -> None:
        for value in (object(), b"bytes", bytearray(b"x")):
            with self.assertRaisesRegex(TypeError, "address is a"):
                plain_members({"address": value})

    def test_a_member_name_that_is_not_a_string_is_refused(self) -> None:
        for data in ({1: "a"}, {"a": {None: 1}}):
            with self.assertRaisesRegex(TypeError, "must be a string"):
                plain_members(data)  # type: ignore[arg-type]


class Offline(SynchronousTestCase):
    def test_only_an_order_with_another_source_than_online_is_dropped(self) -> None:
        for name in ("orderSource", "order_source"):
            for source in ("online", " Online ", "ONLINE", "", None, 1):
                self.assertFalse(is_offline({name: source}), source)
            for source in ("till", "phone", "kiosk"):
                self.assertTrue(is_offline({name: source}), source)
        self.assertFalse(is_offline({"source": "newsletter"}))
