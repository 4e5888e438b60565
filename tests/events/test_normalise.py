"""Tests of the normal form of published events."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Unprocessable
from posd.events.normalise import ORDER_MEMBERS, draft
from posd.protocol.jsontext import decode, encode
from tests import strict_till
from tests.json_strategies import amounts, dates, order_data, texts, values


def order(**members: object) -> dict[str, Any]:
    """Publish a `new_order` with `members` and an id. Return its data."""
    return dict(draft("new_order", {"orderId": "17", **members}).data)


def item(**members: object) -> dict[str, Any]:
    """Publish an order with one item. Return the item."""
    (line,) = order(items=[members])["items"]
    assert isinstance(line, dict)
    return line


def readable(data: object) -> dict[str, object]:
    """Return the members without `unreadable`."""
    assert isinstance(data, dict)
    return {name: value for name, value in data.items() if name != "unreadable"}


class TypeTests(SynchronousTestCase):
    def refused(self, *event: Any) -> str:
        refusal = self.assertRaises(Unprocessable, draft, *event)
        self.assertEqual(refusal.code, "invalid_event")
        return str(refusal.message)

    def test_an_invalid_type_is_refused(self) -> None:
        for name in (None, 1, "", "New", "1a", "_a", "a-b", "a b", "a\n", "é", "a" * 51, ["a"]):
            self.assertIn("type", self.refused(name, {}))

    def test_a_reserved_type_is_refused(self) -> None:
        for name in ("connected", "ping", "pong", "ack", "nack", "error", "pos_x", "pos_"):
            self.assertIn("reserved", self.refused(name, {}))

    def test_data_must_be_an_object(self) -> None:
        nothing: tuple[object, ...] = (None, [], "x", 1)
        for data in nothing:
            self.assertIn("data must be an object", self.refused("new_order", data))
            self.assertIn("data must be an object", self.refused("table_called", data))

    def test_another_type_passes_unchanged(self) -> None:
        data = {"table": 4, "at": "", "total": "12.5", "x": None}
        self.assertEqual(draft("table_called", data).data, data)
        self.assertEqual(draft("a" * 50, {}).type, "a" * 50)

    def test_an_event_without_an_id_is_refused_with_the_field(self) -> None:
        for kind, field in (
            ("new_order", "orderId"),
            ("order_updated", "orderId"),
            ("gift_card_purchased", "cardNumber"),
            ("gift_card_updated", "cardNumber"),
            ("loyalty_updated", "customerId or customerPhone"),
        ):
            self.assertIn(f"no usable {field}", self.refused(kind, {"status": "ready"}))
        nobody: tuple[object, ...] = ("", " ", None, True, 1.5, Decimal("1.5"), {}, [1], "x" * 256)
        for order_id in nobody:
            self.assertIn("orderId", self.refused("new_order", {"orderId": order_id}))

    def test_a_value_that_json_does_not_have_is_refused(self) -> None:
        data = {"orderId": 1, "customerName": float("nan")}
        self.assertIn("no usable", self.refused("new_order", {}))
        self.assertEqual(order(**data)["unreadable"].keys(), {"customerName"})
        self.assertIn("JSON", self.refused("new_order", {**data, "notes": [float("nan")]}))


class OrderTests(SynchronousTestCase):
    def test_members_are_in_order_before_unknown_ones(self) -> None:
        given = [name for name, _ in ORDER_MEMBERS if name not in ("previousStatus", "items")]
        data = dict.fromkeys(["tip", *reversed(given)], "1")
        shaped = order(**data, items=[])
        self.assertEqual(
            [name for name in shaped if name not in ("unreadable", "scheduledText")],
            [name for name, _ in ORDER_MEMBERS if name in shaped] + ["tip"],
        )

    def test_the_id_is_found_under_any_of_its_names(self) -> None:
        for data in ({"orderId": 17}, {"order_id": "17"}, {"id": Decimal("17.0")}):
            self.assertEqual(draft("new_order", data).data["orderId"], "17")

    def test_a_platforms_own_id_is_kept_beside_the_orders(self) -> None:
        data = draft("new_order", {"id": 17, "orderId": "K-1"}).data
        self.assertEqual((data["orderId"], data["id"]), ("K-1", 17))

    def test_ids_and_numbers_become_strings(self) -> None:
        self.assertEqual(order(orderNumber=1001)["orderNumber"], "1001")

    def test_a_phone_may_come_as_a_number(self) -> None:
        self.assertEqual(order(customerPhone=447700900123)["customerPhone"], "447700900123")

    def test_an_amount_may_come_as_a_string(self) -> None:
        shaped = order(totalAmount="45.99", deliveryFee=5, tax=Decimal("0.100"))
        self.assertEqual(encode(shaped["totalAmount"]), b"45.99")
        self.assertEqual(encode(shaped["deliveryFee"]), b"5")
        self.assertEqual(encode(shaped["tax"]), b"0.10")

    def test_an_unknown_amount_is_left_out_and_never_null(self) -> None:
        shaped = order(totalAmount=None, subtotal="", tax="free")
        for name in ("totalAmount", "subtotal", "tax"):
            self.assertNotIn(name, shaped)
        self.assertEqual(shaped["unreadable"], {"tax": "free"})

    def test_snake_case_is_understood(self) -> None:
        shaped = order(
            order_number="K-1",
            customer_name="Ann",
            total_amount=1,
            special_instructions="ring",
            delivery_address="1 High Street",
            created_at="2026-11-22 10:00:00",
        )
        self.assertEqual(shaped["orderNumber"], "K-1")
        self.assertEqual(shaped["customerName"], "Ann")
        self.assertEqual(shaped["totalAmount"], 1)
        self.assertEqual(shaped["notes"], "ring")
        self.assertEqual(shaped["deliveryAddress"], "1 High Street")
        self.assertEqual(shaped["createdAt"], "2026-11-22T10:00:00.000Z")
        self.assertFalse([name for name in shaped if "_" in name])

    def test_the_total_is_found_under_its_short_name(self) -> None:
        self.assertEqual(order(total="12.00")["totalAmount"], Decimal("12.00"))

    def test_keywords_become_snake_case(self) -> None:
        shaped = order(orderType="Dine-In", orderSource="ONLINE", status="Out for delivery")
        self.assertEqual(shaped["orderType"], "dine_in")
        self.assertEqual(shaped["orderSource"], "online")
        self.assertEqual(shaped["status"], "out_for_delivery")

    def test_members_with_two_names_get_both(self) -> None:
        for name, twin, value in (
            ("notes", "specialInstructions", "ring"),
            ("discount", "discountAmount", Decimal("1.50")),
            ("scheduledFor", "scheduledTime", "2026-11-22T18:30:00.000Z"),
        ):
            for one, other in ((name, twin), (twin, name)):
                self.assertEqual(order(**{one: value})[other], value)
                self.assertEqual(order(**{one: value, other: None})[other], value)

    def test_different_instructions_are_joined(self) -> None:
        shaped = order(notes="Ring the bell", specialInstructions="No nuts")
        self.assertEqual(shaped["notes"], "No nuts\nRing the bell")
        self.assertEqual(shaped["specialInstructions"], "No nuts\nRing the bell")
        self.assertEqual(
            order(notes="No nuts, please", specialInstructions="No nuts")["notes"],
            "No nuts, please",
        )
        self.assertEqual(order(notes="", specialInstructions="No nuts")["notes"], "No nuts")

    def test_a_discounts_amount_counts_before_the_word_for_it(self) -> None:
        shaped = order(discount="10%", discountAmount="2.50")
        self.assertEqual(shaped["discount"], Decimal("2.50"))
        self.assertEqual(order(discount=10, discountAmount=2)["discount"], 2)
        self.assertNotIn("unreadable", shaped)

    def test_a_schedule_in_free_text_is_kept_as_text(self) -> None:
        for name in ("scheduledFor", "scheduledTime"):
            shaped = order(**{name: "as soon as possible"})
            self.assertIsNone(shaped["scheduledFor"])
            self.assertIsNone(shaped["scheduledTime"])
            self.assertEqual(shaped["scheduledText"], "as soon as possible")
            self.assertNotIn("unreadable", shaped)

    def test_an_empty_schedule_is_null_without_a_text(self) -> None:
        shaped = order(scheduledFor="")
        self.assertIsNone(shaped["scheduledFor"])
        self.assertNotIn("scheduledText", shaped)

    def test_a_schedule_without_an_offset_is_in_the_shops_zone(self) -> None:
        shaped = draft(
            "new_order",
            {"orderId": 1, "scheduledFor": "2026-07-01 18:30"},
            zone=ZoneInfo("Europe/London"),
        ).data
        self.assertEqual(shaped["scheduledTime"], "2026-07-01T17:30:00.000Z")

    def test_an_address_is_one_string(self) -> None:
        shaped = order(deliveryAddress={"line1": "1 High Street", "postcode": "LS1 1AA"})
        self.assertEqual(shaped["deliveryAddress"], "1 High Street, LS1 1AA")
        self.assertEqual(order(address="1 High Street")["deliveryAddress"], "1 High Street")

    def test_missing_members_of_an_order_are_not_added(self) -> None:
        self.assertEqual(order(), {"orderId": "17"})

    def test_unknown_members_are_unchanged(self) -> None:
        extra = {"n": Decimal("1.50"), "none": None, "list": [{"a": ""}]}
        self.assertEqual(order(extra=extra, loyalty_tier=None)["extra"], extra)
        self.assertIn("loyalty_tier", order(loyalty_tier=None))

    def test_the_published_object_is_not_changed(self) -> None:
        data = {"orderId": 1, "notes": "a", "items": [{"id": 9}], "unreadable": {"tax": "x"}}
        before = decode(encode(data))
        draft("new_order", data)
        self.assertEqual(data, before)

    @given(order_data, st.sampled_from(["new_order", "order_updated"]))
    def test_any_object_is_an_order_or_is_refused(self, data: dict[str, object], kind: str) -> None:
        try:
            read = draft(kind, data)
        except Unprocessable as refusal:
            self.assertEqual(refusal.code, "invalid_event")
            return
        again = draft(kind, read.data, read.extra_members)
        self.assertEqual(readable(again.data), readable(read.data))
        self.assertEqual(again.extra_members, read.extra_members)
        self.assertEqual(readable(decode(encode(read.data))), readable(read.data))

    @given(order_data)
    def test_other_members_are_kept_with_any_value(self, data: dict[str, object]) -> None:
        extra = {f"x{name}": value for name, value in data.items()}
        self.assertEqual(extra, {k: v for k, v in order(**extra).items() if k != "orderId"})

    def test_no_value_is_nested_deeper_than_before(self) -> None:
        deep: object = "x"
        for _ in range(29):
            deep = [deep]
        data = {
            "orderId": 1,
            **dict.fromkeys(["tax", "items", "notes", "createdAt", "scheduledFor"], deep),
        }
        data["items"] = [
            {"quantity": deep, "price": deep, "name": deep, "selectedAddons": [[["x"]]]}
        ]
        decode(encode(draft("new_order", data).data))

    def test_json_within_texts_has_a_limited_depth(self) -> None:
        addons = "[" * 16 + "]" * 16
        items = encode([{"name": "a", "selectedAddons": addons}]).decode()
        read = decode(encode(order(items=items)))
        assert isinstance(read, dict)
        self.assertEqual(len(read["items"]), 1)

    def test_values_of_a_megabyte_do_not_hang(self) -> None:
        huge = "9" * 1_000_000
        names = [name for name, _ in ORDER_MEMBERS if name != "orderId"]
        shaped = order(**dict.fromkeys(names, huge))
        self.assertEqual(shaped["customerName"], huge)
        self.assertNotIn("totalAmount", shaped)
        self.assertEqual(shaped["items"][0]["quantity"], 1)


class ItemTests(SynchronousTestCase):
    def test_a_lines_id_is_its_number_in_the_order(self) -> None:
        lines = order(items=[{"id": "a-9", "name": "Soup"}, None, {"name": "Rice"}])["items"]
        self.assertEqual([line["id"] for line in lines], [1, 2])

    def test_members_of_an_item_are_in_order(self) -> None:
        line = item(
            specialInstructions="hot",
            quantity=2,
            price="12.95",
            variantName="large",
            variantId=3,
            displayName="Soup of the day",
            name="Soup",
            menuItemId=7,
            selectedAddons=[],
            vat="food",
        )
        self.assertEqual(
            encode(line),
            b'{"id":1,"menuItemId":"7","name":"Soup","displayName":"Soup of the day",'
            b'"variantId":"3","variantName":"large","price":12.95,"quantity":2,'
            b'"selectedAddons":[],"specialInstructions":"hot","vat":"food"}',
        )

    def test_nulls_are_left_out_known_or_not(self) -> None:
        line = item(name="Soup", quantity=1, price=None, variantId=None, vat=None)
        self.assertEqual(line, {"id": 1, "name": "Soup", "quantity": 1})

    def test_a_name_is_always_there(self) -> None:
        self.assertEqual(item(displayName="Soup")["name"], "Soup")
        self.assertEqual(item(price=1)["name"], "Item")

    def test_a_quantity_is_an_integer_without_a_fraction(self) -> None:
        for value in (2, "2", Decimal("2.000"), 2.0):
            self.assertEqual(encode(item(quantity=value)["quantity"]), b"2")
        self.assertEqual(item(name="Soup")["quantity"], 1)

    def test_an_invalid_quantity_is_shown_to_the_cook(self) -> None:
        line = item(name="Rice", quantity=Decimal("1.5"), special_instructions="dry")
        self.assertEqual(line["quantity"], 1)
        self.assertEqual(line["specialInstructions"], "dry\nQuantity: 1.5")
        self.assertNotIn("unreadable", line)
        self.assertEqual(item(quantity="1 kg", price="?")["unreadable"], {"price": "?"})
        self.assertEqual(item(quantity=2**31)["specialInstructions"], f"Quantity: {2**31}")
        self.assertEqual(item(quantity="many", qty=3)["quantity"], 3)

    def test_texts_of_several_members_are_joined_in_their_order(self) -> None:
        line = item(comment="b", specialInstructions="a", note="c", notes=7, comments=None)
        self.assertEqual(line["specialInstructions"], "a\nb\nc\n7")

    def test_a_line_that_is_only_text_is_a_name(self) -> None:
        self.assertEqual(order(items=["Soup"])["items"], [{"id": 1, "name": "Soup", "quantity": 1}])
        self.assertEqual(order(items="2 x Soup")["items"][0]["name"], "2 x Soup")

    def test_items_may_be_the_text_of_an_array(self) -> None:
        self.assertEqual(order(items='[{"name":"Soup","quantity":2}]')["items"][0]["quantity"], 2)

    def test_invalid_items_are_moved_to_unreadable(self) -> None:
        shaped = order(items=17)
        self.assertNotIn("items", shaped)
        self.assertEqual(shaped["unreadable"], {"items": 17})

    def test_the_id_of_an_addon_is_read_from_any_of_its_names(self) -> None:
        for addon in ({"addon_id": 3}, {"addonId": "3"}, {"id": 3}, {"optionId": Decimal(3)}):
            line = item(selectedAddons=[{**addon, "name": "Rice", "price": "1.50"}])
            (read,) = line["selectedAddons"]
            self.assertEqual(read["addon_id"], "3")
            self.assertEqual(read["price"], Decimal("1.50"))

    def test_an_addons_other_members_are_kept_and_its_nulls_left_out(self) -> None:
        line = item(selectedAddons=[{"optionId": 3, "quantity": 2, "group": None}, "Rice", None])
        self.assertEqual(
            line["selectedAddons"],
            [{"addon_id": "3", "name": "Addon", "optionId": 3, "quantity": 2}, {"name": "Rice"}],
        )


class ManyTests(SynchronousTestCase):
    """Tests of orders with too many items and addons, which are refused before they are read."""

    def refused(self, items: object) -> None:
        refusal = self.assertRaises(
            Unprocessable, draft, "new_order", {"orderId": "7", "items": items}
        )
        self.assertEqual(refusal.code, "invalid_event")
        self.assertIn("2000 lines and addons", refusal.message)

    def test_two_thousand_lines_and_addons_are_read(self) -> None:
        several: tuple[object, ...] = (
            [{}] * 2000,
            encode([{}] * 2000).decode(),
            [{"selectedAddons": [{}] * 199}] * 10,
            [{"selected_addons": encode([{}] * 199).decode()}] * 10,
        )
        for items in several:
            made = draft("new_order", {"orderId": "7", "items": items})
            lines: Any = made.data["items"]
            self.assertEqual(sum(1 + len(line.get("selectedAddons", ())) for line in lines), 2000)

    def test_more_than_two_thousand_are_refused(self) -> None:
        several: tuple[object, ...] = (
            ["x"] * 2001,
            encode([{}] * 2001).decode(),
            [{"selectedAddons": [{}] * 200}] * 10,
            [{"selected_addons": encode([{}] * 200).decode()}] * 10,
        )
        for items in several:
            self.refused(items)

    def test_a_refused_order_is_not_read(self) -> None:
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        items = [{"name": "x", "selectedAddons": [{"name": "y"}] * 1000}] * 100
        sys.setprofile(count)
        try:
            self.refused(items)
        finally:
            sys.setprofile(None)
        self.assertLess(calls, 3000)


class ExtraMembersTests(SynchronousTestCase):
    def extra_members(
        self, kind: str, data: Mapping[str, object], **extra_members: object
    ) -> object:
        return draft(kind, data, extra_members).extra_members

    def test_the_members_of_deployed_tills_are_beside_the_data(self) -> None:
        self.assertEqual(
            self.extra_members("order_updated", {"orderId": 17, "status": "Ready"}),
            {"order_id": "17", "status": "ready"},
        )
        self.assertEqual(
            self.extra_members("gift_card_updated", {"cardNumber": " G-1 ", "balance": "5.00"}),
            {"card_number": "G-1", "balance": Decimal("5.00")},
        )
        self.assertEqual(
            self.extra_members(
                "loyalty_updated", {"customerPhone": 447700900123, "newBalance": "50"}
            ),
            {"customer_phone": "447700900123", "points": 50},
        )
        for kind, data in (
            ("new_order", {"orderId": 1}),
            ("gift_card_purchased", {"cardNumber": 1}),
        ):
            self.assertEqual(self.extra_members(kind, data), {})

    def test_missing_members_are_not_repeated(self) -> None:
        self.assertEqual(self.extra_members("loyalty_updated", {"customerId": 1}), {})

    def test_missing_data_is_taken_from_the_extra_members(self) -> None:
        read = draft("order_updated", {}, {"order_id": 17, "status": "ready"})
        self.assertEqual(read.data, {"orderId": "17", "status": "ready"})
        self.assertEqual(read.extra_members, {"order_id": "17", "status": "ready"})
        read = draft(
            "loyalty_updated", {"customer_phone": "1"}, {"customer_phone": "2", "points": 5}
        )
        self.assertEqual((read.data["customerPhone"], read.data["newBalance"]), ("1", 5))

    def test_other_extra_members_are_kept_except_those_of_posd(self) -> None:
        given = {
            "source": {"host": "web-1"},
            **dict.fromkeys(["type", "id", "tenant", "timestamp", "replay", "data"], "forged"),
        }
        for kind in ("new_order", "table_called"):
            self.assertEqual(
                draft(kind, {"orderId": 1}, given).extra_members, {"source": {"host": "web-1"}}
            )

    def test_a_stale_extra_member_is_replaced(self) -> None:
        given = {"card_number": "old", "balance": "1"}
        data = {"cardNumber": "G-1", "balance": 2}
        self.assertEqual(
            self.extra_members("gift_card_updated", data, **given),
            {"card_number": "G-1", "balance": 2},
        )


class CardAndPointsTests(SynchronousTestCase):
    def test_a_purchase_has_all_members(self) -> None:
        data = {
            "card_number": 5001,
            "initialBalance": "25.00",
            "currentBalance": 25,
            "purchasedBy": "Ann",
            "expiryDate": "2027-11-22",
            "purchasedAt": "2026-11-22 10:00:00",
        }
        self.assertEqual(
            encode(draft("gift_card_purchased", data).data),
            b'{"cardNumber":"5001","initialBalance":25.00,"currentBalance":25,"purchasedBy":"Ann",'
            b'"recipientName":null,"recipientEmail":null,'
            b'"expiryDate":"2027-11-22T23:59:59.999Z","purchasedAt":"2026-11-22T10:00:00.000Z"}',
        )

    def test_points_are_integers(self) -> None:
        data = draft(
            "loyalty_updated",
            {"customerId": 9, "pointsChange": "-5", "newBalance": Decimal("45.0"), "reason": 1},
        ).data
        self.assertEqual(
            encode(data),
            b'{"customerId":"9","customerPhone":null,"pointsChange":-5,"newBalance":45,'
            b'"transactionType":null,"reason":"1","updatedAt":null}',
        )

    def test_half_a_point_is_left_out(self) -> None:
        data = draft("loyalty_updated", {"customerPhone": "1", "pointsChange": Decimal("0.5")}).data
        self.assertNotIn("pointsChange", data)

    @given(
        st.sampled_from(["gift_card_purchased", "gift_card_updated", "loyalty_updated"]),
        st.fixed_dictionaries(
            {},
            optional={
                **dict.fromkeys(
                    ["cardNumber", "customerId", "customerPhone", "card_number"], texts
                ),
                **dict.fromkeys(["balance", "initialBalance", "change"], amounts | values),
                **dict.fromkeys(["pointsChange", "newBalance"], st.integers() | values),
                **dict.fromkeys(["purchasedAt", "expiryDate", "updated_at"], dates | values),
                **dict.fromkeys(["transactionType", "reason", "recipientName", "x"], values),
            },
        ),
        st.dictionaries(st.sampled_from(["card_number", "balance", "points", "id", "y"]), values),
    )
    def test_the_strictest_till_reads_all_accepted_events(
        self, kind: str, data: dict[str, object], extra_members: dict[str, object]
    ) -> None:
        try:
            read = draft(kind, data, extra_members)
        except Unprocessable:
            return
        strict_till.receive(read)
        self.assertEqual(draft(kind, read.data, read.extra_members), read)
