"""Tests of postal addresses as texts, objects and lists."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from posd.events.addresses import address
from posd.events.coercion import NotCoercible
from tests.json_strategies import values


class AddressTests(SynchronousTestCase):
    def test_a_string_is_left_as_it_is(self) -> None:
        self.assertEqual(address("1 High Street\nLeeds"), "1 High Street\nLeeds")

    def test_parts_are_put_as_on_an_envelope(self) -> None:
        self.assertEqual(
            address(
                {
                    "postcode": "LS1 1AA",
                    "city": "Leeds",
                    "address_line1": "1 High Street",
                    "flat": "Flat 2",
                    "country": None,
                }
            ),
            "Flat 2, 1 High Street, Leeds, LS1 1AA",
        )

    def test_words_without_a_postal_name_are_kept_and_numbers_are_not(self) -> None:
        self.assertEqual(
            address({"gate": "green door", "distance": 3, "id": "a-9", "houseNumber": 12}),
            "12, green door",
        )

    def test_nested_parts_and_lists_are_joined_and_repetitions_dropped(self) -> None:
        self.assertEqual(
            address({"street": ["1 High Street", "Leeds"], "place": {"city": "Leeds"}}),
            "1 High Street, Leeds",
        )

    def test_an_address_may_be_the_text_of_a_structure(self) -> None:
        self.assertEqual(address('{"street": "1 High Street", "lat": 53.8}'), "1 High Street")
        self.assertEqual(address("{green door}"), "{green door}")

    def test_coordinates_are_left_out(self) -> None:
        for more in (
            {"lat": Decimal("53.8"), "lng": Decimal("-1.5")},
            {"location": {"lat": "53.8008", "lng": "-1.5491"}},
            {"coordinates": [Decimal("-1.5491"), Decimal("53.8008")]},
            {"place": {"type": "Point", "where": [Decimal("-1.5491"), Decimal("53.8008")]}},
            {"location": "53.8008, -1.5491"},
            {"pin": ["53.8008", "-1.5491"]},
        ):
            with self.subTest(more=more):
                self.assertEqual(address({"street": "1 High Street", **more}), "1 High Street")

    def test_an_empty_structure_is_unknown(self) -> None:
        self.assertIsNone(address({}))
        self.assertIsNone(address([]))

    def test_a_structure_with_nothing_postal_is_unreadable_and_not_lost(self) -> None:
        for value in ({"lat": Decimal("53.8")}, [1, 2], True, 7):
            with self.subTest(value=value):
                self.assertRaises(NotCoercible, address, value)

    @given(values.filter(lambda value: value is not None))
    def test_any_json_is_one_string_or_unknown_or_unreadable(self, value: object) -> None:
        try:
            self.assertIsInstance(address(value), str | None)
        except NotCoercible:
            return


class LongAddressTests(SynchronousTestCase):
    def test_a_structure_with_too_many_parts_is_unreadable(self) -> None:
        self.assertEqual(address(["a"] * 199), "a")
        deep: object = "a"
        for _ in range(30):
            deep = [deep]
        self.assertEqual(address(deep), "a")
        several: tuple[object, ...] = (
            *(["a"] * 200, {"street": [[{}] * 100] * 100}, [[["a"] * 150], ["b"] * 150]),
        )
        for value in several:
            self.assertRaises(NotCoercible, address, value)
