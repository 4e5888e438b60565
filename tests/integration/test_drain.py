"""A daemon that is stopped while tills are connected. tests/system has the test with two thousand."""

from __future__ import annotations

from tests.integration.drain_case import DrainCase


class DrainTests(DrainCase):
    tills = 100

    def test_a_stop_sends_everybody_home_and_loses_nothing(self) -> None:
        self.drain()
