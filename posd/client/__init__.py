"""The reference till: how a terminal keeps an order from being lost or printed twice.

`posctl listen` is this till, the tests use it, and whoever writes another one can read here what
the protocol asks of it: resume by position, store before acknowledging, prove that nothing is
missing, obey the close codes.
"""

from __future__ import annotations

from posd.client.event_queue import CannotProcess
from posd.client.outcome import Ending, Fault, Next
from posd.client.position import PositionFile, PositionUnreadable
from posd.client.received import Connected, ReceivedEvent
from posd.client.till import Summary, Till
from posd.security.dialing import Credentials

__all__ = [
    "CannotProcess",
    "Connected",
    "Credentials",
    "Ending",
    "Fault",
    "Next",
    "PositionFile",
    "PositionUnreadable",
    "ReceivedEvent",
    "Summary",
    "Till",
]
