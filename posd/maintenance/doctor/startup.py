"""Check everything that can prevent a start of posd: the configuration, files, certificates, listeners.

`posctl check-config` and `posctl doctor` both call `examine`, so their results agree. If a result has
`stops`, `twistd posd` exits with status 78.
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
    """Check the configuration at `path` and everything that it names, except the database.

    `environ` contains `CREDENTIALS_DIRECTORY` if the configuration uses credentials; `now` is aware. The
    returned configuration is None if it cannot be used.
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
    """Check the certificates and listeners of a usable configuration."""
    if any(each.tls for each in config.listen):
        yield from guard("certificate", lambda: certificates.examine(config.tls, now))
    asleep, running = machine.is_socket_activated(), machine.is_running()
    yield from guard("listeners", lambda: listeners.examine(config, asleep=asleep, running=running))


def guard(part: str, examination: Callable[[], Iterable[CheckResult]]) -> list[CheckResult]:
    """Return the results of an examination. An unexpected exception becomes one more result."""
    lines: list[CheckResult] = []
    try:
        lines.extend(examination())
    except Exception as error:
        what = f"the check failed: {type(error).__name__}: {error}"
        lines.append(fault(part, what, "this is a bug in posd: please report it"))
    return lines
