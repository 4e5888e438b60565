"""A bare Debian 12 in a folder, and a folder of packages, so that machines can install without a network.

Both are made once, in `build/`, from the mirrors in the configuration of apt. `make clean` removes them.
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
# A minimal server of Debian's installer, without Python, PostgreSQL and tools.
_INCLUDED: Final = ("systemd", "systemd-sysv", "dbus", "libpam-systemd")
_OFFERED: Final = ("postgresql", "curl", "python3", "procps")
_DOWNLOAD: Final = 'chroot "$1" apt-get --yes --no-install-recommends --download-only install'
_OF: Final = " ".join((_SUITE, *_INCLUDED, "-", *_OFFERED))
_TOOLS: Final = ("mmdebstrap", "dpkg-scanpackages")
_SECONDS: Final = 1200.0


@frozen
class Debian:
    """`tree` is the root file system. `packages` is an apt repository: a folder of packages and its index."""

    tree: Path
    packages: Path

    @property
    def source(self) -> str:
        """Return the line of sources.list for a machine with `packages` at the same path."""
        return f"deb [trusted=yes] file:{self.packages} ./\n"


def debian() -> Debian:
    """Return the tree, and make it if it is missing. Skip the test if that is not possible."""
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
    """Make both under temporary names, so that an incomplete tree is never used."""
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
            # The usual reason is a missing network. Only the end of apt's long output is of interest.
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
