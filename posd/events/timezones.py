"""A shop's clock."""

from __future__ import annotations

from datetime import UTC, tzinfo
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


def is_zone(name: str) -> bool:
    """Whether this is a name of the IANA database."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


@cache
def zone(name: str) -> tzinfo:
    """The time zone of this name; UTC where Python knows none.

    A trigger on `tenants` refuses such names (sql/main/040_timezones.sql), but PostgreSQL's database of
    time zones may be newer than Python's. The shop still gets its orders; the sequencer's log and
    `posctl doctor` name it.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC
