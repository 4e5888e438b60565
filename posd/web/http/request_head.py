"""Reads the head of a request at once, where it is plain.

twisted.web reads a head line by line, with a dozen calls for each line. Nearly every head arrives whole and
has nothing unusual in it; `read_head` reads such a head with one regular expression. It returns None for
every other head, which `BoundedChannel` then gives to twisted.web. So `read_head` refuses nothing. It accepts
only what twisted.web reads in the same way: tests/web/http/test_request_head.py compares the two.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from posd.web.http.headers import Fields

MOST_HEAD_BYTES: Final = 8192
"""Of a plain head. twisted.web accepts 16,384 bytes."""
_MOST_FIELDS: Final = 100
_LENGTH_DIGITS: Final = 9
"""The longest body that any operation takes has 7."""
# RFC 9112 §3 and §5, without the obsolete forms. No value has control characters but HTAB (RFC 9110 §5.5).
_HEAD: Final = re.compile(
    rb"([A-Z]{1,20}) (/[\x21\x22\x24-\x7e]*+) HTTP/1\.1\r\n"
    rb"((?:[-!#$%&'*+.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)++)\r\n"
)
_FIELD: Final = re.compile(r"([^:]++):[ \t]*+([^\r]*+)\r\n")


class RequestHead(NamedTuple):
    """A head that was read. The version is HTTP/1.1."""

    method: bytes
    target: bytes
    fields: Fields
    """Values have no white space around them."""
    length: int | None
    """The value of Content-Length; None without the field: the request has no body."""
    size: int
    """Bytes of the head. The body follows."""


def read_head(data: bytes) -> RequestHead | None:
    """The head at the beginning of `data`; None if it is not whole or not plain."""
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
