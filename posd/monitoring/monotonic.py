"""Timers that do not depend on the system clock.

Twisted schedules calls by `time.time()` (twisted/twisted#2424). When NTP or an operator sets the clock back
by an hour, no timer fires for an hour: no acknowledgement is written, no till is pinged, no watchdog is
fed. When it is set forward, every till seems to have been silent for an hour and is dropped.
"""

from __future__ import annotations

import time

from twisted.internet.base import ReactorBase


def schedule_by_monotonic_clock(reactor: ReactorBase) -> None:
    """Let `reactor.seconds()` and every timer follow `time.monotonic()`.

    To be called before anything is scheduled: raises `RuntimeError` where something is, since that would be
    due in decades.
    """
    if reactor.getDelayedCalls():
        raise RuntimeError(
            "The reactor's clock cannot be changed: calls are scheduled by it already."
        )
    # Documented as a method; every timer asks the instance for it.
    reactor.seconds = time.monotonic
