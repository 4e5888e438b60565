"""What endpoints take and give, as types: they read requests, and the API's description is made of them.

A request or an answer is a `RequestModel` or a `ResponseModel`, a frozen msgspec structure whose
attributes are in
snake_case and whose JSON members are in camelCase. A taken member is found under either spelling, and
under the names in its annotation's `also`; one that comes under two names must have one value.
Members that a type does not know are ignored.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import msgspec
from attrs import frozen
from msgspec import Meta, inspect

from posd.errors import BadRequest, Unprocessable
from posd.protocol import jsontext

Unset = msgspec.UnsetType
UNSET: Final = msgspec.UNSET
"""An optional member that was not sent, or that is left out; unlike null."""


class RequestModel(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A request's members."""

    extra_schema: ClassVar[Mapping[str, object]] = {}
    """What JSON Schema says of it that its members do not, for its description."""


class ResponseModel(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of an answer."""

    extra_schema: ClassVar[Mapping[str, object]] = {}
    """What JSON Schema says of it that its members do not, for its description."""


class SuccessModel(ResponseModel, frozen=True, kw_only=True):
    """The members of an answer that is a success."""

    success: Literal[True] = True


T = TypeVar("T", bound=RequestModel)


def also_named(*names: str) -> Meta:
    """The annotation of a member that also comes under these names."""
    return Meta(extra={"also": names})


Amount = Annotated[Decimal, Meta(extra={"code": "invalid_amount"})]
"""Money: a JSON number, read exactly. How many decimals it may have is the currency's affair."""
Points = Annotated[int, Meta(gt=0, lt=2**53, extra={"code": "invalid_amount"})]
"""Loyalty points that are moved: a whole number above zero, within what every JSON reader keeps."""
Identity = Annotated[str, Meta(min_length=1, max_length=255)]
"""What names something: an order, a movement. A number is taken for its digits."""
Text = Annotated[str, Meta(max_length=500)]
"""A sentence for people."""
Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""A point in time as posd writes it: RFC 3339 in UTC with milliseconds."""


def schema_reference(name: str) -> Meta:
    """The annotation of a member whose schema has a name of its own: see `web.event_schemas`."""
    return Meta(extra_json_schema={"$ref": f"#/components/schemas/{name}"})


_QUOTED_VALUE: Final = re.compile(r"(?<=Invalid enum value) .*(?= - at `)", re.DOTALL)
_MEMBER_PATH: Final = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_MISSING: Final = re.compile(r"^Object missing required field `([^`]+)`")


@frozen
class ModelMember:
    """A member as it is found in what was sent."""

    name: str
    aliases: tuple[str, ...]
    code: str | None
    """What it is refused with, where that is not `invalid_field`."""
    is_amount: bool
    is_integer: bool
    is_text: bool


def read(kind: type[T], sent: Mapping[str, object], *, strict: bool = True) -> T:
    """A request's members, checked. Not `strict`: they are texts, as in a query.

    Raises `BadRequest` (`invalid_field`, `missing_field`) and, for what moves money or points,
    `Unprocessable` (`invalid_amount`); `field` in the details says which member it is.
    """
    found: dict[str, object] = {}
    known = members(kind)
    for member in known:
        named = [name for name in (member.name, *member.aliases) if name in sent]
        if not named:
            continue
        value = sent[named[0]]
        if any(differ(sent[other], value) for other in named[1:]):
            raise _refusal(
                member,
                f"{' and '.join(named)} are names of the same member and have different values.",
            )
        found[member.name] = _coerced(member, value) if strict else value
    try:
        return msgspec.convert(found, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _refusal_from_message(str(error), {each.name: each for each in known}) from None


def refuse_numbers(kind: type[RequestModel], unreadable: Collection[str]) -> None:
    """Raise what `read` would for a number, if one of these members is to be one."""
    for member in members(kind):
        if member.is_amount or member.is_integer:
            for name in (member.name, *member.aliases):
                if name in unreadable:
                    raise _refusal(member, f"{name} is not a number that posd can read exactly.")


def to_json_members(given: ResponseModel) -> dict[str, object]:
    """An answer's members as JSON has them, `success` first; those that are `UNSET` are left out."""
    members: dict[str, object] = msgspec.to_builtins(given, builtin_types=(Decimal,))
    first = {"success": members["success"]} if "success" in members else {}
    return first | members


@functools.cache
def members(kind: type[RequestModel]) -> tuple[ModelMember, ...]:
    """How each member of a request is found and read."""
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    found = []
    for each in described.fields:
        kinds, extra = _types_and_extra(each.type)
        aliases = dict.fromkeys((each.name, *extra.get("also", ())))
        aliases.pop(each.encode_name, None)
        found.append(
            ModelMember(
                each.encode_name,
                tuple(aliases),
                extra.get("code"),
                inspect.DecimalType in kinds,
                inspect.IntType in kinds,
                inspect.StrType in kinds,
            )
        )
    return tuple(found)


def _types_and_extra(kind: inspect.Type) -> tuple[set[type], dict[str, Any]]:
    """The types in a union or an annotation, and what the annotations have besides."""
    if isinstance(kind, inspect.Metadata):
        kinds, extra = _types_and_extra(kind.type)
        return kinds, extra | (kind.extra or {})
    if isinstance(kind, inspect.UnionType):
        kinds, extra = set(), {}
        for part in kind.types:
            more, more_extra = _types_and_extra(part)
            kinds |= more
            extra |= more_extra
        return kinds, extra
    return {type(kind)}, {}


def _coerced(member: ModelMember, value: object) -> object:
    """What JSON leaves open: 7.0 is a whole number, and 7 names an order as well as "7" does."""
    if member.is_amount:
        if isinstance(value, str):
            raise _refusal(member, f"{member.name} must be a number.")
    elif member.is_integer:
        if isinstance(value, Decimal) and value == value.to_integral_value():
            return int(value)
    elif member.is_text and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def differ(one: object, other: object) -> bool:
    """Whether two spellings of a member say different things; 12.50 and 12.5 do not."""
    return jsontext.encode(one) != jsontext.encode(other) and one != other


def _refusal_from_message(
    text: str, members: Mapping[str, ModelMember]
) -> BadRequest | Unprocessable:
    """A refusal that names the member, from what msgspec says."""
    # Of all that it refuses it repeats only this.
    text = _QUOTED_VALUE.sub("", text)
    missing = _MISSING.match(text)
    place = _MEMBER_PATH.search(text)
    if missing is not None:
        where = f"{place[1]}.{missing[1]}" if place else missing[1]
        return BadRequest(f"{where} is missing.", code="missing_field", details={"field": where})
    where = place[1] if place else ""
    what = _MEMBER_PATH.sub("", text)
    member = members.get(where)
    if member is None:
        return BadRequest(f"{where}: {what}.", code="invalid_field", details={"field": where})
    return _refusal(member, f"{where}: {what}.")


def _refusal(member: ModelMember, sentence: str) -> BadRequest | Unprocessable:
    details = {"field": member.name}
    if member.code is not None:
        return Unprocessable(sentence, code=member.code, details=details)
    return BadRequest(sentence, code="invalid_field", details=details)
