"""The types of the values of the configuration, with their error messages.

A `ValueType` converts a value of a TOML file, or raises `UnusableValue` with the problem. The caller adds the
key to the message, and the value if it may be shown.
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
"""Characters of a value that are shown, enough to recognise the value."""


class UnusableValue(Exception):
    """A value that cannot be used. `what` is the problem, `meant` a hint that is better than the type's.

    The text may quote the value.
    """

    def __init__(self, what: str, meant: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.meant = meant


class ValueType(ABC):
    """The type of a value.

    `meant` is a hint that says what to write. Values of a `secret` type are never shown, and its
    `UnusableValue` does not quote them.
    """

    meant: str
    secret: ClassVar[bool] = False

    @abstractmethod
    def read(self, raw: object) -> object:
        """Convert a value of a TOML document. Raises `UnusableValue`."""


class BooleanValue(ValueType):
    """True or false."""

    meant = "write true or false, without quotes"

    def read(self, raw: object) -> bool:
        if not isinstance(raw, bool):
            raise UnusableValue(f"is {type_name(raw)}")
        return raw


@frozen
class IntegerValue(ValueType):
    """A whole number, at least `at_least`."""

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
    """A size in bytes, written with a unit or as a whole number. The bounds are written with a unit."""

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
    """A duration in seconds, written with a unit, as are the bounds."""

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
    """One of some words."""

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
    """A connection string of libpq. It is secret, because it may have a password."""

    meant = 'write a PostgreSQL URI or keywords, such as "postgresql:///posd" or "dbname=posd"'
    secret = True

    def read(self, raw: object) -> str:
        dsn = _text(raw)
        if not re.match(r"postgres(ql)?://|\s*[a-z_]+\s*=", dsn):
            raise UnusableValue("is not a connection string")
        return dsn


class PathValue(ValueType):
    """The absolute path of a file. A daemon changes its working directory."""

    meant = "write the absolute path of a file"

    def read(self, raw: object) -> str:
        path = _text(raw)
        if not Path(path).is_absolute():
            raise UnusableValue("is a relative path")
        return path


class NameValue(ValueType):
    """A name that is also valid as FileDescriptorName= of systemd."""

    meant = 'write letters, digits, ".", "_" and "-", up to 64 and beginning with a letter'

    def read(self, raw: object) -> str:
        name = _text(raw)
        if not re.fullmatch("[A-Za-z][A-Za-z0-9._-]{0,63}", name):
            raise UnusableValue("cannot be a name")
        return name


class EndpointValue(ValueType):
    """An endpoint description of Twisted."""

    meant = 'write an endpoint such as "tcp:port=9010" or "unix:/run/posd/local.sock:mode=660"'

    def read(self, raw: object) -> str:
        description = _text(raw)
        try:
            endpoint_syntax.read(description)
        except ValueError as error:
            raise UnusableValue("is not an endpoint", str(error)) from None
        return description


class NetworksValue(ValueType):
    """A list of addresses and networks."""

    meant = 'write networks, such as ["10.0.0.0/8", "2001:db8::/32"]'

    def read(self, raw: object) -> tuple[Network, ...]:
        if not isinstance(raw, list):
            raise UnusableValue(f"is {type_name(raw)}")
        return tuple(map(_network, raw))


def read_value(kind: ValueType, raw: object, environ: Mapping[str, str]) -> object:
    """Convert a value, or the contents of the credential that the value names.

    Raises ValueError with the whole message: the value if it may be shown, the problem and a hint.
    """
    resolved = raw
    try:
        resolved = _resolve_credentials(raw, environ)
        return kind.read(resolved)
    except UnusableValue as error:
        if resolved != raw:
            raise ValueError(
                f"the contents of the credential cannot be used; {kind.meant}"
            ) from None
        hidden = kind.secret and not isinstance(raw, dict)
        subject = "the value (not shown)" if hidden else displayed(raw)
        raise ValueError(f"{subject} {error.what}; {error.meant or kind.meant}") from None


def displayed(raw: object) -> str:
    """Return a value as text for a problem line, cut to a readable length. A table is shown as "this"."""
    items = raw if isinstance(raw, list) else [raw]
    if any(isinstance(item, dict | list) for item in items):
        return "this"
    printable = isinstance(raw, str) and raw.isprintable()
    text = json.dumps(raw, ensure_ascii=not printable, default=str)
    return text if len(text) <= _LONGEST_DISPLAYED else f"{text[:_LONGEST_DISPLAYED]}…"


def suggestion(word: str, words: Iterable[str]) -> str | None:
    """Return a question with the most similar of `words`, or None if no word is similar."""
    near = difflib.get_close_matches(word.lower(), words, n=1)
    return f'did you mean "{near[0]}"?' if near else None


def type_name(raw: object) -> str:
    """Return the name of a type in TOML."""
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
        raise UnusableValue(f"has {displayed(item)}, which is every address")
    if ip_address(item.partition("/")[0]) != network.network_address:
        what = f"has {displayed(item)}, which has host bits set"
        raise UnusableValue(what, f'did you mean "{network}"?')
    return network


def _resolve_credentials(raw: object, environ: Mapping[str, str]) -> object:
    """Replace `{ credential = "name" }` by the secret, also within an array.

    The secret is the file of that name in `$CREDENTIALS_DIRECTORY`, which systemd fills from
    `LoadCredential=` of the unit (systemd.exec(5), "Credentials"). A final newline and a byte order mark
    of an editor are removed.
    """
    match raw:
        case list():
            return [_resolve_credentials(item, environ) for item in raw]
        case {"credential": str(name), **rest} if not rest:
            return _read_credential(name, environ.get("CREDENTIALS_DIRECTORY", ""))
        case dict():
            meant = 'only { credential = "name" } can take the place of a value'
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
