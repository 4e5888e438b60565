"""The warnings about repaired values of an event, for its publisher, the log and the metrics.

A warning names the member. It does not contain the value, which may be a customer's name or number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final

from attrs import evolve

from posd.values import WARNING_CODES, PublishWarning

UNREADABLE, SCHEDULE_AS_TEXT, QUANTITY_REPLACED, NAME_MISSING, CHARACTER_REPLACED = WARNING_CODES

MOST: Final = 20
"""The limit of warnings for an event. More warnings would not help to find the fault."""
_LONGEST_NAME: Final = 60
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_MESSAGES: Final = {
    UNREADABLE: "{kind} that cannot be read: it is in the event under `unreadable` only.",
    SCHEDULE_AS_TEXT: "{kind} that is not a point in time: it is in the event as `scheduledText`.",
    QUANTITY_REPLACED: "{kind} that is not a whole number: the quantity is 1, and the"
    " line's instructions show the sent quantity.",
    NAME_MISSING: "There is no name: posd uses a general word.",
    CHARACTER_REPLACED: "{kind} with a character that cannot be stored (U+0000, or half of a"
    " surrogate pair): posd replaces it with U+FFFD.",
}


class WarningCollector:
    """Collects the warnings about an event, up to `MOST`."""

    def __init__(self) -> None:
        self._all: list[PublishWarning] = []

    def add(self, code: str, member: str, value: object) -> None:
        """Add a warning about the value of a member."""
        if len(self._all) < MOST:
            message = _MESSAGES[code].format(kind=_kind(value))
            self._all.append(PublishWarning(member, code, message))

    def count(self) -> int:
        return len(self._all)

    def prefix_members(self, since: int, where: str) -> None:
        """Prefix `where` to the members of all warnings except the first `since`."""
        self._all[since:] = [
            evolve(each, member=f"{where}.{each.member}") for each in self._all[since:]
        ]

    def drop(self, code: str, *members: str) -> None:
        """Remove the warnings of this code about these members."""
        self._all = [each for each in self._all if each.code != code or each.member not in members]

    def all(self) -> tuple[PublishWarning, ...]:
        return tuple(self._all)


def note_replaced(warnings: WarningCollector, data: object) -> None:
    """Add a warning for each member whose text or name contains U+FFFD."""
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
    """Return the JSON type of a value, to begin a sentence with."""
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
