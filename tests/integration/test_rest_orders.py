"""Orders by REST, as a platform creates, changes and reads them, through a real daemon."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from tests.integration.harness import Reply
from tests.integration.rest_case import RestCase
from tests.integration.wire_case import until

NEW = {"orderId": "A-1", "totalAmount": 23.5, "customerName": "Maya Stone"}

TWICE: Final[tuple[tuple[dict[str, Any], str], ...]] = (
    ({"totalAmount": 1, "total_amount": 2}, "totalAmount"),
    ({"totalAmount": 1, "total": 2}, "totalAmount"),
    ({"discount": 1, "discount_amount": 2}, "discount"),
    ({"customerName": "Ann", "customer_name": "Tom"}, "customerName"),
    ({"customerName": "Ann", "customer_name": None}, "customerName"),
    ({"paymentStatus": "paid", "payment_status": "pending"}, "paymentStatus"),
    ({"orderId": "A-1", "order_id": "A-2"}, "orderId"),
    ({"items": [{}, {"menuItemId": "1", "menu_item_id": "2"}]}, "items[1].menuItemId"),
    (
        {"items": [{"selected_addons": [{"addon_id": "1", "addonId": "2"}]}]},
        "items[0].selectedAddons[0].addon_id",
    ),
)
"""Data with a repeated member, and its name."""

_NO_NUMBERS: Final[tuple[Any, ...]] = ("12.50", "", 1.234, 10**11, [], {})
NO_MONEY: Final[tuple[tuple[dict[str, Any], str], ...]] = (
    *(
        ({name: True}, name)
        for name in (
            *("totalAmount", "subtotal", "deliveryFee", "discount", "discountAmount", "tax"),
            *("amountPaid", "total"),
        )
    ),
    *(({"totalAmount": value}, "totalAmount") for value in _NO_NUMBERS),
    ({"delivery_fee": 0.001}, "deliveryFee"),
    ({"items": [{"price": "5"}]}, "items[0].price"),
    ({"items": [{}, {"selectedAddons": [{"price": False}]}]}, "items[1].selectedAddons[0].price"),
    ({"items": '[{"price": 1.001}]'}, "items[0].price"),
    ({"items": {"name": "Soup", "price": "5"}}, "items[0].price"),
    ({"items": {"7": {"name": "Soup", "price": "5"}}}, "items[0].price"),
    (
        {"items": [{"selectedAddons": [{"group": "Sauce", "options": [{"price": "1"}]}]}]},
        "items[0].selectedAddons[0].price",
    ),
)
"""Data with an invalid amount, and its place."""


class OrdersCase(RestCase):
    """A platform that places orders."""

    def setUp(self) -> None:
        super().setUp()
        self.key = self.platform

    def place(self, body: object = NEW, **headers: str) -> Reply:
        return self.ask("POST", "/orders", body, **headers)

    def change(self, body: object, order_id: str = "A-1", **headers: str) -> Reply:
        return self.ask("PATCH", f"/orders/{order_id}", body, **headers)

    def look(self, order_id: str = "A-1") -> Any:
        return self.ask("GET", f"/orders/{order_id}").json


class PlacingTests(OrdersCase):
    def test_a_new_order_is_told_its_position_and_version(self) -> None:
        reply = self.place()
        self.assertEqual(reply.status, 201)
        self.assertEqual(reply.json, {"success": True, "orderId": "A-1", "id": 1, "version": 1})
        ((seq, kind, data),) = self.events()
        self.assertEqual((seq, kind, data["customerName"]), (1, "new_order", "Maya Stone"))

    def test_the_same_order_again_is_200_and_another_of_its_id_409(self) -> None:
        self.place()
        again = self.place({"order_id": "A-1", "total_amount": 23.5, "customer_name": "Maya Stone"})
        self.assertEqual(again.status, 200)
        self.assertEqual(again.json, {"success": True, "orderId": "A-1", "id": None, "version": 1})
        other = self.place({**NEW, "totalAmount": 9})
        self.assert_refused(other, 409, "order_exists")
        self.assertEqual((other.json["orderId"], other.json["version"]), ("A-1", 1))
        self.assertEqual(len(self.events()), 1)

    def test_posd_makes_an_id_where_nobody_has_chosen_one(self) -> None:
        first, second = self.place({"totalAmount": 5}), self.place({"totalAmount": 5})
        self.assertEqual([first.status, second.status], [201, 201])
        ids = {first.json["orderId"], second.json["orderId"]}
        self.assertEqual([len(each) for each in ids], [24, 24])

    def test_a_key_repeats_the_first_answer_also_where_posd_made_the_id(self) -> None:
        first, second = (self.place({"totalAmount": 5}, Idempotency_Key="k") for _ in range(2))
        self.assertNotIn("idempotent-replayed", first.headers)
        self.assertEqual(second.headers["idempotent-replayed"], "true")
        self.assertEqual((second.status, second.json), (201, first.json))
        self.assert_refused(
            self.place({"totalAmount": 6}, X_Idempotency_Key="k"), 422, "idempotency_mismatch"
        )
        self.assertEqual(len(self.events()), 1)

    def test_what_is_no_online_order_is_refused(self) -> None:
        for source in ("pos", "phone", "in_store"):
            self.assert_refused(self.place({**NEW, "orderSource": source}), 422, "not_online")
        self.assertEqual(self.events(), [])

    def test_what_cannot_be_an_order_is_refused(self) -> None:
        self.assert_refused(self.place({"orderId": ["a"]}), 422, "invalid_event")
        self.assert_refused(self.place(b"[]"), 400, "invalid_json")
        self.assert_refused(self.place({**NEW, "note": "x" * 140_000}), 413, "event_too_large")
        self.assert_refused(self.place(NEW, Idempotency_Key="\t"), 400, "invalid_idempotency_key")

    def test_an_order_without_anything_in_it_is_refused(self) -> None:
        for body in ({}, {"kind": "pizza", "sum": 5}, {"orderId": None}, {"items": None, "x": 1}):
            with self.subTest(body=body):
                refused = self.place(body)
                self.assertEqual((refused.status, refused.json["code"]), (422, "invalid_event"))

    def test_half_an_emoji_is_repaired_and_told(self) -> None:
        order = r'{"orderId": "A-9", "customerName": "Anna \ud83d", "notes": "no\u0000nuts"}'
        placed = self.place(order.encode())
        self.assertEqual(placed.status, 201)
        self.assertEqual(
            [(each["member"], each["code"]) for each in placed.json["warnings"]],
            [("customerName", "character_replaced"), ("notes", "character_replaced")],
        )
        shown = self.ask("GET", "/orders/A-9").json
        self.assertEqual(shown["customerName"], "Anna \N{REPLACEMENT CHARACTER}")
        changed = self.change(rb'{"customerName": "Ann \udc00"}', "A-9")
        self.assertEqual(changed.status, 200)
        self.assertEqual([each["member"] for each in changed.json["warnings"]], ["customerName"])
        self.assertEqual(self.place(rb'{"customerName": "Anna \xff"}').status, 400)

    def test_what_was_sent_and_not_read_is_told(self) -> None:
        placed = self.place({"orderId": "A-8", "totalAmount": 5, "scheduledFor": "at eight"})
        self.assertEqual([each["code"] for each in placed.json["warnings"]], ["schedule_as_text"])
        self.assertNotIn("warnings", self.place({"orderId": "A-7", "totalAmount": 5}).json)

    def test_an_id_that_is_a_part_of_the_tills_addresses_is_refused(self) -> None:
        paths = self.posd.request("GET", "/openapi.json").json["paths"]
        words = [path.rpartition("/")[2] for path in paths if "}/orders/" in path]
        fixed = [word for word in words if "{" not in word]
        self.assertEqual(sorted(fixed), ["accepted", "pending", "print", "received"])
        for word in fixed:
            for name in ("orderId", "order_id", "id"):
                reply = self.place({name: f" {word}", "totalAmount": 5})
                self.assert_refused(reply, 422, "invalid_event")
                self.assertEqual(reply.json["field"], "orderId")
        self.assertEqual(self.events(), [])

    def test_a_member_that_comes_twice_with_different_values_is_refused(self) -> None:
        for body, field in TWICE:
            reply = self.place({**body, **({} if "orderId" in body else {"orderId": "A-1"})})
            self.assert_refused(reply, 400, "invalid_field")
            self.assertEqual(reply.json["field"], field)
        self.assertEqual(self.events(), [])

    def test_a_member_that_comes_twice_with_one_value_is_taken(self) -> None:
        body = b'{"orderId":"A-1","order_id":"A-1","totalAmount":5,"total":5.0,"total_amount":5.00}'
        self.assertEqual(self.place(body).status, 201)

    def test_what_is_no_amount_of_the_currency_is_refused(self) -> None:
        for body, field in NO_MONEY:
            reply = self.place({"orderId": "A-1", **body})
            self.assert_refused(reply, 422, "invalid_amount")
            self.assertEqual(reply.json["field"], field)
        self.assertEqual(self.events(), [])

    def test_an_amount_may_be_unknown_zero_negative_or_end_in_zeros(self) -> None:
        item = b'{"name":"Soup","price":0,"selectedAddons":[{"name":"Less","price":-0.500}]}'
        body = b'{"totalAmount":12.5000,"tax":null,"discount":-1,"items":[%s]}' % item
        self.assertEqual(self.place(body).status, 201)

    def test_an_order_that_came_by_a_hook_is_not_placed_twice(self) -> None:
        order_id = str(self.shop.order(self.slug, total="12.50"))
        until(self.events, "the hook's order is in the log")
        same = {"orderId": order_id, "totalAmount": 12.5, "customerName": "Ann"}
        self.assertEqual(self.place(same).status, 200)
        self.assert_refused(self.place({**same, "customerName": "Tom"}), 409, "order_exists")
        self.assertEqual(len(self.events()), 1)

    def test_of_many_who_place_one_order_at_once_one_does(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            replies = [*pool.map(lambda _: self.place(), range(8))]
        self.assertEqual(sorted(each.status for each in replies), [200] * 7 + [201])
        self.assertEqual(len(self.events()), 1)

    def test_a_platform_that_goes_away_has_placed_its_order_once(self) -> None:
        self.send_and_leave("POST", "/orders", NEW, Idempotency_Key="k")
        until(self.events, "the order is there")
        again = self.place(Idempotency_Key="k")
        self.assertEqual((again.status, again.json["id"]), (201, 1))
        self.assertEqual(again.headers["idempotent-replayed"], "true")
        self.assertEqual(len(self.events()), 1)


class ChangingTests(OrdersCase):
    def setUp(self) -> None:
        super().setUp()
        self.place()

    def test_a_step_of_the_status_is_told_to_the_tills_with_the_whole_order(self) -> None:
        reply = self.change({"status": "preparing"})
        self.assertEqual(reply.status, 200)
        self.assertEqual(
            reply.json,
            {
                "success": True,
                "orderId": "A-1",
                "status": "preparing",
                "previousStatus": "confirmed",
                "version": 2,
                "id": 2,
            },
        )
        _, (seq, kind, data) = self.events()
        self.assertEqual((seq, kind), (2, "order_updated"))
        self.assertEqual(
            (data["customerName"], data["status"], data["previousStatus"]),
            ("Maya Stone", "preparing", "confirmed"),
        )

    def test_any_member_may_be_changed_in_either_spelling_and_null_erases(self) -> None:
        self.assertEqual(self.change({"customer_name": None, "tip": 1.50}).json["version"], 2)
        order = self.look()
        self.assertEqual((order["customerName"], order["tip"]), (None, 1.5))
        self.assertEqual((order["totalAmount"], order["status"]), (23.5, "confirmed"))

    def test_a_change_says_a_member_once_and_its_money_exactly(self) -> None:
        for cases, status, code in (
            (TWICE, 400, "invalid_field"),
            (NO_MONEY, 422, "invalid_amount"),
        ):
            for body, field in cases:
                reply = self.change(body)
                self.assert_refused(reply, status, code)
                self.assertEqual(reply.json["field"], field)
        self.assertEqual(len(self.events()), 1)

    def test_no_change_is_no_event(self) -> None:
        reply = self.change(
            {"status": "confirmed", "totalAmount": 23.50, "updatedAt": "2026-11-22T10:00:00Z"}
        )
        self.assertEqual((reply.status, reply.json["id"], reply.json["version"]), (200, None, 1))
        self.assertEqual(reply.json["previousStatus"], "confirmed")
        self.assertEqual(len(self.events()), 1)

    def test_what_was_looked_at_can_be_sent_back(self) -> None:
        reply = self.change(self.look())
        self.assertEqual((reply.status, reply.json["id"]), (200, None))

    def test_an_expected_version_that_is_not_the_orders_is_told_the_order(self) -> None:
        for name in ("expectedVersion", "expected_version"):
            reply = self.change({"status": "ready", name: 7})
            self.assert_refused(reply, 409, "version_mismatch")
            self.assertEqual(reply.json["order"]["version"], 1)
            self.assertEqual(reply.json["order"]["customerName"], "Maya Stone")
        self.assertEqual(self.change({"status": "ready", "expectedVersion": 1}).status, 200)

    def test_of_many_who_change_one_version_one_wins(self) -> None:
        names = [f"Guest {number}" for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            replies = [
                *pool.map(lambda n: self.change({"customerName": n, "expectedVersion": 1}), names)
            ]
        self.assertEqual(sorted(each.status for each in replies), [200] + [409] * 7)
        self.assertEqual(
            {each.json["order"]["version"] for each in replies if each.status == 409}, {2}
        )
        self.assertEqual(len(self.events()), 2)

    def test_a_step_back_is_refused_with_the_status_that_it_has(self) -> None:
        self.change({"status": "ready"})
        reply = self.change({"status": "preparing", "customerName": "Tom"})
        self.assert_refused(reply, 409, "invalid_transition")
        self.assertEqual(reply.json["status"], "ready")
        self.assertEqual(self.look()["customerName"], "Maya Stone")

    def test_an_unknown_order_is_404(self) -> None:
        for order_id in ("nobody", "%00", "%20A-1", "A" * 300):
            self.assert_refused(self.change({"status": "ready"}, order_id), 404, "unknown_order")
            self.assert_refused(self.ask("GET", f"/orders/{order_id}"), 404, "unknown_order")

    def test_what_cannot_be_read_is_400_and_says_which_member(self) -> None:
        for body, field in (
            ({"expectedVersion": "one"}, "expectedVersion"),
            ({"expectedVersion": 0}, "expectedVersion"),
            ({"expectedVersion": 1, "expected_version": 2}, "expectedVersion"),
            ({"status": None}, "status"),
            ({"status": ["ready"]}, "status"),
            ({"orderId": "B-1"}, "orderId"),
        ):
            with self.subTest(body=body):
                reply = self.change(body)
                self.assert_refused(reply, 400, "invalid_field")
                self.assertEqual(reply.json["field"], field)

    def test_an_order_cannot_be_made_one_of_the_shop(self) -> None:
        self.assert_refused(self.change({"orderSource": "phone"}), 422, "not_online")

    def test_a_key_repeats_the_first_answer_whatever_has_come_since(self) -> None:
        first = self.change({"status": "ready", "expectedVersion": 1}, Idempotency_Key="k")
        self.change({"status": "delivered"})
        again = self.change({"status": "ready", "expectedVersion": 1}, Idempotency_Key="k")
        self.assertEqual((again.status, again.json), (200, first.json))
        self.assertEqual(again.headers["idempotent-replayed"], "true")
        self.assert_refused(
            self.change({"status": "refunded"}, Idempotency_Key="k"), 422, "idempotency_mismatch"
        )

    def test_a_refusal_is_not_kept_for_a_key(self) -> None:
        step = {"status": "ready"}
        self.assert_refused(self.change(step, "A-2", Idempotency_Key="k"), 404, "unknown_order")
        self.place({**NEW, "orderId": "A-2"})
        self.assertEqual(self.change(step, "A-2", Idempotency_Key="k").status, 200)

    def test_a_platform_that_goes_away_has_changed_its_order_once(self) -> None:
        self.send_and_leave("PATCH", "/orders/A-1", {"status": "ready"}, Idempotency_Key="k")
        until(lambda: len(self.events()) == 2, "the change is there")
        again = self.change({"status": "ready"}, Idempotency_Key="k")
        self.assertEqual((again.json["id"], again.json["previousStatus"]), (2, "confirmed"))
        self.assertEqual(len(self.events()), 2)


class LookingTests(OrdersCase):
    def test_an_order_is_shown_as_it_was_published_and_how_far_it_is(self) -> None:
        body = b'{"orderId":"A-1","totalAmount":12.30,"items":[{"name":"Naan","price":3.50}]}'
        self.place(body)
        connection = http.client.HTTPSConnection(
            "localhost", self.posd.port, timeout=300, context=self.posd.tls()
        )
        self.addCleanup(connection.close)
        connection.request(
            "GET", f"/api/{self.slug}/orders/A-1", headers={"X-API-Key": self.platform}
        )
        text = connection.getresponse().read().decode()
        self.assertIn('"totalAmount":12.30,', text)
        self.assertIn('"price":3.50', text)
        order = json.loads(text)
        self.assertEqual((order["success"], order["version"]), (True, 1))
        self.assertEqual((order["printStatus"], order["paidAt"]), ("pending", None))
        self.assertEqual(
            order["delivery"],
            {
                "pushedAt": None,
                "receivedAt": None,
                "acceptedAt": None,
                "printedAt": None,
                "terminals": [],
            },
        )

    def test_only_a_platform_of_the_tenant_may(self) -> None:
        self.place()
        for method, path in (("POST", "/orders"), ("PATCH", "/orders/A-1"), ("GET", "/orders/A-1")):
            self.assert_only("platform", method, path)

    def test_a_platform_of_all_tenants_sees_each_ones_own(self) -> None:
        everywhere = self.shop.key("platform", None)
        self.place()
        found = self.posd.request("GET", f"/api/{self.slug}/orders/A-1", key=everywhere)
        other = self.posd.request("GET", f"/api/{self.another()}/orders/A-1", key=everywhere)
        self.assertEqual((found.status, other.status), (200, 404))
