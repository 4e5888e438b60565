"""Tests of the region of a time zone, and of numbers after a change of the region."""

from __future__ import annotations

from zoneinfo import available_timezones

from twisted.trial.unittest import SynchronousTestCase

from posd.events import phones
from posd.events.regions import region_of


class RegionTests(SynchronousTestCase):
    def test_a_zone_has_the_region_of_its_country(self) -> None:
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

    def test_a_zone_of_no_country_or_of_several_has_no_region(self) -> None:
        for zone in ("UTC", "Etc/GMT+1", "CET", "EST", "EST5EDT", "Antarctica/Vostok", "", "../x"):
            self.assertIsNone(region_of(zone), zone)

    def test_each_region_has_rules_for_numbers(self) -> None:
        told = {region_of(zone) for zone in available_timezones()} - {None}
        self.assertGreater(len(told), 200)
        for region in told:
            self.assertTrue(phones.is_region(str(region)), region)


class ReinterpretTests(SynchronousTestCase):
    """Tests of numbers of a shop in France that were stored while its region was GB."""

    def test_a_national_number_becomes_a_number_of_the_new_region(self) -> None:
        typed = "06 12 34 56 78"
        stored, right = phones.normalise(typed, "GB"), phones.normalise(typed, "FR")
        self.assertEqual((stored, right), ("+44612345678", "+33612345678"))
        self.assertEqual(phones.reinterpret(stored, "GB", "FR"), right)

    def test_a_number_with_a_country_code_is_unchanged(self) -> None:
        for number in ("+33612345678", "+4915112345678", "+447700900123"):
            self.assertIsNone(phones.reinterpret(number, "GB", "FR"), number)
