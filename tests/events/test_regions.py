"""The region of a shop's telephone numbers, by its time zone, and what a change of it means."""

from __future__ import annotations

from zoneinfo import available_timezones

from twisted.trial.unittest import SynchronousTestCase

from posd.events import phones
from posd.events.regions import region_of


class RegionTests(SynchronousTestCase):
    def test_a_zone_is_of_its_country(self) -> None:
        for zone, region in (
            ("Europe/London", "GB"),
            ("Europe/Paris", "FR"),
            ("Europe/Vaduz", "LI"),
            ("Europe/Jersey", "JE"),
            ("America/Toronto", "CA"),
            # Older names, and names of countries.
            ("Europe/Kiev", "UA"),
            ("Asia/Calcutta", "IN"),
            ("US/Eastern", "US"),
            ("Eire", "IE"),
        ):
            self.assertEqual(region_of(zone), region, zone)

    def test_a_zone_of_no_country_or_of_many_tells_nothing(self) -> None:
        for zone in ("UTC", "Etc/GMT+1", "CET", "EST", "EST5EDT", "Antarctica/Vostok", "", "../x"):
            self.assertIsNone(region_of(zone), zone)

    def test_what_is_told_is_a_region_with_telephone_numbers(self) -> None:
        told = {region_of(zone) for zone in available_timezones()} - {None}
        self.assertGreater(len(told), 200)
        for region in told:
            self.assertTrue(phones.is_region(str(region)), region)


class RereadTests(SynchronousTestCase):
    """Numbers that were stored while the region was GB, for a shop in France."""

    def test_the_same_digits_are_another_number(self) -> None:
        typed = "06 12 34 56 78"
        stored, right = phones.normalise(typed, "GB"), phones.normalise(typed, "FR")
        self.assertEqual((stored, right), ("+44612345678", "+33612345678"))
        self.assertEqual(phones.reinterpret(stored, "GB", "FR"), right)

    def test_a_number_with_a_country_code_stays_what_it_is(self) -> None:
        for number in ("+33612345678", "+4915112345678", "+447700900123"):
            self.assertIsNone(phones.reinterpret(number, "GB", "FR"), number)
