"""Checks a connection string with libpq, without a connection.

libpq parses a string in two steps: the names of the options (`PQconninfoParse`), and their values when it
connects.
Here the host is a folder that does not exist, so that libpq reaches the second step without contacting a
server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

_NOWHERE: Final = "/nonexistent/posd"
_SECRETS: Final = ("password", "sslpassword")
_INTEGERS: Final = (
    *("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval"),
    *("keepalives_count", "tcp_user_timeout"),
)
"""Options that libpq checks only after it has opened a socket. A wrong value would make every attempt
fail.
"""

_UNKNOWN_OPTION: Final = re.compile(r'invalid (?:connection option|URI query parameter:?) "(\w+)"')


_FILES: Final = {
    "passfile": "so no password is read from it",
    "sslrootcert": "so the server's certificate cannot be verified",
    "sslcert": "so this client has no certificate",
    "sslkey": "so this client has no certificate",
}
"""Options that name a file, with the consequence if libpq cannot read it."""


def named_files(dsn: str) -> Iterator[tuple[str, Path, str]]:
    """Yield the files that a valid connection string names: the option, the path, and what it is for."""
    options = parse_dsn(dsn)
    for name, consequence in _FILES.items():
        # "system" means the authorities of OpenSSL, and an empty value means none.
        if options.get(name) and options[name] != "system":
            yield name, Path(options[name]), consequence


def with_reader_user(dsn: str) -> str:
    """Return a connection string with its user replaced by the one that reads shops' tables."""
    return str(make_dsn(dsn, user="posd_reader"))


def find_problem(dsn: str) -> str | None:
    """Return why libpq refuses a connection string, in libpq's words, or None if it does not.

    The text contains no secret of the string. The existence of the server is not checked.
    """
    try:
        options = parse_dsn(dsn)
    except psycopg2.Error as error:
        return _without_values(_line(error), may_name_options="password" not in dsn)
    except (UnicodeError, ValueError):
        return "it has characters that no connection string can have"
    for name in _INTEGERS:
        if not re.fullmatch(r"\s*[-+]?[0-9]{1,9}\s*|", options.get(name, "")):
            return f'invalid integer value for connection option "{name}"'
    hosts = options.get("hostaddr") or options.get("host", "")
    nowhere = ",".join([_NOWHERE] * (hosts.count(",") + 1))
    try:
        # An empty `hostaddr` overrides the one of a service or of $PGHOSTADDR.
        psycopg2.connect(make_dsn(dsn, host=nowhere, hostaddr="")).close()
    except psycopg2.OperationalError as error:
        text = _line(error)
        if _NOWHERE in text or ("could not match" in text and "service" in options):
            # All options were accepted. The number of ports of a service is not known here.
            return None
        for name in _SECRETS:
            if options.get(name):
                text = text.replace(options[name], "…")
        return text
    return None


def rotate_hosts(dsn: str, places: int) -> str:
    """Return the connection string with its list of hosts rotated: `b,c,a` is `a,b,c` rotated by 1."""
    options = parse_dsn(dsn)
    lists = {name: options.get(name, "").split(",") for name in ("host", "hostaddr", "port")}
    turned = {
        name: ",".join(items[places % len(items) :] + items[: places % len(items)])
        for name, items in lists.items()
        if len(items) > 1
    }
    return str(make_dsn(dsn, **turned)) if places and turned else dsn


def _without_values(text: str, *, may_name_options: bool) -> str:
    """Remove the parts of the string that libpq quotes, because a password may be among them."""
    unknown = _UNKNOWN_OPTION.search(text)
    if unknown is not None and may_name_options:
        return f'libpq knows no connection option "{unknown[1]}"'
    if unknown is not None:
        return "it has an option that libpq does not know"
    text = text.removeprefix("invalid dsn: ")
    if text.startswith('missing "="'):
        return 'a "=" is missing in it'
    return text.partition('"')[0].rstrip(" :")


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
