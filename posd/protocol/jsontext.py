"""Decodes and encodes JSON text without loss: no number becomes a binary float.

An integer is an `int`. Any other number is a `Decimal` with its digits (`12.30` stays `12.30`). Values that
PostgreSQL's `jsonb` cannot store are not accepted: U+0000 and halves of surrogate pairs become U+FFFD, and
numbers with more than 40 digits (`json_literals.DIGITS`) are refused before they are expanded. A byte order
mark before the text, which programs on Windows write, is ignored (RFC 8259 §8.1). If an object has two
members with the same name, the last one is used, as in `jsonb` (RFC 8259 §4 allows either).
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
"""The limit of nested objects and arrays."""

RawJSON = msgspec.Raw
"""A part of a value that is JSON text. `encode` copies it unchanged."""

_CONTAINERS = (dict, list)
_NUL, _ESCAPED_NUL, _REPLACEMENT = "\0", b"\\u0000", "\N{REPLACEMENT CHARACTER}"
# The limit of the text of a number that is passed to Decimal: "-", the digits, "." and an exponent fit.
_NUMERAL_LENGTH = 2 * DIGITS
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789.", b"0000000000")
_LONG_RUN = b"0" * (DIGITS + 1)
_STRING_OR_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*+"|[-+.0-9eE]++')
_INTEGER_LIMIT = 10**DIGITS

# No order or report has more than one value in eight bytes. An empty object has three bytes, and takes a
# hundred times as long to decode as three bytes of a string.
_LEAST_VALUES, _BYTES_PER_VALUE = 8192, 8
# The average number of members of a container in a wide text.
_MANY_MEMBERS = 1000
_STEP_BYTES, _STEP_VALUES = 16 * 1024, 2048
_NOT_A_NUMBER = object()
_NOT_A_NUMBER_BYTES = 8 * 1024


def decode(raw: bytes | str, *, depth: int = DEPTH) -> object:
    """Decode a JSON text (RFC 8259) in UTF-8, nested up to `depth`.

    The time is proportional to the length for any text, because the number of values is limited to one in
    eight bytes (8,192 are always allowed), and the digits of a number to `DIGITS`. Half of a surrogate pair,
    which software writes that cuts a text within an emoji, becomes U+FFFD.

    Raises `NumberOutOfRange` or `InvalidMessage`. The text of the error does not quote the input.
    """
    text = _utf8(raw)
    _check_values(text)
    return _decode(text, depth)


def needs_repair(raw: bytes | str) -> bool:
    """Whether `decode` would replace characters of a valid text."""
    text = raw.encode(errors="replace") if isinstance(raw, str) else raw
    if b"\\" not in text:
        return False
    return has_nul(text) or (b"\\u" in text and surrogates.replace_half_pairs(text) != text)


def most_values(size: int) -> int:
    """Return the limit of values for a text of `size` bytes."""
    return max(_LEAST_VALUES, size // _BYTES_PER_VALUE)


def has_nul(text: bytes) -> bool:
    """Whether a text has an escaped U+0000, which `decode` replaces."""
    # The search for one byte is much faster than the search for six, and most texts have no escapes.
    return b"\\" in text and _ESCAPED_NUL in text


def decode_stored(raw: bytes | str) -> object:
    """Decode a JSON text of a shop's database, which posd cannot refuse.

    A number with more than `DIGITS` digits becomes a string. Everything else is as in `decode`.
    """
    text = _utf8(raw)
    _check_values(text)
    if _LONG_RUN in text.translate(_DIGITS_TO_ZERO):
        text = _STRING_OR_NUMBER.sub(_quoted_if_long, text)
    return _check(_parse(_stored_decoder, text, DEPTH), text, DEPTH)


def decode_own(raw: bytes | str, *, depth: int = DEPTH) -> object:
    """Decode a JSON text that `encode` has written. The number of values is not limited.

    An order with as many values as `decode` allows has more values after posd has normalised and stored it.
    """
    return _decode(_utf8(raw), depth)


def decode_in_steps(raw: bytes, *, depth: int = DEPTH) -> Generator[None, None, object]:
    """Decode a long JSON text as `decode` does, and yield after each part of about 16 KiB.

    The generator returns the value. A long container is split into its members, which takes a quick pass over
    its text. Adjacent small members are decoded together.
    """
    text = _utf8(raw)
    _check_values(text)
    return (yield from _decode_in_steps(text, depth))


def unrepresentable_numbers(raw: bytes) -> set[str]:
    """Return the names of members with a number that `decode` refuses: NaN, infinity, or too many digits.

    The result explains why `decode` has refused a text. Only members of the outermost object are checked. For
    a text of more than 8 KiB the result is empty, because each exponent takes some microseconds, and a
    movement of money has some hundred bytes.
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
    """Encode a value as compact JSON: unescaped UTF-8, members in order, numbers in plain notation.

    The value may have the types that `decode` returns, and also floats (written with their shortest digits),
    tuples, `RawJSON` and any mapping with string keys. Characters that PostgreSQL cannot store become U+FFFD,
    as in `decode`. Raises `ValueError` for NaN, infinities, numbers with more than `DIGITS` digits and
    endless nesting, and `TypeError` for types that JSON does not have.
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
    """Whether more than `depth` objects and arrays are nested in a value."""
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
    """Raise `InvalidMessage` if a text has more values than its length allows.

    Separators and brackets within strings are counted too. To skip them would take as long as decoding.
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
    # Both searches read the bytes only, so most values are not traversed.
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
        # A wide text is decoded faster at once than in layers: 80,000 members in 1 MiB take 14 ms instead of
        # 45 ms.
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
    """Whether a text has many members for each container, and few values that take long to decode.

    Numbers with a fraction or an exponent are decoded by `_number`; 80,000 of them take 110 ms.
    """
    commas = text.count(b",")
    if commas <= _MANY_MEMBERS or commas <= _MANY_MEMBERS * (text.count(b"{") + text.count(b"[")):
        return False
    return not has_nul(text) and sum(map(text.count, (b".", b"e", b"E"))) <= _STEP_VALUES


def _groups(parts: Iterable[msgspec.Raw]) -> Iterator[list[bytes]]:
    """Group adjacent parts, up to 16 KiB and 2,048 parts in a group."""
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
    """Decode a number with a fraction or an exponent. msgspec calls this hook."""
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
    # `_stored_number` handles the other long numbers. msgspec has no hook for integers.
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
    """Whether msgspec encodes the values correctly. This is so for most values, which are not copied."""
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
    """Return a copy of `value` that msgspec encodes correctly."""
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
    """Replace U+0000 and halves of surrogate pairs. Two adjacent halves of a pair become one character."""
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
