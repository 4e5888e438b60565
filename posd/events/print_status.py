"""What tills say about an order on its way to paper, and what that makes of it.

Whatever a till says about an order proves that it has the order. Its print status only goes forward;
a report that comes twice, late, or after a better one changes nothing, and is never refused for it.
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
    """What a report means."""

    RECEIVED = "received"
    ACCEPTED = "accepted"
    PRINTED = "printed"
    FAILED = "failed"
    PAID = "paid"
    OTHER = "other"
    """Something of the till's own, which is only kept in the log."""


WORD: Final = re.compile(r"[a-z_]{1,30}")
"""What a till may say; a word that posd does not know is kept in the log."""

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
    """What a till says about an order; `at` is when that was, None for now."""

    order_id: str
    said: ReportedStatus
    at: datetime | None = None
    reason: str | None = None

    @property
    def status(self) -> PrintStatus:
        """The print status that an order has at least after this."""
        if self.said is ReportedStatus.PRINTED:
            return PrintStatus.PRINTED
        return PrintStatus.FAILED if self.said is ReportedStatus.FAILED else PrintStatus.SENT


def meaning(word: str) -> ReportedStatus:
    """What a till means by a word."""
    return _MEANINGS.get(word, ReportedStatus.OTHER)


def before(status: PrintStatus) -> frozenset[PrintStatus]:
    """The print statuses from which an order may come to this one."""
    return _STEPS[status]


def print_report(order_id: str, status: PrintStatus, reason: str | None) -> PrintReport:
    """How printing went, as a till says it over its socket."""
    said = ReportedStatus.PRINTED if status is PrintStatus.PRINTED else ReportedStatus.FAILED
    return PrintReport(order_id, said, reason=reason)
