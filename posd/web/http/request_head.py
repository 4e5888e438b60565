"""Parses a plain request head with one regular expression.

twisted.web parses a head line by line, with a dozen calls for each line. Nearly every head arrives complete
and has only plain lines, and `read_head` parses such a head at once. It returns None for any other head,
which `BoundedChannel` passes to twisted.web. So `read_head` never refuses a request, and it accepts only
heads that twisted.web parses in the same way: tests/web/http/test_request_head.py compares both.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from posd.web.http.headers import Fields

MOST_HEAD_BYTES: Final = 8192
"""The most bytes of a plain head. twisted.web accepts 16,384 bytes."""
_MOST_FIELDS: Final = 100
_LENGTH_DIGITS: Final = 9
"""The most digits of Content-Length. The longest body of an operation has 7."""
# RFC 9112 §3 and §5, without the obsolete forms. No value has control characters but HTAB (RFC 9110 §5.5).
_HEAD: Final = re.compile(
    rb"([A-Z]{1,20}) (/[\x21\x22\x24-\x7e]*+) HTTP/1\.1\r\n"
    rb"((?:[-!#$%&'*+.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)++)\r\n"
)
_FIELD: Final = re.compile(r"([^:]++):[ \t]*+([^\r]*+)\r\n")


class RequestHead(NamedTuple):
    """A parsed head. The version is HTTP/1.1."""

    method: bytes
    target: bytes
    fields: Fields
    """The values have no surrounding white space."""
    length: int | None
    """The value of Content-Length; None if there is no such field, and so no body."""
    size: int
    """The bytes of the head. The body follows it."""


def read_head(data: bytes) -> RequestHead | None:
    """Return the head at the beginning of `data`; None if it is not complete or not plain."""
    found = _HEAD.match(data, 0, MOST_HEAD_BYTES)
    if found is None:
        return None
    method, target, lines = found.groups()
    listed = _FIELD.findall(lines.decode("latin-1"))
    fields: Fields = {}
    for name, value in listed:
        fields.setdefault(name.lower(), []).append(value.rstrip(" \t"))
    if len(listed) > _MOST_FIELDS or "transfer-encoding" in fields:
        return None
    length = None
    if "content-length" in fields:
        digits, *others = fields["content-length"]
        if others or len(digits) > _LENGTH_DIGITS or not (digits.isascii() and digits.isdecimal()):
            return None
        length = int(digits)
    return RequestHead(method, target, fields, length, found.end())
