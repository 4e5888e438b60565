"""Reads the items of an order and their options from the structures that platforms use.

An option may be an allergy ("NO NUTS"), so none may be lost. A structure other than a list of objects is read
if its meaning is clear. Otherwise the functions raise `NotCoercible`, and the value is moved to `unreadable`.
Only options that are marked as not selected are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final

from posd.errors import InvalidMessage, Unprocessable
from posd.events.coercion import NotCoercible, text
from posd.protocol.jsontext import decode

Part = Mapping[str, object]

_DEPTH_IN_TEXT: Final = 16
"""The limit of nesting for JSON within a text, since the decoded value is nested in other JSON."""

_OPENING: Final = ("[", "{")
# isinstance() with a tuple takes half as long as with `int | Decimal`, which is evaluated at each call.
_NUMBERS: Final = (int, Decimal)
_LISTS: Final = (list, tuple)
_STRUCTURES: Final = (list, dict)
MOST_PARTS: Final = 2000
"""The limit of the items and addons of an order, in total."""
_MEMBERS_OF_A_PART: Final = 8

_NAMES: Final = ("name", "title", "label", "optionName", "option_name", "displayName")
_GROUPS: Final = ("group", "groupName", "group_name", "category")
_OPTIONS: Final = (
    *("options", "choices", "selections", "selected", "selectedOptions", "selected_options"),
    *("values", "items", "modifiers", "addons", "selectedAddons", "selected_addons"),
)
_STRUCTURE: Final = frozenset((*_GROUPS, *_OPTIONS))
_SELECTED: Final = ("selected", "checked", "isSelected", "is_selected")
_LONGEST_GROUP: Final = 80
_LONGEST_NAME: Final = 200
_MOST_NAMED: Final = 200
"""The name of a group is repeated in the name of each of its options. These limits bound the growth that a
hostile order can cause."""


def array(value: object) -> list[object]:
    """Return a list, or decode the JSON text of one. Another text becomes the only element of a list."""
    value = _decoded(value)
    if isinstance(value, str):
        return [value] if value.strip() else []
    if not isinstance(value, _LISTS):
        raise NotCoercible
    return list(value)


def objects(value: object, known: frozenset[str] = frozenset()) -> list[Part]:
    """Return the parts of an order as objects. An element that is not an object is the name of a part.

    If the value is an object instead of a list, it is a single part if it has one of the `known` names.
    Otherwise it is a map from ids or names to parts: `{"21": {"name": "Soup"}}`, `{"Soup": 2}`,
    `{"Soup": true}`.
    """
    value = _decoded(value)
    if isinstance(value, Mapping):
        if known & value.keys():
            return [value]
        return [part for name, each in value.items() for part in _entry(name, each, known)]
    parts = (_decoded(each, "{") for each in array(value))
    return [
        part if isinstance(part, Mapping) else {"name": part} for part in parts if part is not None
    ]


def check_parts(lines: Sequence[Part]) -> None:
    """Raise `Unprocessable` (`invalid_event`) if an order has too many items and addons.

    A part takes about 16 µs to read, and a body of 1 MiB can contain 100,000 parts. The function counts the
    values that may become parts: each element of a list, and one for each eight members of an object.
    """
    count, level = len(lines), list[object](lines)
    while level and count <= MOST_PARTS:
        inner: list[object] = []
        for value in level:
            # Most values are texts or numbers. isinstance() with `Mapping`, an abstract class, is six times
            # as slow, so it comes last.
            if isinstance(value, str):
                if value.lstrip()[:1] in _OPENING:
                    count += value.count(",") + 1
            elif value is None or isinstance(value, _NUMBERS):
                pass
            elif isinstance(value, Mapping):
                count += len(value) // _MEMBERS_OF_A_PART
                inner += value.values()
            elif isinstance(value, _LISTS):
                count += len(value)
                inner += value
            if count > MOST_PARTS:
                break
        level = inner
    if count > MOST_PARTS:
        message = f"An order may have {MOST_PARTS} lines and addons."
        raise Unprocessable(message, code="invalid_event")


def choices(value: object, known: frozenset[str] = frozenset()) -> list[Part]:
    """Return the options of an item as `objects`, with each group replaced by its options.

    The name of an option then begins with the name of its group, which may change the meaning ("Without").
    """
    return list(_ungrouped(objects(value, known), known))


def _ungrouped(parts: Iterable[Part], known: frozenset[str]) -> Iterator[Part]:
    for part in parts:
        if part and known and known.isdisjoint(part) and _STRUCTURE.isdisjoint(part):
            # An object without known names is a map in a list too: [{"allergy": "no nuts"}].
            entries = (each for name, value in part.items() for each in _entry(name, value, known))
            yield from _ungrouped(entries, known)
            continue
        inner = [name for name in _OPTIONS if isinstance(part.get(name), _STRUCTURES)]
        if not inner:
            yield part
            continue
        options = [option for name in inner for option in choices(part[name], known)]
        # A group with a price, or with a name and no options, is an option itself.
        if part.get("price") or (not options and any(name in part for name in _NAMES)):
            yield {name: each for name, each in part.items() if name not in inner}
        group = _group(part) if len(options) <= _MOST_NAMED else ""
        for option in options:
            if not any(option.get(name) is False for name in _SELECTED):
                yield _of_group(group, option)


def _of_group(group: str, option: Part) -> Part:
    name = _name(option)
    return {**option, "name": f"{group}: {name}"} if group and len(name) < _LONGEST_NAME else option


def _entry(name: str, value: object, known: frozenset[str]) -> Iterator[Part]:
    """Return the part for a member of a map, if there is one."""
    if isinstance(value, Mapping):
        if value and known and known.isdisjoint(value) and _STRUCTURE.isdisjoint(value):
            yield {"group": name, "options": value}
            return
        called = {} if name.isdecimal() or any(each in value for each in _NAMES) else {"name": name}
        yield {"id": name, **called, **value}
    elif isinstance(value, list | tuple):
        yield {"name": name, "options": list(value)}
    elif value is True:
        yield {"name": name}
    elif value is not None and value is not False:
        yield {"name": f"{name}: {text(value)}"}


def _group(part: Part) -> str:
    for name in (*_GROUPS, *_NAMES):
        given = part.get(name)
        if isinstance(given, Mapping):
            given = given.get("name")
        if isinstance(given, str) and given.strip():
            return given.strip()[:_LONGEST_GROUP]
    return ""


def _name(part: Part) -> str:
    found = next((part[name] for name in _NAMES if part.get(name) is not None), None)
    if found is None:
        found = next((part[name] for name in ("addon_id", "id") if part.get(name) is not None), "?")
    return text(found)


def _decoded(value: object, opening: str = "[{") -> object:
    """Decode a text that is JSON. Return any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in tuple(opening):
        try:
            return decode(value, depth=_DEPTH_IN_TEXT)
        except InvalidMessage:
            pass
    return value
