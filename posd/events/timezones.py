"""The time zones of shops."""

from __future__ import annotations

from datetime import UTC, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

_ZONES: Final = {name: ZoneInfo(name) for name in available_timezones()}
"""All time zones of the IANA database, read when posd starts.

Otherwise the first request for a zone would have to open a file. If no file descriptor is free, that would
fail, and posd would read the shop's dates as UTC.
"""


def is_zone(name: str) -> bool:
    """Whether `name` is a time zone of the IANA database."""
    return name in _ZONES


def zone(name: str) -> tzinfo:
    """Return a time zone by its name; UTC if Python does not know the name.

    A trigger on `tenants` refuses unknown names (sql/main/002_settings.sql), but the time zones of PostgreSQL
    may be newer than those of Python. The shop's orders are still published. The sequencer logs the name, and
    `posctl doctor` reports it.
    """
    return _ZONES.get(name, UTC)
