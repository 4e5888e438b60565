"""The reference till: it receives events, stores them, and acknowledges them.

`posctl listen` and the tests use it. It shows vendors what the protocol requires of a till: resume at a
position, store an event before its acknowledgement, detect missing events, obey the close codes. It does
not import the server's packages.
"""

from __future__ import annotations

from posd.client.event_queue import CannotProcess
from posd.client.outcome import Fault, NextStep, Outcome
from posd.client.pending import pending_orders
from posd.client.position import PositionFile, PositionUnreadable
from posd.client.received import Connected, ReceivedEvent
from posd.client.till import Summary, Till
from posd.security.dialing import Credentials

__all__ = [
    "CannotProcess",
    "Connected",
    "Credentials",
    "Fault",
    "NextStep",
    "Outcome",
    "PositionFile",
    "PositionUnreadable",
    "ReceivedEvent",
    "Summary",
    "Till",
    "pending_orders",
]
