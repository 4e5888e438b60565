"""Endpoint descriptions in Twisted's syntax, such as `tcp:port=9010:interface=127.0.0.1`.

The syntax is that of `serverFromString` (Twisted core howto, "Getting Connected with Endpoints"): colons
separate arguments, an argument with an equals sign is named, and a backslash escapes the next character.
Twisted has no public function that splits a description without opening an endpoint, and the errors of its
private one do not help the reader of a configuration file. A test compares the results of both.

All arguments of the kinds that posd knows are checked. Other kinds may come from plugins of Twisted. Their
arguments are not checked here; Twisted reports their errors when the daemon starts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Annotated, Any, TypeAlias, get_type_hints

from attrs import NOTHING, fields, frozen


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text):
        raise ValueError(f'"{text}" is not a whole number')
    return int(text)


def _port(text: str) -> int:
    port = _number(text)
    if port > 65535:
        raise ValueError(f"{port} is not a port; the last one is 65535")
    return port


def _mode(text: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", text):
        raise ValueError(f'"{text}" is not a file mode in octal, such as 660')
    return int(text, 8)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(f'"{text}" is neither 0 nor 1')
    return text == "1"


def _interface(text: str) -> str:
    # A look-up of another name would block the reactor.
    if text not in ("", "localhost"):
        try:
            ip_address(text)
        except ValueError:
            raise ValueError(f'"{text}" is not the IP address of an interface') from None
    return text


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f'"{text}" is not an absolute path')
    return text


def _family(text: str) -> str:
    if text not in ("INET", "INET6", "UNIX"):
        raise ValueError(f'"{text}" is not INET, INET6 or UNIX')
    return text


@frozen
class TCPListener:
    """`tcp:`, a port on one address of this machine, by default on all IPv4 addresses."""

    port: Annotated[int, _port]
    interface: Annotated[str, _interface] = ""
    backlog: Annotated[int, _number] = 50


@frozen
class TCP6Listener:
    """`tcp6:`, a port by default on all IPv6 addresses. The order of arguments differs from `tcp:`."""

    port: Annotated[int, _port]
    backlog: Annotated[int, _number] = 50
    interface: Annotated[str, _interface] = "::"


@frozen
class UnixListener:
    """`unix:`, a socket in the file system. By default all users may connect, as in Twisted."""

    address: Annotated[str, _path]
    mode: Annotated[int, _mode] = 0o666
    backlog: Annotated[int, _number] = 50
    lockfile: Annotated[bool, _flag] = True


@frozen
class SystemdListener:
    """`systemd:`, a socket that systemd has opened."""

    domain: Annotated[str, _family]
    index: Annotated[int | None, _number] = None
    name: Annotated[str | None, str] = None

    def __attrs_post_init__(self) -> None:
        if (self.index is None) == (self.name is None):
            raise ValueError('"systemd:" needs either a name or an index')


@frozen
class OtherListener:
    """A kind of a plugin, or `haproxy:`, which wraps the endpoint `inner`."""

    kind: str
    inner: Endpoint | None = None


KnownListener: TypeAlias = TCPListener | TCP6Listener | UnixListener | SystemdListener
Endpoint: TypeAlias = KnownListener | OtherListener

_LISTENER_KINDS: Mapping[str, type[KnownListener]] = {
    "tcp": TCPListener,
    "tcp6": TCP6Listener,
    "unix": UnixListener,
    "systemd": SystemdListener,
}
_INTERFACE_ADDRESSES = {"": "0.0.0.0", "localhost": "127.0.0.1"}  # nosec B104
"""The addresses that Twisted uses for an empty interface and for `localhost`."""
_OWN_TLS = ("ssl", "tls", "https", "wss")
"""Kinds with a TLS of their own, or whose names suggest it, which would not use [tls]."""


def read(description: str) -> Endpoint:
    """Parse an endpoint description. Raises ValueError with the problem."""
    kind, *arguments = _split(description)
    if not (arguments and re.fullmatch("[a-z][a-z0-9_+-]*", kind)):
        raise ValueError('it must begin with a kind of endpoint, such as "tcp:" or "unix:"')
    if kind in _OWN_TLS:
        raise ValueError(f'"{kind}:" would not use [tls]; write "tcp:…" and tls = true')
    if kind == "haproxy":
        return OtherListener(kind, read(":".join(arguments)))
    if kind in _LISTENER_KINDS:
        return _build(_LISTENER_KINDS[kind], arguments)
    if near := difflib.get_close_matches(kind, [*_LISTENER_KINDS, "haproxy"], n=1):
        raise ValueError(f'"{kind}:" is not a kind of endpoint; did you mean "{near[0]}:"?')
    return OtherListener(kind)


def with_backlog(description: str, backlog: int) -> str:
    """Return the description with this backlog, unless it has a backlog or its kind takes none."""
    extended = f"{description}:backlog={backlog}"
    try:
        return (
            extended
            if isinstance(read(extended), TCPListener | TCP6Listener | UnixListener)
            else description
        )
    except ValueError:
        # The description has a backlog, or its kind takes none.
        return description


def is_local(endpoint: Endpoint) -> bool:
    """Return whether only processes of this machine can connect: a unix socket or loopback."""
    match endpoint:
        case UnixListener() | SystemdListener(domain="UNIX"):
            return True
        case TCPListener(interface=interface) | TCP6Listener(interface=interface):
            return interface == "localhost" or (
                interface != "" and ip_address(interface).is_loopback
            )
        case _:
            return False


def collide(first: str, second: str) -> bool:
    """Return whether two descriptions name the same socket, so that the second one cannot be opened."""
    match _innermost(read(first)), _innermost(read(second)):
        case TCPListener(port=0) | TCP6Listener(port=0), _:
            return False
        case UnixListener(address=one), UnixListener(address=other):
            return one == other
        case (TCPListener() | TCP6Listener() as one, TCPListener() | TCP6Listener() as other):
            return one.port == other.port and _overlap(one.interface, other.interface)
    return first == second


def _innermost(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint inside its wrappers."""
    while isinstance(endpoint, OtherListener) and endpoint.inner is not None:
        endpoint = endpoint.inner
    return endpoint


