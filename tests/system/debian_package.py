"""The Debian package of this checkout, built once for all tests of a run, as CONTRIBUTING.md describes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final
from unittest import SkipTest

from tests.documents import ROOT

WHEELHOUSE: Final = ROOT / "build" / "wheelhouse"
_SECONDS: Final = 1800.0


@cache
def package() -> Path:
    """Return the package that `make deb` builds. Skip the test if Debian's tools are missing."""
    reason = missing()
    if reason is not None:
        raise SkipTest(f"not run: {reason}")
    # Do not pass on variables of a surrounding `make system`, except those that name the environment.
    environ = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    run("make", f"VENV={sys.prefix}", "deb", cwd=ROOT, environ=environ)
    (made,) = (ROOT / "dist").glob("posd_*.deb")
    return made


def missing() -> str | None:
    """Return why no package can be built on this machine, or None."""
    if shutil.which("dpkg-buildpackage") is None:
        return "dpkg-dev is not installed"
    unmet = subprocess.run(
        ("dpkg-checkbuilddeps", str(ROOT / "debian" / "control")),
        capture_output=True,
        text=True,
        check=False,
    )
    return unmet.stderr.strip().rpartition("error: ")[2] if unmet.returncode else None


def built_elsewhere(folder: Path) -> Path:
    """Build the package again from the same source distribution, as another user in another folder."""
    folder.mkdir()
    (sources,) = (ROOT / "dist").glob("posd-*.tar.gz")
    shutil.unpack_archive(sources, folder)
    (tree,) = folder.iterdir()
    for path in tree.rglob("*"):
        os.utime(path, (2e9, 2e9))
    different = {"WHEELHOUSE": str(WHEELHOUSE), "TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": "/"}
    run(
        *("sh", "-c", "umask 077; chmod -R go= .; exec dpkg-buildpackage -us -uc -b"),
        cwd=tree,
        environ={"PATH": os.environ["PATH"], **different},
    )
    (made,) = folder.glob("posd_*.deb")
    return made


def next_version(package: Path, version: str, folder: Path, *appended: tuple[str, str]) -> Path:
    """Return a later version of the package, with lines appended to files, which may be new."""
    tree = folder / version
    run("dpkg-deb", "--raw-extract", str(package), str(tree))
    control = tree / "DEBIAN" / "control"
    lines = control.read_text("utf-8").splitlines(keepends=True)
    changed = [f"Version: {version}\n" if line.startswith("Version:") else line for line in lines]
    control.write_text("".join(changed), "utf-8")
    for name, text in appended:
        with (tree / name).open("a", encoding="utf-8") as file:
            file.write(text)
    made = folder / f"posd_{version}.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(made))
    shutil.rmtree(tree)
    return made


def run(*command: str, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed. Return its output."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env=environ,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}")
    return done.stdout
