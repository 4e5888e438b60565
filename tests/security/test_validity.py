"""Tests of the state of a certificate over time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from posd.security.validity import CertificateState, Validity

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ending_in(left: timedelta, lifetime: timedelta) -> Validity:
    return Validity(NOW + left - lifetime, NOW + left)


class StandingTests(SynchronousTestCase):
    def state(self, left: timedelta, lifetime: timedelta) -> CertificateState:
        return ending_in(left, lifetime).state(NOW)

    def test_one_of_a_year_or_a_quarter_ends_soon_for_the_last_fourteen_days(self) -> None:
        for lifetime in (timedelta(days=365), timedelta(days=90)):
            self.assertIs(self.state(timedelta(days=14), lifetime), CertificateState.GOOD)
            last = timedelta(days=14) - timedelta(seconds=1)
            self.assertIs(self.state(last, lifetime), CertificateState.ENDING)

    def test_one_of_six_days_ends_soon_in_the_last_two(self) -> None:
        six = timedelta(days=6)
        self.assertIs(self.state(timedelta(days=2), six), CertificateState.GOOD)
        self.assertIs(self.state(timedelta(hours=47), six), CertificateState.ENDING)

    def test_it_has_ended_at_its_last_moment_and_begun_at_its_first(self) -> None:
        day = timedelta(days=1)
        self.assertIs(self.state(timedelta(0), day), CertificateState.ENDED)
        self.assertIs(self.state(day, day), CertificateState.GOOD)
        self.assertIs(self.state(day + timedelta(seconds=1), day), CertificateState.FUTURE)

    @given(some.timedeltas(timedelta(seconds=1), timedelta(days=4000)), some.data())
    def test_every_certificate_is_good_at_first_and_is_warned_of_before_it_ends(
        self, lifetime: timedelta, data: some.DataObject
    ) -> None:
        moments = some.timedeltas(timedelta(0), lifetime)
        early, late = sorted((data.draw(moments), data.draw(moments)))
        order = [CertificateState.GOOD, CertificateState.ENDING, CertificateState.ENDED]
        validity = Validity(NOW, NOW + lifetime)
        first, second = (order.index(validity.state(NOW + each)) for each in (early, late))
        self.assertLessEqual(first, second)
        self.assertIs(validity.state(NOW), CertificateState.GOOD)
        shortly = validity.ends - min(lifetime / 10, timedelta(days=1))
        self.assertIs(validity.state(shortly), CertificateState.ENDING)


class LeftTests(SynchronousTestCase):
    def test_it_is_told_in_days_and_at_the_end_in_hours(self) -> None:
        for left, told in (
            (timedelta(days=13, hours=23), "13 days"),
            (timedelta(days=2), "2 days"),
            (timedelta(hours=47, minutes=59), "47 hours"),
            (timedelta(minutes=90), "1 hour"),
            (timedelta(minutes=1), "0 hours"),
            (timedelta(days=-3), "0 hours"),
        ):
            with self.subTest(left=left):
                self.assertEqual(ending_in(left, timedelta(days=90)).time_left(NOW), told)
