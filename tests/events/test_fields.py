"""Tests of objects read by a table: types, names, order, and unknown members."""

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


class ReadObjectTests(SynchronousTestCase):
    def test_members_are_in_the_order_of_the_table_before_unknown_ones(self) -> None:
        shaped = read_object(
            {"x": 1, "kind": "a", "balance": 2, "holder": "b", "cardNumber": 3}, CARD
        )
        self.assertEqual(list(shaped), ["cardNumber", "balance", "holder", "kind", "x"])

    def test_a_member_is_read_by_its_name_then_snake_case_then_aliases(self) -> None:
        cards: tuple[dict[str, object], ...] = (
            {"cardNumber": "1", "card_number": "2", "code": "3"},
            {"card_number": "1", "code": "3"},
            {"cardNumber": None, "card_number": {}, "code": "1"},
        )
        for data in cards:
            self.assertEqual(read_object(data, CARD)["cardNumber"], "1")

    def test_other_spellings_are_dropped_and_names_of_other_members_are_kept(self) -> None:
        shaped = read_object({"card_number": "1", "code": "3", "secret": "s"}, CARD)
        self.assertNotIn("card_number", shaped)
        self.assertNotIn("secret", shaped)
        self.assertEqual(shaped["code"], "3")

    def test_a_missing_member_is_absent_or_null_or_the_default(self) -> None:
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

    def test_unreadable_values_are_moved_to_unreadable(self) -> None:
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

    def test_a_value_that_an_alias_provides_is_not_unreadable(self) -> None:
        self.assertNotIn("unreadable", read_object({"cardNumber": 1.5, "code": "7"}, CARD))

    def test_unreadable_values_are_added_to_an_earlier_unreadable(self) -> None:
        data = {"unreadable": {"tip": "much"}, "balance": True}
        shaped = read_object(data, CARD)
        self.assertEqual(shaped["unreadable"], {"tip": "much", "balance": True})
        self.assertEqual(data["unreadable"], {"tip": "much"})

    def test_dates_are_in_the_given_zone(self) -> None:
        data = {"soldAt": "2026-07-01 12:00"}
        self.assertEqual(read_object(data, CARD, zone=UTC)["soldAt"], "2026-07-01T12:00:00.000Z")
        rome = ZoneInfo("Europe/Rome")
        self.assertEqual(read_object(data, CARD, zone=rome)["soldAt"], "2026-07-01T10:00:00.000Z")

    def test_unknown_values_are_unchanged(self) -> None:
        value = {"deep": [Decimal("1.50"), None, {"a": ""}]}
        self.assertIs(read_object({"x": value}, CARD)["x"], value)

    def test_names_in_snake_case(self) -> None:
        self.assertEqual(snake("specialInstructions"), "special_instructions")
        self.assertEqual(snake("addon_id"), "addon_id")
