"""Tests of the warnings about repaired values of an event."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Unprocessable
from posd.events import warnings
from posd.events.normalise import TABLES, draft
from posd.events.orders import change
from posd.values import WARNING_CODES
from tests.json_strategies import values
from tests.publishing.test_batch import NOW


def told(**order: Any) -> dict[str, str]:
    """Return the codes of the warnings about an order, by member."""
    return {each.member: each.code for each in draft("new_order", {"orderId": 1, **order}).warnings}


class WarningTests(SynchronousTestCase):
    def test_a_valid_order_has_no_warnings(self) -> None:
        item = {
            "name": "Soup",
            "quantity": 2,
            "price": "5.00",
            "selectedAddons": [{"name": "Rice"}],
        }
        self.assertEqual(told(totalAmount="14.20", items=[item], scheduledFor=""), {})

    def test_an_unreadable_amount_has_a_warning(self) -> None:
        for total in ("14,20", "£14.20", True, {"amount": 14}, [14]):
            with self.subTest(total=total):
                self.assertEqual(told(totalAmount=total), {"totalAmount": "unreadable"})

    def test_a_warning_has_the_path_of_the_member(self) -> None:
        addons = [{"name": "Rice"}, {"name": "Tea", "price": "free"}]
        items = [{"name": "Soup"}, {"name": "Stew", "price": "?", "selectedAddons": addons}]
        self.assertEqual(
            told(items=items),
            {"items[1].price": "unreadable", "items[1].selectedAddons[1].price": "unreadable"},
        )

    def test_a_schedule_in_words_has_one_warning(self) -> None:
        self.assertEqual(told(scheduledTime="at eight"), {"scheduledFor": "schedule_as_text"})

    def test_a_replaced_quantity_has_a_warning(self) -> None:
        self.assertEqual(
            told(items=[{"name": "Rice", "quantity": "1 kg"}]),
            {"items[0].quantity": "quantity_replaced"},
        )

    def test_an_item_or_addon_without_a_name_has_a_warning(self) -> None:
        self.assertEqual(
            told(items=[{"price": 1, "selectedAddons": [{"price": 2}]}, {"name": "Item"}]),
            {"items[0].name": "name_missing", "items[0].selectedAddons[0].name": "name_missing"},
        )

    def test_a_warning_does_not_contain_the_value(self) -> None:
        order = {"orderId": 1, "totalAmount": "s3cret", "items": [{"quantity": "s3cret"}]}
        made = draft(
            "new_order", {**order, "scheduledFor": "s3cret", "deliveryAddress": [{"lat": 1}]}
        )
        self.assertEqual(len(made.warnings), 5)
        self.assertNotIn("s3cret", repr(made.warnings))

    def test_other_types_have_warnings_too(self) -> None:
        made = draft("gift_card_updated", {"cardNumber": "G1", "balance": "ten"})
        self.assertEqual([each.member for each in made.warnings], ["balance"])

    def test_a_replaced_character_has_a_warning_with_its_member(self) -> None:
        data = {
            "text": "Anna \N{REPLACEMENT CHARACTER}",
            "more": [{"a": "\N{REPLACEMENT CHARACTER}"}],
        }
        self.assertEqual(draft("notice", data).warnings, ())
        made = draft("notice", data, repaired=True)
        self.assertEqual(
            [(each.member, each.code) for each in made.warnings],
            [("text", "character_replaced"), ("more[0].a", "character_replaced")],
        )

    def test_the_number_of_warnings_is_limited(self) -> None:
        items = [{"name": "Soup", "price": "?"}] * 1000
        self.assertEqual(
            len(draft("new_order", {"orderId": 1, "items": items}).warnings), warnings.MOST
        )
        text = ["\N{REPLACEMENT CHARACTER}"] * 1000
        self.assertEqual(len(draft("notice", {"a": text}, repaired=True).warnings), warnings.MOST)

    def test_warnings_are_kept_when_the_order_is_completed(self) -> None:
        made = draft("new_order", {"orderId": 1, "totalAmount": "ten"})
        changed = change(made, None, NOW)
        assert changed is not None
        self.assertEqual(changed.draft.warnings, made.warnings)

    @given(st.dictionaries(st.sampled_from(sorted(TABLES["new_order"].spellings)), values))
    def test_all_unreadable_values_have_warnings(self, data: dict[str, object]) -> None:
        data.pop("unreadable", None)
        try:
            made = draft("new_order", {**data, "orderId": 1})
        except Unprocessable:
            return
        odd = made.data.get("unreadable", {})
        assert isinstance(odd, dict)
        if len(made.warnings) < warnings.MOST:
            self.assertLessEqual({*odd}, {each.member for each in made.warnings})
        self.assertLessEqual({each.code for each in made.warnings}, {*WARNING_CODES})
