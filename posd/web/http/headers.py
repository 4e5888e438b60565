"""Parses header fields and request targets, with several lines, several members or unusual forms.

RFC 9110 §5.3 permits a sender to split a list into several field lines, and a proxy to join them. A field
with one value must not be sent twice, because a proxy and posd may use different ones.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final
from urllib.parse import unquote_to_bytes

from attrs import frozen
from twisted.web.http import datetimeToString
from twisted.web.http_headers import Headers

from posd.memo import memoize

_BLANKS: Final = " \t"
# RFC 9110 §7.2 and RFC 3986 §3.2.2: a name, an IPv4 address or an IPv6 address in brackets, and a port.
_HOST: Final = re.compile(
    r"(\[[0-9A-Za-z:._~%-]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(?::([0-9]*))?", re.ASCII
)
# RFC 9112 §3.2: printable ASCII. A fragment is never sent.
_TARGET: Final = re.compile(rb"[\x21\x22\x24-\x7e]+")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)


@frozen
class RequestTarget:
    """A request target in origin form, and the authority of one that came in absolute form."""

    origin: bytes
    authority: bytes | None = None


Fields = dict[str, list[str]]
"""The values of fields by their names in lower case. A value has one character for each byte."""


def read_fields(headers: Headers) -> Fields:
    """Return the fields of a request. posd decodes them once, because it reads them several times."""
    return {
        name.decode("latin-1").lower(): [value.decode("latin-1") for value in values]
        for name, values in headers.getAllRawHeaders()
    }


def headers_of(fields: Fields) -> Headers:
    """Return fields as an object of Twisted."""
    return Headers(
        {
            name.encode("latin-1"): [value.encode("latin-1") for value in values]
            for name, values in fields.items()
        }
    )


def as_text(value: str) -> str:
    """Return a header's value as text: UTF-8, or ISO-8859-1 if it is not UTF-8.

    Node, Deno and .NET send ISO-8859-1, the historical encoding of HTTP (RFC 9110 §5.5).
    """
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def keys_in(fields: Fields) -> list[str]:
    """Return the credentials in a request: from X-API-Key, or else from Authorization."""
    keys = [key for value in fields.get("x-api-key", ()) if (key := value.strip())]
    if keys:
        return keys
    given = [value.partition(" ") for value in fields.get("authorization", ())]
    bearers = (token.strip() for scheme, _, token in given if scheme.lower() == "bearer")
    return [token for token in bearers if token]


def members(lines: Iterable[str]) -> set[str]:
    """Return the members of a list-based field in lower case, without empty ones (RFC 9110 §5.6.1)."""
    each = (member.strip(_BLANKS).lower() for line in lines for member in line.split(","))
    return set(filter(None, each))


@memoize
def path_parts(path: bytes) -> tuple[bytes, ...]:
    """Return the percent-decoded segments of a path, without the first slash."""
    return tuple(unquote_to_bytes(part) for part in path.split(b"/")[1:])


_dated: tuple[int, bytes] = 0, b""


def date() -> bytes:
    """Return the present value of Date (RFC 9110 §6.6.1). It is formatted once a second."""
    global _dated
    now = int(time.time())
    if _dated[0] != now:
        _dated = now, datetimeToString(now)
    return _dated[1]


@memoize
def is_host(value: str) -> bool:
    """Return whether this is a valid value of Host (RFC 9112 §3.2). An empty value is valid."""
    return _HOST.fullmatch(value) is not None


def is_loopback(value: str) -> bool:
    """Return whether a Host is `localhost`, in 127.0.0.0/8, or `[::1]`, with or without a port.

    Names are not looked up, because an attacker's DNS may resolve any name to this machine. Other spellings
    of an address, such as `2130706433` or `0x7f.1`, count as names. A browser sends the usual one.
    """
    found = _HOST.fullmatch(value)
    if found is None:
        return False
    host = found[1]
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    # _HOST accepts an IPv6 address only in brackets.
    return address.is_loopback


def read_target(method: bytes, target: bytes) -> RequestTarget | None:
    """Parse a request target. Return None if it is not valid.

    A server must accept the absolute form, which proxies send (RFC 9112 §3.2.2). `*` is valid with OPTIONS
    only, and is returned unchanged. The authority form is for proxies only, and is refused.
    """
    if _TARGET.fullmatch(target) is None:
        return None
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return RequestTarget(target)
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return None
    authority, rest = absolute.groups()
    if not authority or not is_host(authority.decode("ascii")):
        return None
    return RequestTarget(rest if rest.startswith(b"/") else b"/" + rest, authority)
