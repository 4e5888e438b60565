"""The region of a time zone: where people write telephone numbers as a shop's customers do.

The source is `zone.tab` of the IANA database, which names one country (ISO 3166) for each zone, and
`tzdata.zi` for the older names of zones. Both come with the package `tzdata`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Final

from posd.events.phones import is_region

DEFAULT: Final = "GB"
"""The region where a time zone, such as UTC, tells none."""

_OF_MANY: Final = frozenset({"CET", "EET", "EST", "HST", "MET", "MST", "WET"})
"""Zones of several countries, which the database has made links to one of them."""


def preload() -> None:
    """Read the files of the package. Otherwise the first tenant that is made reads them."""
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
    """The country of each zone. A line is `code TAB coordinates TAB zone [TAB comment]`."""
    rows = (line.split("\t") for line in _lines("zone.tab") if not line.startswith("#"))
    return {row[2]: row[0] for row in rows if len(row) > 2}


@cache
def _links() -> Mapping[str, str]:
    """The zone that another name stands for. A line is `L zone name` (zic(8))."""
    rows = (line.split() for line in _lines("tzdata.zi") if line.startswith("L "))
    return {row[2]: row[1] for row in rows}


def _lines(name: str) -> list[str]:
    return (resources.files("tzdata") / "zoneinfo" / name).read_text("utf-8").splitlines()
