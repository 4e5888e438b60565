"""Tests of `TenantQuarantine`."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.publishing.quarantine import TenantQuarantine


class QuarantineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.quarantine: TenantQuarantine[int] = TenantQuarantine(self.clock)

    def test_the_exclusion_of_a_tenant_ends_after_its_time(self) -> None:
        self.assertEqual(self.quarantine.exclude(1), 1.0)
        self.assertIn(1, self.quarantine)
        self.assertNotIn(2, self.quarantine)
        self.assertEqual(self.quarantine.now(), [1])
        self.clock.advance(1.0)
        self.assertNotIn(1, self.quarantine)
        self.assertEqual(self.quarantine.now(), [])

    def test_each_exclusion_lasts_twice_as_long_up_to_a_minute(self) -> None:
        times = []
        for _ in range(8):
            times.append(self.quarantine.exclude(1))
            self.clock.advance(times[-1])
        self.assertEqual(times, [1, 2, 4, 8, 16, 32, 60, 60])

    def test_old_failures_are_forgotten(self) -> None:
        self.quarantine.exclude(1)
        self.quarantine.exclude(1)
        self.clock.advance(130)
        self.assertEqual(self.quarantine.now(), [])
        self.assertEqual(self.quarantine.exclude(1), 1.0)

    def test_the_exclusions_of_tenants_are_independent(self) -> None:
        self.quarantine.exclude(1)
        self.clock.advance(0.5)
        self.quarantine.exclude(2)
        self.clock.advance(0.6)
        self.assertEqual(self.quarantine.now(), [2])
