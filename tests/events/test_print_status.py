"""Tests of the reports of tills about orders."""

from __future__ import annotations

from typing import Final

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.events.print_status import (
    WORD,
    PrintReport,
    ReportedStatus,
    before,
    meaning,
    print_report,
)
from posd.values import PrintStatus

RANKS: Final = {
    PrintStatus.PENDING: 0,
    PrintStatus.SENT: 1,
    PrintStatus.FAILED: 2,
    PrintStatus.PRINTED: 3,
}


class ReportTests(SynchronousTestCase):
    @given(st.lists(st.sampled_from(ReportedStatus)))
    def test_no_sequence_of_reports_moves_the_status_back(self, said: list[ReportedStatus]) -> None:
        status, told = PrintStatus.PENDING, []
        for each in said:
            report = PrintReport("7", each)
            status_after = report.status if status in before(report.status) else status
            self.assertGreaterEqual(RANKS[status_after], RANKS[status])
            self.assertGreaterEqual(RANKS[status_after], RANKS[report.status])
            status = status_after
            told.append(report.status)
        self.assertEqual(RANKS[status], max((RANKS[each] for each in told), default=0))

    def test_the_steps_are_those_of_the_protocol(self) -> None:
        self.assertIn(PrintStatus.FAILED, before(PrintStatus.PRINTED))
        self.assertEqual(before(PrintStatus.PENDING), frozenset())
        self.assertNotIn(PrintStatus.PRINTED, frozenset().union(*map(before, PrintStatus)))

    def test_the_words_of_deployed_tills_are_known(self) -> None:
        self.assertEqual(meaning("queued_for_print"), ReportedStatus.RECEIVED)
        self.assertEqual(meaning("paid"), ReportedStatus.PAID)
        self.assertEqual(meaning("drawer_opened"), ReportedStatus.OTHER)
        self.assertIsNone(WORD.fullmatch("Paid!"))

    def test_any_report_proves_that_the_till_has_the_order(self) -> None:
        for said in ReportedStatus:
            self.assertIn(PrintStatus.PENDING, before(PrintReport("7", said).status))

    def test_a_print_message_is_a_report(self) -> None:
        report = print_report("7", PrintStatus.FAILED, "no paper")
        self.assertEqual(
            (report.said, report.status, report.reason),
            (ReportedStatus.FAILED, PrintStatus.FAILED, "no paper"),
        )
