"""Converts the values of other software to the types that deployed tills expect.

A till drops a whole order if one value has the wrong type, and platforms send `"12.50"`, `17.0` and
`2026-11-22 18:30`. The functions return the normal form of a value, or raise `NotCoercible` if they would
have to guess. They take time linear in their input, and are not called with None. Addresses are in
`posd.events.addresses`, and lists of items and addons in `posd.events.order_parts`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_HALF_EVEN, Decimal

from posd.protocol.json_literals import timestamp
from posd.protocol.jsontext import encode

ID_LENGTH = 255
"""The longest id, in characters."""

_ID_NUMBERS = range(-(10 ** (ID_LENGTH - 1)), 10**ID_LENGTH)

INT32 = range(-(2**31), 2**31)
INT64 = range(-(2**63), 2**63)

_AMOUNT_LIMIT = 10**11
"""The limit of amounts, as in `numeric(14,3)`. The decimal types of tills allow more."""
_USUAL_LENGTH = 13
"""An amount of up to this length with one or two decimals is below the limit, such as `99999999999.9`."""

_NUMERAL_LENGTH = 40
_NUMERAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[Tt ](\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?) ?([Zz]|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
_NO_TIME = frozenset(("null", "none", "nil", "undefined", "n/a", "-", "0", "infinity", "-infinity"))
_NO_DAYS = (
    *("0000-", "0001-", "9999-"),
    *("1753-01-01", "1899-12-30", "1899-12-31", "1900-01-01", "1969-12-31", "1970-01-01"),
)
_FIRST_YEAR, _LAST_YEAR = "1970", "2199"
"""The years of an order's times. The limits exclude years of the Buddhist calendar, such as 2569."""
_DECIMALS = 6
_QUANTUM = Decimal(1).scaleb(-_DECIMALS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIX_SECONDS = range(10**9, 10**11)
"""The years 2001 to 5138. Larger numbers are milliseconds."""


class NotCoercible(Exception):
    """A value cannot be converted without guessing."""


def text(value: object) -> str:
    """Return a string unchanged, and any other value as JSON text."""
    if isinstance(value, str):
        return value
    try:
        return encode(value).decode()
    except (TypeError, ValueError):
        raise NotCoercible from None


def label(value: object) -> str | None:
    """Return `text`; None if it is empty or white space."""
    written = text(value)
    return None if not written or written.isspace() else written


def enum_word(value: object) -> str | None:
    """Return a keyword in snake_case, such as `dine_in` for `Dine-In`; None if it is empty."""
    if not isinstance(value, str):
        raise NotCoercible
    if value.isalpha() and value.islower():
        return value
    return "_".join(value.replace("-", " ").lower().split()) or None


def identifier(value: object) -> str | None:
    """Return an id as a string without surrounding white space; None if it is empty.

    An integer, or a number such as `17.0`, is an id too.
    """
    name = value.strip() if isinstance(value, str) else str(integer(value, _ID_NUMBERS))
    if len(name) > ID_LENGTH:
        raise NotCoercible
    return name or None


def amount(value: object) -> Decimal | int | None:
    """Return an amount of money from a number or a numeric string; None if the string is empty.

    More than six decimals are the noise of binary floats, and are rounded. Zeros after the second decimal
    are removed. Other digits are unchanged.
    """
    if type(value) is Decimal:
        digits = str(value)
        if len(digits) <= _USUAL_LENGTH and "." in digits[-3:-1]:  # as in nearly all amounts
            return value
    number = _parse_number(value)
    if isinstance(number, Decimal):
        number = _round_noise(number)
    if number is not None and not -_AMOUNT_LIMIT < number < _AMOUNT_LIMIT:
        raise NotCoercible
    return number


def integer(value: object, bounds: range = INT64) -> int | None:
    """Return an integer within `bounds`, also from `2.0` and `"2"`; None if the string is empty."""
    if type(value) is int and value in bounds:
        return value
    number = _parse_number(value)
    if number is None:
        return None
    # The bounds are checked first, because int(Decimal("1e300")) would be a large integer.
    if not bounds.start <= number < bounds.stop or number != int(number):
        raise NotCoercible
    return int(number)


def point_in_time(value: object, zone: tzinfo) -> str | None:
    """Return a point in time as ISO 8601 in UTC; None for an empty string and for `means_none`.

    The value is ISO 8601 with `T` or a space, or Unix time in seconds or milliseconds. A value without a UTC
    offset is in `zone`. A date alone is midnight of that day. A year before 1970 or after 2199 is
    `NotCoercible`.
    """
    return _check_year(_parse_point(value, "00:00", zone))


def appointment(value: object, zone: tzinfo) -> str | None:
    """Return `point_in_time`. A date alone is `NotCoercible`, since a kitchen needs a time of day."""
    return _check_year(_parse_point(value, None, zone))


def deadline(value: object, zone: tzinfo) -> str | None:
    """Return `point_in_time` of any year. A date alone is the last millisecond of that day."""
    return _parse_point(value, "23:59:59.999", zone)


def means_none(value: object) -> bool:
    """Whether software writes this value to mean that there is no time.

    Such values are words (`null`, PostgreSQL's `infinity`), false, 0, and the first or last date of a
    calendar: year 1 (.NET, Go), year 0 (MySQL), 1753 and 1900 (SQL Server), 1899 (OLE, Delphi,
    spreadsheets), the Unix epoch in any time zone, and year 9999. `ASAP` is not such a value.
    """
    if isinstance(value, str):
        written = value.strip().lower() if len(value) <= _NUMERAL_LENGTH else ""
        return written in _NO_TIME or (
            written.startswith(_NO_DAYS) and _DATE.fullmatch(written) is not None
        )
    return value is False or (isinstance(value, int | Decimal) and value == 0)


def _parse_number(value: object) -> Decimal | int | None:
    if isinstance(value, Decimal):
        if value.is_finite():
            return value
    elif isinstance(value, bool):
        pass
    elif isinstance(value, int):
        return value
    elif isinstance(value, float):
        return _parse_number(Decimal(repr(value)))
    elif isinstance(value, str):
        digits = value.strip() if len(value) <= _NUMERAL_LENGTH else value
        if not digits:
            return None
        if len(digits) <= _NUMERAL_LENGTH and _NUMERAL.fullmatch(digits):
            return Decimal(digits)
    raise NotCoercible


def _round_noise(number: Decimal) -> Decimal:
    digits = str(number)
    if "E" in digits or len(digits.partition(".")[2]) > _DECIMALS:
        try:
            number = number.quantize(_QUANTUM, ROUND_HALF_EVEN)
        except ArithmeticError:
            raise NotCoercible from None
        digits = format(number, "f")
    units, _, decimals = digits.partition(".")
    if len(decimals) <= 2:
        return number
    return Decimal(f"{units}.{decimals.rstrip('0').ljust(2, '0')}")


def _parse_point(value: object, clock: str | None, zone: tzinfo) -> str | None:
    """Return the point in time of a value. `clock` is the time of day for a date alone."""
    if means_none(value):
        return None
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return _unix_time(value)
    return _parse_date(value, clock, zone)


def _check_year(point: str | None) -> str | None:
    if point is not None and not _FIRST_YEAR <= point[:4] <= _LAST_YEAR:
        raise NotCoercible
    return point


def _parse_date(value: object, clock: str | None, zone: tzinfo) -> str | None:
    if not isinstance(value, str) or len(value) > _NUMERAL_LENGTH:
        raise NotCoercible
    if not (date := value.strip()):
        return None
    if (match := _DATE.fullmatch(date)) is None:
        raise NotCoercible
    day, named, offset = match.groups()
    if (clock := named or clock) is None:
        raise NotCoercible
    try:
        read = datetime.fromisoformat(f"{day}T{clock}{(offset or '').upper()}")
        return timestamp(read if offset else read.replace(tzinfo=zone))
    except (ValueError, OverflowError):
        raise NotCoercible from None


def _unix_time(value: int | Decimal) -> str:
    if not _UNIX_SECONDS.start <= value < _UNIX_SECONDS.stop * 1000:
        raise NotCoercible
    milliseconds = int(value * 1000 if value < _UNIX_SECONDS.stop else value)
    return timestamp(_EPOCH + timedelta(milliseconds=milliseconds))
