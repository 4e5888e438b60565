"""A bare Debian 12 in a folder, and packages for it in another: what machines install without a network.

Both are made once, in `build/`, from the mirrors that apt knows here; `make clean` takes them away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final
from unittest import SkipTest

from attrs import frozen

from tests.documents import ROOT
from tests.system import machine

_FOLDER: Final = ROOT / "build" / "debian"
_SUITE: Final = "bookworm"
# A server as Debian's installer leaves it at the least: no Python, no PostgreSQL, no tools.
_INCLUDED: Final = ("systemd", "systemd-sysv", "dbus", "libpam-systemd")
_OFFERED: Final = ("postgresql", "curl", "python3", "procps")
_DOWNLOAD: Final = 'chroot "$1" apt-get --yes --no-install-recommends --download-only install'
_OF: Final = " ".join((_SUITE, *_INCLUDED, "-", *_OFFERED))
_TOOLS: Final = ("mmdebstrap", "dpkg-scanpackages")
_SECONDS: Final = 1200.0


@frozen
class Debian:
    """`tree` is the root file system, `packages` an apt repository: a folder of packages and its index."""

    tree: Path
    packages: Path

    @property
    def source(self) -> str:
        """The line of sources.list for a machine that has `packages` at the same place."""
        return f"deb [trusted=yes] file:{self.packages} ./\n"


def debian() -> Debian:
    """The tree, which is made if it is not there; skips, saying why, where that is not possible."""
    reason = machine.missing() or _missing()
    if reason is not None:
        raise SkipTest(f"not run: {reason}")
    made = Debian(_FOLDER / "tree", _FOLDER / "packages")
    if not (_FOLDER / "of").exists() or (_FOLDER / "of").read_text() != _OF:
        shutil.rmtree(_FOLDER, ignore_errors=True)
        _make(made)
    return made


def _missing() -> str | None:
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return None


def _make(wanted: Debian) -> None:
    """Make both beside their place, so that what was made halfway is never taken for them."""
    folder = _FOLDER.with_name(f"debian-{os.getpid()}")
    new = Debian(folder / "tree", folder / "packages")
    new.packages.mkdir(parents=True)
    try:
        done = subprocess.run(
            (
                *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_INCLUDED)}"),
                f"--customize-hook={_DOWNLOAD} {' '.join(_OFFERED)} >/dev/null",
                f"--customize-hook=sync-out /var/cache/apt/archives {new.packages}",
                *(_SUITE, str(new.tree)),
            ),
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        if done.returncode:
            # Mostly there is no network. What apt says is long, and its end tells.
            raise SkipTest(f"not run: no Debian could be made: {done.stderr.strip()[-300:]}")
        index = subprocess.run(
            ("dpkg-scanpackages", "--multiversion", "."),
            cwd=new.packages,
            capture_output=True,
            text=True,
            check=True,
        )
        (new.packages / "Packages").write_text(index.stdout)
        (folder / "of").write_text(_OF)
        folder.rename(_FOLDER)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
