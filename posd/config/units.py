"""Sizes and durations as people write them: "256KiB", "30s", "90m", "30d".

A size is a whole number of bytes, a duration a number of seconds. Numbers are whole and every unit
is written out, so that nobody has to know what a bare number would have meant. `KB` is refused: it
is 1000 bytes to some and 1024 to others.
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
"""In milliseconds, so that every duration is counted in whole numbers."""

# Fifteen digits are beyond any use, and few enough for int() to read at once.
_QUANTITY = re.compile(r"(?P<number>[0-9]{1,15}) ?(?P<unit>[A-Za-z]{1,3})")


def parse_size(text: str) -> int:
    """Read a size into bytes; a ValueError says how one is written."""
    try:
        return _parse(text, _SIZE_UNITS)
    except LookupError:
        raise ValueError('write a whole number and B, KiB, MiB or GiB, such as "256KiB"') from None


def format_size(size: int) -> str:
    """Write bytes in the largest unit that leaves a whole number."""
    return _format(size, _SIZE_UNITS, "B")


def parse_duration(text: str) -> float:
    """Read a duration into seconds; a ValueError says how one is written."""
    try:
        return _parse(text, _DURATION_UNITS) / 1000
    except LookupError:
        raise ValueError(
            'write a whole number and ms, s, m, h or d, such as "30s", "90m" or "30d"'
        ) from None


def format_duration(seconds: float) -> str:
    """Write seconds, to the millisecond, in the largest unit that leaves a whole number."""
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
