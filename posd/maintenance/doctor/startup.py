"""What decides whether posd starts: the configuration, its files, its certificates, its listeners.

`posctl check-config` and `posctl doctor` both ask `examine`, so they say the same of the same thing.
A line with `stops` is one for which `twistd posd` ends with status 78.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from posd.config.model import Config
from posd.maintenance.doctor import Line, certificates, fault, files, listeners, machine


def examine(
    path: Path, environ: Mapping[str, str], now: datetime
) -> tuple[Config | None, list[Line]]:
    """Examine everything that the configuration at `path` names, but for the database.

    `environ` has `CREDENTIALS_DIRECTORY` where credentials are used; `now` is aware. The
    configuration is None if it cannot be used.
    """
    found: Config | None = None

    def configuration() -> Iterable[Line]:
        nonlocal found
        found, lines = files.configuration(path, environ)
        return lines

    lines = safely("configuration", configuration)
    lines += safely("files", lambda: files.permissions(path, found, files.reader()))
    if found is not None:
        lines += _named(found, now)
    return found, lines


def _named(config: Config, now: datetime) -> Iterator[Line]:
    """Examine what a usable configuration names."""
    if any(each.tls for each in config.listen):
        yield from safely("certificate", lambda: certificates.examine(config.tls, now))
    asleep = machine.sleeps()
    yield from safely("listeners", lambda: listeners.examine(config, asleep=asleep))


def safely(part: str, examination: Callable[[], Iterable[Line]]) -> list[Line]:
    """Return the lines of an examination; an unexpected exception in it becomes one more line."""
    lines: list[Line] = []
    try:
        lines.extend(examination())
    except Exception as error:
        what = f"this could not be looked at: {type(error).__name__}: {error}"
        lines.append(fault(part, what, "this is a mistake of posd's: please report it"))
    return lines
