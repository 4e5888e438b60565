"""Tests of telephone numbers."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Unprocessable
from posd.events.phones import is_region, normalise, numbers_in


class RegionTests(SynchronousTestCase):
    def test_a_region_has_rules_for_numbers(self) -> None:
        self.assertTrue(all(is_region(code) for code in ("GB", "FR", "JM")))
        self.assertFalse(any(is_region(code) for code in ("QQ", "ZZ", "gb", "001", "")))


class NormaliseTests(SynchronousTestCase):
    def test_all_spellings_of_a_number_are_the_same(self) -> None:
        for text in (
            *("07700 900123", "07700-900-123", "(07700) 900123", "+44 7700 900123"),
            *("0044 7700 900123", "+44 (0)7700 900123", "447700900123", " 07700900123 "),
        ):
            with self.subTest(text=text):
                self.assertEqual(normalise(text, "GB"), "+447700900123")

    def test_invisible_characters_and_scripts_of_digits_are_ignored(self) -> None:
        for text in (
            *("\u200e07700 900123", "\u202a+44 7700 900123\u202c", "07700\u00a0900123"),
            *(
                "07700\u200b900\u200d123",
                "\ufeff07700900123",
                "07700\u00ad900123",
                "07700\u2009900123",
            ),
            *("\uff10\uff17\uff17\uff10\uff10 \uff19\uff10\uff10\uff11\uff12\uff13",),
            *(
                "\uff0b44 7700 900123",
                "\u0660\u0667\u0667\u0660\u0660 \u0669\u0660\u0660\u0661\u0662\u0663",
            ),
            *(
                "\u06f0\u06f7\u06f7\u06f0\u06f0\u06f9\u06f0\u06f0\u06f1\u06f2\u06f3",
                "07700\u2011900\u2012123",
            ),
        ):
            with self.subTest(text=ascii(text)):
                self.assertEqual(normalise(text, "GB"), "+447700900123")
                self.assertEqual(numbers_in(f"ring {text}, please", "GB"), {"+447700900123"})

    def test_only_invisible_characters_are_no_number(self) -> None:
        for text in ("\u200e" * 20, "\u200e" * 100_000 + "07700900123"):
            self.assertRaises(Unprocessable, normalise, text, "GB")

    def test_a_number_without_a_country_code_is_of_the_shops_region(self) -> None:
        self.assertEqual(normalise("5000 1234", "KW"), "+96550001234")
        self.assertEqual(normalise("03-1234-5678", "JP"), "+81312345678")

    def test_a_number_of_another_country_keeps_its_country_code(self) -> None:
        self.assertEqual(normalise("+81 3 1234 5678", "GB"), "+81312345678")

    def test_an_invalid_number_is_refused_without_being_quoted(self) -> None:
        for text in ("", "abc", "+", "1", "12345", "+1", "0" * 300, "+44 7700 9001234567", "\0"):
            with self.subTest(text=text):
                error = self.assertRaises(Unprocessable, normalise, text, "GB")
                self.assertEqual(error.code, "invalid_phone")
                self.assertEqual(error.message, "This is not a telephone number.")

    def test_an_unknown_region_has_international_numbers_only(self) -> None:
        self.assertRaises(Unprocessable, normalise, "07700 900123", "ZZ")
        self.assertEqual(normalise("+447700900123", "ZZ"), "+447700900123")

    def test_all_numbers_in_a_text_are_found(self) -> None:
        for text, numbers in (
            ("07700 900123", {"+447700900123"}),
            ("07700 900123/020 7946 0000", {"+447700900123", "+442079460000"}),
            (
                "call 07700-900-123 at the gate, or +81 3 1234 5678",
                {"+447700900123", "+81312345678"},
            ),
            ("two of number 5, for 18:30", set()),
        ):
            with self.subTest(text=text):
                self.assertEqual(numbers_in(text, "GB"), numbers)
