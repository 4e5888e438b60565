"""The items of an order, and what was chosen with each, in whatever structure a platform keeps them.

What is chosen with an item may be an allergy ("NO NUTS"). So a structure that is not the contract's
list of objects is read where its meaning is plain, and is `NotCoercible`, which keeps and reports it,
where it is not. Nothing is dropped, except an option that says that it was not selected.
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
"""How deep the JSON in a text may be: it takes the text's place within other JSON."""

_OPENING: Final = ("[", "{")
# isinstance() takes half as long with a tuple as with `int | Decimal`, which is made anew each time.
_NUMBERS: Final = (int, Decimal)
_LISTS: Final = (list, tuple)
_STRUCTURES: Final = (list, dict)
MOST_PARTS: Final = 2000
"""How many lines and addons an order may have together."""
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
"""A group's name is repeated in that of each option. These bound what a hostile order makes of that."""


def array(value: object) -> list[object]:
    """A list, or the JSON text of one as a text column holds it; other text is its one element."""
    value = _decoded(value)
    if isinstance(value, str):
        return [value] if value.strip() else []
    if not isinstance(value, _LISTS):
        raise NotCoercible
    return list(value)


def objects(value: object, known: frozenset[str] = frozenset()) -> list[Part]:
    """The parts of an order as objects; an element that is no object is the name of a part.

    An object in the place of a list is one part if it has one of the `known` names, and otherwise a
    map from ids or names to parts: `{"21": {"name": "Soup"}}`, `{"Soup": 2}`, `{"Soup": true}`.
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
    """Raise `Unprocessable` (`invalid_event`) for more lines and addons than an order may have.

    Each costs some sixteen microseconds to read, and a body of a mebibyte has room for 100,000. What
    is counted is what may become a part: each element of a list, and each eighth member of an object.
    """
    count, level = len(lines), list[object](lines)
    while level and count <= MOST_PARTS:
        inner: list[object] = []
        for value in level:
            # Nearly all values are texts or numbers, and a class of `abc` takes six times as long to check.
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
    """What was chosen with an item: as `objects`, with the options of a group in its place.

    An option's name then begins with its group's, since a group may be called "Without".
    """
    return list(_ungrouped(objects(value, known), known))


def _ungrouped(parts: Iterable[Part], known: frozenset[str]) -> Iterator[Part]:
    for part in parts:
        if part and known and known.isdisjoint(part) and _STRUCTURE.isdisjoint(part):
            # In a list too it is a map: [{"allergy": "no nuts"}].
            entries = (each for name, value in part.items() for each in _entry(name, value, known))
            yield from _ungrouped(entries, known)
            continue
        inner = [name for name in _OPTIONS if isinstance(part.get(name), _STRUCTURES)]
        if not inner:
            yield part
            continue
        options = [option for name in inner for option in choices(part[name], known)]
        # What has a price, or a name and no options, was chosen itself.
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
    """The part that one member of a map stands for."""
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
    """The value whose JSON text this is, if it is one."""
    if isinstance(value, str) and value.lstrip()[:1] in tuple(opening):
        try:
            return decode(value, depth=_DEPTH_IN_TEXT)
        except InvalidMessage:
            pass
    return value
