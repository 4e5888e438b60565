"""Tables of known members, and the reading of a JSON object by such a table.

A table says, member by member and in the order in which they leave, how a value is read, under which
other names it may come, and what stands there when it is unknown. Members that the table does not
know follow as they are.
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
"""The member under which stands what had no safe reading: as it came, but a structure as its JSON
text, so that nothing is nested deeper than it was published."""


class Field(NamedTuple):
    """One known member; a plain tuple, since every order looks at some sixty of them."""

    name: str
    aliases: tuple[str, ...]
    """The names it is also found under, in turn until a value can be read."""
    read: Callable[..., object]
    zoned: bool
    """Whether `read` wants the shop's zone too."""
    nested: bool
    """Whether `read` has objects of its own to read, and wants the `WarningCollector` too."""
    nullable: bool
    """Whether it is null when unknown; if not, it is left out."""
    default: object
    """What it is when unknown, if there is such a value."""


class FieldTable(NamedTuple):
    """The members of one kind of object."""

    members: tuple[Field, ...]
    canonical: tuple[Field, ...]
    """The same members, each to be found under the contract's names alone."""
    names: frozenset[str]
    spellings: frozenset[str]
    """The names and their snake_case; a member called otherwise is not posd's to touch."""


def member(
    name: str,
    read: Callable[..., object],
    *aliases: str,
    nested: bool = False,
    nullable: bool = False,
    default: object = None,
) -> Field:
    """A member that is also found under its snake_case name, and then under `aliases`."""
    aliases = tuple(other for other in (snake(name), *aliases) if other != name)
    zoned = read in (point_in_time, appointment, deadline)
    return Field(name, aliases, read, zoned, nested, nullable, default)


def table(*members: Field, extra_names: tuple[str, ...] = ()) -> FieldTable:
    """A table of `members`; the names in `extra_names` are posd's too, and never kept as they are."""
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
    """The members of `table` in its order and types, then all others as they are.

    `fill` writes null for every nullable member, given or not; `sparse` leaves all nulls out. What
    has no safe reading under any of its names goes to the member `unreadable`, and is noted in
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
    """What is found under a member's other names, or else the first value that was unreadable."""
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
    """`customerName` as databases and older software spell it: `customer_name`."""
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)
