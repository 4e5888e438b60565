"""The reports of tills about an order, and the print status that follows from them.

Any report about an order proves that the till has received the order. The print status only moves forward. A
report that is repeated, late, or behind the present status changes nothing, and is not refused.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from attrs import frozen

from posd.values import PrintStatus


class ReportedStatus(enum.Enum):
    """The meaning of a report."""

    RECEIVED = "received"
    ACCEPTED = "accepted"
    PRINTED = "printed"
    FAILED = "failed"
    PAID = "paid"
    OTHER = "other"
    """A word of the till's own, which posd only logs."""


WORD: Final = re.compile(r"[a-z_]{1,30}")
"""The form of the word of a report. posd logs words that it does not know."""

_MEANINGS: Final[Mapping[str, ReportedStatus]] = {
    "received": ReportedStatus.RECEIVED,
    "queued_for_print": ReportedStatus.RECEIVED,
    "accepted": ReportedStatus.ACCEPTED,
    "printed": ReportedStatus.PRINTED,
    "failed": ReportedStatus.FAILED,
    "paid": ReportedStatus.PAID,
}
_STEPS: Final[Mapping[PrintStatus, frozenset[PrintStatus]]] = {
    PrintStatus.PENDING: frozenset(),
    PrintStatus.SENT: frozenset((PrintStatus.PENDING,)),
    PrintStatus.FAILED: frozenset((PrintStatus.PENDING, PrintStatus.SENT)),
    PrintStatus.PRINTED: frozenset((PrintStatus.PENDING, PrintStatus.SENT, PrintStatus.FAILED)),
}


@frozen
class PrintReport:
    """The report of a till about an order. `at` is the time of the reported event; None for now."""

    order_id: str
    said: ReportedStatus
    at: datetime | None = None
    reason: str | None = None

    @property
    def status(self) -> PrintStatus:
        """The lowest print status that the order has after this report."""
        if self.said is ReportedStatus.PRINTED:
            return PrintStatus.PRINTED
        return PrintStatus.FAILED if self.said is ReportedStatus.FAILED else PrintStatus.SENT


def meaning(word: str) -> ReportedStatus:
    """Return the meaning of a till's word."""
    return _MEANINGS.get(word, ReportedStatus.OTHER)


def before(status: PrintStatus) -> frozenset[PrintStatus]:
    """Return the print statuses from which an order may move to `status`."""
    return _STEPS[status]


def print_report(order_id: str, status: PrintStatus, reason: str | None) -> PrintReport:
    """Return the report for a `print` message of the WebSocket protocol."""
    said = ReportedStatus.PRINTED if status is PrintStatus.PRINTED else ReportedStatus.FAILED
    return PrintReport(order_id, said, reason=reason)
