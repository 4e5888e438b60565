"""Tests of the cache for results of functions of short texts."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from posd.memo import memoize


class MemoTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.asked: list[str] = []

        def upper(text: str) -> str:
            self.asked.append(text)
            return text.upper()

        self.upper = memoize(upper)

    def test_the_function_is_called_once_for_a_short_text(self) -> None:
        self.assertEqual([self.upper("a") for _ in range(3)], ["A"] * 3)
        self.assertEqual(self.asked, ["a"])

    def test_the_result_for_a_long_text_is_not_cached(self) -> None:
        for _ in range(3):
            self.upper("a" * 300)
        self.assertEqual(len(self.asked), 3)

    def test_old_results_are_removed(self) -> None:
        for number in range(2000):
            self.upper(f"{number}")
        self.upper("1999")
        self.assertEqual(len(self.asked), 2000)
        self.upper("0")
        self.assertEqual(self.asked[-1], "0")
