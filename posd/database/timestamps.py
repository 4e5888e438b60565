"""Timestamps outside the range of Python's `datetime`.

A shop's SQL may store a time in the year 20000, or before the year 1. psycopg2 raises an exception at the
first such value, and the whole result is lost, after a statement that has committed too.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from psycopg2.extensions import PYDATETIMETZ, new_type, register_type

_LATEST: Final = datetime.max.replace(tzinfo=UTC)
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)


def read_within_bounds() -> None:
    """Make psycopg2 read such a time as the latest or the earliest `datetime`, as it reads infinity."""
    register_type(_MOMENT)


def _read(value: str | None, cursor: Any) -> datetime | None:
    try:
        moment: datetime | None = PYDATETIMETZ(value, cursor)
    except (ValueError, OverflowError):
        return _EARLIEST if value is not None and value.endswith("BC") else _LATEST
    return moment


_MOMENT: Final = new_type(PYDATETIMETZ.values, "MOMENT", _read)
