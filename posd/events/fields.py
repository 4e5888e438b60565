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

from posd.events.coercion import Unreadable, appointment, deadline, moment, text
from posd.events.warnings import UNREADABLE as NOT_READ
from posd.events.warnings import Warnings

UNREADABLE = "unreadable"
"""The member under which stands what had no safe reading: as it came, but a structure as its JSON
text, so that nothing is nested deeper than it was published."""


class Member(NamedTuple):
    """One known member; a plain tuple, since every order looks at some sixty of them."""

    name: str
    others: tuple[str, ...]
    """The names it is also found under, in turn until a value can be read."""
    read: Callable[..., object]
    zoned: bool
    """Whether `read` wants the shop's zone too."""
    nested: bool
    """Whether `read` has objects of its own to read, and wants the `Warnings` too."""
    nullable: bool
    """Whether it is null when unknown; if not, it is left out."""
    default: object
    """What it is when unknown, if there is such a value."""


class Table(NamedTuple):
    """The members of one kind of object."""

    members: tuple[Member, ...]
    proper: tuple[Member, ...]
    """The same members, each to be found under the contract's names alone."""
    names: frozenset[str]
    spellings: frozenset[str]
    """The names and their snake_case; a member called otherwise is not posd's to touch."""


def member(
    name: str,
    read: Callable[..., object],
    *others: str,
    nested: bool = False,
    nullable: bool = False,
    default: object = None,
) -> Member:
    """A member that is also found under its snake_case name, and then under `others`."""
    others = tuple(other for other in (snake(name), *others) if other != name)
    zoned = read in (moment, appointment, deadline)
    return Member(name, others, read, zoned, nested, nullable, default)


def table(*members: Member, also: tuple[str, ...] = ()) -> Table:
    """A table of `members`; the names in `also` are posd's too, and never kept as they are."""
    names = frozenset((*(member.name for member in members), *also))
    proper = tuple(
        member._replace(others=tuple(other for other in member.others if other in names))
        for member in members
    )
    return Table(members, proper, names, names.union(map(snake, names)))


def shape(
    data: Mapping[str, object],
    table: Table,
    *,
    zone: tzinfo = UTC,
    fill: bool = False,
    sparse: bool = False,
    warnings: Warnings | None = None,
) -> dict[str, object]:
    """The members of `table` in its order and types, then all others as they are.

    `fill` writes null for every nullable member, given or not; `sparse` leaves all nulls out. What
    has no safe reading under any of its names goes to the member `unreadable`, and is noted in
    `warnings`.
    """
    warnings = Warnings() if warnings is None else warnings
    shaped: dict[str, object] = {}
    unreadable: dict[str, object] = {}
    names = data.keys()
    strange = not table.names.issuperset(data)
    for member in table.members if strange else table.proper:
        name, others, read, zoned, nested, nullable, default = member
        odd = None
        if (value := data.get(name)) is not None:
            try:
                if zoned:
                    value = read(value, zone)
                elif nested:
                    value = read(value, warnings)
                else:
                    value = read(value)
            except Unreadable:
                odd, value = value, None
        is_elsewhere = value is None and not names.isdisjoint(others)
        if is_elsewhere:
            value, odd = _elsewhere(data, member, zone, warnings, odd)
        if value is not None:
            shaped[name] = value
            continue
        if odd is not None:
            unreadable[name] = text(odd) if isinstance(odd, dict | list) else odd
            warnings.add(NOT_READ, name, odd)
        if default is not None:
            shaped[name] = default
        elif nullable and (fill or is_elsewhere or name in data):
            shaped[name] = None
    if strange:
        shaped.update(
            (name, value)
            for name, value in data.items()
            if name not in table.spellings and not (sparse and value is None)
        )
    if unreadable:
        earlier = shaped.get(UNREADABLE)
        shaped[UNREADABLE] = {**earlier, **unreadable} if isinstance(earlier, dict) else unreadable
    return shaped


def _elsewhere(
    data: Mapping[str, object], member: Member, zone: tzinfo, warnings: Warnings, odd: object
) -> tuple[object, object]:
    """What is found under a member's other names, or else the first value that was unreadable."""
    for other in member.others:
        if (value := data.get(other)) is not None:
            try:
                if member.zoned:
                    found = member.read(value, zone)
                elif member.nested:
                    found = member.read(value, warnings)
                else:
                    found = member.read(value)
            except Unreadable:
                odd = value if odd is None else odd
            else:
                if found is not None:
                    return found, None
    return None, odd


def snake(name: str) -> str:
    """`customerName` as databases and older software spell it: `customer_name`."""
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)
