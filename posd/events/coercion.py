"""Safe readings of values that other people's software wrote.

A till drops a whole order for one value of the wrong type, and a platform sends `"12.50"`, `17.0`,
`2026-11-22 18:30` or an address in parts without a thought. Each function here gives the one form
of the contract, or raises `Unreadable` where a guess would be needed. Nothing here takes longer
than its input is long, and none is ever called with None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import count
from operator import itemgetter

from posd.errors import InvalidMessage
from posd.protocol.jsontext import decode, encode, timestamp

ID_LENGTH = 255
"""The longest id, in characters."""

_ID_NUMBERS = range(-(10 ** (ID_LENGTH - 1)), 10**ID_LENGTH)

INT32 = range(-(2**31), 2**31)
INT64 = range(-(2**63), 2**63)

_AMOUNT_LIMIT = 10**11
"""Amounts stay below it, as in `numeric(14,3)`; a till's decimal type overflows far beyond."""

_DEPTH_IN_TEXT = 16
"""How deep the JSON in a text may be: it takes the text's place within other JSON."""

_ADDRESS_PARTS = 200
"""Values of the structure that an address may be."""

_NUMERAL_LENGTH = 40
_NUMERAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[Tt ](\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?) ?([Zz]|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
_DECIMALS = 6
_NOISE = Decimal(1).scaleb(-_DECIMALS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS = range(10**9, 10**11)
"""Years 2001 to 5138; what is larger counts milliseconds."""


class Unreadable(Exception):
    """A value has no safe reading in the form that was asked for."""


def text(value: object) -> str:
    """A string as it is; a number, a boolean or a structure as its JSON text."""
    if isinstance(value, str):
        return value
    try:
        return encode(value).decode()
    except (TypeError, ValueError):
        raise Unreadable from None


def word(value: object) -> str | None:
    """One of a set of names, in the contract's spelling: `Dine-In` is `dine_in`. Empty is None."""
    if not isinstance(value, str):
        raise Unreadable
    if value.isalpha() and value.islower():
        return value
    return "_".join(value.replace("-", " ").lower().split()) or None


def identity(value: object) -> str | None:
    """An id: a string without blanks around it, or an integer, which `17.0` is too. Empty is None."""
    name = value.strip() if isinstance(value, str) else str(whole(value, _ID_NUMBERS))
    if len(name) > ID_LENGTH:
        raise Unreadable
    return name or None


def amount(value: object) -> Decimal | int | None:
    """Money as an exact number; numeric strings are read, an empty one is None (unknown).

    More than six decimals are the noise of a binary float and are rounded away; zeros after the
    second decimal are dropped. All other digits stay as they came.
    """
    number = value if type(value) is Decimal and value.is_finite() else _numeral(value)
    if isinstance(number, Decimal):
        number = _without_noise(number)
    if number is not None and not -_AMOUNT_LIMIT < number < _AMOUNT_LIMIT:
        raise Unreadable
    return number


def whole(value: object, bounds: range = INT64) -> int | None:
    """An integer within `bounds`, which `2.0` and `"2"` are too; an empty string is None."""
    if type(value) is int:
        number: Decimal | int | None = value
    else:
        number = _numeral(value)
    if number is None:
        return None
    # The bounds first: int(Decimal("1e300")) is no use to anybody.
    if not bounds.start <= number < bounds.stop or number != int(number):
        raise Unreadable
    return int(number)


def moment(value: object, zone: tzinfo) -> str | None:
    """A point in time in the contract's form; an empty string is None.

    Reads ISO 8601 with `T` or a blank, and Unix time in seconds or milliseconds. What names no
    offset is in `zone`; a date alone is its midnight.
    """
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return _unix_time(value)
    return _written(value, "00:00", zone)


def appointment(value: object, zone: tzinfo) -> str | None:
    """As `moment`, but a date alone is not enough to cook for."""
    return _written(value, None, zone) if isinstance(value, str) else moment(value, zone)


def deadline(value: object, zone: tzinfo) -> str | None:
    """As `moment`, but a date alone is valid to its last instant."""
    return _written(value, "23:59:59.999", zone) if isinstance(value, str) else moment(value, zone)


def array(value: object) -> list[object]:
    """A list, or the JSON text of one as a text column holds it; other text is its one element."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            with suppress(InvalidMessage):
                return array(decode(value, depth=_DEPTH_IN_TEXT))
        return [value] if value.strip() else []
    if not isinstance(value, list | tuple):
        raise Unreadable
    return list(value)


def objects(value: object) -> list[Mapping[str, object]]:
    """As `array`, each element an object: what is none can only be the name of something."""
    return [
        part if isinstance(part, dict) else {"name": part}
        for part in array(value)
        if part is not None
    ]


def address(value: object) -> str | None:
    """A postal address in one string: the parts of a structure, in the order of an envelope."""
    if isinstance(value, str):
        return value
    return ", ".join(_address_parts(value, count(1))) or None


_ENVELOPE = {
    name: rank
    for rank, names in enumerate(
        (
            ("company", "organisation", "organization"),
            ("flat", "unit", "apartment", "apt", "floor"),
            ("building", "buildingname", "housename"),
            ("housenumber", "streetnumber", "buildingnumber", "number", "house"),
            ("line1", "addressline1", "address1", "street", "streetaddress", "streetname", "road"),
            ("address", "fulladdress", "formatted", "formattedaddress"),
            ("line2", "addressline2", "address2"),
            ("line3", "addressline3", "address3"),
            ("area", "district", "suburb", "village", "locality"),
            ("city", "town", "posttown"),
            ("county", "state", "region", "province"),
            ("postcode", "postalcode", "zip", "zipcode"),
            ("country",),
        )
    )
    for name in names
}
_NOT_POSTAL = frozenset(
    ("id", "uuid", "type", "label", "placeid", "lat", "lng", "lon", "latitude", "longitude")
)


def _address_parts(value: object, counted: Iterator[int]) -> list[str]:
    if next(counted) > _ADDRESS_PARTS:
        raise Unreadable
    if isinstance(value, Mapping):
        ranked = [
            (_ENVELOPE.get(key, len(_ENVELOPE)), member)
            for name, part in value.items()
            if (key := str(name).replace("_", "").lower()) not in _NOT_POSTAL
            # A number that no name explains is a distance or a key of a table.
            and (key in _ENVELOPE or not isinstance(part, int | float | Decimal))
            for member in _address_parts(part, counted)
        ]
        ranked.sort(key=itemgetter(0))
        parts = [part for _, part in ranked]
    elif isinstance(value, list | tuple):
        parts = [part for member in value for part in _address_parts(member, counted)]
    elif value is None or isinstance(value, bool):
        parts = []
    else:
        parts = [text(value).strip()]
    return [part for part in dict.fromkeys(parts) if part]


def _numeral(value: object) -> Decimal | int | None:
    if isinstance(value, Decimal):
        if value.is_finite():
            return value
    elif isinstance(value, bool):
        pass
    elif isinstance(value, int):
        return value
    elif isinstance(value, float):
        return _numeral(Decimal(repr(value)))
    elif isinstance(value, str):
        digits = value.strip() if len(value) <= _NUMERAL_LENGTH else value
        if not digits:
            return None
        if len(digits) <= _NUMERAL_LENGTH and _NUMERAL.fullmatch(digits):
            return Decimal(digits)
    raise Unreadable


def _without_noise(number: Decimal) -> Decimal:
    digits = str(number)
    if digits[-3:-2] == ".":  # as nearly all are
        return number
    if "E" in digits or len(digits.partition(".")[2]) > _DECIMALS:
        try:
            number = number.quantize(_NOISE, ROUND_HALF_EVEN)
        except ArithmeticError:
            raise Unreadable from None
        digits = format(number, "f")
    units, _, decimals = digits.partition(".")
    if len(decimals) <= 2:
        return number
    return Decimal(f"{units}.{decimals.rstrip('0').ljust(2, '0')}")


def _written(value: object, clock: str | None, zone: tzinfo) -> str | None:
    """The time that a text names; `clock` is meant where it names only a day."""
    if not isinstance(value, str) or len(value) > _NUMERAL_LENGTH:
        raise Unreadable
    if not (date := value.strip()):
        return None
    if (match := _DATE.fullmatch(date)) is None:
        raise Unreadable
    day, named, offset = match.groups()
    if (clock := named or clock) is None:
        raise Unreadable
    try:
        read = datetime.fromisoformat(f"{day}T{clock}{(offset or '').upper()}")
        return timestamp(read if offset else read.replace(tzinfo=zone))
    except (ValueError, OverflowError):
        raise Unreadable from None


def _unix_time(value: int | Decimal) -> str:
    if not _SECONDS.start <= value < _SECONDS.stop * 1000:
        raise Unreadable
    milliseconds = int(value * 1000 if value < _SECONDS.stop else value)
    return timestamp(_EPOCH + timedelta(milliseconds=milliseconds))
