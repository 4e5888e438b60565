"""Install posd and its dependencies into the tree of the Debian package: bundle.py TREE WHEEL…

The result is a virtual environment in /opt/posd below TREE, as pip would make it. Its files contain neither
the path of TREE nor the time of the build. Byte code and Twisted's plugin cache are included, because the
daemon has no right to write them, and starts faster with them.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import subprocess
import sys
from pathlib import Path

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile

PREFIX = Path("/opt/posd")
PYTHON = "python{}.{}".format(*sys.version_info)
SITE = PREFIX / "lib" / PYTHON / "site-packages"

# Twisted uses its cache of plugins only if the cache is newer than all plugins.
_WARM = """
import os, pickle
from pathlib import Path
from twisted import plugins
from twisted.plugin import getCache

known = dict(sorted(getCache(plugins).items()))
folder = Path(plugins.__file__).parent
(folder / "dropin.cache").write_bytes(pickle.dumps(known))
(folder / "dropin.cache").chmod(0o644)
written = int(os.environ["SOURCE_DATE_EPOCH"])
for plugin in folder.glob("*.py"):
    os.utime(plugin, (written - 1, written - 1))
os.utime(folder / "dropin.cache", (written, written))
"""


def make(tree: Path, wheels: list[Path]) -> None:
    """Create the environment with these wheels below `tree`."""
    root = tree / PREFIX.relative_to("/")
    (root / "bin").mkdir(parents=True)
    (root / "bin/python3").symlink_to(f"/usr/bin/{PYTHON}")
    (root / "bin/python").symlink_to("python3")
    # This file makes the folder a virtual environment: https://docs.python.org/3/library/site.html
    (root / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    for wheel in wheels:
        lay(tree, wheel)
    compile_all(tree)
    environ = {"PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": os.environ["SOURCE_DATE_EPOCH"]}
    environ["PYTHONHASHSEED"] = "0"
    subprocess.run([root / "bin/python3", "-B", "-c", _WARM], check=True, env=environ)


def lay(tree: Path, wheel: Path) -> None:
    """Install a wheel as if `tree` were the root of the file system."""
    scheme = {
        "purelib": str(SITE),
        "platlib": str(SITE),
        "scripts": str(PREFIX / "bin"),
        "data": str(PREFIX),
        "headers": str(PREFIX / "include"),
    }
    destination = SchemeDictionaryDestination(
        scheme, interpreter=str(PREFIX / "bin/python3"), script_kind="posix", destdir=str(tree)
    )
    with WheelFile.open(wheel) as source:
        install(source, destination, {"INSTALLER": b"dpkg\n"})


def compile_all(tree: Path) -> None:
    """Compile all modules to byte code that Python does not compare with its source at each start.

    dpkg always installs both together.
    """
    compiled = compileall.compile_dir(
        str(tree / SITE.relative_to("/")),
        maxlevels=20,
        quiet=1,
        stripdir=str(tree),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        raise SystemExit("some modules could not be compiled")


if __name__ == "__main__":
    make(Path(sys.argv[1]), [Path(wheel) for wheel in sys.argv[2:]])
