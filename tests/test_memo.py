"""Results that are kept: for short texts, and not for all that ever came."""

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

    def test_a_short_text_is_looked_at_once(self) -> None:
        self.assertEqual([self.upper("a") for _ in range(3)], ["A"] * 3)
        self.assertEqual(self.asked, ["a"])

    def test_a_long_one_is_not_kept(self) -> None:
        for _ in range(3):
            self.upper("a" * 300)
        self.assertEqual(len(self.asked), 3)

    def test_those_that_came_long_ago_are_forgotten(self) -> None:
        for number in range(2000):
            self.upper(f"{number}")
        self.upper("1999")
        self.assertEqual(len(self.asked), 2000)
        self.upper("0")
        self.assertEqual(self.asked[-1], "0")
