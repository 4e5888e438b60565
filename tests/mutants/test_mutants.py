"""The lists of mutants fit the code, and the score says what is so. `make mutants` tries them."""

from __future__ import annotations

from collections import Counter
from contextlib import redirect_stdout
from io import StringIO

from twisted.trial.unittest import SynchronousTestCase

from tests.documents import ROOT
from tests.mutants import by_hand
from tests.mutants.by_hand import Equivalent, Mutant
from tests.mutants.score import report

MUTANT = Mutant("less", "posd/waiting.py", "if a < b:", "if a <= b:", "", ("tests.waiting",))


class ListTests(SynchronousTestCase):
    def test_each_mutant_changes_one_place_of_a_file(self) -> None:
        for listed in by_hand.LISTS:
            mutants = by_hand.mutants(listed)
            self.assertGreater(len(mutants), 10)
            for each in mutants:
                with self.subTest(each.name):
                    self.assertNotEqual(each.text, (ROOT / each.path).read_text("utf-8"))

    def test_the_tests_that_should_notice_are_there(self) -> None:
        for listed in by_hand.LISTS:
            for name in {name for each in by_hand.mutants(listed) for name in each.tests}:
                place = ROOT / name.replace(".", "/")
                self.assertTrue(place.is_dir() or place.with_suffix(".py").is_file(), name)

    def test_each_equivalent_mutant_has_a_reason(self) -> None:
        for each in by_hand.equivalents():
            self.assertGreater(len(each.why.split()), 3)

    def test_an_equivalent_mutant_is_one_of_that_file_and_of_those_lines(self) -> None:
        fitting = Equivalent("", "posd/*.py", "if a < b:", "if a <=? b:")
        self.assertTrue(fitting.fits(MUTANT))
        for path, was, now in (
            ("sql/*", fitting.was, fitting.now),
            (fitting.path, "a < b", fitting.now),
            (fitting.path, fitting.was, "if a > b:"),
        ):
            self.assertFalse(Equivalent("", path, was, now).fits(MUTANT))


class ScoreTests(SynchronousTestCase):
    def judged(self, **outcomes: int) -> tuple[int, str]:
        counted = {("store", name.replace("_", " ")): n for name, n in outcomes.items()}
        with redirect_stdout(StringIO()) as out:
            status = report(Counter(counted), [MUTANT] if outcomes.get("survived") else [])
        return status, out.getvalue()

    def test_nineteen_of_twenty_are_enough(self) -> None:
        status, text = self.judged(killed=19, survived=1)
        self.assertEqual(status, 0)
        self.assertIn("score: 95.0% (19 of 20 mutants killed", text)

    def test_less_fails(self) -> None:
        self.assertEqual(self.judged(killed=18, survived=1)[0], 1)

    def test_equivalent_ones_do_not_count(self) -> None:
        self.assertEqual(self.judged(killed=19, survived=1, equivalent=10)[0], 0)

    def test_the_survivors_are_shown(self) -> None:
        text = self.judged(killed=1, survived=1)[1]
        self.assertIn("less survived tests.waiting\n  - if a < b:\n  + if a <= b:\n", text)

    def test_those_that_were_not_run_are_counted(self) -> None:
        self.assertIn("not run: 7 mutants", self.judged(killed=1, not_run=7)[1])

    def test_none_at_all_is_no_success(self) -> None:
        self.assertEqual(self.judged(not_run=7)[0], 1)
