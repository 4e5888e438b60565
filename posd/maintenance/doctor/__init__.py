"""Check an installation and say what to do about each problem: `posctl doctor`.

Each module checks one part of the installation and yields `CheckResult`s. A problem of the installation is
a result, never an exception. The code blocks and needs no reactor.
"""

from __future__ import annotations

import enum

from attrs import frozen


class CheckState(enum.Enum):
    """The outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    UNKNOWN = "unknown"
    """The check could not be made. The cause is reported by another check, or does not concern posd."""


@frozen
class CheckResult:
    """The result of one check: what was found and, for a problem, the remedy.

    `passing`: the problem is in the running system and not in the configuration; an unavailable database is
    an example. `stops`: posd does not start with this problem: `twistd posd` and `posctl check-config` exit
    with status 78.
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
