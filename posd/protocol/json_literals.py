"""Moments and decimals as they stand in JSON text."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

DIGITS = 40
"""How many digits a number may have in plain notation, before and after its point together. Money
needs some fifteen, a binary double as JavaScript prints it some twenty."""

NUMBER_TOO_LONG = f"A number has more than {DIGITS} digits in plain notation."

_TWO_DIGITS = tuple(f"{number:02d}" for number in range(60))


# All events of a batch have one time.
@lru_cache(256)
def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-11-22T10:00:00.123Z`.

    `moment` is aware; a naive one raises `ValueError`, since nobody knows when it is.
    """
    if moment.tzinfo is not UTC:
        if moment.utcoffset() is None:
            raise ValueError("A timestamp needs a time zone.")
        moment = moment.astimezone(UTC)
    # isoformat() takes twice as long, and an event that is sent again has little else that takes time.
    return (
        f"{moment.year:04d}-{_TWO_DIGITS[moment.month]}-{_TWO_DIGITS[moment.day]}T{_TWO_DIGITS[moment.hour]}:{_TWO_DIGITS[moment.minute]}"
        f":{_TWO_DIGITS[moment.second]}.{moment.microsecond // 1000:03d}Z"
    )


def plain_number(number: Decimal) -> str:
    """A finite decimal without an exponent, its scale kept: `1.50E+1` is `15.0`.

    Raises `ValueError` for what is not finite or longer than `DIGITS` allows.
    """
    if not number.is_finite():
        raise ValueError("JSON has no NaN and no infinity.")
    # Before it is written out: 1E+999999999 would be a gigabyte of zeros. For zero, `adjusted` is
    # the exponent. A number that was given in plain notation is never longer than itself.
    text = str(number)
    if "E" in text:
        if abs(number.adjusted()) > DIGITS:
            raise ValueError(NUMBER_TOO_LONG)
        text = format(number, "f")
    if len(text) > DIGITS and len(text.strip("-").replace(".", "", 1)) > DIGITS:
        raise ValueError(NUMBER_TOO_LONG)
    return text
