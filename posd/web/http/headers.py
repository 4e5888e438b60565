"""What header fields and request targets mean where they have several lines, several members or an odd form.

RFC 9110 §5.3 allows a sender to split a list over several field lines, and a proxy to join them. A field
that takes one value may not be sent twice; where it is, two programs on the way may use different ones.
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
"""The values of each field by its name in lower case. A value has a character for each byte."""


def read_fields(headers: Headers) -> Fields:
    """The fields of a request, which are read several times: to charge it, to let it in, and to answer it."""
    return {
        name.decode("latin-1").lower(): [value.decode("latin-1") for value in values]
        for name, values in headers.getAllRawHeaders()
    }


def headers_of(fields: Fields) -> Headers:
    """The same in Twisted's form."""
    return Headers(
        {
            name.encode("latin-1"): [value.encode("latin-1") for value in values]
            for name, values in fields.items()
        }
    )


def as_text(value: str) -> str:
    """A header's value. Node, Deno and .NET send ISO-8859-1, as HTTP did once (RFC 9110 §5.5)."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def keys_in(fields: Fields) -> list[str]:
    """The credentials in a request: those of X-API-Key, or else of Authorization."""
    keys = [key for value in fields.get("x-api-key", ()) if (key := value.strip())]
    if keys:
        return keys
    given = [value.partition(" ") for value in fields.get("authorization", ())]
    bearers = (token.strip() for scheme, _, token in given if scheme.lower() == "bearer")
    return [token for token in bearers if token]


def members(lines: Iterable[str]) -> set[str]:
    """The members of a list-based field in lower case, without empty ones (RFC 9110 §5.6.1)."""
    each = (member.strip(_BLANKS).lower() for line in lines for member in line.split(","))
    return set(filter(None, each))


@memoize
def path_parts(path: bytes) -> tuple[bytes, ...]:
    """The parts of a path, decoded, without the first slash."""
    return tuple(unquote_to_bytes(part) for part in path.split(b"/")[1:])


_dated: tuple[int, bytes] = 0, b""


def date() -> bytes:
    """The value of Date now (RFC 9110 §6.6.1). It is written once a second."""
    global _dated
    now = int(time.time())
    if _dated[0] != now:
        _dated = now, datetimeToString(now)
    return _dated[1]


@memoize
def is_host(value: str) -> bool:
    """Whether this may stand in Host (RFC 9112 §3.2). An empty value may."""
    return _HOST.fullmatch(value) is not None


def is_loopback(value: str) -> bool:
    """Whether a Host names this machine: `localhost`, 127.0.0.0/8 or `[::1]`, with or without a port.

    Names are not looked up, since the DNS of an attacker may lead any of them here. Other spellings
    of an address, such as `2130706433` or `0x7f.1`, are names too: a browser sends the usual one.
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
    # Without brackets the colons of an IPv6 address would be ambiguous, so _HOST has none there.
    return address.is_loopback


def read_target(method: bytes, target: bytes) -> RequestTarget | None:
    """Read a request target; None for one that no request to a server has.

    RFC 9112 §3.2.2 obliges servers to accept the absolute form, which proxies send. `*` is for OPTIONS
    only; it stands for no resource, so it is returned as it is. The authority form is for proxies.
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
