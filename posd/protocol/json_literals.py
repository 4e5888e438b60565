"""The JSON text of timestamps and decimals."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

DIGITS = 40
"""The limit of digits of a number in plain notation, before and after the point together.

Amounts of money need about 15 digits, and binary doubles, as JavaScript prints them, about 20.
"""

NUMBER_TOO_LONG = f"A number has more than {DIGITS} digits in plain notation."

_TWO_DIGITS = tuple(f"{number:02d}" for number in range(60))


# All events of a batch have the same time.
@lru_cache(256)
def timestamp(moment: datetime) -> str:
    """Return a time in UTC with milliseconds (RFC 3339): `2026-11-22T10:00:00.123Z`.

    Raises `ValueError` if `moment` has no time zone.
    """
    if moment.tzinfo is not UTC:
        if moment.utcoffset() is None:
            raise ValueError("A timestamp needs a time zone.")
        moment = moment.astimezone(UTC)
    # isoformat() takes twice as long. When an event is replayed, the timestamp is most of the work.
    return (
        f"{moment.year:04d}-{_TWO_DIGITS[moment.month]}-{_TWO_DIGITS[moment.day]}"
        f"T{_TWO_DIGITS[moment.hour]}:{_TWO_DIGITS[moment.minute]}"
        f":{_TWO_DIGITS[moment.second]}.{moment.microsecond // 1000:03d}Z"
    )


def plain_number(number: Decimal) -> str:
    """Return a finite decimal without an exponent, with its scale: `1.50E+1` is `15.0`.

    Raises `ValueError` if the number is not finite, or has more than `DIGITS` digits.
    """
    if not number.is_finite():
        raise ValueError("JSON has no NaN and no infinity.")
    # The check comes before format(), because 1E+999999999 would become a gigabyte of zeros. For zero,
    # `adjusted` is the exponent. A number without an exponent does not become longer.
    text = str(number)
    if "E" in text:
        if abs(number.adjusted()) > DIGITS:
            raise ValueError(NUMBER_TOO_LONG)
        text = format(number, "f")
    if len(text) > DIGITS and len(text.strip("-").replace(".", "", 1)) > DIGITS:
        raise ValueError(NUMBER_TOO_LONG)
    return text
