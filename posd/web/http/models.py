"""The base classes of requests and answers, and the validation of requests.

`RequestModel` and `ResponseModel` are frozen msgspec structures. Their attributes are in snake_case, and
their JSON members in camelCase. A member of a request is accepted in both spellings, and under the names of
`also_named`. If it occurs under two names, both must have the same value. Unknown members are ignored. The
description of the API is generated from these classes.
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
"""The value of an optional member that is absent. It differs from null."""


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
    """Return the annotation of a member that is also accepted under these names."""
    return Meta(extra={"also": names})


Amount = Annotated[Decimal, Meta(extra={"code": "invalid_amount"})]
"""An amount of money: a JSON number, read exactly. Its decimals are checked later, by the currency."""
Points = Annotated[int, Meta(gt=0, lt=2**53, extra={"code": "invalid_amount"})]
"""A number of loyalty points to move: an integer above zero that a double represents exactly."""
Identity = Annotated[str, Meta(min_length=1, max_length=255)]
"""An id, such as that of an order. A number is accepted and converted to its digits."""
Text = Annotated[str, Meta(max_length=500)]
"""A text for people."""
Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""A time as posd formats it: RFC 3339 in UTC with milliseconds."""


def schema_reference(name: str) -> Meta:
    """Return the annotation of a member whose schema is one of `posd.web.openapi.event_schemas`."""
    return Meta(extra_json_schema={"$ref": f"#/components/schemas/{name}"})


_QUOTED_VALUE: Final = re.compile(r"(?<=Invalid enum value) .*(?= - at `)", re.DOTALL)
_MEMBER_PATH: Final = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_MISSING: Final = re.compile(r"^Object missing required field `([^`]+)`")


@frozen
class ModelMember:
    """How a member of a request is found and read."""

    name: str
    aliases: tuple[str, ...]
    code: str | None
    """The code of a refusal of the member; None for `invalid_field`."""
    is_amount: bool
    is_integer: bool
    is_text: bool


def read(kind: type[T], sent: Mapping[str, object], *, strict: bool = True) -> T:
    """Validate the members of a request. If it is not `strict`, the values are texts of a query.

    Raises `BadRequest` (`invalid_field`, `missing_field`) and, for amounts of money or points,
    `Unprocessable` (`invalid_amount`). `field` in the details names the member.
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
    """Raise the refusal of `read` if one of these members must be a number.

    `unreadable` has the names of members whose numbers posd cannot represent, such as NaN.
    """
    for member in members(kind):
        if member.is_amount or member.is_integer:
            for name in (member.name, *member.aliases):
                if name in unreadable:
                    raise _refusal(member, f"{name} is not a number that posd can read exactly.")


def to_json_members(given: ResponseModel) -> dict[str, object]:
    """Return the members of an answer as JSON values, `success` first, without those that are `UNSET`."""
    members: dict[str, object] = msgspec.to_builtins(given, builtin_types=(Decimal,))
    first = {"success": members["success"]} if "success" in members else {}
    return first | members


@functools.cache
def members(kind: type[RequestModel]) -> tuple[ModelMember, ...]:
    """Return how the members of a request are found and read."""
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
    """Return the types in a union or an annotation, and the `extra` of the annotations."""
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
    """Convert equivalent JSON values: 7.0 to 7 for an integer, and 7 to "7" for a text."""
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
    """Return whether two values of a member differ. 12.50 and 12.5 do not."""
    return jsontext.encode(one) != jsontext.encode(other) and one != other


def _refusal_from_message(
    text: str, members: Mapping[str, ModelMember]
) -> BadRequest | Unprocessable:
    """Return a refusal that names the member, from an error message of msgspec."""
    # Invalid enum values are the only input that msgspec repeats in its messages.
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
