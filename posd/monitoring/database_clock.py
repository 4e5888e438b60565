"""Measures the age of timestamps of the database on a machine with another clock.

The offset between the clocks is measured with a round trip to the database. The error is half of the round
trip at most, so the shortest of the last comparisons is used.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Final

from attrs import define, field

_COMPARISONS: Final = 12


@define(eq=False)
class DatabaseClock:
    """The clock of the database. `wall_clock` is the clock of this machine, in seconds since 1970."""

    wall_clock: Callable[[], float] = time.time
    offset: float | None = field(default=None, init=False)
    """Seconds by which the database's clock is ahead of `wall_clock`; None before the first comparison."""
    _comparisons: deque[tuple[float, float]] = field(
        factory=lambda: deque(maxlen=_COMPARISONS), init=False
    )

    def compare(self, sent_at: float, database_time: datetime, received_at: float) -> None:
        """Add a comparison: the time of the database, and when the query was sent and answered.

        `sent_at` and `received_at` are times of `wall_clock`.
        """
        if received_at >= sent_at:
            self._comparisons.append(
                (received_at - sent_at, database_time.timestamp() - (sent_at + received_at) / 2)
            )
            self.offset = min(self._comparisons)[1]

    def seconds_since(self, moment: datetime) -> float:
        """Return the age of a timestamp of the database in seconds, at least 0."""
        return max(0.0, self.wall_clock() + (self.offset or 0.0) - moment.timestamp())
