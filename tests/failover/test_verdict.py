"""The counts of `make failover`, for a load with known damage."""

from __future__ import annotations

from typing import Any, cast

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from tests.failover.calamities import KILL, SWITCHOVER, UPGRADE, Calamity
from tests.failover.configuration import DIRECT
from tests.failover.verdict import Verdict, broken, table
from tests.integration.load import Load, Visit

NOTE = "note"


def content(mark: str) -> Any:
    return {"mark": mark}


@define
class Writer:
    committed: list[str]


@define
class Till:
    visits: list[Visit]


@define
class Books:
    """The part of a load that a verdict reads. The events 1 to 4 are a, b, c and d."""

    writers: list[Writer] = field(factory=lambda: [Writer(["a", "b"]), Writer(["c", "d"])])
    rovers: list[Till] = field(factory=list)
    marks: str = "abcd"

    def log(self) -> dict[int, tuple[str, Any]]:
        return {seq: (NOTE, content(mark)) for seq, mark in enumerate(self.marks, 1)}

    def verdict(self) -> Verdict:
        return Verdict.over(cast(Load, self), [])


def visit(
    ids: list[int],
    marks: str,
    *,
    resync: str | None = None,
    head: int = 0,
    stream: str = "stream",
    by_cursor: bool = False,
) -> Visit:
    made = Visit(None if resync else 0, resync, stream, head, by_cursor)
    made.received += [(seq, NOTE, content(mark)) for seq, mark in zip(ids, marks, strict=True)]
    return made


class VerdictTests(SynchronousTestCase):
    def test_nothing_is_wrong(self) -> None:
        books = Books(rovers=[Till([visit([1, 2], "ab"), visit([3, 4], "cd")])])
        verdict = books.verdict()
        self.assertEqual((verdict.events, verdict.confirmed), (4, 4))
        self.assertEqual(broken(verdict, []), [])

    def test_a_confirmed_event_is_not_in_the_log(self) -> None:
        self.assertEqual(Books(marks="abd").verdict().lost, 1)

    def test_events_are_not_in_the_order_of_their_commits(self) -> None:
        self.assertEqual(Books(marks="bacd").verdict().reordered, 1)

    def test_an_event_was_published_twice(self) -> None:
        self.assertEqual(Books(marks="abcda").verdict().repeated, 1)

    def test_a_till_was_sent_events_again_and_backwards(self) -> None:
        verdict = Books(rovers=[Till([visit([1, 2, 3, 2, 4], "abcbd")])]).verdict()
        self.assertEqual((verdict.repeated, verdict.reordered), (1, 1))

    def test_what_comes_again_on_another_connection_is_no_repetition(self) -> None:
        till = Till([visit([1, 2, 3], "abc"), visit([3, 4], "cd")])
        self.assertEqual(Books(rovers=[till]).verdict().repeated, 0)

    def test_a_till_was_reset_for_nothing_and_missed_what_came_meanwhile(self) -> None:
        till = Till([visit([1, 2], "ab"), visit([4], "d", resync="reset", head=3)])
        verdict = Books(rovers=[till]).verdict()
        self.assertEqual((verdict.resyncs, verdict.missed), (1, 1))

    def test_a_till_that_saw_what_is_lost_had_to_be_reset(self) -> None:
        till = Till([visit([1, 2, 3], "abx"), visit([3, 4], "cd", resync="reset", head=2)])
        self.assertEqual(Books(rovers=[till]).verdict().resyncs, 0)

    def test_one_that_has_loaded_everything_anew_begins_anew(self) -> None:
        visits = [visit([1, 2, 3], "abx"), visit([4], "d", resync="reset", head=3)]
        till = Till([*visits, visit([], "", resync="reset", head=4)])
        self.assertEqual(Books(rovers=[till]).verdict().resyncs, 1)

    def test_one_that_saw_what_is_lost_was_not_told(self) -> None:
        seen = visit([1, 2, 3], "abx")
        till = Till([seen, visit([4], "d"), visit([], "", stream="other")])
        self.assertEqual(Books(rovers=[till]).verdict().unnoticed, 1)
        with self.subTest("who comes back under the same name cannot be told"):
            self.assertEqual(Books(rovers=[Till([seen, visit([4], "d")])]).verdict().unnoticed, 0)

    def test_where_events_are_lost_posd_knows_only_what_it_sent(self) -> None:
        for marks, needless in (("abcd", 1), ("abc", 0)):
            for by_cursor in (True, False):
                told = visit([], "", resync="reset", by_cursor=by_cursor)
                books = Books(rovers=[Till([visit([1, 2], "ab"), told])], marks=marks)
                with self.subTest(marks=marks, by_cursor=by_cursor):
                    self.assertEqual(books.verdict().resyncs, needless if by_cursor else 1)

    def test_behind_a_proxy_only_the_events_count(self) -> None:
        calamity = Calamity(KILL, "proxies", "db1", "db2", *(24.0,) * 7)
        self.assertEqual(broken(Books().verdict(), [calamity]), [])
        self.assertTrue(broken(Books(marks="abd").verdict(), [calamity]))

    def test_the_table_has_a_line_for_each(self) -> None:
        calamity = Calamity(KILL, DIRECT, "db1", "db2", 20.0, 21.0, 21.5, None, 0.25, 0.5, 1.25)
        heads, line = table([calamity]).splitlines()
        self.assertEqual(heads.split()[:4], ["what", "via", "from", "to"])
        self.assertEqual(
            " ".join(line.split()), "kill -9 direct db1 db2 20.00 21.00 21.50 never 0.25 0.50 1.25"
        )

    def test_the_verdicts_of_two_shops_add_up(self) -> None:
        both = Books(marks="abd").verdict() + Books(marks="bacd").verdict()
        self.assertEqual((both.events, both.lost, both.reordered), (7, 1, 1))

    def test_a_switchover_counts_in_all_and_a_kill_from_when_the_database_is_back(self) -> None:
        verdict = Books().verdict()
        slow, quick = 24.0, 1.0
        for what, committing, publishing, there, after, kept in (
            (SWITCHOVER, quick, quick, quick, quick, True),
            (SWITCHOVER, quick, slow, quick, quick, False),
            (SWITCHOVER, slow, slow, quick, quick, True),
            (SWITCHOVER, quick, None, quick, quick, False),
            (UPGRADE, quick, slow, quick, quick, False),
            (KILL, quick, slow, quick, quick, True),
            (KILL, quick, slow, quick, slow, False),
            (KILL, quick, slow, slow, slow, True),
            (KILL, quick, slow, None, slow, False),
            (KILL, quick, slow, quick, None, False),
        ):
            with self.subTest(what=what, publishing=publishing, there=there, after=after):
                times = (1.0, committing, publishing, slow, there, after, quick)
                calamity = Calamity(what, DIRECT, "db1", "db2", *times)
                self.assertEqual(not broken(verdict, [calamity]), kept)
