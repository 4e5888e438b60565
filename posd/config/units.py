"""Parses and formats sizes and durations such as "256KiB", "30s", "90m" and "30d".

A size is a whole number of bytes, a duration is a number of seconds. The text has a whole number and a unit,
because a bare number would be ambiguous. `KB` is refused, because it may mean 1000 or 1024 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_SIZE_UNITS: Mapping[str, int] = {"GiB": GIB, "MiB": MIB, "KiB": KIB, "B": 1}
_DURATION_UNITS: Mapping[str, int] = {
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}
"""In milliseconds, so that all durations are whole numbers."""

# Fifteen digits are more than any use needs, and few enough for a fast int().
_QUANTITY = re.compile(r"(?P<number>[0-9]{1,15}) ?(?P<unit>[A-Za-z]{1,3})")


def parse_size(text: str) -> int:
    """Return a size in bytes. Raises ValueError, whose text says how to write a size."""
    try:
        return _parse(text, _SIZE_UNITS)
    except LookupError:
        raise ValueError('write a whole number and B, KiB, MiB or GiB, such as "256KiB"') from None


def format_size(size: int) -> str:
    """Format bytes in the largest unit that gives a whole number."""
    return _format(size, _SIZE_UNITS, "B")


def parse_duration(text: str) -> float:
    """Return a duration in seconds. Raises ValueError, whose text says how to write a duration."""
    try:
        return _parse(text, _DURATION_UNITS) / 1000
    except LookupError:
        raise ValueError(
            'write a whole number and ms, s, m, h or d, such as "30s", "90m" or "30d"'
        ) from None


def format_duration(seconds: float) -> str:
    """Format seconds, rounded to milliseconds, in the largest unit that gives a whole number."""
    return _format(round(seconds * 1000), _DURATION_UNITS, "s")


def _parse(text: str, units: Mapping[str, int]) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise LookupError(text)
    return int(match["number"]) * units[match["unit"]]


def _format(amount: int, units: Mapping[str, int], unit_of_zero: str) -> str:
    if amount == 0:
        return f"0{unit_of_zero}"
    unit = next(unit for unit, worth in units.items() if amount % worth == 0)
    return f"{amount // units[unit]}{unit}"
