"""The shipped files: the source distribution, the wheel built from it, and an editable installation.

Each is built with setuptools alone, without a network, from a copy of the checkout, and used by an
interpreter that sees no other part of the checkout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from attrs import frozen
from packaging.requirements import Requirement
from twisted.trial.unittest import SynchronousTestCase

import posd

CHECKOUT = Path(posd.__file__).parent.parent

_BUILD = """
    import os, sys
    os.umask(int(sys.argv[3], 8))
    from setuptools import build_meta
    print(getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2]))
"""
_LOOK_AROUND = """
    import json, site, sys
    before = set(sys.path)
    site.addsitedir(sys.argv[1])
    sys.path.sort(key=before.__contains__)  # ahead of a posd that is installed already

    from twisted.application.service import IServiceMaker
    from twisted.plugin import getPlugins

    import posd
    from posd.database import resources

    def below(folder, path=""):
        for entry in folder.iterdir():
            if entry.is_dir():
                yield from below(entry, f"{path}{entry.name}/")
            elif not entry.name.startswith("__"):
                yield path + entry.name

    print(json.dumps({
        "package": posd.__file__,
        "plugins": [plugin.tapname for plugin in getPlugins(IServiceMaker)],
        "sql": sorted(below(resources.sql())),
        "config": resources.example_config().read_text("utf-8"),
        "unit": resources.systemd_unit().read_text("utf-8"),
        "systemd": sorted(below(resources.systemd())),
    }))
"""


def build(what: str, into: Path, source: Path, umask: str = "022") -> Path:
    """Build a source distribution, a wheel or an editable wheel."""
    return into / run(_BUILD, what, str(into), umask, cwd=source)


def run(code: str, *arguments: str, cwd: Path) -> str:
    """Run Python in a folder without the checkout in its path. Return its last line."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environ,
    )
    if ran.returncode:
        raise AssertionError(ran.stderr)
    return ran.stdout.splitlines()[-1]


@frozen
class Built:
    """The copy of the checkout, and the built files."""

    place: Path
    source: Path
    sdist: Path
    wheel: Path
    project: Path
    """The unpacked source distribution."""


@cache
def built() -> Built:
    """Build once for all tests, in trial's folder, which the next run empties."""
    place = Path(tempfile.mkdtemp(prefix="packaging-", dir=".")).absolute()
    source = place / "source"
    left = ("__pycache__", "_trial_temp*", "build", "dist", "*.egg-info")
    hidden = shutil.ignore_patterns(".*", *left)
    shutil.copytree(CHECKOUT, source, ignore=hidden)
    sdist = build("sdist", place, source)
    shutil.unpack_archive(sdist, place / "unpacked")
    (project,) = (place / "unpacked").iterdir()
    return Built(place, source, sdist, build("wheel", place, project), project)


class PackagingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.built = built()

    def seen_by(self, wheel: Path) -> dict[str, Any]:
        """Return what an interpreter finds with this wheel installed and without the checkout."""
        site = Path(self.mktemp()).absolute()
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        seen: dict[str, Any] = json.loads(run(_LOOK_AROUND, str(site), cwd=site))
        return seen

    def assert_resources_are_those_of_the_checkout(self, seen: dict[str, Any]) -> None:
        for folder, one in ("sql", "bootstrap.sql"), ("systemd", "sysusers.d/posd.conf"):
            place = CHECKOUT / folder
            files = sorted(
                str(each.relative_to(place)) for each in place.rglob("*") if each.is_file()
            )
            self.assertIn(one, files)
            self.assertEqual(seen[folder], files)
        self.assertEqual(seen["config"], (CHECKOUT / "etc/posd/posd.toml").read_text("utf-8"))
        self.assertEqual(seen["unit"], (CHECKOUT / "systemd/posd.service").read_text("utf-8"))

    def test_the_wheel_has_the_plugin_and_every_file_posd_reads(self) -> None:
        seen = self.seen_by(self.built.wheel)
        self.assertNotIn(str(self.built.source), str(seen["package"]))
        self.assertIn("posd", seen["plugins"])
        self.assert_resources_are_those_of_the_checkout(seen)

    def test_the_wheel_has_every_module_and_nothing_but_posd(self) -> None:
        with zipfile.ZipFile(self.built.wheel) as archive:
            names = archive.namelist()
        modules = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "posd").rglob("*.py")}
        self.assertEqual(
            {name for name in names if name.endswith(".py")},
            modules | {"twisted/plugins/posd_plugin.py"},
        )
        self.assertIn("posd/py.typed", names)
        places = {name.split("/")[0] for name in names}
        self.assertEqual(places, {"posd", "twisted", f"posd-{posd.__version__}.dist-info"})

    def test_an_editable_installation_has_the_plugin_and_the_files_of_the_checkout(self) -> None:
        folder = self.built.place / "editable"
        seen = self.seen_by(build("editable", folder, self.built.source))
        self.assertEqual(seen["package"], str(self.built.source / "posd" / "__init__.py"))
        self.assertIn("posd", seen["plugins"])
        self.assert_resources_are_those_of_the_checkout(seen)

    def test_the_sdist_has_what_its_own_tests_need_and_no_rubbish(self) -> None:
        with tarfile.open(self.built.sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        tests = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "tests").rglob("*.py")}
        self.assertEqual(tests - names, set())
        for needed in ("LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml", "setup.cfg"):
            self.assertIn(needed, names)
        for name in names:
            self.assertNotIn("__pycache__", name)
            self.assertNotIn("dropin.cache", name)

    def test_builds_are_reproducible(self) -> None:
        folder = self.built.place / "again"
        shutil.copytree(self.built.project, folder)
        for path in folder.rglob("*"):
            path.chmod(path.stat().st_mode & 0o700)
            os.utime(path, (2e9, 2e9))
        for what, first in (("sdist", self.built.sdist), ("wheel", self.built.wheel)):
            again = build(what, folder / "made", folder, umask="077")
            self.assertEqual(again.name, first.name)
            self.assertEqual(again.read_bytes(), first.read_bytes(), f"another {what}")


class LockTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.lock = (CHECKOUT / "requirements.lock").read_text("utf-8")
        self.pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", self.lock, re.MULTILINE))

    def test_everything_that_posd_requires_is_pinned_to_a_version_that_it_can_use(self) -> None:
        requires = [
            Requirement(line)
            for line in requires_of(built().wheel)
            if "extra ==" not in line.partition(";")[2]
        ]
        self.assertIn("Twisted", {requirement.name for requirement in requires})
        for requirement in requires:
            name = re.sub(r"[._]", "-", requirement.name.lower())
            self.assertIn(self.pinned[name], requirement.specifier, f"{name}: make lock")

    def test_all_pinned_releases_have_hashes(self) -> None:
        pins = re.split(r"^(?=[\w.-]+==)", self.lock, flags=re.MULTILINE)[1:]
        self.assertEqual(len(pins), len(self.pinned))
        for pin in pins:
            self.assertRegex(pin, r"--hash=sha256:[0-9a-f]{64}\b")


def requires_of(wheel: Path) -> list[str]:
    """Return the `Requires-Dist` lines of a wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"posd-{posd.__version__}.dist-info/METADATA").decode()
    return re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
