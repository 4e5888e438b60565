"""Tenants that are left out for a while."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.publishing.quarantine import TenantQuarantine


class AsideTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.quarantine: TenantQuarantine[int] = TenantQuarantine(self.clock)

    def test_a_tenant_is_left_out_and_comes_back_by_itself(self) -> None:
        self.assertEqual(self.quarantine.exclude(1), 1.0)
        self.assertIn(1, self.quarantine)
        self.assertNotIn(2, self.quarantine)
        self.assertEqual(self.quarantine.now(), [1])
        self.clock.advance(1.0)
        self.assertNotIn(1, self.quarantine)
        self.assertEqual(self.quarantine.now(), [])

    def test_each_time_it_is_left_out_for_twice_as_long_up_to_a_minute(self) -> None:
        times = []
        for _ in range(8):
            times.append(self.quarantine.exclude(1))
            self.clock.advance(times[-1])
        self.assertEqual(times, [1, 2, 4, 8, 16, 32, 60, 60])

    def test_what_was_long_ago_is_forgotten(self) -> None:
        self.quarantine.exclude(1)
        self.quarantine.exclude(1)
        self.clock.advance(130)
        self.assertEqual(self.quarantine.now(), [])
        self.assertEqual(self.quarantine.exclude(1), 1.0)

    def test_tenants_are_left_out_each_by_itself(self) -> None:
        self.quarantine.exclude(1)
        self.clock.advance(0.5)
        self.quarantine.exclude(2)
        self.clock.advance(0.6)
        self.assertEqual(self.quarantine.now(), [2])
