"""Tests of the lower bound for the size of JSON text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.protocol.json_size import exceeds
from posd.protocol.jsontext import encode
from tests.json_strategies import values


def run(value: object, most: int, values: int = 10**9) -> tuple[bool, int]:
    """Return the result, and the number of steps."""
    steps, counting = 1, exceeds(value, most, values)
    while True:
        try:
            next(counting)
        except StopIteration as end:
            return bool(end.value), steps
        steps += 1


class ExceedsTests(SynchronousTestCase):
    @given(values, st.integers(0, 400))
    def test_a_value_within_the_limits_never_exceeds_them(self, value: object, more: int) -> None:
        self.assertFalse(run(value, len(encode(value)) + more)[0])

    def test_long_texts_names_and_lists_exceed_the_bytes(self) -> None:
        long: tuple[object, ...] = (
            *("x" * 101, {"x" * 101: 1}, [1] * 101, {"a": [{"b": "x" * 99}]}, [[]] * 101),
        )
        for value in long:
            with self.subTest(value=str(value)[:20]):
                self.assertTrue(run(value, 100)[0])

    def test_too_many_values_exceed_the_limit(self) -> None:
        for many in ([1] * 100, {f"m{number}": 1 for number in range(100)}, [[[1] * 49] * 2]):
            with self.subTest(many=str(many)[:20]):
                self.assertFalse(run(many, 10**9, 102)[0])
                self.assertTrue(run(many, 10**9, 99)[0])
        self.assertLess(run({f"m{number}": 1 for number in range(80_000)}, 10**9, 5000)[1], 8)

    def test_the_count_is_in_steps_and_stops_at_the_limit(self) -> None:
        for many in ({f"m{number}": 1 for number in range(80_000)}, [{"a": 1}] * 80_000):
            self.assertGreaterEqual(run(many, 10**9)[1], 79)
            self.assertLess(run(many, 1000)[1], 3)
