"""Formats JSON Schemas for people: tables of members, types in words, limits as sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from twisted.web.template import Tag, tags

from posd.protocol import jsontext

Content = Tag | str
Node = Mapping[str, Any]

_CODE: Final = re.compile(r"`([^`]+)`")
_FORMATS: Final = {"date-time": "time", "date": "date"}
_LIMITS: Final = {
    "minimum": "At least {}.",
    "exclusiveMinimum": "More than {}.",
    "maximum": "At most {}.",
    "exclusiveMaximum": "Less than {}.",
    "minItems": "At least {} entries.",
    "maxItems": "At most {} entries.",
    "maxLength": "Up to {} characters.",
}


def prose(text: str) -> Iterator[Tag]:
    """Yield the paragraphs of a text. Text in backticks becomes code."""
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            yield tags.p(*line(paragraph))


def line(text: str) -> list[Content]:
    """Return the content of one paragraph."""
    parts = _CODE.split(" ".join(text.split()))
    return [tags.code(part) if index % 2 else part for index, part in enumerate(parts)]


def name_in(schema: Node) -> str | None:
    """Return the name of the component that a schema refers to, or None."""
    reference = schema.get("$ref")
    return None if reference is None else str(reference).rpartition("/")[2]


def form(schema: Node) -> list[Content]:
    """Return the type of a value in words: `string`, `list of Item`, `number or null`."""
    name = name_in(schema)
    if name is not None:
        return [tags.a(name, href=f"#{name}")]
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return _joined(form(each) for each in schema[several])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return _joined([tags.code(jsontext.encode(value).decode())] for value in values)
    kinds = schema.get("type", "any value")
    return _joined(
        _type_words(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)
    )


def members(schema: Node, *, sent: bool = False) -> Iterator[Tag]:
    """Yield a table of an object's members, and the rules for several members.

    In an object that clients have `sent`, required members are marked; otherwise optional members are.
    """
    needed = {*schema.get("required", ())}
    mark = "required" if sent else "optional"
    properties = schema.get("properties", {})
    if properties:
        yield table(
            (name, each, mark if (name in needed) == sent else "", _description(each))
            for name, each in properties.items()
        )
    for sentence in _combined_rules(schema):
        yield tags.p(*sentence)


def table(rows: Iterable[tuple[str, Node, str, str]]) -> Tag:
    """Return a table. A row has a name, a schema, a mark beside the name, and a description."""
    return tags.table(
        tags.tr(
            tags.td(tags.code(name), " ", tags.span(mark, class_="mark")),
            tags.td(*form(schema)),
            tags.td(*line(" ".join([what, *_limits(schema)]))),
        )
        for name, schema, mark, what in rows
    )


def _type_words(kind: str, schema: Node) -> list[Content]:
    if kind == "array" and "items" in schema:
        return ["list of ", *form(schema["items"])]
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return ["object of ", *form(schema["additionalProperties"])]
    if kind == "string":
        return [_FORMATS.get(schema.get("format", ""), kind)]
    return [kind]


def _description(schema: Node) -> str:
    """Return the description of a member; a nullable one has it in an alternative of `anyOf`."""
    found = [schema, *schema.get("anyOf", ())]
    return next((str(each["description"]) for each in found if "description" in each), "")


def _limits(schema: Node) -> Iterator[str]:
    for keyword, sentence in _LIMITS.items():
        if keyword in schema:
            yield sentence.format(schema[keyword])
    if "default" in schema:
        yield f"`{jsontext.encode(schema['default']).decode()}` by default."
    if "examples" in schema:
        yield f"Examples: {', '.join(f'`{each}`' for each in schema['examples'])}."
    if "x-also" in schema:
        yield f"Also called {', '.join(f'`{name}`' for name in schema['x-also'])}."
    for part in schema.get("anyOf", ()):
        yield from _limits(part)


def _combined_rules(schema: Node) -> Iterator[list[Content]]:
    """Yield the rules of a schema for several members."""
    alternatives = [_alternative(each) for each in schema.get("anyOf", ())]
    if alternatives:
        yield ["Either ", *_joined(alternatives), "."]
    for rule in schema.get("allOf", ()):
        match rule:
            case {"$ref": _}:
                yield ["And the members of ", *form(rule), "."]
            case {"if": {"properties": condition}, "then": {"properties": consequence}}:
                ((name, value),), ((then, what),) = condition.items(), consequence.items()
                yield [
                    *("Where ", tags.code(name), " is ", *form(value)),
                    *(", ", tags.code(then), " is ", *form(what), "."),
                ]


def _alternative(schema: Node) -> list[Content]:
    names = schema.get("required")
    if names is None:
        return ["the members of ", *form(schema)]
    codes: list[list[Content]] = [[tags.code(name)] for name in names]
    return _joined(codes, " and ")


def _joined(parts: Iterable[list[Content]], between: str = " or ") -> list[Content]:
    joined: list[Content] = []
    for part in parts:
        joined += [between, *part] if joined else part
    return joined
