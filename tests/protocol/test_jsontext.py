"""Tests of JSON text: exact numbers, no values that PostgreSQL refuses, time linear in the length."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import InvalidMessage, NumberOutOfRange
from posd.protocol.json_literals import plain_number, timestamp
from posd.protocol.jsontext import (
    DEPTH,
    decode,
    decode_in_steps,
    decode_stored,
    encode,
    needs_repair,
    unrepresentable_numbers,
)
from posd.protocol.surrogates import repair_in_steps

decimals = st.builds(
    lambda sign, digits, exponent: Decimal((sign, digits, exponent)),
    st.integers(0, 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.integers(-20, 20),
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 10**40, 10**40 - 1) | decimals | texts,
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

    def test_a_number_may_have_forty_digits_in_plain_notation(self) -> None:
        for text in (
            b"9" * 40,
            b"-0." + b"0" * 38 + b"1",
            b"1e39",
            b"-1.5E-38",
            b"0.1e-38",
            b"0e39",
        ):
            self.assertEqual(decode(text), Decimal(text.decode()), text)

    def test_a_number_with_more_digits_is_refused(self) -> None:
        for text in (
            *(
                b"9" * 41,
                b"-" + b"9" * 41,
                b"0." + b"0" * 39 + b"1",
                b"1e40",
                b"-1.5E-39",
                b"0e999999999",
            ),
            *(b"1e400", b"1e999999999", b"-1e-999999999", b"1E" + b"9" * 500_000),
            *(
                b"1." + b"1" * 500_000,
                b"1" * 400,
                b"1" * 4300,
                b"9" * 1_000_000,
                b"1" * 38 + b".500",
            ),
        ):
            for around in (b"%b", b"[%b]", b'{"a":[{"b":%b}]}'):
                refusal = self.assertRaises(NumberOutOfRange, decode, around % text)
                self.assertEqual(
                    str(refusal), "A number has more than 40 digits in plain notation."
                )

    def test_digits_in_a_string_are_not_limited(self) -> None:
        text = "9" * 50
        self.assertEqual(decode(f'["{text}",7,"1e400"]'), [text, 7, "1e400"])

    def test_long_numbers_of_a_database_become_strings(self) -> None:
        for number in (
            *("9" * 41, "-" + "9" * 400, "9" * 100_000, "0." + "9" * 40, "1e400", "-1E-400"),
            "1" * 30 + "." + "1" * 30,
        ):
            text = f'{{"a":{number},"b":[{number},1.50,"{number}"],"c":{"7" * 40}}}'
            self.assertEqual(
                decode_stored(text),
                {"a": number, "b": [number, Decimal("1.50"), number], "c": int("7" * 40)},
            )
        text = r'{"a\"":"\\","b":%s}' % ("9" * 41)
        self.assertEqual(decode_stored(text), {'a"': "\\", "b": "9" * 41})

    @given(values)
    def test_other_texts_of_a_database_are_decoded_as_usual(self, value: object) -> None:
        self.assertEqual(decode_stored(encode(value)), value)

    def test_a_byte_order_mark_before_the_text_is_ignored(self) -> None:
        self.assertEqual(decode(b'\xef\xbb\xbf{"a":"\xef\xbb\xbf"}'), {"a": "\ufeff"})
        self.assertEqual(decode('\ufeff{"a":1}'), {"a": 1})
        self.assertEqual(unrepresentable_numbers(b'\xef\xbb\xbf{"a":NaN}'), {"a"})
        pieces = decode_in_steps(b"\xef\xbb\xbf[1]")
        with self.assertRaises(StopIteration) as ended:
            while True:
                next(pieces)
        self.assertEqual(ended.exception.value, [1])

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

    def test_half_of_a_surrogate_pair_is_replaced_and_a_pair_is_one_character(self) -> None:
        lost, pizza = "\N{REPLACEMENT CHARACTER}", "\N{SLICE OF PIZZA}"
        for text, read in (
            (rb'"\ud800"', lost),
            (rb'"\uDC00"', lost),
            (rb'"\ud800\u0041"', f"{lost}A"),
            (rb'"Anna \ud83d"', f"Anna {lost}"),
            (rb'"\ud83c\udf55"', pizza),
            (rb'"\ud83c\ud83c\udf55\udf55"', f"{lost}{pizza}{lost}"),
            (rb'"\udf55\ud83c"', lost + lost),
            (rb'"\ud83c\n\udf55"', f"{lost}\n{lost}"),
            (rb'"\\ud83c\ud83c"', rf"\ud83c{lost}"),
            (rb'"\\\ud83c\\"', rf"\{lost}" + "\\"),
            (rb'"\ud83c\u0000"', lost + lost),
        ):
            with self.subTest(text=text):
                self.assertEqual(decode(text), read)
                self.assertEqual(decode(text.decode()), read)
                self.assertEqual(needs_repair(text), lost in read)
        self.assertEqual(decode(rb'{"a":{"\ud800":[1,"\udbff"]}}'), {"a": {lost: [1, lost]}})

    def test_the_repair_does_not_make_an_invalid_text_valid(self) -> None:
        for text in (rb'"\ud83', rb'"\ud83c', rb'{"a":"\ud800"', rb'"\ud83g"', b'"\\ud800\0\0"'):
            self.refused(text)

    def test_a_megabyte_of_halves_is_repaired_in_linear_time(self) -> None:
        for part in (rb"\ud83d", rb"\udc00", b"\\\\", rb"\ud83d\ude00"):
            text = b'["' + part * (2**20 // len(part)) + rb'\ud83d"]'
            self.assertIsInstance(decode(text), list)
            self.assertTrue(needs_repair(text))

    @given(st.lists(st.sampled_from((*r"\u0dD8cC9fF", '"', "\ud83c", r"\ud83c", r"\udf55", "\0"))))
    def test_all_escapes_are_decoded_as_by_another_library(self, parts: list[str]) -> None:
        text = f'"{"".join(parts)}"'.encode(errors="replace")
        try:
            expected = json.loads(text)
        except ValueError:
            self.refused(text)
        else:
            self.assertEqual(decode(text), storable(expected))

    def test_the_error_of_a_truncated_text_says_so(self) -> None:
        for text in (b'"\\ud8', b'{"a":', b'{"a":"\\ud83c\\udf55"'):
            self.assertIn("truncated", self.refused(text))

    def test_the_members_with_refused_numbers_are_found(self) -> None:
        for number in ("NaN", "Infinity", "-Infinity", "1e40", "-1e999999999", "9" * 3000):
            text = f'{{"a":{number},"b":1e39,"c":[1],"d":"{number}","e":0.5}}'.encode()
            self.assertRaises(InvalidMessage, decode, text)
            self.assertEqual(unrepresentable_numbers(text), {"a"}, number)

    def test_no_members_are_found_in_invalid_or_long_texts(self) -> None:
        for text in (
            *(b"NaN", b"[NaN]", b'{"a":NaN', b'{"a":NaN,}', b'{"a":nan}', b'{"a":"\xff","b":NaN}'),
            *(b'{"a":1}', b'{"a":NaN,"a":1}', b'{"b":NaN,"a":' + b"[" * 100_000),
            *(b'{"a":[1e999]}', b'{"b":"' + b"x" * 9_000 + b'","a":NaN}'),
        ):
            self.assertEqual(unrepresentable_numbers(text), set(), text[:20])

    def test_a_nul_becomes_the_replacement_character_in_names_and_values(self) -> None:
        self.assertEqual(
            decode(b'{"a\\u0000":["b\\u0000c",1,{"d":null}]}'),
            {"a\ufffd": ["b\ufffdc", 1, {"d": None}]},
        )

    def test_an_escaped_backslash_before_u0000_is_not_a_nul(self) -> None:
        self.assertEqual(decode(rb'"\\u0000"'), r"\u0000")

    def test_the_last_member_of_a_repeated_name_is_used(self) -> None:
        self.assertEqual(decode(b'{"a":1,"a":2}'), {"a": 2})

    def test_nesting_is_allowed_up_to_the_limit_and_no_further(self) -> None:
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            self.assertTrue(decode(opening * DEPTH + b"1" + closing * DEPTH))
            is_deeper_than = DEPTH + 1
            self.assertIn(
                "32 levels",
                self.refused(opening * is_deeper_than + b"1" + closing * is_deeper_than),
            )

    def test_adjacent_brackets_and_brackets_in_strings_are_not_nested(self) -> None:
        wide = b"[" + b",".join([b"[]"] * 200) + b"]"
        self.assertEqual(decode(wide), [[]] * 200)
        self.assertEqual(decode(b'"' + b"[" * 200 + b'"'), "[" * 200)

    def test_endless_nesting_is_refused(self) -> None:
        self.assertIn("levels", self.refused(b"[" * 8000))
        self.assertIn("values", self.refused(b"[" * 200_000))

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
    def test_texts_of_the_standard_library_are_decoded_alike(self, value: object) -> None:
        text = json.dumps(value, default=str)
        self.assertEqual(decode(text), json.loads(text, parse_float=Decimal))


class EncodeTests(SynchronousTestCase):
    def test_text_is_compact_raw_utf_8_in_the_members_order(self) -> None:
        self.assertEqual(
            encode({"b": "Zoë", "a": [1, None, True]}), '{"b":"Zoë","a":[1,null,true]}'.encode()
        )

    def test_a_long_number_is_refused_before_it_is_written_out(self) -> None:
        for number in ("1E+40", "1E+999999999", "-1E-40", "0E+41", "1E-999999"):
            self.assertRaises(ValueError, plain_number, Decimal(number))
        self.assertRaises(ValueError, plain_number, Decimal("9" * 41))
        self.assertEqual(plain_number(Decimal("9E+39")), "9" + "0" * 39)

    def test_a_decimal_is_written_in_plain_notation(self) -> None:
        numbers = ["1E+2", "1E-7", "1.50E+1", "12.30", "0E+3", "-0.0"]
        self.assertEqual(
            encode([Decimal(text) for text in numbers]), b"[100,0.0000001,15.0,12.30,0,-0.0]"
        )
        self.assertEqual(encode(Decimal("1E+2")), b"100")

    def test_a_float_is_written_by_its_shortest_digits(self) -> None:
        self.assertEqual(encode([0.1, 1e22, 1e-7]), b"[0.1,10000000000000000000000,0.0000001]")

    def test_values_that_json_does_not_have_are_refused(self) -> None:
        for value in (
            float("nan"),
            float("inf"),
            Decimal("NaN"),
            Decimal("sNaN"),
            Decimal("-Infinity"),
            Decimal("1E+999999999"),
            Decimal("1E-999999"),
        ):
            self.assertRaises(ValueError, encode, {"a": [value]})
        for strange in (object(), b"bytes", {1, 2}, datetime.now(UTC), {"a": 1, 2: 1.5}):
            self.assertRaises(TypeError, encode, [strange])

    def test_endless_nesting_is_refused(self) -> None:
        circle: list[object] = []
        circle.append(circle)
        self.assertRaises(ValueError, encode, circle)

    def test_half_of_a_surrogate_pair_is_replaced(self) -> None:
        for value, written in (
            ("Anna \ud83d", '"Anna \ufffd"'),
            ("\ud83c\udf55\0", '"\U0001f355\ufffd"'),
            ({"\udc00": ["\ud83d", Decimal("1.50"), 0.5]}, '{"\ufffd":["\ufffd",1.50,0.5]}'),
        ):
            self.assertEqual(encode(value), written.encode())

    def test_a_nul_is_replaced(self) -> None:
        self.assertEqual(
            encode({"a\0": ("\0", r"\u0000")}), b'{"a\xef\xbf\xbd":["\xef\xbf\xbd","\\\\u0000"]}'
        )

    @given(values)
    def test_an_encoded_value_decodes_to_itself(self, value: object) -> None:
        again = decode(encode(value))
        self.assertEqual(again, value)
        self.assertEqual(encode(decode(encode(again))), encode(again))

    @given(decimals)
    def test_an_encoded_decimal_keeps_its_scale(self, number: Decimal) -> None:
        text = plain_number(number)
        self.assertEqual(encode([number]), b"[%b]" % text.encode())
        self.assertNotIn("E", text)
        self.assertEqual(Decimal(text), number)


class TimestampTests(SynchronousTestCase):
    def test_a_timestamp_is_utc_with_milliseconds_and_z(self) -> None:
        moment = datetime(2026, 11, 22, 12, 0, 0, 123999, timezone(timedelta(hours=2)))
        self.assertEqual(timestamp(moment), "2026-11-22T10:00:00.123Z")
        self.assertEqual(timestamp(datetime(2026, 1, 2, tzinfo=UTC)), "2026-01-02T00:00:00.000Z")

    def test_a_naive_time_is_refused(self) -> None:
        self.assertRaises(ValueError, timestamp, datetime(2026, 11, 22))


def storable(text: object) -> str:
    """Return the decoded form of a text with surrogates and U+0000."""
    assert isinstance(text, str)
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\0", "\N{REPLACEMENT CHARACTER}")


class StepsTests(SynchronousTestCase):
    def read(self, raw: bytes) -> tuple[object, int]:
        """Return the value, and the number of steps."""
        pieces = 1
        reading = decode_in_steps(raw)
        while True:
            try:
                next(reading)
            except StopIteration as stop:
                return stop.value, pieces
            pieces += 1

    def test_a_long_text_decodes_in_steps_to_the_same_value(self) -> None:
        line = {"name": 'Margherita "large"', "price": Decimal("10.50"), "notes": ["a", None]}
        for value in (
            [line] * 4000,
            {"events": [{"data": {"items": [line] * 400}}] * 10, "x": 1},
            {f"m{index}": line for index in range(3000)},
            [[[["x" * 40_000, line]]], [], {}, 1.5],
        ):
            text = encode(value)
            again, pieces = self.read(text)
            self.assertEqual(again, decode(text))
            self.assertGreater(pieces, len(text) // 65536 + 1)

    def test_a_wide_text_with_decimals_is_decoded_in_steps(
        self,
    ) -> None:
        """Each decimal calls a Python function: 130,000 at once take 150 ms."""
        for number in (b"1e30", b"1E30", b"1.5"):
            for text in (
                b"[%b]" % b",".join([number] * 20_000),
                b"{%b}" % b",".join(b'"%d":%b' % (name, number) for name in range(20_000)),
            ):
                text += b" " * (8 * 20_000 - len(text))
                again, pieces = self.read(text)
                self.assertEqual(again, decode(text))
                self.assertGreater(pieces, 5)

    def test_a_text_that_is_refused_whole_is_refused_in_steps(self) -> None:
        rest = b"," + b'"' + b"x" * 40_000 + b'"'
        for bad in (
            b"1e40",
            b"9" * 41,
            b"[" * 33 + b"]" * 33,
            b'"\xff"',
            b"NaN",
            b"01",
            b"[1",
        ):
            for text in (b"[%b%b]" % (bad, rest), b'{"a":[%b%b]}' % (bad, rest)):
                self.assertRaises(InvalidMessage, decode, text)
                self.assertRaises(InvalidMessage, self.read, text)
        self.assertRaises(InvalidMessage, self.read, b'["' + b"x" * 40_000)

    def test_depth_and_nul_are_as_in_a_short_text(self) -> None:
        long = b'"' + b"x" * 40_000 + b'"'
        text = b"[" * 31 + b'{"a\\u0000":[],"b":%b}' % long + b"]" * 31
        self.assertRaises(InvalidMessage, self.read, text)
        text = b"[" * 30 + b'{"a\\u0000":["\\u0000"],"b":%b}' % long + b"]" * 30
        self.assertEqual(self.read(text)[0], decode(text))
        self.assertEqual(self.read(b'{"a":1,"a":%b}' % long)[0], {"a": "x" * 40_000})


class RepairInStepsTests(SynchronousTestCase):
    """Tests of the repair of long texts in parts, with any end of a part."""

    def repaired(self, text: bytes) -> tuple[bytes, int]:
        """Return the text, and the number of steps."""
        repairing, steps = repair_in_steps(text), 0
        while True:
            try:
                next(repairing)
            except StopIteration as end:
                return end.value, steps
            steps += 1

    def test_the_result_does_not_depend_on_the_cuts(self) -> None:
        units = (
            rb"\ud83d",
            rb"\udc00",
            rb"\ud83d\udc00",
            rb"\\",
            rb"\\ud83d",
            rb"\u0041",
            b"a",
            rb"\n",
        )
        for first in units:
            for second in units:
                for shift in range(13):
                    inside = b"a" * shift + (first + second) * 1500
                    text = b'"%b"' % inside
                    whole, steps = self.repaired(text)
                    self.assertEqual(decode(whole), decode(text), (first, second, shift))
                    self.assertFalse(needs_repair(whole))
                    self.assertEqual(whole != text, needs_repair(text))
                    if steps:
                        self.assertGreaterEqual(steps, len(text) // (16 * 1024))

    def test_a_text_without_halves_is_returned_at_once(self) -> None:
        text = b'["%b"]' % (rb"\u00e9" * 10_000)
        self.assertEqual(self.repaired(text), (text, 0))


class CostTests(SynchronousTestCase):
    """Tests that the work for a text is bounded by its length. They count function calls."""

    MEBIBYTE = 1024 * 1024

    def calls(self, work: Callable[[], object]) -> int:
        """Return the number of calls of Python and C functions."""
        counted = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            work()
        finally:
            sys.setprofile(None)
        return counted

    def texts(self, size: int) -> dict[str, bytes]:
        """Return arrays of about `size` bytes, each with as many values of one kind as fit."""
        units = (
            *(
                b"1e399",
                b"1e39",
                b"1e-39",
                b"0e0",
                b"1E99999999",
                b"1.5",
                b"1",
                b"9" * 40,
                b"9" * 4000,
            ),
            *(
                b"{}",
                b"[]",
                b'""',
                b'"ab"',
                b"null",
                b'{"a":{}}',
                b"[" * 30 + b"]" * 30,
                b'"\\u0000"',
            ),
        )
        texts = {}
        for unit in units:
            texts[f"{unit[:12]!r}"] = b"[%b]" % b",".join([unit] * (size // (len(unit) + 1)))
            values = 1 + unit.count(b"[") + unit.count(b"{")
            padded = unit.ljust(8 * values)
            texts[f"{unit[:12]!r}, as many as may be"] = (
                b'["\\u0000","'
                + b"9" * 50
                + b'",%b]' % b",".join([padded] * (size // (len(padded) + 1)))
            )
        texts["members"] = b"{%b}" % b",".join(b'"%x":1e9' % n for n in range(size // 16))
        texts["no end"] = b"[" * size
        texts["digits"] = b"9" * size
        texts["NaN at the end"] = b'{"a":[%b1],"b":NaN}' % (b"1e9," * (size // 4))
        return texts

    def work(self, text: bytes) -> None:
        for read in (decode, decode_stored, self.run_in_steps):
            with contextlib.suppress(InvalidMessage):
                encode(read(text))
        unrepresentable_numbers(text)

    def run_in_steps(self, text: bytes) -> object:
        value = None

        def whole() -> Iterator[None]:
            nonlocal value
            value = yield from decode_in_steps(text)

        for _ in whole():
            pass
        return value

    def test_calls_are_bounded_by_bytes(self) -> None:
        # Each of the allowed values is decoded and encoded three times, with some calls each.
        for size in (32 * 1024, 128 * 1024):
            for name, text in self.texts(size).items():
                most = max(8192, len(text) // 8) * 120
                with self.subTest(size=size, text=name):
                    self.assertLess(self.calls(partial(self.work, text)), most)

    def test_texts_with_too_many_values_are_refused_before_decoding(self) -> None:
        for name, text in self.texts(self.MEBIBYTE).items():
            if text.count(b",") + text.count(b"[") + text.count(b"{") > len(text) // 8:
                refused = partial(self.assertRaises, InvalidMessage, decode, text)
                self.assertLess(self.calls(refused), 60, name)

    def test_no_step_has_more_than_its_share(self) -> None:
        text = b"[%b]" % b",".join([b"1e9".ljust(11)] * (self.MEBIBYTE // 12))
        reading = decode_in_steps(text)
        longest = 0
        with contextlib.suppress(StopIteration):
            while True:
                longest = max(longest, self.calls(partial(next, reading)))
        self.assertLess(longest, 2048 * 20)
