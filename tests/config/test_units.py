"""Tests of parsing and formatting of sizes and durations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.config.units import format_duration, format_size, parse_duration, parse_size


class SizesTests(SynchronousTestCase):
    def test_each_unit_is_a_power_of_1024(self) -> None:
        sizes = [parse_size(text) for text in ("7B", "1KiB", "1MiB", "1GiB")]
        self.assertEqual(sizes, [7, 1024, 1024**2, 1024**3])

    def test_one_blank_before_the_unit_is_allowed(self) -> None:
        self.assertEqual(parse_size("256 KiB"), parse_size("256KiB"))

    def test_everything_else_is_refused_with_an_example(self) -> None:
        for text in (
            "", "256", "KiB", "256KB", "256kib", "1.5MiB", "-1B", "1e3B", " 1B", "1  B",
            "1B\n", "٣KiB", "9" * 16 + "B", "1TiB",
        ):  # fmt: skip
            with self.subTest(text=text):
                error = self.assertRaises(ValueError, parse_size, text)
                self.assertIn('such as "256KiB"', str(error))

    @given(st.integers(min_value=0, max_value=10**15))
    def test_what_is_written_is_read_back(self, size: int) -> None:
        self.assertEqual(parse_size(format_size(size)), size)

    def test_the_largest_whole_unit_is_written(self) -> None:
        self.assertEqual(
            [format_size(size) for size in (0, 1023, 1024, 1536, 256 * 1024, 3 * 1024**3)],
            ["0B", "1023B", "1KiB", "1536B", "256KiB", "3GiB"],
        )


class DurationsTests(SynchronousTestCase):
    def test_each_unit_is_read_into_seconds(self) -> None:
        durations = [parse_duration(text) for text in ("250ms", "5s", "90m", "2h", "30d")]
        self.assertEqual(durations, [0.25, 5.0, 5400.0, 7200.0, 2_592_000.0])

    def test_everything_else_is_refused_with_an_example(self) -> None:
        for text in ("", "30", "s", "1.5h", "-1s", "1h30m", "30S", "1w", "1 month", "∞s", "nan"):
            with self.subTest(text=text):
                error = self.assertRaises(ValueError, parse_duration, text)
                self.assertIn('such as "30s"', str(error))

    @given(st.integers(min_value=0, max_value=10**13))
    def test_what_is_written_is_read_back(self, milliseconds: int) -> None:
        seconds = milliseconds / 1000
        self.assertEqual(parse_duration(format_duration(seconds)), seconds)

    def test_the_largest_whole_unit_is_written(self) -> None:
        self.assertEqual(
            [format_duration(seconds) for seconds in (0, 0.25, 30, 60, 5400, 7200, 2_592_000)],
            ["0s", "250ms", "30s", "1m", "90m", "2h", "30d"],
        )
