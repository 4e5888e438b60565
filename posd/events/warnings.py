"""What was odd about an event as it was published, for its publisher, the log and the metrics.

A warning names a member, and never has its value, which may be a customer's name or number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final

from attrs import evolve

from posd.values import WARNING_CODES, PublishWarning

UNREADABLE, SCHEDULE_AS_TEXT, QUANTITY_REPLACED, NAME_MISSING, CHARACTER_REPLACED = WARNING_CODES

MOST: Final = 20
"""How many warnings an event has at most; one that has more is wrong everywhere."""
_LONGEST_NAME: Final = 60
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_MESSAGES: Final = {
    UNREADABLE: "{kind} that cannot be read: it is in the event under `unreadable` only.",
    SCHEDULE_AS_TEXT: "{kind} that names no point in time: it is in the event as `scheduledText`.",
    QUANTITY_REPLACED: "{kind} that is no whole number: the quantity is 1, and the"
    " line's instructions say what was sent.",
    NAME_MISSING: "There is no name: a general word stands in its place.",
    CHARACTER_REPLACED: "{kind} with a character that cannot be stored (U+0000, or half of a"
    " surrogate pair): U+FFFD stands in its place.",
}


class WarningCollector:
    """Gathers the warnings about one event, up to `MOST`."""

    def __init__(self) -> None:
        self._all: list[PublishWarning] = []

    def add(self, code: str, member: str, value: object) -> None:
        """Note something about the value of a member."""
        if len(self._all) < MOST:
            message = _MESSAGES[code].format(kind=_kind(value))
            self._all.append(PublishWarning(member, code, message))

    def count(self) -> int:
        return len(self._all)

    def prefix_members(self, since: int, where: str) -> None:
        """Put `where` in front of the members of all warnings but the first `since`."""
        self._all[since:] = [
            evolve(each, member=f"{where}.{each.member}") for each in self._all[since:]
        ]

    def drop(self, code: str, *members: str) -> None:
        """Take back what was noted about these members."""
        self._all = [each for each in self._all if each.code != code or each.member not in members]

    def all(self) -> tuple[PublishWarning, ...]:
        return tuple(self._all)


def note_replaced(warnings: WarningCollector, data: object) -> None:
    """Note every member whose text, or name, has U+FFFD in it."""
    for member, value in _replaced("", data):
        warnings.add(CHARACTER_REPLACED, member, value)
        if warnings.count() == MOST:
            return


def _replaced(where: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, str):
        if _REPLACEMENT in value:
            yield where, value
    elif isinstance(value, Mapping):
        for name, member in value.items():
            inner = f"{where}.{name[:_LONGEST_NAME]}" if where else name[:_LONGEST_NAME]
            if _REPLACEMENT in name:
                yield inner, name
            yield from _replaced(inner, member)
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            yield from _replaced(f"{where}[{index}]", member)


def _kind(value: object) -> str:
    """What JSON calls a value."""
    match value:
        case str():
            return "A string"
        case bool():
            return "A boolean"
        case int() | float() | Decimal():
            return "A number"
        case Mapping():
            return "An object"
    return "An array"
