"""Programs that tests need and posd does not, from this machine or from Debian's packages."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path


class Missing(Exception):
    """A program is not installed and cannot be downloaded. The text has the reason."""


@cache
def program(name: str, package: str, *libraries: str) -> Path:
    """Return the path of a program. If it is not installed, unpack it from Debian's package.

    `libraries` are packages that it needs on a minimal system. Raises `Missing`.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is not None:
        return Path(found)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Missing(f"there is no {name}, nor apt-get to fetch it (Debian: {package})")
    folder = Path(tempfile.mkdtemp(prefix=f"posd-{name}-"))
    atexit.register(shutil.rmtree, folder)
    # The account that runs the program may be another one.
    folder.chmod(0o755)
    # Use separate package lists: the machine may have none, and its own must not change.
    (folder / "lists/partial").mkdir(parents=True)
    for task in (("update",), ("download", package, *libraries)):
        apt = ("apt-get", "--quiet", "--option", f"Dir::State::Lists={folder}/lists", *task)
        done = subprocess.run(apt, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"there is no {name}, and {done.stderr.strip()}")
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(folder)], check=True)
    (unpacked,) = (path for path in folder.glob(f"usr/*bin/{name}"))
    if not libraries:
        return unpacked
    start = folder / name
    places = ":".join(map(str, folder.glob("usr/lib/*-linux-*")))
    start.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={places} exec {unpacked} "$@"\n')
    start.chmod(0o755)
    return start
