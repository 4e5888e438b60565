"""Tests of the conversion of values, and of values that cannot be converted without guessing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from decimal import Decimal
from functools import partial
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.events.coercion import (
    INT32,
    NotCoercible,
    amount,
    appointment,
    deadline,
    enum_word,
    identifier,
    integer,
    point_in_time,
    text,
)
from tests.json_strategies import dates, decimals

LONDON = ZoneInfo("Europe/London")


class ReadingCase(SynchronousTestCase):
    def assertUnreadable(self, read: Callable[[object], object], *values: object) -> None:
        for value in values:
            self.assertRaises(NotCoercible, read, value)


class TextTests(ReadingCase):
    def test_a_string_is_unchanged(self) -> None:
        self.assertEqual(text(" Zoë "), " Zoë ")
        self.assertEqual(text(""), "")

    def test_another_value_becomes_its_json_text(self) -> None:
        for value, expected in (
            (447700900123, "447700900123"),
            (Decimal("12.50"), "12.50"),
            (True, "true"),
            ({"kind": ["card"]}, '{"kind":["card"]}'),
        ):
            self.assertEqual(text(value), expected)

    def test_a_value_that_json_does_not_have_is_unreadable(self) -> None:
        self.assertUnreadable(text, float("nan"), object(), Decimal("Infinity"))


class EnumWordTests(ReadingCase):
    def test_a_keyword_becomes_snake_case(self) -> None:
        for value, expected in (
            ("delivery", "delivery"),
            ("Dine-In", "dine_in"),
            (" OUT FOR  delivery ", "out_for_delivery"),
            ("dine_in", "dine_in"),
            ("", None),
            (" - ", None),
        ):
            self.assertEqual(enum_word(value), expected)

    def test_only_a_string_can_be_a_keyword(self) -> None:
        self.assertUnreadable(enum_word, 1, True, {}, [])


class IdentifierTests(ReadingCase):
    def test_integers_and_strings_are_the_same_id(self) -> None:
        for value in (17, "17", " 17 ", Decimal("17"), Decimal("17.0"), 17.0):
            self.assertEqual(identifier(value), "17")

    def test_leading_zeros_of_a_string_are_part_of_the_id(self) -> None:
        self.assertEqual(identifier("0017"), "0017")

    def test_an_empty_id_is_none(self) -> None:
        self.assertIsNone(identifier("  "))

    def test_other_values_are_no_id(self) -> None:
        self.assertUnreadable(
            identifier, True, 1.5, Decimal("1.5"), {}, ["1"], "x" * 256, 10**255, 10**5000
        )


class AmountTests(ReadingCase):
    def test_numbers_and_numeric_strings_are_exact(self) -> None:
        for value, expected in (
            (Decimal("12.30"), "12.30"),
            (Decimal("12.3"), "12.3"),
            ("12.30", "12.30"),
            (" 7 ", "7"),
            (".5", "0.5"),
            (12, "12"),
            (0.1, "0.1"),
            ("-2.50", "-2.50"),
            (Decimal("0.1234"), "0.1234"),
        ):
            self.assertEqual(str(amount(value)), expected)

    def test_zeros_after_the_second_decimal_are_dropped(self) -> None:
        for value, expected in (
            (Decimal("45.990"), "45.99"),
            (Decimal("12.3400"), "12.34"),
            (Decimal("12.000"), "12.00"),
            (Decimal("1.2340"), "1.234"),
            (Decimal("0E-10"), "0.00"),
        ):
            self.assertEqual(str(amount(value)), expected)

    def test_the_noise_of_a_binary_float_is_rounded_away(self) -> None:
        self.assertEqual(str(amount(Decimal("45.989999999999995"))), "45.99")
        self.assertEqual(str(amount(0.1 + 0.2)), "0.30")

    def test_an_empty_string_is_unknown(self) -> None:
        self.assertIsNone(amount(" "))

    def test_ambiguous_values_are_unreadable(self) -> None:
        self.assertUnreadable(
            amount,
            "12,50",
            "1,234.50",
            "£5",
            "1e2",
            "0x10",
            "NaN",
            "١٢",
            True,
            {},
            float("inf"),
            Decimal("NaN"),
        )

    def test_amounts_beyond_the_limit_are_unreadable_at_once(self) -> None:
        self.assertUnreadable(
            amount,
            10**11,
            -(10**11),
            10**5000,
            Decimal("99999999999.9999999"),
            Decimal("100000000000.0"),
            Decimal("-100000000000.00"),
            Decimal("1e300"),
            Decimal("1E+999999"),
            "9" * 1_000_000,
            " " * 1_000_000,
        )

    @given(decimals | st.decimals(allow_nan=False, allow_infinity=False))
    def test_an_amount_changes_by_noise_at_most_and_converts_to_itself(
        self, number: Decimal
    ) -> None:
        try:
            read = amount(number)
        except NotCoercible:
            self.assertGreaterEqual(abs(number), Decimal("99999999999"))
            return
        assert read is not None
        self.assertLessEqual(abs(read - number), Decimal("0.0000005"))
        self.assertEqual(str(amount(read)), str(read))
        self.assertNotIn("E", str(read))


class IntegerTests(ReadingCase):
    def test_an_integer_has_many_spellings(self) -> None:
        for value in (2, 2.0, Decimal("2.00"), "2", " 2.0 "):
            read = integer(value)
            self.assertEqual(read, 2)
            self.assertIs(type(read), int)

    def test_a_fraction_is_no_integer(self) -> None:
        self.assertUnreadable(
            integer, 1.5, Decimal("1.5"), "1.5", "2x", True, [], Decimal("1e300"), 2**63
        )

    def test_an_integer_out_of_bounds_is_unreadable(self) -> None:
        self.assertEqual(integer(2**31 - 1, INT32), 2**31 - 1)
        self.assertEqual(integer(-(2**31), INT32), -(2**31))
        self.assertRaises(NotCoercible, integer, 2**31, INT32)
        self.assertRaises(NotCoercible, integer, -(2**31) - 1, INT32)


class DateTests(ReadingCase):
    def test_all_usual_spellings_of_a_time_are_read(self) -> None:
        for value in (
            "2026-11-22T10:00:00.123Z",
            "2026-11-22T10:00:00.123999Z",
            "2026-11-22t11:00:00.123+01:00",
            "2026-11-22 10:00:00.123+00",
            "2026-11-22 05:00:00,123 -0500",
            1795341600123,
            Decimal("1795341600.123"),
        ):
            self.assertEqual(point_in_time(value, UTC), "2026-11-22T10:00:00.123Z")

    def test_a_time_without_an_offset_is_in_the_shops_zone(self) -> None:
        self.assertEqual(point_in_time("2026-07-01 18:30", LONDON), "2026-07-01T17:30:00.000Z")
        self.assertEqual(point_in_time("2026-12-01T18:30:00", LONDON), "2026-12-01T18:30:00.000Z")

    def test_a_date_alone_is_midnight(self) -> None:
        self.assertEqual(point_in_time("2026-07-01", LONDON), "2026-06-30T23:00:00.000Z")

    def test_a_date_alone_as_a_deadline_is_its_last_instant(self) -> None:
        self.assertEqual(deadline("2026-07-01", UTC), "2026-07-01T23:59:59.999Z")
        self.assertEqual(deadline("2026-07-01T12:00Z", UTC), "2026-07-01T12:00:00.000Z")
        self.assertEqual(deadline(1795341600, UTC), "2026-11-22T10:00:00.000Z")

    def test_a_date_alone_is_no_appointment(self) -> None:
        self.assertRaises(NotCoercible, appointment, "2026-07-01", UTC)
        self.assertEqual(appointment("2026-07-01 12:00", UTC), "2026-07-01T12:00:00.000Z")
        self.assertEqual(appointment(1795341600, UTC), "2026-11-22T10:00:00.000Z")

    def test_an_empty_string_is_none(self) -> None:
        for read in (point_in_time, deadline, appointment):
            self.assertIsNone(read(" ", UTC))

    def test_values_that_mean_no_time_are_none(self) -> None:
        nothing: tuple[object, ...] = (
            *("0001-01-01T00:00:00", "0001-01-01T00:00:00Z", "0001-01-01 00:00:00+00"),
            *("0001-01-01T00:00+14:00", "0000-00-00", "0000-00-00 00:00:00", "0000-12-31"),
            *("1753-01-01T00:00:00", "1899-12-30T00:00:00.000Z", "1899-12-31", "1900-01-01"),
            *("1970-01-01T00:00:00Z", "1970-01-01 01:00", "1969-12-31T19:00:00-05:00"),
            *("9999-12-31", "9999-12-31T23:59:59.9999999", "null", "NULL", "None", "undefined"),
            *("n/a", "-", "0", "infinity", "-infinity", 0, Decimal("0.0"), False),
        )
        for value in nothing:
            for read in (point_in_time, deadline, appointment):
                with self.subTest(value=value, read=read.__name__):
                    self.assertIsNone(read(value, LONDON))

    def test_other_words_and_days_are_not_none(self) -> None:
        for value in ("ASAP", "now", "1970-01-01 at noon", "0001-01-01T00:00:00 or later"):
            self.assertUnreadable(partial(point_in_time, zone=UTC), value)
        self.assertEqual(point_in_time("1971-01-01", UTC), "1971-01-01T00:00:00.000Z")

    def test_a_year_of_another_calendar_is_unreadable_except_as_a_deadline(self) -> None:
        for value in ("2569-11-22T10:00:00Z", "1926-11-22T10:00:00Z", "2200-01-01T00:00:00Z"):
            self.assertUnreadable(partial(point_in_time, zone=UTC), value)
            self.assertUnreadable(partial(appointment, zone=UTC), value)
        self.assertEqual(deadline("2999-12-31", UTC), "2999-12-31T23:59:59.999Z")

    def test_anything_else_is_unreadable(self) -> None:
        for read in (point_in_time, deadline, appointment):
            self.assertUnreadable(
                partial(read, zone=UTC),
                "ASAP",
                "18:30",
                "22/11/2026",
                "2026-13-01",
                "2026-02-30T10:00",
                "2026-11-22T25:00",
                "2026-W47-7",
                "20261122T100000",
                "٢٠٢٦-11-22",
                "9" * 1_000_000,
                True,
                5,
                10**15,
                {},
            )

    @given(dates)
    def test_a_converted_time_converts_to_itself(self, value: object) -> None:
        try:
            read = point_in_time(value, LONDON)
        except NotCoercible:
            return
        if read is not None:
            self.assertEqual(point_in_time(read, LONDON), read)
            self.assertEqual(appointment(read, UTC), read)
