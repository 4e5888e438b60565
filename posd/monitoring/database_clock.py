"""How old something is that the database has dated, on a machine whose clock is another one.

The offset between the two clocks is known only as well as a round trip is short, so of the last few
comparisons the one with the shortest counts: it is wrong by half of that at the most.
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
    """The database's clock, as this machine knows it. `wall_clock` is this machine's, in seconds since
    1970.
    """

    wall_clock: Callable[[], float] = time.time
    offset: float | None = field(default=None, init=False)
    """How many seconds the database's clock is ahead of ours; None while that is not known."""
    _comparisons: deque[tuple[float, float]] = field(
        factory=lambda: deque(maxlen=_COMPARISONS), init=False
    )

    def compare(self, sent_at: float, database_time: datetime, received_at: float) -> None:
        """Note that the database, asked and heard at these times of `wall_clock`, said that it was then."""
        if received_at >= sent_at:
            self._comparisons.append(
                (received_at - sent_at, database_time.timestamp() - (sent_at + received_at) / 2)
            )
            self.offset = min(self._comparisons)[1]

    def seconds_since(self, moment: datetime) -> float:
        """How many seconds ago a moment was that the database has dated; never less than none."""
        return max(0.0, self.wall_clock() + (self.offset or 0.0) - moment.timestamp())
