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

    PostgreSQL, which guards `tenants.timezone`, takes more: abbreviations, offsets, any case. A shop
    that has such a one still gets its orders, with dates that name no offset read as UTC.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC
