"""JSON text to values and back, exactly: no number passes through a binary float.

An integer is an `int`, any other number a `Decimal` that keeps its digits (`12.30` stays `12.30`).
What PostgreSQL's `jsonb` cannot hold never gets in: U+0000 and halves of surrogate pairs become U+FFFD,
and numbers of more than 40 digits (`literals.DIGITS`) are refused before anything is expanded. A byte
order mark before the text is ignored (RFC 8259 §8.1): programs on Windows write one. Of members that
repeat a name the last one counts, as in `jsonb` (RFC 8259 §4 leaves it open).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, cast

import msgspec

from posd.errors import InvalidMessage, NumberOutOfRange
from posd.protocol import surrogates
from posd.protocol.json_literals import DIGITS, NUMBER_TOO_LONG, plain_number

DEPTH = 32
"""How many objects and arrays may stand inside one another."""

RawJSON = msgspec.Raw
"""A part of a value that is JSON already, which `encode` puts in as it is."""

_CONTAINERS = (dict, list)
_NUL, _ESCAPED_NUL, _REPLACEMENT = "\0", b"\\u0000", "\N{REPLACEMENT CHARACTER}"
# A longer numeral is not given to Decimal. "-", the digits, "." and an exponent fit into it.
_NUMERAL_LENGTH = 2 * DIGITS
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789.", b"0000000000")
_LONG_RUN = b"0" * (DIGITS + 1)
_STRING_OR_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*+"|[-+.0-9eE]++')
_INTEGER_LIMIT = 10**DIGITS

# One value in eight bytes is more than any order or report has. An empty object, which needs three,
# costs a hundred times as much as the bytes of a text.
_LEAST_VALUES, _BYTES_PER_VALUE = 8192, 8
# Of each container on the average.
_MANY_MEMBERS = 1000
_STEP_BYTES, _STEP_VALUES = 16 * 1024, 2048
_NOT_A_NUMBER = object()
_NOT_A_NUMBER_BYTES = 8 * 1024


def decode(raw: bytes | str, *, depth: int = DEPTH) -> object:
    """Read one JSON text (RFC 8259), UTF-8, nested up to `depth`.

    The time is proportional to the length, whatever the text is: the number of values is limited
    to one in eight bytes (8192 are always allowed), and the length of a number to `DIGITS`.
    Half of a surrogate pair, which software makes that cuts a text within an emoji, is read as U+FFFD.

    Raises `NumberOutOfRange` and `InvalidMessage`, whose text says what is wrong without quoting
    the input.
    """
    text = _utf8(raw)
    _check_values(text)
    return _decode(text, depth)


def needs_repair(raw: bytes | str) -> bool:
    """Whether `decode` replaces characters of this text, if it is one that it can read."""
    text = raw.encode(errors="replace") if isinstance(raw, str) else raw
    if b"\\" not in text:
        return False
    return has_nul(text) or (b"\\u" in text and surrogates.replace_half_pairs(text) != text)


def most_values(size: int) -> int:
    """How many values a text of so many bytes may have that `decode` is to read."""
    return max(_LEAST_VALUES, size // _BYTES_PER_VALUE)


def has_nul(text: bytes) -> bool:
    """Whether it has an escaped U+0000, which `decode` replaces."""
    # One byte is found much faster than six, and most texts have no escapes.
    return b"\\" in text and _ESCAPED_NUL in text


def decode_stored(raw: bytes | str) -> object:
    """Read a JSON text that a shop's database holds, where nobody can be told to send another.

    A number with more than `DIGITS` digits becomes the string of what stands there. Everything
    else is as in `decode`.
    """
    text = _utf8(raw)
    _check_values(text)
    if _LONG_RUN in text.translate(_DIGITS_TO_ZERO):
        text = _STRING_OR_NUMBER.sub(_quoted_if_long, text)
    return _check(_parse(_stored_decoder, text, DEPTH), text, DEPTH)


def decode_own(raw: bytes | str, *, depth: int = DEPTH) -> object:
    """Read a JSON text that `encode` wrote, here or in another posd: it may have any number of values.

    An order whose text had as many values as `decode` allows has some more once it is stored.
    """
    return _decode(_utf8(raw), depth)


def decode_in_steps(raw: bytes, *, depth: int = DEPTH) -> Generator[None, None, object]:
    """Read a long JSON text as `decode` does, and yield after each part of some 16 KiB.

    The generator returns the value. A long container is split into its members, which costs one
    quick pass over its text; neighbours that are small are read together.
    """
    text = _utf8(raw)
    _check_values(text)
    return (yield from _decode_in_steps(text, depth))


def unrepresentable_numbers(raw: bytes) -> set[str]:
    """The members of an object whose numbers `decode` refuses: NaN, an infinity, or too many digits.

    It explains why `decode` refused a text; the values are not used. Only members of the outermost
    object count. A text of more than 8 KiB is not looked at: exponents cost some microseconds each, and
    a movement of money has some hundred bytes.
    """
    if len(raw) > _NOT_A_NUMBER_BYTES:
        return set()
    try:
        value = _lenient.decode(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return set()
    if not isinstance(value, dict):
        return set()
    return {name for name, member in value.items() if member is _NOT_A_NUMBER}


def encode(value: object) -> bytes:
    """Write a value as compact JSON: raw UTF-8, members in their order, numbers in plain notation.

    Takes what `decode` gives, and besides floats (by their shortest digits), tuples, `RawJSON` and
    any mapping with string keys. Characters that JSON cannot carry to PostgreSQL become U+FFFD, as they
    do in `decode`. Raises `ValueError` for NaN, infinities, numbers longer than `DIGITS` allows and
    endless nesting, `TypeError` for what JSON does not have.
    """
    try:
        try:
            raw = _encoder.encode(value if _is_writable((value,)) else _copy_writable(value))
        except UnicodeEncodeError:
            return _encoder.encode(_copy_writable(value))
        return _encoder.encode(_copy_writable(value)) if has_nul(raw) else raw
    except RecursionError:
        raise ValueError("The value is nested too deeply for JSON.") from None


def is_deeper_than(value: object, depth: int) -> bool:
    """Whether more than so many objects and arrays stand inside one another."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(depth):
        if not level:
            return False
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, _CONTAINERS)
        ]
    return bool(level)


