"""Tables of known members, and a function that reads a JSON object by such a table.

A table has, for each member in the order of the output, the function that reads the value, the other names
of the member, and its value if it is missing. Unknown members follow the known ones, unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, tzinfo
from typing import NamedTuple

from posd.events.coercion import NotCoercible, appointment, deadline, point_in_time, text
from posd.events.warnings import UNREADABLE as NOT_READ
from posd.events.warnings import WarningCollector

UNREADABLE = "unreadable"
"""The member with the values that could not be read safely, by their names. Objects and arrays are stored as
JSON text, so that no value is nested deeper than in the published event."""


class Field(NamedTuple):
    """A known member. A tuple is fast to unpack, and each order needs about 60 of them."""

    name: str
    aliases: tuple[str, ...]
    """The other names of the member, which are tried in turn until a value can be read."""
    read: Callable[..., object]
    zoned: bool
    """Whether `read` has the shop's time zone as its second argument."""
    nested: bool
    """Whether `read` reads nested objects, and has the `WarningCollector` as its second argument."""
    nullable: bool
    """Whether a missing member is null. Other missing members are left out."""
    default: object
    """The value of a missing member; None if there is no default."""


class FieldTable(NamedTuple):
    """The members of a kind of object."""

    members: tuple[Field, ...]
    canonical: tuple[Field, ...]
    """The same members, without aliases that are not names of `members` too."""
    names: frozenset[str]
    spellings: frozenset[str]
    """The names, also in snake_case. Members with other names are unknown, and are kept unchanged."""


def member(
    name: str,
    read: Callable[..., object],
    *aliases: str,
    nested: bool = False,
    nullable: bool = False,
    default: object = None,
) -> Field:
    """Return a `Field` that can also have its snake_case name, or one of `aliases`."""
    aliases = tuple(other for other in (snake(name), *aliases) if other != name)
    zoned = read in (point_in_time, appointment, deadline)
    return Field(name, aliases, read, zoned, nested, nullable, default)


def table(*members: Field, extra_names: tuple[str, ...] = ()) -> FieldTable:
    """Return a table of `members`. Input members with a name in `extra_names` are dropped."""
    names = frozenset((*(member.name for member in members), *extra_names))
    canonical = tuple(
        member._replace(aliases=tuple(other for other in member.aliases if other in names))
        for member in members
    )
    return FieldTable(members, canonical, names, names.union(map(snake, names)))


def read_object(
    data: Mapping[str, object],
    table: FieldTable,
    *,
    zone: tzinfo = UTC,
    fill: bool = False,
    sparse: bool = False,
    warnings: WarningCollector | None = None,
) -> dict[str, object]:
    """Return the members of `table` in its order and types, and then the unknown members unchanged.

    `fill` writes null for each nullable member that is missing. `sparse` omits unknown members that are null.
    A value that cannot be read under any of its names is moved to the member `unreadable`, and noted in
    `warnings`.
    """
    warnings = WarningCollector() if warnings is None else warnings
    result: dict[str, object] = {}
    unreadable: dict[str, object] = {}
    names = data.keys()
    unknown = not table.names.issuperset(data)
    for member in table.members if unknown else table.canonical:
        name, aliases, read, zoned, nested, nullable, default = member
        unread = None
        if (value := data.get(name)) is not None:
            try:
                if zoned:
                    value = read(value, zone)
                elif nested:
                    value = read(value, warnings)
                else:
                    value = read(value)
            except NotCoercible:
                unread, value = value, None
        is_elsewhere = value is None and not names.isdisjoint(aliases)
        if is_elsewhere:
            value, unread = _read_alias(data, member, zone, warnings, unread)
        if value is not None:
            result[name] = value
            continue
        if unread is not None:
            unreadable[name] = text(unread) if isinstance(unread, dict | list) else unread
            warnings.add(NOT_READ, name, unread)
        if default is not None:
            result[name] = default
        elif nullable and (fill or is_elsewhere or name in data):
            result[name] = None
    if unknown:
        result.update(
            (name, value)
            for name, value in data.items()
            if name not in table.spellings and not (sparse and value is None)
        )
    if unreadable:
        earlier = result.get(UNREADABLE)
        result[UNREADABLE] = {**earlier, **unreadable} if isinstance(earlier, dict) else unreadable
    return result


def _read_alias(
    data: Mapping[str, object],
    member: Field,
    zone: tzinfo,
    warnings: WarningCollector,
    unread: object,
) -> tuple[object, object]:
    """Return the value under a member's other names and None, or None and the first unreadable value."""
    for other in member.aliases:
        if (value := data.get(other)) is not None:
            try:
                if member.zoned:
                    found = member.read(value, zone)
                elif member.nested:
                    found = member.read(value, warnings)
                else:
                    found = member.read(value)
            except NotCoercible:
                unread = value if unread is None else unread
            else:
                if found is not None:
                    return found, None
    return None, unread


def snake(name: str) -> str:
    """Return a name in snake_case: `customer_name` for `customerName`."""
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)
