"""Two thousand tills over TLS on one daemon that is stopped while shops publish."""

from __future__ import annotations

import configparser

from posd.database import resources
from tests.integration.drain_case import DrainCase


class Drain(DrainCase):
    tills = 2000

    def test_two_thousand_tills_are_sent_home_in_the_time_that_systemd_gives(self) -> None:
        times = self.drain()
        print("\ndrain:", *(f"{name}={value}" for name, value in times.items()))
        unit = configparser.ConfigParser(interpolation=None, strict=False)
        unit.read_string(resources.systemd_unit().read_text("utf-8"))
        patience = float(unit["Service"]["TimeoutStopSec"].removesuffix("s"))
        self.assertLess(times["exit_seconds"], patience)
