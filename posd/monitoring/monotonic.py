"""Timers that do not depend on the system clock.

Twisted schedules calls by `time.time()` (twisted/twisted#2424). When NTP or an operator sets the clock back
by an hour, no timer fires for an hour: no acknowledgement is stored, no till gets a ping, and the watchdog
is not notified. When the clock is set forward, all tills seem to have been silent for an hour and are
dropped.
"""

from __future__ import annotations

import time

from twisted.internet.base import ReactorBase


def schedule_by_monotonic_clock(reactor: ReactorBase) -> None:
    """Make `reactor.seconds()` and all timers follow `time.monotonic()`.

    Raises RuntimeError if calls are scheduled already, because they would be due in decades.
    """
    if reactor.getDelayedCalls():
        raise RuntimeError(
            "The clock of the reactor cannot be changed, because calls are scheduled already."
        )
    # `seconds` is a method of the class. All timers look it up on the instance.
    reactor.seconds = time.monotonic
