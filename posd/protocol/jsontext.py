"""JSON text to values and back, exactly: no number passes through a binary float.

An integer is an `int`, any other number a `Decimal` that keeps its digits (`12.30` stays `12.30`).
What PostgreSQL's `jsonb` cannot hold never gets in: U+0000 becomes U+FFFD, lone surrogates and
numbers of absurd length are refused. A byte order mark before the text is ignored (RFC 8259 §8.1): programs
on Windows write one. Of members that repeat a name the last one counts, as in
`jsonb` (RFC 8259 §4 leaves it open).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from posd.errors import InvalidMessage

DEPTH = 32
"""How many objects and arrays may stand inside one another."""

DIGITS = 400
"""How many digits a number may have before its point, and after it, in plain notation: every
IEEE 754 double fits, 1e999999999 does not."""

Written = msgspec.Raw
"""A part of a value that is JSON already, which `encode` puts in as it is."""

_TOO_LONG = f"A number has more than {DIGITS} digits before or after its point."
_CONTAINERS = (dict, list)
_UNREADABLE = object()
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u)")
_NUL, _ESCAPED_NUL, _REPLACEMENT = "\0", b"\\u0000", "\N{REPLACEMENT CHARACTER}"


def decode(raw: bytes | str, *, depth: int = DEPTH) -> object:
    """Read one JSON text (RFC 8259), UTF-8 without a byte order mark, nested up to `depth`.

    Raises `InvalidMessage`, whose text says what is wrong without quoting the input.
    """
    try:
        text = (raw.encode() if isinstance(raw, str) else raw).removeprefix(codecs.BOM_UTF8)
        value: object = _decoder.decode(text)
    except UnicodeError:
        raise InvalidMessage("The text is not valid UTF-8.") from None
    except msgspec.DecodeError as error:
        raise InvalidMessage(f"The text is not valid JSON: {_what(error, text)}.") from None
    except RecursionError:
        raise InvalidMessage(_too_deep(depth)) from None
    # Both searches look at the bytes alone, so that an ordinary text costs no walk.
    if text.count(b"{") + text.count(b"[") > depth and deeper(value, depth):
        raise InvalidMessage(_too_deep(depth))
    return _without_nul(value) if _ESCAPED_NUL in text else value


def unreadable_numbers(raw: bytes) -> set[str]:
    """Which members of an object are numbers that `decode` refuses: too long, NaN or an infinity.

    It says why a text was refused, and reads nothing for use. Members further down do not count.
    """
    try:
        value = _lenient.decode(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return set()
    if not isinstance(value, dict):
        return set()
    return {name for name, member in value.items() if member is _UNREADABLE}


def encode(value: object) -> bytes:
    """Write a value as compact JSON: raw UTF-8, members in their order, numbers in plain notation.

    Takes what `decode` gives, and besides floats (by their shortest digits), tuples, `Written` and
    any mapping with string keys. Raises `ValueError` for NaN, infinities, lone surrogates, numbers
    longer than `DIGITS` allows and endless nesting, `TypeError` for what JSON does not have.
    """
    try:
        raw = _encoder.encode(value if _is_plain((value,)) else _plain(value))
        return _encoder.encode(_plain(value)) if _ESCAPED_NUL in raw else raw
    except RecursionError:
        raise ValueError("The value is nested too deeply for JSON.") from None


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-11-22T10:00:00.123Z`.

    `moment` is aware; a naive one raises `ValueError`, since nobody knows when it is.
    """
    if moment.utcoffset() is None:
        raise ValueError("A timestamp needs a time zone.")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def plain_number(number: Decimal) -> str:
    """A finite decimal without an exponent, its scale kept: `1.50E+1` is `15.0`.

    Raises `ValueError` for what is not finite or longer than `DIGITS` allows.
    """
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError("JSON has no NaN and no infinity.")
    # Before anything is written out: 1E+999999999 would be a gigabyte of zeros.
    if exponent < -DIGITS or len(digits) + exponent > DIGITS:
        raise ValueError(_TOO_LONG)
    return format(number, "f")


def deeper(value: object, depth: int) -> bool:
    """Whether more than so many objects and arrays stand inside one another."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(depth):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, _CONTAINERS)
        ]
    return bool(level)


def _number(text: str) -> Decimal:
    """msgspec's hook for each number that has a fraction or an exponent."""
    try:
        if len(text) <= DIGITS and "e" not in text and "E" not in text:
            return Decimal(text)
        if len(text) <= 3 * DIGITS:
            return Decimal(plain_number(Decimal(text)))
    except (ArithmeticError, ValueError):
        pass
    raise InvalidMessage(_TOO_LONG)


def _what(error: msgspec.DecodeError, raw: bytes) -> str:
    """What is wrong, in msgspec's words where they are true.

    Half of a surrogate pair near the end is a truncated text to it.
    """
    if "truncated" in str(error) and _HALF_PAIR.search(raw):
        return "a character is half of a surrogate pair"
    return str(error)


def _too_deep(depth: int) -> str:
    return f"The text is nested more than {depth} levels deep."


def _without_nul(value: object) -> object:
    if isinstance(value, str):
        return value.replace(_NUL, _REPLACEMENT)
    if isinstance(value, dict):
        return {_without_nul(name): _without_nul(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_without_nul(member) for member in value]
    return value


def _is_plain(values: dict[str, object] | list[object] | tuple[object]) -> bool:
    """Whether msgspec writes these as they should be written; most are, and nothing is copied."""
    for value in values.values() if type(values) is dict else values:
        kind = type(value)
        if kind is str or kind is int or value is None:
            continue
        if kind is Decimal:
            if str(value).strip("-.0123456789"):  # an exponent, NaN or Infinity
                return False
        elif kind is Written:
            continue
        elif kind is dict or kind is list:
            if not _is_plain(value):  # type: ignore[arg-type]  # mypy does not follow `kind`
                return False
        elif kind is not bool:
            return False
    return True


def _plain(value: object) -> object:
    """A copy of `value` that msgspec writes as it should be written."""
    if value is None or isinstance(value, int | Written):
        return value
    if isinstance(value, str):
        return value.replace(_NUL, _REPLACEMENT)
    if isinstance(value, float):
        value = Decimal(repr(value))
    if isinstance(value, Decimal):
        return msgspec.Raw(plain_number(value).encode())
    if isinstance(value, Mapping):
        return {_name(name): _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    raise TypeError(f"JSON has no {type(value).__name__}.")


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"A JSON member cannot be named by a {type(name).__name__}.")
    return name.replace(_NUL, _REPLACEMENT)


def _or_unreadable(read: Callable[[str], object]) -> Callable[[str], object]:
    """A hook of the standard library's reader, which says what it cannot read and goes on."""

    def number(text: str) -> object:
        try:
            return read(text)
        except (ValueError, InvalidMessage):
            return _UNREADABLE

    return number


_decoder = msgspec.json.Decoder(float_hook=_number)
_encoder = msgspec.json.Encoder(decimal_format="number")
_lenient = json.JSONDecoder(
    parse_float=_or_unreadable(_number),
    parse_int=_or_unreadable(int),
    parse_constant=lambda _: _UNREADABLE,
)
