"""The region of a time zone, which is the default region of a shop's telephone numbers.

The source is `zone.tab` of the IANA database, which has a country (ISO 3166-1) for each zone, and `tzdata.zi`
for the older names of zones. Both files are in the package `tzdata`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Final

from posd.events.phones import is_region

DEFAULT: Final = "GB"
"""The region for time zones without a country, such as UTC."""

_OF_MANY: Final = frozenset({"CET", "EET", "EST", "HST", "MET", "MST", "WET"})
"""Zones of several countries. The database links them to a zone of one country."""


def preload() -> None:
    """Read the files of the package. Otherwise the creation of the first tenant reads them."""
    _countries()
    _links()


def region_of(timezone: str) -> str | None:
    """Return the region of a zone, such as `FR` for Europe/Paris; None for a zone of no country."""
    code = _countries().get(timezone)
    if code is None and timezone not in _OF_MANY:
        code = _countries().get(_links().get(timezone, ""))
    return code if code is not None and is_region(code) else None


@cache
def _countries() -> Mapping[str, str]:
    """Return the country of each zone. A line is `code TAB coordinates TAB zone [TAB comment]`."""
    rows = (line.split("\t") for line in _lines("zone.tab") if not line.startswith("#"))
    return {row[2]: row[0] for row in rows if len(row) > 2}


@cache
def _links() -> Mapping[str, str]:
    """Return the zone for each older name. A line is `L zone name` (zic(8))."""
    rows = (line.split() for line in _lines("tzdata.zi") if line.startswith("L "))
    return {row[2]: row[1] for row in rows}


def _lines(name: str) -> list[str]:
    return (resources.files("tzdata") / "zoneinfo" / name).read_text("utf-8").splitlines()