def _utf8(raw: bytes | str) -> bytes:
    try:
        return (raw.encode() if isinstance(raw, str) else raw).removeprefix(codecs.BOM_UTF8)
    except UnicodeError:
        raise InvalidMessage(_NOT_UTF8) from None


def _check_values(text: bytes) -> None:
    """Raise `InvalidMessage` for more values than a text of this length may have.

    What separates and opens values is counted in strings too: to tell would cost as much as to read.
    """
    most = most_values(len(text))
    if len(text) > most and text.count(b",") + text.count(b"[") + text.count(b"{") > most:
        raise InvalidMessage(f"A text of {len(text)} bytes may have at most {most} values.")


def _parse(decoder: msgspec.json.Decoder[Any], text: bytes, depth: int) -> Any:
    try:
        try:
            return decoder.decode(text)
        except msgspec.DecodeError:
            repaired = surrogates.replace_half_pairs(text)
            if repaired == text:
                raise
            return decoder.decode(repaired)
    except UnicodeError:
        raise InvalidMessage(_NOT_UTF8) from None
    except msgspec.DecodeError as error:
        if str(error).startswith("Integer value out of range"):
            raise NumberOutOfRange(NUMBER_TOO_LONG) from None
        raise InvalidMessage(f"The text is not valid JSON: {error}.") from None
    except RecursionError:
        raise InvalidMessage(_too_deep(depth)) from None


def _check(value: object, text: bytes, depth: int) -> object:
    # Both searches look at the bytes alone, so that an ordinary text costs no walk.
    if text.count(b"{") + text.count(b"[") > depth and is_deeper_than(value, depth):
        raise InvalidMessage(_too_deep(depth))
    return _without_nul(value) if has_nul(text) else value


def _decode(text: bytes, depth: int) -> object:
    value = _check(_parse(_decoder, text, depth), text, depth)
    if _LONG_RUN in text.translate(_DIGITS_TO_ZERO) and _has_long_integer(value):
        raise NumberOutOfRange(NUMBER_TOO_LONG)
    return value


def _decode_in_steps(text: bytes, depth: int) -> Generator[None, None, object]:
    opening = text.lstrip()[:1]
    if len(text) <= _STEP_BYTES or depth < 1 or opening not in (b"{", b"["):
        return _decode(text, depth)
    if _is_wide(text):
        # So many members are read more quickly with their values than without: 80,000 in a mebibyte in 14 ms
        # instead of 45 ms, measured.
        return _decode(text, depth)
    layer = _parse(_object_layer if opening == b"{" else _array_layer, text, depth)
    yield
    values: list[object] = []
    for group in _groups(layer.values() if opening == b"{" else layer):
        if len(group) == 1:
            values.append((yield from _decode_in_steps(group[0], depth - 1)))
        else:
            values += cast("list[object]", _decode(b"[%b]" % b",".join(group), depth))
        yield
    if opening == b"[":
        return values
    return {_without_nul(name): value for name, value in zip(layer, values, strict=True)}