def _overlap(one: str, other: str) -> bool:
    """Return whether the same port cannot be opened on both interfaces.

    "::" includes IPv4, because neither Linux (ipv6(7)) nor Twisted sets IPV6_V6ONLY.
    """
    first, second = (ip_address(_INTERFACE_ADDRESSES.get(each, each)) for each in (one, other))
    if first == second:
        return True
    for wide, narrow in ((first, second), (second, first)):
        if wide.is_unspecified and (wide.version == 6 or narrow.version == 4):
            return True
    return False


def is_world_writable(endpoint: Endpoint) -> bool:
    """Return whether users outside the group of a unix socket may connect."""
    return isinstance(endpoint, UnixListener) and bool(endpoint.mode & 0o007)


def _split(description: str) -> list[str]:
    """Split at the colons that are not escaped. The backslashes stay."""
    if re.fullmatch(r"(?:[^\\]|\\.)*", description, re.DOTALL) is None:
        raise ValueError("it ends in a backslash that escapes nothing")
    return re.findall(r"((?:[^\\:]|\\.)*):", description + ":", re.DOTALL)


def _split_argument(text: str) -> tuple[str, str]:
    """Split `name=value`. The name is empty if the argument has none."""
    match = re.fullmatch(r"((?:[^\\=]|\\.)+)=(.*)", text, re.DOTALL)
    name, value = match.groups() if match else ("", text)
    return _unescape(name), _unescape(value)


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _build(kind: type[KnownListener], arguments: Sequence[str]) -> KnownListener:
    """Create a listener from positional and named arguments. Annotations give the parser of each argument."""
    readers = {
        name: hint.__metadata__[0]
        for name, hint in get_type_hints(kind, include_extras=True).items()
    }
    values: dict[str, Any] = {}
    unnamed = iter(readers)
    for argument in arguments:
        if not argument:
            raise ValueError(
                "an argument is empty; a colon in a value needs a backslash, in TOML two"
            )
        name, value = _split_argument(argument)
        name = name or next(unnamed, "")
        if not name:
            raise ValueError(
                f'"{value}" is one argument too many; the kind takes {", ".join(readers)}'
            )
        if name not in readers:
            raise ValueError(f'there is no argument "{name}"; the kind takes {", ".join(readers)}')
        if name in values:
            raise ValueError(f'"{name}" is given twice')
        values[name] = readers[name](value)
    for attribute in fields(kind):
        if attribute.default is NOTHING and attribute.name not in values:
            raise ValueError(f'"{attribute.name}" is missing')
    return kind(**values)
