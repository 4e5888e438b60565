"""JSON Schemas of the types of requests and answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import getdoc
from typing import Any, Final

import msgspec
from msgspec import inspect

from posd.web.http.models import RequestModel, ResponseModel, members
from posd.web.openapi.event_schemas import Schema

_REFS: Final = "#/components/schemas/{name}"


def components(types: Iterable[type[ResponseModel] | type[RequestModel]]) -> dict[str, Schema]:
    """Return the schemas of these types and of the types of their members, by the names of the types."""
    requested = dict.fromkeys(types)
    _, schemas = msgspec.json.schema_components(requested, ref_template=_REFS)
    for kind in _structures(requested):
        schema = schemas[kind.cls.__name__] = _numbers(schemas[kind.cls.__name__])
        schema.pop("title")
        schema["description"] = getdoc(kind.cls)
        if issubclass(kind.cls, ResponseModel):
            _complete(schema, kind)
        if issubclass(kind.cls, ResponseModel | RequestModel):
            schema.update(kind.cls.extra_schema)
        if not schema["required"]:
            del schema["required"]
    return schemas


def body(kind: type[RequestModel]) -> Schema:
    """Return the schema of a body that `posd.web.http.models.read` reads, with the aliases of members."""
    schema = components([kind])[kind.__name__]
    for member in members(kind):
        found = schema["properties"][member.name]
        if member.aliases:
            found["x-also"] = [*member.aliases]
        if member.is_text:
            _or_integer(found)
    return schema


def parameters(kind: type[RequestModel]) -> Iterator[dict[str, Any]]:
    """Yield the query parameters that are read into a type."""
    schema = components([kind])[kind.__name__]
    for member in members(kind):
        found = schema["properties"][member.name]
        parameter: dict[str, Any] = {"name": member.name, "in": "query"}
        if member.name in schema.get("required", ()):
            parameter["required"] = True
        if "description" in found:
            parameter["description"] = found.pop("description")
        if member.aliases:
            parameter["x-also"] = [*member.aliases]
        yield {**parameter, "schema": found}


def _complete(schema: Schema, kind: inspect.StructType) -> None:
    """Mark all members of an answer as required that cannot be `UNSET`."""
    schema["required"] = [each.encode_name for each in kind.fields if not _may_be_left_out(each)]
    if "success" in schema["properties"]:
        schema["properties"] = {"success": {"const": True}, **schema["properties"]}
    for each in schema["properties"].values():
        each.pop("default", None)


def _may_be_left_out(field: inspect.Field) -> bool:
    """Return whether the default of a member is `UNSET`. msgspec shows that as no default."""
    nothing = msgspec.NODEFAULT
    return not field.required and field.default is field.default_factory is nothing


def _or_integer(schema: Schema) -> None:
    """Permit an integer where an id is a string: `read` converts the integer to its digits."""
    if schema.get("type") == "string":
        schema["type"] = ["string", "integer"]
    for each in schema.get("anyOf", ()):
        _or_integer(each)


def _numbers(schema: Any) -> Any:
    """Return a schema whose decimals are numbers."""
    if isinstance(schema, dict):
        if schema.get("format") == "decimal":
            schema = {**schema, "type": "number"}
            del schema["format"]
        return {name: _numbers(value) for name, value in schema.items()}
    return [_numbers(each) for each in schema] if isinstance(schema, list) else schema


def _structures(types: Iterable[type]) -> list[inspect.StructType]:
    """Return these types and the types of their members."""
    found: dict[type, inspect.StructType] = {}
    waiting: list[Any] = [*inspect.multi_type_info(types)]
    while waiting:
        match waiting.pop():
            case inspect.StructType(cls=kind) as structure if kind not in found:
                found[kind] = structure
                waiting += [each.type for each in structure.fields]
            case inspect.Metadata(type=inner):
                waiting.append(inner)
            case inspect.UnionType(types=inner):
                waiting += inner
            case inspect.ListType(item_type=inner) | inspect.VarTupleType(item_type=inner):
                waiting.append(inner)
            case inspect.DictType(value_type=inner):
                waiting.append(inner)
    return [*found.values()]
