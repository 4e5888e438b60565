"""A shop's clock."""

from __future__ import annotations

from datetime import UTC, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

_ZONES: Final = {name: ZoneInfo(name) for name in available_timezones()}
"""All time zones of the IANA database, read when posd starts.

Read when it is first needed, a zone would be a file on the path of a request; with no descriptor left it
could not be read, and that shop's dates would be read as UTC.
"""


def is_zone(name: str) -> bool:
    """Whether this is a name of the IANA database."""
    return name in _ZONES


def zone(name: str) -> tzinfo:
    """The time zone of this name; UTC where Python knows none.

    A trigger on `tenants` refuses such names (sql/main/002_settings.sql), but PostgreSQL's database of
    time zones may be newer than Python's. The shop still gets its orders; the sequencer's log and
    `posctl doctor` name it.
    """
    return _ZONES.get(name, UTC)
