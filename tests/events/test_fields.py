"""An object read by a table: types, names, order, and what is kept."""

from __future__ import annotations

from datetime import UTC
from decimal import Decimal
from zoneinfo import ZoneInfo

from twisted.trial.unittest import SynchronousTestCase

from posd.events.coercion import amount, identifier, point_in_time, text
from posd.events.fields import member, read_object, snake, table

CARD = table(
    member("cardNumber", identifier, "code"),
    member("balance", amount),
    member("holder", text, "cardNumber", nullable=True),
    member("kind", text, default="gift"),
    member("soldAt", point_in_time, nullable=True),
    extra_names=("secret",),
)


class ShapeTests(SynchronousTestCase):
    def test_members_leave_in_the_tables_order_and_unknown_ones_after(self) -> None:
        shaped = read_object(
            {"x": 1, "kind": "a", "balance": 2, "holder": "b", "cardNumber": 3}, CARD
        )
        self.assertEqual(list(shaped), ["cardNumber", "balance", "holder", "kind", "x"])

    def test_a_member_is_found_under_its_own_name_then_snake_case_then_others(self) -> None:
        cards: tuple[dict[str, object], ...] = (
            {"cardNumber": "1", "card_number": "2", "code": "3"},
            {"card_number": "1", "code": "3"},
            {"cardNumber": None, "card_number": {}, "code": "1"},
        )
        for data in cards:
            self.assertEqual(read_object(data, CARD)["cardNumber"], "1")

    def test_a_spelling_is_taken_and_another_members_name_is_kept(self) -> None:
        shaped = read_object({"card_number": "1", "code": "3", "secret": "s"}, CARD)
        self.assertNotIn("card_number", shaped)
        self.assertNotIn("secret", shaped)
        self.assertEqual(shaped["code"], "3")

    def test_what_is_unknown_is_left_out_or_null_or_the_default(self) -> None:
        data = {"cardNumber": None, "balance": None, "sold_at": None, "kind": None}
        self.assertEqual(read_object(data, CARD), {"holder": None, "kind": "gift", "soldAt": None})
        self.assertEqual(read_object({}, CARD), {"kind": "gift"})
        self.assertEqual(
            read_object({}, CARD, fill=True), {"holder": None, "kind": "gift", "soldAt": None}
        )

    def test_a_sparse_object_has_no_nulls(self) -> None:
        self.assertEqual(
            read_object({"x": None, "y": 1, "kind": "a"}, CARD, sparse=True), {"kind": "a", "y": 1}
        )

    def test_the_unreadable_is_kept_aside(self) -> None:
        shaped = read_object({"balance": "a lot", "cardNumber": 1.5, "soldAt": ["then"]}, CARD)
        self.assertEqual(
            shaped,
            {
                "holder": "1.5",
                "kind": "gift",
                "soldAt": None,
                "unreadable": {"cardNumber": 1.5, "balance": "a lot", "soldAt": '["then"]'},
            },
        )

    def test_what_can_be_read_elsewhere_is_not_unreadable(self) -> None:
        self.assertNotIn("unreadable", read_object({"cardNumber": 1.5, "code": "7"}, CARD))

    def test_an_earlier_note_of_the_unreadable_is_added_to_and_not_changed(self) -> None:
        data = {"unreadable": {"tip": "much"}, "balance": True}
        shaped = read_object(data, CARD)
        self.assertEqual(shaped["unreadable"], {"tip": "much", "balance": True})
        self.assertEqual(data["unreadable"], {"tip": "much"})

    def test_dates_are_in_the_given_zone(self) -> None:
        data = {"soldAt": "2026-07-01 12:00"}
        self.assertEqual(read_object(data, CARD, zone=UTC)["soldAt"], "2026-07-01T12:00:00.000Z")
        rome = ZoneInfo("Europe/Rome")
        self.assertEqual(read_object(data, CARD, zone=rome)["soldAt"], "2026-07-01T10:00:00.000Z")

    def test_unknown_values_are_not_touched(self) -> None:
        value = {"deep": [Decimal("1.50"), None, {"a": ""}]}
        self.assertIs(read_object({"x": value}, CARD)["x"], value)

    def test_snake_case_is_the_older_spelling(self) -> None:
        self.assertEqual(snake("specialInstructions"), "special_instructions")
        self.assertEqual(snake("addon_id"), "addon_id")
