"""Tests of the events that published orders cause."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Unprocessable
from posd.events.normalise import draft
from posd.events.orders import FINAL_STATUSES, OrderChange, change, from_row, is_final
from posd.protocol.jsontext import decode, encode
from posd.values import EventDraft, StoredOrder
from tests import strict_till
from tests.json_strategies import named_orders

NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
SOUP = {"name": "Soup", "price": Decimal("4.50"), "quantity": 2}
ORDER: dict[str, Any] = {
    "orderId": "17",
    "orderNumber": "K-17",
    "customerName": "Ann Brook",
    "customerEmail": "ann@example.org",
    "status": "confirmed",
    "totalAmount": Decimal("12.30"),
    "notes": "ring",
    "items": [SOUP],
    "createdAt": "2026-11-22T09:59:00.000Z",
}


def new(**members: object) -> EventDraft:
    return draft("new_order", {**ORDER, **members})


def updated(**members: object) -> EventDraft:
    return draft("order_updated", {"orderId": "17", **members})


def stored(made: OrderChange | None) -> StoredOrder:
    """Return the stored order after `made`, encoded and decoded as by the database."""
    assert made is not None
    snapshot = decode(encode(made.snapshot))
    assert isinstance(snapshot, dict)
    return StoredOrder(snapshot["orderId"], snapshot, made.status, made.version)


class OrderCase(SynchronousTestCase):
    def published(
        self, event: EventDraft, before: StoredOrder | None = None, *, hooked: bool = False
    ) -> OrderChange:
        made = change(event, before, NOW, hooked=hooked)
        assert made is not None
        strict_till.receive(made.draft)
        return made

    def silent(
        self, event: EventDraft, before: StoredOrder | None = None, *, hooked: bool = False
    ) -> None:
        self.assertIsNone(change(event, before, NOW, hooked=hooked))

    def setUp(self) -> None:
        self.known = stored(change(new(), None, NOW))


class FirstSeenTests(OrderCase):
    def test_a_new_order_is_published_as_one(self) -> None:
        made = self.published(new())
        self.assertEqual(made.draft.type, "new_order")
        self.assertEqual((made.status, made.version), ("confirmed", 1))
        self.assertEqual(made.draft.data, made.snapshot)
        self.assertEqual(made.draft.extra_members, {})

    def test_the_members_that_tills_expect_are_there_in_order(self) -> None:
        made = self.published(draft("new_order", {"orderId": 17, "tip": 1}))
        self.assertEqual(
            encode(made.draft.data).decode(),
            '{"orderId":"17","orderNumber":"17","customerName":null,"customerPhone":null,'
            '"customerEmail":null,"orderType":"pickup","orderSource":"online",'
            '"status":"confirmed","paymentMethod":null,"paymentStatus":"pending",'
            '"voucherCode":null,"currency":null,"items":[],"specialInstructions":null,'
            '"notes":null,"deliveryAddress":null,"scheduledFor":null,"scheduledTime":null,'
            '"createdAt":"2026-11-22T10:00:00.000Z","version":1,"tip":1}',
        )

    def test_an_order_with_an_address_is_delivered(self) -> None:
        made = self.published(new(deliveryAddress="1 High Street"))
        self.assertEqual(made.snapshot["orderType"], "delivery")

    def test_only_online_orders_are_pushed(self) -> None:
        for elsewhere in ("pos", "phone", "in-store", "onlineish"):
            self.silent(new(orderSource=elsewhere))
            self.silent(updated(orderSource=elsewhere))
            self.silent(new(orderSource=elsewhere), hooked=True)
        for online in ("online", "ONLINE", " Online ", None, ""):
            self.published(new(orderSource=online))

    def test_an_update_of_an_unknown_order_is_an_update(self) -> None:
        made = self.published(updated(status="ready", previousStatus="confirmed"))
        self.assertEqual(made.draft.type, "order_updated")
        self.assertEqual(made.version, 1)
        self.assertEqual(made.draft.data["previousStatus"], "confirmed")
        self.assertIsNone(made.draft.data["createdAt"])
        self.assertEqual(made.draft.extra_members, {"order_id": "17", "status": "ready"})

    def test_an_unknown_order_of_a_hook_is_new(self) -> None:
        for event in (new(), updated(status="confirmed")):
            self.assertEqual(self.published(event, hooked=True).draft.type, "new_order")

    def test_a_finished_hooked_order_is_not_published(self) -> None:
        for status in ("Completed", "delivered", "cancelled", "picked-up"):
            self.silent(new(status=status), hooked=True)
            self.published(new(status=status))

    def test_a_hooked_order_of_yesterday_is_not_published(self) -> None:
        day_ago = NOW - timedelta(hours=24)
        for age, publishes in ((timedelta(0), True), (timedelta(seconds=1), False)):
            event = new(createdAt=(day_ago - age).isoformat())
            self.assertEqual(change(event, None, NOW, hooked=True) is not None, publishes)
            self.published(event)

    def test_a_hooked_order_without_a_date_gets_the_present_time(self) -> None:
        made = self.published(new(createdAt=None), hooked=True)
        self.assertEqual(made.snapshot["createdAt"], "2026-11-22T10:00:00.000Z")

    def test_other_types_raise_an_exception(self) -> None:
        self.assertRaises(ValueError, change, draft("table_called", {}), None, NOW)


class KnownOrderTests(OrderCase):
    def test_an_unchanged_order_publishes_nothing(self) -> None:
        self.silent(new(), self.known)
        self.silent(new(), self.known, hooked=True)
        self.silent(updated(status="confirmed"), self.known)

    def test_equal_values_in_another_spelling_publish_nothing(self) -> None:
        self.silent(new(totalAmount="12.3"), self.known)
        self.silent(new(totalAmount=Decimal("12.300")), self.known)
        self.silent(new(orderId=17, createdAt="2026-11-22 10:59:00+01:00"), self.known)
        self.silent(new(version=9, updatedAt="2026-11-22T11:00:00Z"), self.known)
        self.silent(updated(previousStatus="pending", version=3), self.known)

    def test_a_new_order_with_more_members_is_an_update(self) -> None:
        made = self.published(new(customerPhone="0113 496 0000"), self.known)
        self.assertEqual(made.draft.type, "order_updated")
        self.assertEqual(made.version, 2)
        self.assertEqual(made.draft.data["previousStatus"], "confirmed")

    def test_a_new_order_with_fewer_members_publishes_nothing(self) -> None:
        self.silent(draft("new_order", {"orderId": "17", "customerEmail": None}), self.known)

    def test_an_update_has_the_whole_order(self) -> None:
        made = self.published(updated(status="ready", updatedAt="2026-11-22T10:05:00Z"), self.known)
        self.assertEqual(
            made.draft.data,
            {
                **self.known.snapshot,
                "status": "ready",
                "version": 2,
                "previousStatus": "confirmed",
                "updatedAt": "2026-11-22T10:05:00.000Z",
            },
        )
        self.assertEqual(list(made.draft.data)[-3:], ["version", "previousStatus", "updatedAt"])
        self.assertEqual(made.draft.extra_members, {"order_id": "17", "status": "ready"})
        self.assertEqual((made.status, made.version), ("ready", 2))

    def test_an_update_without_a_time_gets_the_present_time(self) -> None:
        made = self.published(updated(status="ready"), self.known)
        self.assertEqual(made.draft.data["updatedAt"], "2026-11-22T10:00:00.000Z")

    def test_the_snapshot_has_no_time_of_the_update(self) -> None:
        made = self.published(updated(status="ready"), self.known)
        self.assertNotIn("previousStatus", made.snapshot)
        self.assertNotIn("updatedAt", made.snapshot)
        self.assertEqual(made.snapshot["version"], 2)

    def test_an_update_without_a_status_has_the_stored_one_beside_the_data(self) -> None:
        made = self.published(updated(notes="knock"), self.known)
        self.assertEqual(made.draft.extra_members, {"order_id": "17", "status": "confirmed"})

    def test_other_extra_members_are_kept(self) -> None:
        event = draft("new_order", {**ORDER, "tax": 1}, {"source": "web-1"})
        self.assertEqual(
            self.published(event, self.known).draft.extra_members,
            {"order_id": "17", "status": "confirmed", "source": "web-1"},
        )

    def test_an_update_replaces_the_items_as_a_whole(self) -> None:
        made = self.published(updated(items=[{"name": "Rice"}]), self.known)
        self.assertEqual(made.snapshot["items"], [{"id": 1, "name": "Rice", "quantity": 1}])

    def test_unknown_members_are_kept_and_compared(self) -> None:
        known = stored(change(new(table={"n": 4}, tip=True), None, NOW))
        made = self.published(updated(status="ready"), known)
        self.assertEqual(made.draft.data["table"], {"n": 4})
        self.assertEqual(list(made.draft.data)[-2:], ["table", "tip"])
        self.silent(updated(tip=True, table={"n": Decimal("4.0")}), known)
        for tip in (1, False, None, "true", Decimal("1.0")):
            self.assertEqual(self.published(updated(tip=tip), known).snapshot["tip"], tip)

    def test_a_null_erases_in_an_update_and_in_a_row_but_not_in_a_new_order(self) -> None:
        self.silent(new(customerEmail=None), self.known)
        for event, hooked in (
            (updated(customerEmail=None), False),
            (new(customerEmail=None), True),
        ):
            made = self.published(event, self.known, hooked=hooked)
            self.assertIsNone(made.snapshot["customerEmail"])

    def test_created_at_is_never_erased(self) -> None:
        self.silent(updated(createdAt=None), self.known)
        self.silent(new(createdAt=None), self.known, hooked=True)

    def test_an_order_that_is_no_longer_online_is_not_published(self) -> None:
        self.silent(updated(orderSource="pos", status="ready"), self.known)

    def test_changes_of_a_finished_or_old_order_are_published(self) -> None:
        known = stored(change(new(createdAt="2026-11-01T10:00:00Z"), None, NOW))
        event = new(createdAt="2026-11-01T10:00:00Z", status="cancelled")
        self.assertEqual(self.published(event, known, hooked=True).status, "cancelled")

    def test_another_order_with_the_same_id_is_new(self) -> None:
        over = stored(change(new(status="completed"), None, NOW))
        later = "2026-11-22T10:05:00.000Z"
        for known, members in (
            (over, {"createdAt": later}),
            (
                self.known,
                {"createdAt": later, "customerName": "Bob", "customerEmail": "b@example.org"},
            ),
            (self.known, {"createdAt": "2026-11-23T09:59:01.000Z"}),
        ):
            for hooked in (False, True):
                made = self.published(new(**members, notes=None), known, hooked=hooked)
                self.assertTrue(made.reuses_id)
                self.assertEqual((made.draft.type, made.version), ("new_order", 2))
                self.assertEqual(made.draft.data, made.snapshot)
                # The event has no member of the earlier order.
                self.assertIsNone(made.snapshot["notes"])
                self.silent(new(**members, notes=None), stored(made), hooked=hooked)

    def test_an_order_whose_creation_time_changes_is_the_same_order(self) -> None:
        over = stored(change(new(status="completed"), None, NOW))
        later = "2026-11-22T10:05:00.000Z"
        for known, event in (
            (self.known, new(createdAt=later, status="preparing")),
            (self.known, new(createdAt=later, customerName="Ann Book")),
            (
                self.known,
                new(createdAt="2026-11-22T09:00:00.000Z", customerName="Bob", customerEmail=None),
            ),
            (over, new(createdAt=later, status="refunded")),
            (over, new(createdAt=None, status="preparing")),
            (over, updated(createdAt=later, status="preparing")),
        ):
            made = self.published(event, known, hooked=event.type == "new_order")
            self.assertEqual((made.draft.type, made.reuses_id), ("order_updated", False))

    def test_each_change_increments_the_version(self) -> None:
        known = self.known
        for count, status in enumerate(("preparing", "ready", "preparing"), 2):
            made = self.published(updated(status=status), known)
            self.assertEqual(made.version, count)
            self.assertEqual(made.draft.data["previousStatus"], known.status)
            known = stored(made)

    def test_a_readable_schedule_replaces_a_text(self) -> None:
        known = stored(change(new(scheduledFor="this evening"), None, NOW))
        self.assertEqual(known.snapshot["scheduledText"], "this evening")
        made = self.published(updated(status="ready"), known)
        self.assertEqual(made.snapshot["scheduledText"], "this evening")
        made = self.published(updated(scheduledTime="2026-11-22T18:30Z"), known)
        self.assertNotIn("scheduledText", made.snapshot)
        made = self.published(new(scheduledFor="at seven"), stored(made))
        self.assertIsNone(made.snapshot["scheduledFor"])
        self.assertEqual(made.snapshot["scheduledText"], "at seven")

    def test_an_unreadable_value_keeps_the_stored_one(self) -> None:
        made = self.published(updated(totalAmount="a lot", createdAt="today"), self.known)
        self.assertEqual(made.snapshot["totalAmount"], Decimal("12.30"))
        self.assertEqual(made.snapshot["createdAt"], ORDER["createdAt"])
        self.assertEqual(
            made.snapshot["unreadable"], {"totalAmount": "a lot", "createdAt": "today"}
        )

    def test_a_readable_value_removes_the_unreadable_one(self) -> None:
        known = stored(change(new(tax="a bit", subtotal="less"), None, NOW))
        made = self.published(updated(tax=1), known)
        self.assertEqual(made.snapshot["unreadable"], {"subtotal": "less"})
        made = self.published(updated(subtotal=11), stored(made))
        self.assertNotIn("unreadable", made.snapshot)

    def test_the_stored_object_is_not_changed(self) -> None:
        before = encode(self.known.snapshot)
        self.published(updated(items=[], tax="?", status="ready"), self.known)
        self.assertEqual(encode(self.known.snapshot), before)


class AnyOrderTests(OrderCase):
    @given(named_orders, st.booleans())
    def test_the_strictest_till_reads_any_order_and_receives_it_once(
        self, data: dict[str, object], hooked: bool
    ) -> None:
        for kind in ("new_order", "order_updated"):
            event = draft(kind, data)
            made = change(event, None, NOW, hooked=hooked)
            if made is None:
                continue
            strict_till.receive(made.draft)
            self.assertIsNone(change(event, stored(made), NOW, hooked=hooked))

    @given(named_orders, named_orders, st.booleans())
    def test_any_change_is_readable_and_published_once(
        self, first: dict[str, object], second: dict[str, object], hooked: bool
    ) -> None:
        second = {**second, "orderId": first["orderId"]}
        known = change(draft("new_order", first), None, NOW)
        if known is None:
            return
        for kind in ("new_order", "order_updated"):
            event = draft(kind, second)
            made = change(event, stored(known), NOW, hooked=hooked)
            if made is None:
                continue
            strict_till.receive(made.draft)
            self.assertEqual(made.version, 2)
            self.assertIsNone(change(event, stored(made), NOW, hooked=hooked))
            for name in known.snapshot:
                self.assertTrue(name in made.snapshot or name in ("scheduledText", "unreadable"))


class RowTests(OrderCase):
    row: dict[str, Any] = {
        "id": 17,
        "order_number": None,
        "customer_name": "Ann Brook",
        "order_source": "online",
        "status": "confirmed",
        "total_amount": Decimal("12.300"),
        "discount_amount": Decimal("0.000"),
        "special_instructions": "ring",
        "created_at": "2026-11-22T09:59:00.123456+00:00",
        "updated_at": None,
        "internal_cost": Decimal("3.10"),
        "tenant_id": 4,
        "items": [
            {
                "id": 901,
                "order_id": 17,
                "menu_item_id": "m-7",
                "name": "Soup",
                "price": Decimal("4.500"),
                "quantity": 2,
                "selected_addons": [{"id": 3, "name": "Bread", "price": 1, "cost": Decimal("0.2")}],
                "internal_cost": Decimal("1.05"),
                "variant_id": None,
            },
            {"id": 902, "order_id": 17, "name": "Rice", "selected_addons": None, "quantity": 1},
        ],
    }

    def test_a_row_becomes_a_new_order(self) -> None:
        made = self.published(draft("new_order", from_row(self.row)), hooked=True)
        self.assertEqual(made.draft.type, "new_order")
        self.assertEqual(made.snapshot["orderId"], "17")
        self.assertEqual(made.snapshot["orderNumber"], "17")
        self.assertEqual(encode(made.snapshot["totalAmount"]), b"12.30")
        self.assertEqual(made.snapshot["createdAt"], "2026-11-22T09:59:00.123Z")
        self.assertEqual(
            encode(made.snapshot["items"]),
            b'[{"id":1,"menuItemId":"m-7","name":"Soup","price":4.50,"quantity":2,'
            b'"selectedAddons":[{"addon_id":"3","name":"Bread","price":1,"id":3}]},'
            b'{"id":2,"name":"Rice","quantity":1}]',
        )

    def test_other_columns_are_never_published(self) -> None:
        made = self.published(draft("new_order", from_row(self.row)), hooked=True)
        text = encode(made.draft.data)
        for secret in (b"cost", b"3.10", b"1.05", b"tenant_id", b"901", b"order_id"):
            self.assertNotIn(secret, text)

    def test_an_unchanged_row_publishes_nothing_and_a_null_erases(self) -> None:
        known = stored(change(draft("new_order", from_row(self.row)), None, NOW, hooked=True))
        self.silent(draft("new_order", from_row(self.row)), known, hooked=True)
        row = {**self.row, "special_instructions": None}
        made = self.published(draft("new_order", from_row(row)), known, hooked=True)
        self.assertIsNone(made.snapshot["notes"])

    def test_a_row_without_items_or_with_odd_ones_is_an_order(self) -> None:
        odd: tuple[object, ...] = (None, [], {}, 7, "[]", [{"selected_addons": {"a": 1}}], [None])
        for items in odd:
            made = self.published(draft("new_order", from_row({**self.row, "items": items})))
            self.assertIsInstance(made.snapshot["items"], list)

    def test_addons_may_be_the_text_of_an_array(self) -> None:
        items = [{"name": "Soup", "selected_addons": '[{"addon_id":3,"name":"Bread","cost":1}]'}]
        self.assertEqual(
            from_row({"items": items})["items"],
            [{"name": "Soup", "selectedAddons": [{"addon_id": 3, "name": "Bread"}]}],
        )

    def test_columns_with_other_names_of_a_member_are_read_too(self) -> None:
        item = {
            "name": "Soup",
            "quantity": 1,
            "modifiers": ["No nuts"],
            "addons": {"21": {"name": "Bread", "quantity": 3}},
            "notes": "hot",
            "comment": "for Tom",
        }
        row = {"id": 1, "address": "8 Mill Lane", "delivery_address": None, "items": [item]}
        amounts = {"total": 5, "total_amount": None}
        made: dict[str, Any] = {**draft("new_order", from_row({**row, **amounts})).data}
        self.assertEqual((made["deliveryAddress"], made["totalAmount"]), ("8 Mill Lane", 5))
        (line,) = made["items"]
        self.assertEqual(
            [(addon["name"], addon.get("quantity")) for addon in line["selectedAddons"]],
            [("Bread", 3), ("No nuts", None)],
        )
        self.assertEqual(line["specialInstructions"], "hot\nfor Tom")

    def test_a_day_and_a_time_of_day_in_two_columns_are_one_schedule(self) -> None:
        for day, clock, said in (
            ("2026-11-22", "18:30:00", "2026-11-22T18:30:00.000Z"),
            ("2026-11-22", "18:30:00+02", "2026-11-22T16:30:00.000Z"),
            ("2026-11-22", "2026-11-22T19:00:00", "2026-11-22T19:00:00.000Z"),
            ("2026-11-22T18:00:00", "19:00:00", "2026-11-22T18:00:00.000Z"),
        ):
            row = {"id": 1, "scheduled_for": day, "scheduled_time": clock}
            made = draft("new_order", from_row(row)).data
            self.assertEqual((made["scheduledFor"], made["scheduledTime"]), (said, said))

    def test_a_time_of_day_in_words_is_kept_as_text(self) -> None:
        row = {"id": 1, "scheduled_for": "2026-11-22", "scheduled_time": "half past six"}
        made = draft("new_order", from_row(row)).data
        self.assertIsNone(made["scheduledFor"])
        self.assertEqual(made["scheduledText"], "2026-11-22 half past six")

    def test_a_row_without_known_columns_is_no_order(self) -> None:
        self.assertRaises(Unprocessable, draft, "new_order", from_row({"cost": 1}))


class FinalStatusTests(SynchronousTestCase):
    def test_the_final_statuses_are_in_the_normal_form(self) -> None:
        self.assertTrue(is_final("completed"))
        self.assertFalse(is_final("confirmed"))
        for status in FINAL_STATUSES:
            data = draft(
                "new_order", {"orderId": 1, "status": status.replace("_", "-").title()}
            ).data
            self.assertTrue(is_final(str(data["status"])))
