"""A configuration that is read again while posd runs: all of it that can change takes effect, or nothing.

What cannot change without a restart (`keys_needing_restart` lists it) stays as it was, and is told.
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
"""The keys of which a running posd takes no new value. Of `database`, posctl reads the rest."""


class Reload:
    """Reads the files that posd was started with, and puts them in force as a whole.

    `apply` is given the configuration that is in force from now on, and must not fail.
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
        """Read and apply everything; if any of it cannot be used, say so and change nothing.

        `trouble` is why the last one failed, in one line, empty if it did not.
        """
        try:
            loaded = config.load(self._path, self._environ, tls.problems, dsn.find_problem)
            if self._tls is not None:
                # The last of all that may be refused.
                self._tls.reload(loaded.tls)
        except (ConfigError, StartError) as error:
            self.trouble = _summary(str(error).splitlines())
            self._log.error(
                "not reloaded, everything stays as it was: {trouble}", trouble=self.trouble
            )
            return
        pending = list(keys_needing_restart(self.current, loaded))
        self.current = evolve(loaded, database=self.current.database, listen=self.current.listen)
        self._apply(self.current)
        self.trouble = ""
        self._log.info("reloaded {path}", path=str(self._path))
        if pending:
            self._log.warn("restart posd for new values of {keys}", keys=", ".join(pending))


def keys_needing_restart(current: Config, loaded: Config) -> Iterator[str]:
    """The keys that differ and wait for a restart, listeners by name."""
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
    """One line of several; `posctl check-config` has them all."""
    first, *others = problems
    return f"{first} (and {len(others)} more: see posctl check-config)" if others else first
