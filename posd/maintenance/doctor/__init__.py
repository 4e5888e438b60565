"""What may be wrong with an installation, and what to do about it: `posctl doctor`.

Each module here looks at one part and says what it finds, in `Line`s. None of them raises for what is wrong
with the installation: that is what they are to tell. Blocking, and without a reactor.
"""

from __future__ import annotations

import enum

from attrs import frozen


class State(enum.Enum):
    """How a thing is."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    UNKNOWN = "unknown"
    """It could not be looked at, for a reason that is told elsewhere or is none of posd's business."""


@frozen
class Line:
    """One thing that was looked at: what was found, and for what is not as it should be what to do.

    `passing`: about what runs now and not about the configuration, such as a database that is away.
    `stops`: posd does not start with it: `twistd posd` ends with status 78, and so does
    `posctl check-config`.
    """

    part: str
    state: State
    what: str
    remedy: str | None = None
    passing: bool = False
    stops: bool = False


def ok(part: str, what: str) -> Line:
    return Line(part, State.OK, what)


def warning(part: str, what: str, remedy: str, *, passing: bool = False) -> Line:
    return Line(part, State.WARNING, what, remedy, passing)


def fault(part: str, what: str, remedy: str, *, passing: bool = False, stops: bool = False) -> Line:
    return Line(part, State.FAULT, what, remedy, passing, stops)


def unknown(part: str, why: str) -> Line:
    return Line(part, State.UNKNOWN, why)
