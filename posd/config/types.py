"""What may stand behind a key of the configuration, and how to say that something else does.

A `ValueType` reads one value of a TOML file into the value that posd works with, or raises `UnusableValue`
with what is wrong. Whoever reports that adds the key, and the value where it may be shown.
"""

from __future__ import annotations

import difflib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import ClassVar

from attrs import frozen

from posd.config import endpoints as endpoint_syntax
from posd.config.units import parse_duration, parse_size
from posd.files import decode_secret, read_file

Network = IPv4Network | IPv6Network

_LONGEST_DISPLAYED = 60
"""So many characters of a value are shown: enough to recognise it by."""


class UnusableValue(Exception):
    """A value that cannot be used: `what` is wrong with it, and what was `meant` if that is clear.

    The text may quote the value.
    """

    def __init__(self, what: str, meant: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.meant = meant


class ValueType(ABC):
    """What may stand behind one key.

    `meant` tells in general what to write there. The values of a `secret` kind are never shown,
    and its `UnusableValue` does not quote them.
    """

    meant: str
    secret: ClassVar[bool] = False

    @abstractmethod
    def read(self, raw: object) -> object:
        """Turn a value of a TOML document into the value meant, or raise `UnusableValue`."""


class BooleanValue(ValueType):
    """True or false."""

    meant = "write true or false, without quotes"

    def read(self, raw: object) -> bool:
        if not isinstance(raw, bool):
            raise UnusableValue(f"is {type_name(raw)}")
        return raw


@frozen
class IntegerValue(ValueType):
    """A whole number of at least so much."""

    meant = "write a whole number, without quotes"
    at_least: int = 1

    def read(self, raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise UnusableValue(f"is {type_name(raw)}")
        if raw < self.at_least:
            raise UnusableValue("is too small", f"the smallest is {self.at_least}")
        return raw


@frozen
class SizeValue(ValueType):
    """Bytes, written with a unit or as a plain whole number; the bounds are written alike."""

    meant = 'write a size such as "256KiB", with quotes'
    at_least: str
    at_most: str

    def read(self, raw: object) -> int:
        if isinstance(raw, int) and not isinstance(raw, bool):
            size = raw
        else:
            try:
                size = parse_size(_text(raw))
            except ValueError as error:
                raise UnusableValue("is not a size", str(error)) from None
        if size < parse_size(self.at_least):
            raise UnusableValue("is too small", f'the smallest is "{self.at_least}"')
        if size > parse_size(self.at_most):
            raise UnusableValue("is too large", f'the largest is "{self.at_most}"')
        return size


@frozen
class DurationValue(ValueType):
    """Seconds, always written with a unit, like the bounds."""

    meant = 'write a duration such as "30s", with quotes'
    at_least: str
    at_most: str

    def read(self, raw: object) -> float:
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            raise UnusableValue("has no unit")
        try:
            seconds = parse_duration(_text(raw))
        except ValueError as error:
            raise UnusableValue("is not a duration", str(error)) from None
        if seconds < parse_duration(self.at_least):
            raise UnusableValue("is too short", f'the shortest is "{self.at_least}"')
        if seconds > parse_duration(self.at_most):
            raise UnusableValue("is too long", f'the longest is "{self.at_most}"')
        return seconds


class ChoiceValue(ValueType):
    """One word out of a few."""

    def __init__(self, *words: str) -> None:
        *others, last = (f'"{word}"' for word in words)
        self.words = words
        self.meant = f"write {', '.join(others)} or {last}"

    def read(self, raw: object) -> str:
        word = _text(raw)
        if word not in self.words:
            raise UnusableValue("is unknown")
        return word


class DsnValue(ValueType):
    """A libpq connection string; the password in it is nobody's business."""

    meant = 'write a PostgreSQL URI or keywords, such as "postgresql:///posd" or "dbname=posd"'
    secret = True

    def read(self, raw: object) -> str:
        dsn = _text(raw)
        if not re.match(r"postgres(ql)?://|\s*[a-z_]+\s*=", dsn):
            raise UnusableValue("is not a connection string")
        return dsn


class PathValue(ValueType):
    """The path of a file, absolute because daemons do not stay where they were started."""

    meant = "write the absolute path of a file"

    def read(self, raw: object) -> str:
        path = _text(raw)
        if not Path(path).is_absolute():
            raise UnusableValue("is a relative path")
        return path


class NameValue(ValueType):
    """A name that can also be a systemd FileDescriptorName."""

    meant = 'write letters, digits, ".", "_" and "-", up to 64 and beginning with a letter'

    def read(self, raw: object) -> str:
        name = _text(raw)
        if not re.fullmatch("[A-Za-z][A-Za-z0-9._-]{0,63}", name):
            raise UnusableValue("cannot be a name")
        return name


class EndpointValue(ValueType):
    """Where to listen, in Twisted's words."""

    meant = 'write an endpoint such as "tcp:port=9010" or "unix:/run/posd/local.sock:mode=660"'

    def read(self, raw: object) -> str:
        description = _text(raw)
        try:
            endpoint_syntax.read(description)
        except ValueError as error:
            raise UnusableValue("is not an endpoint", str(error)) from None
        return description


class NetworksValue(ValueType):
    """Machines, each by its address or all of a network."""

    meant = 'write networks, such as ["10.0.0.0/8", "2001:db8::/32"]'

    def read(self, raw: object) -> tuple[Network, ...]:
        if not isinstance(raw, list):
            raise UnusableValue(f"is {type_name(raw)}")
        return tuple(map(_network, raw))


def read_value(kind: ValueType, raw: object, environ: Mapping[str, str]) -> object:
    """Read a value, or what the credential in its place holds.

    A ValueError has the whole sentence: the value where it may be shown, what is wrong with it,
    and what was meant.
    """
    resolved = raw
    try:
        resolved = _resolve_credentials(raw, environ)
        return kind.read(resolved)
    except UnusableValue as error:
        if resolved != raw:
            raise ValueError(f"what the credential holds cannot be used; {kind.meant}") from None
        hidden = kind.secret and not isinstance(raw, dict)
        subject = "the value (not shown)" if hidden else displayed(raw)
        raise ValueError(f"{subject} {error.what}; {error.meant or kind.meant}") from None


def displayed(raw: object) -> str:
    """Write a value for a problem line, cut to a readable length; what is in a table stays there."""
    items = raw if isinstance(raw, list) else [raw]
    if any(isinstance(item, dict | list) for item in items):
        return "this"
    printable = isinstance(raw, str) and raw.isprintable()
    text = json.dumps(raw, ensure_ascii=not printable, default=str)
    return text if len(text) <= _LONGEST_DISPLAYED else f"{text[:_LONGEST_DISPLAYED]}…"


def suggestion(word: str, words: Iterable[str]) -> str | None:
    """Ask for the nearest of the words that were possible, if one is near."""
    near = difflib.get_close_matches(word.lower(), words, n=1)
    return f'did you mean "{near[0]}"?' if near else None


def type_name(raw: object) -> str:
    """Name the type of a value as TOML does."""
    match raw:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a float"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise UnusableValue(f"is {type_name(raw)}, not a string")
    if not raw.strip():
        raise UnusableValue("is empty")
    if not raw.isprintable():
        raise UnusableValue("has characters that cannot be printed")
    return raw


def _network(item: object) -> Network:
    if not isinstance(item, str):
        raise UnusableValue(f"has {type_name(item)} in it")
    try:
        network = ip_network(item, strict=False)
    except ValueError:
        raise UnusableValue(f"has {displayed(item)}, which is not a network") from None
    if network.prefixlen == 0:
        raise UnusableValue(f"has {displayed(item)}, which is everybody")
    if ip_address(item.partition("/")[0]) != network.network_address:
        raise UnusableValue(f"has {displayed(item)}, one machine's", f'did you mean "{network}"?')
    return network


def _resolve_credentials(raw: object, environ: Mapping[str, str]) -> object:
    """Put the secret in place of `{ credential = "name" }`, also within an array.

    It is the file of that name in `$CREDENTIALS_DIRECTORY`, where systemd keeps what a unit's
    `LoadCredential=` names (systemd.exec(5), "Credentials"), without the newline or byte order mark
    that an editor has put around it.
    """
    match raw:
        case list():
            return [_resolve_credentials(item, environ) for item in raw]
        case {"credential": str(name), **rest} if not rest:
            return _read_credential(name, environ.get("CREDENTIALS_DIRECTORY", ""))
        case dict():
            meant = 'only { credential = "name" } can stand in place of a value'
            raise UnusableValue("is a table", meant)
        case _:
            return raw


def _read_credential(name: str, directory: str) -> str:
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise UnusableValue("names a credential that cannot exist", "write the name of a file")
    what = f'asks for the credential "{name}"'
    if not directory:
        unit = f"LoadCredential={name}:PATH"
        raise UnusableValue(what, f"$CREDENTIALS_DIRECTORY is not set: the unit needs {unit}")
    try:
        return decode_secret(read_file(Path(directory) / name))
    except OSError as error:
        raise UnusableValue(what, f"its file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnusableValue(what, "its file is not text in UTF-8") from None
