"""Tests of items and addons in the structures of platforms."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from posd.events.coercion import NotCoercible
from posd.events.normalise import ADDON_SPELLINGS, draft
from posd.events.order_parts import array, choices, objects
from posd.events.orders import from_row
from tests.json_strategies import values

ALLERGY = "NO NUTS (allergy)"


class ArrayTests(SynchronousTestCase):
    def test_an_array_may_be_the_text_of_one(self) -> None:
        self.assertEqual(array([1]), [1])
        self.assertEqual(array(' [{"a":1.50}]'), [{"a": Decimal("1.50")}])

    def test_another_text_is_the_only_element(self) -> None:
        self.assertEqual(array("2 x Soup"), ["2 x Soup"])
        self.assertEqual(array("[not json"), ["[not json"])
        self.assertEqual(array(" "), [])

    def test_other_values_are_no_array(self) -> None:
        values: tuple[object, ...] = (1, {}, True)
        for value in values:
            self.assertRaises(NotCoercible, array, value)


class ObjectsTests(SynchronousTestCase):
    def test_an_element_that_is_no_object_is_a_name(self) -> None:
        self.assertEqual(
            objects([{"a": 1}, "Rice", None, 7]), [{"a": 1}, {"name": "Rice"}, {"name": 7}]
        )

    def test_an_element_may_be_the_text_of_an_object(self) -> None:
        self.assertEqual(
            objects(['{"name": "Rice"}', "{rice"]), [{"name": "Rice"}, {"name": "{rice"}]
        )

    def test_one_object_is_one_part(self) -> None:
        part = {"name": "Soup", "size": {"name": "large"}}
        self.assertEqual(objects(part, frozenset(("name",))), [part])
        self.assertEqual(objects('{"name": "Soup"}', frozenset(("name",))), [{"name": "Soup"}])

    def test_a_map_has_a_part_for_each_member(self) -> None:
        self.assertEqual(
            objects({"21": {"name": "Soup"}, "Rice": {"price": 2}, "Tea": True, "Cake": False}),
            [
                {"id": "21", "name": "Soup"},
                {"id": "Rice", "name": "Rice", "price": 2},
                {"name": "Tea"},
            ],
        )
        self.assertEqual(
            objects({"Rice": 2, "Tea": "hot"}), [{"name": "Rice: 2"}, {"name": "Tea: hot"}]
        )


class ChoicesTests(SynchronousTestCase):
    def test_a_group_is_replaced_by_its_options_with_its_name(self) -> None:
        for group in (
            {"group": "Without", "options": ["Nuts", {"id": 3, "name": "Milk"}]},
            {"name": "Without", "choices": ["Nuts", {"id": 3, "name": "Milk"}]},
            {"group": {"name": "Without"}, "items": ["Nuts", {"id": 3, "name": "Milk"}]},
        ):
            with self.subTest(group=group):
                self.assertEqual(
                    choices([group], ADDON_SPELLINGS),
                    [{"name": "Without: Nuts"}, {"id": 3, "name": "Without: Milk"}],
                )
        self.assertEqual(choices({"Without": ["Nuts"]}), [{"name": "Without: Nuts"}])

    def test_a_group_with_a_price_or_without_options_is_an_option(self) -> None:
        self.assertEqual(
            choices([{"name": "Sauce", "price": 1, "options": ["Hot"]}]),
            [{"name": "Sauce", "price": 1}, {"name": "Sauce: Hot"}],
        )
        self.assertEqual(choices([{"name": ALLERGY, "options": []}]), [{"name": ALLERGY}])
        self.assertEqual(choices([{"group": "Sauce", "options": []}]), [])

    def test_an_option_that_says_that_it_was_not_selected_is_left_out(self) -> None:
        options = [{"name": "Hot", "selected": False}, {"name": "Mild", "selected": True}]
        self.assertEqual(
            [each["name"] for each in choices([{"group": "Sauce", "options": options}])],
            ["Sauce: Mild"],
        )

    def test_a_long_group_is_not_repeated_without_end(self) -> None:
        value: object = [{"group": "g" * 100_000, "options": ["a"] * 1000}]
        self.assertLess(sum(len(str(each["name"])) for each in choices(value)), 10_000)
        value = "a"
        for _ in range(30):
            value = [
                {"group": "g" * 1000, "options": value if isinstance(value, list) else [value]}
            ]
        self.assertLess(len(str(choices(value)[0]["name"])), 300)

    @given(values)
    def test_any_json_is_read_or_unreadable(self, value: object) -> None:
        try:
            for part in choices(value, ADDON_SPELLINGS):
                self.assertIsInstance(part, Mapping)
        except NotCoercible:
            return


class AllergyTests(SynchronousTestCase):
    """Tests that an allergy in any structure is visible to the cook, or in `unreadable`."""

    FORMS: tuple[object, ...] = (
        {"21": {"name": ALLERGY}},
        {"21": {"name": ALLERGY, "quantity": 3}},
        [{"name": ALLERGY, "quantity": 3}],
        [{"name": ALLERGY, "quantity": "3"}],
        [{"name": ALLERGY, "quantity": "a few"}],
        {"name": ALLERGY},
        {ALLERGY: True},
        {ALLERGY: {"price": 0}},
        {"note": ALLERGY},
        [{"note": ALLERGY}],
        [ALLERGY],
        ALLERGY,
        '["' + ALLERGY + '"]',
        '{"21": {"name": "' + ALLERGY + '"}}',
        ['{"name": "' + ALLERGY + '"}'],
        [[ALLERGY]],
        [{"group": "Remarks", "options": [ALLERGY]}],
        [{"group": "Remarks", "options": {"21": {"name": ALLERGY}}}],
        [{"title": ALLERGY}],
        [{"label": ALLERGY, "modifiers": []}],
        {"a": {"b": {"name": ALLERGY}}},
    )

    def test_an_allergy_in_an_event_is_visible(self) -> None:
        for form in self.FORMS:
            with self.subTest(form=form):
                items = [{"name": "Soup", "selectedAddons": form}]
                self.assertIn(
                    ALLERGY, shown(draft("new_order", {"orderId": 1, "items": items}).data)
                )

    def test_an_allergy_in_a_row_is_visible(self) -> None:
        for form in self.FORMS:
            with self.subTest(form=form):
                row = {"id": 1, "items": [{"name": "Soup", "selected_addons": form}]}
                self.assertIn(ALLERGY, shown(draft("new_order", from_row(row)).data))

    def test_structures_without_a_clear_meaning_are_in_unreadable(self) -> None:
        row = {"id": 1, "items": [{"name": "Soup", "selected_addons": 17}]}
        made = draft("new_order", from_row(row))
        line = only_line(made.data)
        self.assertEqual(line["unreadable"], {"selectedAddons": 17})
        self.assertEqual([each.member for each in made.warnings], ["items[0].selectedAddons"])

    def test_the_quantity_of_an_addon_is_a_whole_number_from_all_sources(self) -> None:
        for made in (
            draft(
                "new_order",
                {"orderId": 1, "items": [{"selectedAddons": [{"name": "a", "qty": "3"}]}]},
            ),
            draft(
                "new_order",
                from_row(
                    {
                        "id": 1,
                        "items": [{"selected_addons": [{"name": "a", "quantity": Decimal("3.0")}]}],
                    }
                ),
            ),
        ):
            line = only_line(made.data)
            self.assertIs(type(line["selectedAddons"][0]["quantity"]), int)

    def test_an_invalid_quantity_of_an_addon_is_shown_to_the_cook(self) -> None:
        line = ordered(
            [{"name": "Soup", "selectedAddons": [{"name": "Nuts", "quantity": "none!"}]}]
        )
        (addon,) = line["selectedAddons"]
        self.assertEqual(addon["name"], "Nuts (quantity: none!)")
        self.assertEqual(addon["unreadable"], {"quantity": "none!"})
        for unknown in ("", None):
            line = ordered([{"name": "Soup", "selectedAddons": [{"name": "Nuts", "qty": unknown}]}])
            self.assertEqual(line["selectedAddons"][0]["name"], "Nuts")

    def test_a_normalised_order_normalises_to_itself(self) -> None:
        addons = [{"name": "Nuts", "quantity": "none!"}, {"group": "Without", "options": ["Milk"]}]
        item = {"quantity": "2 kg", "note": "hot", "comment": "dry", "selectedAddons": addons}
        once = draft("new_order", {"orderId": 1, "items": [item]}).data
        self.assertEqual(draft("new_order", once).data, once)

    def test_a_blank_name_counts_as_missing(self) -> None:
        line = ordered([{"name": " ", "displayName": "Soup", "selectedAddons": [{"name": ""}]}])
        self.assertEqual((line["name"], line["selectedAddons"][0]["name"]), ("Soup", "Addon"))

    def test_other_names_of_a_lines_instructions_are_added_to_them(self) -> None:
        for name in ("notes", "note", "instructions", "comment", "comments"):
            item = {"name": "Soup", "specialInstructions": "hot", name: ALLERGY}
            line = ordered([item])
            self.assertEqual(line["specialInstructions"], f"hot\n{ALLERGY}")

    def test_instructions_of_any_form_are_a_text(self) -> None:
        for value in ([ALLERGY], {"allergy": ALLERGY}, [7, ALLERGY]):
            item = {"name": "Soup", "specialInstructions": value}
            line = ordered([item])
            self.assertIn(ALLERGY, line["specialInstructions"])

    def test_items_may_be_a_map_or_a_text(self) -> None:
        for items in (
            {"1": {"name": "Soup", "qty": 2}},
            '{"1": {"name": "Soup", "quantity": 2}}',
            {"name": "Soup", "quantity": 2},
            [{"title": "Soup", "count": "2"}],
        ):
            with self.subTest(items=items):
                line = ordered(items)
                self.assertEqual((line["name"], line["quantity"]), ("Soup", 2))


def ordered(items: object) -> dict[str, Any]:
    """Publish an order with these items. Return its only item."""
    return only_line(draft("new_order", {"orderId": 1, "items": items}).data)


def only_line(order: Mapping[str, object]) -> dict[str, Any]:
    (line,) = cast("list[dict[str, Any]]", order["items"])
    return line


def shown(order: Mapping[str, object]) -> str:
    """Return the texts of the addons of an order's only item that a till shows."""
    line = only_line(order)
    addons = [part["name"] for part in line.get("selectedAddons", ())]
    return "\n".join([*addons, str(line.get("unreadable", ""))])
