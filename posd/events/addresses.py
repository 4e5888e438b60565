"""Converts the postal addresses of platforms, which may be objects or lists, to one string."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import count
from operator import itemgetter

from posd.errors import InvalidMessage
from posd.events.coercion import NotCoercible, text
from posd.protocol.jsontext import decode

_ENVELOPE_ORDER = {
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
_MOST_PARTS = 200
"""The limit of the values in an address."""
_NOT_POSTAL = frozenset(
    (
        *("id", "uuid", "type", "label", "placeid"),
        *("lat", "lng", "lon", "long", "latitude", "longitude", "x", "y"),
        *("coordinate", "coordinates", "coords", "geo", "geometry", "geohash", "latlng", "latlong"),
    )
)
_COORDINATES = re.compile(r"[-+]?\d{1,3}\.\d{3,}°?(?:\s*[,; ]\s*[-+]?\d{1,3}\.\d{3,}°?)?", re.ASCII)
"""A text with a latitude, a longitude, or both. A member such as `location` may have it."""


def address(value: object) -> str | None:
    """Return a postal address as one string, with the parts of an object in the order of an envelope.

    Coordinates, ids and numbers without a postal name are omitted. Returns None for an empty object or list.
    Raises `NotCoercible` if no part is postal, so that the value is moved to `unreadable`.
    """
    if isinstance(value, str):
        structure = _structure(value)
        if structure is None:
            return value
        value = structure
    parts = _parts(value, count(1), is_named=False)
    if not parts and value not in ({}, []):
        raise NotCoercible
    return ", ".join(parts) or None


def _structure(written: str) -> object | None:
    """Decode a text that is a JSON object or array; None for any other text."""
    if written.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return decode(written)
    except InvalidMessage:
        return None


def _parts(value: object, counter: Iterator[int], *, is_named: bool) -> list[str]:
    """Return the parts of an address in order. `is_named`: the member has a postal name."""
    if next(counter) > _MOST_PARTS:
        raise NotCoercible
    if isinstance(value, Mapping):
        ranked = [
            (_ENVELOPE_ORDER.get(key, len(_ENVELOPE_ORDER)), part)
            for name, member in value.items()
            if (key := str(name).replace("_", "").lower()) not in _NOT_POSTAL
            for part in _parts(member, counter, is_named=key in _ENVELOPE_ORDER)
        ]
        ranked.sort(key=itemgetter(0))
        parts = [part for _, part in ranked]
    elif isinstance(value, list | tuple):
        parts = [part for member in value for part in _parts(member, counter, is_named=is_named)]
    elif value is None or isinstance(value, bool):
        parts = []
    elif isinstance(value, int | float | Decimal):
        # A number without a postal name may be a distance, a coordinate or the key of a table.
        parts = [text(value)] if is_named else []
    else:
        written = text(value).strip()
        parts = [] if not is_named and _COORDINATES.fullmatch(written) else [written]
    return [part for part in dict.fromkeys(parts) if part]