def _is_wide(text: bytes) -> bool:
    """Whether it has many members for each container, and few values that cost more than others.

    A number with a fraction or an exponent is read by `_number`: 80,000 of those take 110 ms.
    """
    commas = text.count(b",")
    if commas <= _MANY_MEMBERS or commas <= _MANY_MEMBERS * (text.count(b"{") + text.count(b"[")):
        return False
    return not has_nul(text) and sum(map(text.count, (b".", b"e", b"E"))) <= _STEP_VALUES


def _groups(parts: Iterable[msgspec.Raw]) -> Iterator[list[bytes]]:
    """Neighbours together, as long as they are few and small."""
    group: list[bytes] = []
    size = 0
    for part in map(bytes, parts):
        if group and (size + len(part) > _STEP_BYTES or len(group) >= _STEP_VALUES):
            yield group
            group, size = [], 0
        group.append(part)
        size += len(part)
    if group:
        yield group


def _number(text: str) -> Decimal:
    """msgspec's hook for each number that has a fraction or an exponent."""
    if len(text) <= DIGITS and "e" not in text and "E" not in text:
        return Decimal(text)
    if len(text) <= _NUMERAL_LENGTH:
        try:
            return Decimal(plain_number(Decimal(text)))
        except (ArithmeticError, ValueError):
            pass
    raise NumberOutOfRange(NUMBER_TOO_LONG)


def _number_or_none(text: str) -> object:
    try:
        return _number(text)
    except NumberOutOfRange:
        return _NOT_A_NUMBER


def _stored_number(text: str) -> Decimal | str:
    try:
        return _number(text)
    except NumberOutOfRange:
        return text


def _quoted_if_long(found: re.Match[bytes]) -> bytes:
    token = found[0]
    # Anything longer than `DIGITS` is left to `_stored_number`, but for integers, which have no hook.
    if len(token) > DIGITS and token.lstrip(b"-").isdigit() and len(token.lstrip(b"-")) > DIGITS:
        return b'"%b"' % token
    return token


def _has_long_integer(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_long_integer(member) for member in value.values())
    if isinstance(value, list):
        return any(_has_long_integer(member) for member in value)
    return isinstance(value, int) and not -_INTEGER_LIMIT < value < _INTEGER_LIMIT


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


def _is_writable(values: dict[str, object] | list[object] | tuple[object]) -> bool:
    """Whether msgspec writes these as they should be written; most are, and nothing is copied."""
    for value in values.values() if type(values) is dict else values:
        kind = type(value)
        if kind is str or kind is int or value is None:
            continue
        if kind is Decimal:
            if str(value).strip("-.0123456789"):  # an exponent, NaN or Infinity
                return False
        elif kind is RawJSON:
            continue
        elif kind is dict or kind is list:
            if not _is_writable(value):  # type: ignore[arg-type]  # mypy does not follow `kind`
                return False
        elif kind is not bool:
            return False
    return True


def _copy_writable(value: object) -> object:
    """A copy of `value` that msgspec writes as it should be written."""
    if value is None or isinstance(value, int | RawJSON):
        return value
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, float):
        value = Decimal(repr(value))
    if isinstance(value, Decimal):
        return msgspec.Raw(plain_number(value).encode())
    if isinstance(value, Mapping):
        return {_name(name): _copy_writable(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_copy_writable(member) for member in value]
    raise TypeError(f"JSON has no {type(value).__name__}.")


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"A JSON member cannot be named by a {type(name).__name__}.")
    return _storable(name)


def _storable(text: str) -> str:
    """A text without U+0000 and without halves of surrogate pairs; two that make a pair become one."""
    text = text.replace(_NUL, _REPLACEMENT)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


_NOT_UTF8 = "The text is not valid UTF-8."
_decoder = msgspec.json.Decoder(float_hook=_number)
_stored_decoder = msgspec.json.Decoder(float_hook=_stored_number)
_object_layer = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array_layer = msgspec.json.Decoder(list[msgspec.Raw])
_encoder = msgspec.json.Encoder(decimal_format="number")
_lenient = json.JSONDecoder(
    parse_int=_number_or_none,
    parse_float=_number_or_none,
    parse_constant=lambda _: _NOT_A_NUMBER,
)
