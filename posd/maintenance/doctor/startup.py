"""What decides whether posd starts: the configuration, its files, its certificates, its listeners.

`posctl check-config` and `posctl doctor` both ask `examine`, so they say the same of the same thing.
A line with `stops` is one for which `twistd posd` ends with status 78.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from posd.config.model import Config
from posd.maintenance.doctor import CheckResult, certificates, fault, files, listeners, machine


def examine(
    path: Path, environ: Mapping[str, str], now: datetime
) -> tuple[Config | None, list[CheckResult]]:
    """Examine everything that the configuration at `path` names, but for the database.

    `environ` has `CREDENTIALS_DIRECTORY` where credentials are used; `now` is aware. The
    configuration is None if it cannot be used.
    """
    found: Config | None = None

    def configuration() -> Iterable[CheckResult]:
        nonlocal found
        found, lines = files.load_configuration(path, environ)
        return lines

    lines = guard("configuration", configuration)
    lines += guard("files", lambda: files.examine_permissions(path, found, files.file_reader()))
    if found is not None:
        lines += _examine_usable(found, now)
    return found, lines


def _examine_usable(config: Config, now: datetime) -> Iterator[CheckResult]:
    """Examine what a usable configuration names."""
    if any(each.tls for each in config.listen):
        yield from guard("certificate", lambda: certificates.examine(config.tls, now))
    asleep, running = machine.is_socket_activated(), machine.is_running()
    yield from guard("listeners", lambda: listeners.examine(config, asleep=asleep, running=running))


def guard(part: str, examination: Callable[[], Iterable[CheckResult]]) -> list[CheckResult]:
    """Return the lines of an examination; an unexpected exception in it becomes one more line."""
    lines: list[CheckResult] = []
    try:
        lines.extend(examination())
    except Exception as error:
        what = f"this could not be looked at: {type(error).__name__}: {error}"
        lines.append(fault(part, what, "this is a mistake of posd's: please report it"))
    return lines
