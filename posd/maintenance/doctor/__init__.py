"""What may be wrong with an installation, and what to do about it: `posctl doctor`.

Each module here looks at one part and says what it finds, in `CheckResult`s. None of them raises for what
is wrong with the installation: that is what they are to tell. Blocking, and without a reactor.
"""

from __future__ import annotations

import enum

from attrs import frozen


class CheckState(enum.Enum):
    """How a thing is."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    UNKNOWN = "unknown"
    """It could not be looked at, for a reason that is told elsewhere or is none of posd's business."""


@frozen
class CheckResult:
    """One thing that was looked at: what was found, and for what is not as it should be what to do.

    `passing`: about what runs now and not about the configuration, such as a database that is away.
    `stops`: posd does not start with it: `twistd posd` ends with status 78, and so does
    `posctl check-config`.
    """

    part: str
    state: CheckState
    what: str
    remedy: str | None = None
    passing: bool = False
    stops: bool = False


def ok(part: str, what: str) -> CheckResult:
    return CheckResult(part, CheckState.OK, what)


def warning(part: str, what: str, remedy: str, *, passing: bool = False) -> CheckResult:
    return CheckResult(part, CheckState.WARNING, what, remedy, passing)


def fault(
    part: str, what: str, remedy: str, *, passing: bool = False, stops: bool = False
) -> CheckResult:
    return CheckResult(part, CheckState.FAULT, what, remedy, passing, stops)


def unknown(part: str, why: str) -> CheckResult:
    return CheckResult(part, CheckState.UNKNOWN, why)
