"""Reload of the configuration: all changes take effect, or none.

Keys that need a restart (`keys_needing_restart`) keep their values. The log names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import evolve, fields_dict
from twisted.logger import Logger

from posd.config import model as config
from posd.config.model import Config, ListenerConfig
from posd.database import dsn
from posd.errors import ConfigError, StartError
from posd.security import server_tls as tls
from posd.security.server_tls import ServerTLS

RESTART_KEYS: Final = (
    *("database.dsn", "database.pool_size", "database.statement_timeout", "database.reader_dsn"),
    "listen",
)
"""The keys whose new values need a restart. The other keys of `database` are read by posctl only."""


class Reload:
    """Reads the files with which posd was started, and applies them.

    `apply` is called with the new configuration, and must not fail. `trouble` is the reason why the last
    reload failed, in one line; it is empty if the last reload succeeded.
    """

    _log = Logger()

    def __init__(
        self,
        path: Path,
        environ: Mapping[str, str],
        current: Config,
        server_tls: ServerTLS | None,
        apply: Callable[[Config], None],
    ) -> None:
        self._path = path
        self._environ = environ
        self._tls = server_tls
        self._apply = apply
        self.current = current
        self.trouble = ""

    def reload_files(self) -> None:
        """Read and apply all files. If a file cannot be used, log the reason and change nothing."""
        try:
            loaded = config.load(self._path, self._environ, tls.problems, dsn.find_problem)
            if self._tls is not None:
                # Last, because nothing after it may fail.
                self._tls.reload(loaded.tls)
        except (ConfigError, StartError) as error:
            self.trouble = _summary(str(error).splitlines())
            self._log.error(
                "not reloaded, posd keeps its configuration and certificates: {trouble}",
                trouble=self.trouble,
            )
            return
        pending = list(keys_needing_restart(self.current, loaded))
        self.current = evolve(loaded, database=self.current.database, listen=self.current.listen)
        self._apply(self.current)
        self.trouble = ""
        self._log.info("reloaded {path}", path=str(self._path))
        if pending:
            self._log.warn("new values of {keys} need a restart of posd", keys=", ".join(pending))


def keys_needing_restart(current: Config, loaded: Config) -> Iterator[str]:
    """Yield the keys that differ and need a restart. Keys of listeners have the listener's name."""
    for key in RESTART_KEYS:
        table, _, name = key.partition(".")
        if name and getattr(getattr(current, table), name) != getattr(getattr(loaded, table), name):
            yield key
    before, after = ({each.name: each for each in some.listen} for some in (current, loaded))
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            yield f"listen[{name}]"
            continue
        for key in fields_dict(ListenerConfig):
            if getattr(before[name], key) != getattr(after[name], key):
                yield f"listen[{name}].{key}"


def _summary(problems: list[str]) -> str:
    """Return the first problem and the number of the others."""
    first, *others = problems
    return f"{first} (and {len(others)} more: see posctl check-config)" if others else first
