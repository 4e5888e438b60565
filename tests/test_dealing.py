"""Which tests a process of `make test` is given: whole modules, the longest first, and none twice."""

from __future__ import annotations

import importlib.util

from twisted.trial.itrial import ITestCase
from twisted.trial.unittest import SynchronousTestCase

from tests.__main__ import LONGEST, Deal


def tests_of(module: str, count: int) -> list[ITestCase]:
    case = type(
        "Case", (SynchronousTestCase,), {"__module__": module, "runTest": lambda self: None}
    )
    return [case() for _ in range(count)]


class DealTests(SynchronousTestCase):
    def test_each_process_has_a_module_of_its_own_while_there_are_any(self) -> None:
        deal = Deal.of([*tests_of("a", 3), *tests_of("b", 2), *tests_of("c", 1)])
        one, other = deal.hand(), deal.hand()
        given = [type(next(each)).__module__ for each in (one, other, one, other, other, one)]
        self.assertEqual(given, ["a", "b", "a", "b", "c", "a"])
        self.assertEqual([*one, *other], [])

    def test_at_the_end_they_help_with_the_one_of_which_most_is_left(self) -> None:
        tests = [*tests_of("a", 2), *tests_of("b", 5)]
        deal = Deal.of(tests)
        hands = [deal.hand() for _ in range(3)]
        begun = [next(each) for each in hands]
        self.assertEqual([type(each).__module__ for each in begun], ["a", "b", "b"])
        rest = [each for hand in hands for each in hand]
        self.assertEqual({*begun, *rest}, {*tests})
        self.assertEqual(len(begun) + len(rest), len(tests))

    def test_the_longest_are_begun_first_and_those_of_the_whole_before_all_others(self) -> None:
        names = ["tests.cli.test_a", "tests.integration.test_a", *reversed(LONGEST)]
        deal = Deal.of([test for name in names for test in tests_of(name, 1)])
        given = [type(each).__module__ for each in deal.hand()]
        self.assertEqual(given, [*LONGEST, "tests.integration.test_a", "tests.cli.test_a"])

    def test_the_longest_are_modules(self) -> None:
        for name in LONGEST:
            self.assertIsNotNone(importlib.util.find_spec(name), name)
