"""JSON text: exact numbers, nothing that PostgreSQL refuses, nothing that hangs."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import InvalidMessage
from posd.protocol.jsontext import (
    DEPTH,
    DIGITS,
    decode,
    encode,
    plain_number,
    timestamp,
    unreadable_numbers,
)

decimals = st.builds(
    lambda sign, digits, exponent: Decimal((sign, digits, exponent)),
    st.integers(0, 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
    st.integers(-DIGITS, 300),
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | decimals | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


class DecodeTests(SynchronousTestCase):
    def refused(self, raw: bytes | str) -> str:
        return str(self.assertRaises(InvalidMessage, decode, raw))

    def test_a_fraction_keeps_its_scale(self) -> None:
        self.assertEqual(str(decode(b"12.30")), "12.30")
        self.assertIsInstance(decode(b"12.30"), Decimal)

    def test_an_integer_of_any_size_is_exact(self) -> None:
        self.assertEqual(decode(b"123456789012345678901234567890"), 123456789012345678901234567890)

    def test_an_exponent_is_written_out(self) -> None:
        self.assertEqual(str(decode(b"1.50E+1")), "15.0")
        self.assertEqual(str(decode(b"1e2")), "100")
        self.assertEqual(str(decode(b"0e5")), "0")

    def test_every_double_fits(self) -> None:
        for text in (b"1.7976931348623157e308", b"5e-324", b"-2.2250738585072014E-308"):
            value = decode(text)
            assert isinstance(value, Decimal)
            self.assertEqual(Fraction(value), Fraction(Decimal(text.decode())))

    def test_a_number_too_long_to_write_out_is_refused_at_once(self) -> None:
        for text in (
            b"1e400",
            b"1e999999999",
            b"-1e-999999999",
            b"0e999999999",
            b"1E" + b"9" * 500_000,
            b"1." + b"1" * 500_000,
            b"1" * (DIGITS + 1) + b".5",
        ):
            self.assertIn("digits", self.refused(b"[%b]" % text))

    def test_an_integer_of_a_million_digits_is_refused(self) -> None:
        self.refused(b"9" * 1_000_000)

    def test_a_byte_order_mark_before_it_is_ignored(self) -> None:
        self.assertEqual(decode(b'\xef\xbb\xbf{"a":"\xef\xbb\xbf"}'), {"a": "\ufeff"})
        self.assertEqual(decode('\ufeff{"a":1}'), {"a": 1})
        self.assertEqual(unreadable_numbers(b'\xef\xbb\xbf{"a":1e999999999}'), {"a"})

    def test_text_that_is_not_json_is_refused(self) -> None:
        for text in (
            b"",
            b" ",
            b"NaN",
            b"[Infinity]",
            b"01",
            b"1.",
            b".5",
            b"+1",
            b"{'a':1}",
            b"{1:2}",
            b'{"a":1,}',
            b"1 2",
            b'"a\nb"',
            b'"a\0b"',
            b"\xef\xbb\xbf",
            b"\xef\xbb\xbf\xef\xbb\xbf1",
            b"1\xef\xbb\xbf",
            b"/* c */1",
        ):
            self.assertIn("JSON", self.refused(text), text)

    def test_bytes_that_are_not_utf_8_are_refused(self) -> None:
        for text in (b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', "\ud800"):
            self.assertIn("UTF-8", self.refused(text))

    def test_a_lone_surrogate_is_refused_and_a_pair_is_one_character(self) -> None:
        for text in (b'"\\ud800"', b'"\\udc00"', b'"\\ud800\\u0041"'):
            self.refused(text)
        self.assertEqual(decode(b'"\\ud83c\\udf55"'), "\N{SLICE OF PIZZA}")

    def test_half_of_a_surrogate_pair_is_not_called_a_truncated_text(self) -> None:
        for text in (b'"\\ud800"', b'{"a":"\\udbff"}', b'{"a":"\\ud800","b":"and so it goes on"}'):
            self.assertIn("surrogate", self.refused(text))
        for text in (b'"\\ud8', b'{"a":', b'{"a":"\\ud83c\\udf55"'):
            self.assertIn("truncated", self.refused(text))

    def test_of_a_refused_text_the_numbers_are_found_that_are_none(self) -> None:
        for number in (
            *("NaN", "Infinity", "-Infinity", "1e400", "-1e999999999999", "1E-999999999999"),
            *("9" * 500_000, "0." + "9" * 500_000),
        ):
            text = f'{{"a":{number},"b":1,"c":[{number}],"d":"{number}","e":0.5}}'.encode()
            self.refused(text)
            self.assertEqual(unreadable_numbers(text), {"a"}, number[:20])

    def test_but_not_in_what_is_no_object_or_no_json(self) -> None:
        for text in (
            *(b"NaN", b"[NaN]", b'{"a":NaN', b'{"a":NaN,}', b'{"a":nan}', b'{"a":"\xff","b":NaN}'),
            *(b'{"a":1}', b'{"a":NaN,"a":1}', b'{"b":NaN,"a":' + b"[" * 100_000),
        ):
            self.assertEqual(unreadable_numbers(text), set(), text[:20])

    def test_a_nul_becomes_the_replacement_character_in_names_and_values(self) -> None:
        self.assertEqual(
            decode(b'{"a\\u0000":["b\\u0000c",1,{"d":null}]}'),
            {"a\ufffd": ["b\ufffdc", 1, {"d": None}]},
        )

    def test_an_escaped_backslash_before_u0000_is_not_a_nul(self) -> None:
        self.assertEqual(decode(rb'"\\u0000"'), r"\u0000")

    def test_of_repeated_names_the_last_counts(self) -> None:
        self.assertEqual(decode(b'{"a":1,"a":2}'), {"a": 2})

    def test_nesting_is_allowed_up_to_the_limit_and_no_further(self) -> None:
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            self.assertTrue(decode(opening * DEPTH + b"1" + closing * DEPTH))
            deeper = DEPTH + 1
            self.assertIn("32 levels", self.refused(opening * deeper + b"1" + closing * deeper))

    def test_brackets_side_by_side_or_in_strings_are_no_depth(self) -> None:
        wide = b"[" + b",".join([b"[]"] * 200) + b"]"
        self.assertEqual(decode(wide), [[]] * 200)
        self.assertEqual(decode(b'"' + b"[" * 200 + b'"'), "[" * 200)

    def test_endless_nesting_is_refused(self) -> None:
        self.assertIn("levels", self.refused(b"[" * 200_000))

    def test_the_caller_may_set_the_depth(self) -> None:
        self.assertEqual(decode(b"[[1]]", depth=2), [[1]])
        self.assertRaises(InvalidMessage, decode, b"[[1]]", depth=1)
        self.assertRaises(InvalidMessage, decode, b"[]", depth=0)

    def test_a_refusal_does_not_quote_the_input(self) -> None:
        self.assertNotIn("secret", self.refused(b'{"card":"secret"'))

    @given(st.binary(max_size=60))
    def test_any_bytes_decode_or_are_refused(self, raw: bytes) -> None:
        with contextlib.suppress(InvalidMessage):
            decode(raw)

    @given(values)
    def test_what_the_standard_library_writes_is_read_alike(self, value: object) -> None:
        text = json.dumps(value, default=str)
        self.assertEqual(decode(text), json.loads(text, parse_float=Decimal))


class EncodeTests(SynchronousTestCase):
    def test_text_is_compact_raw_utf_8_in_the_members_order(self) -> None:
        self.assertEqual(
            encode({"b": "Zoë", "a": [1, None, True]}), '{"b":"Zoë","a":[1,null,true]}'.encode()
        )

    def test_a_decimal_is_written_in_plain_notation(self) -> None:
        numbers = ["1E+2", "1E-7", "1.50E+1", "12.30", "0E+3", "-0.0"]
        self.assertEqual(
            encode([Decimal(text) for text in numbers]), b"[100,0.0000001,15.0,12.30,0,-0.0]"
        )
        self.assertEqual(encode(Decimal("1E+2")), b"100")

    def test_a_float_is_written_by_its_shortest_digits(self) -> None:
        self.assertEqual(encode([0.1, 1e22, 1e-7]), b"[0.1,10000000000000000000000,0.0000001]")

    def test_what_json_cannot_say_is_refused(self) -> None:
        for value in (
            float("nan"),
            float("inf"),
            Decimal("NaN"),
            Decimal("sNaN"),
            Decimal("-Infinity"),
            Decimal("1E+999999999"),
            Decimal("1E-999999"),
            "\ud800",
        ):
            self.assertRaises(ValueError, encode, {"a": [value]})
        for strange in (object(), b"bytes", {1, 2}, datetime.now(UTC), {"a": 1, 2: 1.5}):
            self.assertRaises(TypeError, encode, [strange])

    def test_endless_nesting_is_refused(self) -> None:
        circle: list[object] = []
        circle.append(circle)
        self.assertRaises(ValueError, encode, circle)

    def test_a_nul_never_leaves(self) -> None:
        self.assertEqual(
            encode({"a\0": ("\0", r"\u0000")}), b'{"a\xef\xbf\xbd":["\xef\xbf\xbd","\\\\u0000"]}'
        )

    @given(values)
    def test_a_value_comes_back_exactly(self, value: object) -> None:
        again = decode(encode(value))
        self.assertEqual(again, value)
        self.assertEqual(encode(decode(encode(again))), encode(again))

    @given(decimals)
    def test_a_decimal_comes_back_with_its_scale(self, number: Decimal) -> None:
        text = plain_number(number)
        self.assertEqual(encode([number]), b"[%b]" % text.encode())
        self.assertNotIn("E", text)
        self.assertEqual(Decimal(text), number)


class TimestampTests(SynchronousTestCase):
    def test_it_is_utc_with_milliseconds_and_z(self) -> None:
        moment = datetime(2026, 11, 22, 12, 0, 0, 123999, timezone(timedelta(hours=2)))
        self.assertEqual(timestamp(moment), "2026-11-22T10:00:00.123Z")
        self.assertEqual(timestamp(datetime(2026, 1, 2, tzinfo=UTC)), "2026-01-02T00:00:00.000Z")

    def test_a_naive_time_is_refused(self) -> None:
        self.assertRaises(ValueError, timestamp, datetime(2026, 11, 22))
