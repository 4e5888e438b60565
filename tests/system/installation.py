"""posd, installed in a machine from its wheel, with a PostgreSQL and a shop.

    posd = installation.shared()                   # made once for all tests of a process
    till = posd.till()
    posd.order("Naan")

The machine has no network: the dependencies of posd come from the environment of the tests. All other
steps are those of docs/install.md.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import json
import os
import shutil
import sys
from functools import cache
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, Final
from unittest import SkipTest

from attrs import define, field
from packaging.requirements import Requirement

from posd.testing.binaries import preferred_binaries
from tests.system import machine
from tests.system.machine import Machine
from tests.system.till import Till
from tests.test_packaging import built

PLACE: Final = "/opt/posd"
CERTIFICATE: Final = "/etc/posd/tls/fullchain.pem"
LOCAL: Final = "/run/posd/local.sock"
_PYTHON: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
_CLOSED: Final = (Path("/home"), Path("/root"), Path("/run/user"), Path("/tmp"), Path("/var/tmp"))
"""The folders that the unit hides from the daemon."""

_POSTGRESQL: Final = """
[Service]
User=postgres
RuntimeDirectory=postgresql
ExecStart={programs}/postgres -D {data} -c unix_socket_directories=/run/postgresql \
    -c listen_addresses= -c fsync=off
"""
_CONFIGURATION: Final = f"""
[[listen]]
name = "local"
endpoint = "unix:{LOCAL}:mode=660"
trusted = true
"""
_QUERY: Final = """
import json, sys
import psycopg2
with psycopg2.connect("postgresql:///posd") as connection, connection.cursor() as cursor:
    cursor.execute(*json.load(sys.stdin))
    print(json.dumps(cursor.fetchall() if cursor.description else []))
"""
_SHOWN: Final = """
import ssl
print(ssl.get_server_certificate(("localhost", 9010)))
"""
_ASKED: Final = """
import http.client, socket, sys
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("GET", sys.argv[2])
print(connection.getresponse().read().decode())
"""


@define(eq=False)
class Installation:
    """posd, PostgreSQL and the shop `kitchen` in a machine. The daemon is not started yet."""

    machine: Machine
    key: str = field(init=False)
    """The key of the till POS_1."""

    def systemctl(self, *arguments: str) -> str:
        return self.machine.run("systemctl", *arguments)

    def shown(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def posctl(self, *arguments: str, user: str | None = None) -> str:
        return self.machine.run(f"{PLACE}/bin/posctl", *arguments, user=user)

    def python(self, code: str, *arguments: str, user: str | None = None, stdin: str = "") -> str:
        """Run a program with the interpreter and the libraries of posd. Return its output."""
        command = (f"{PLACE}/bin/python", "-c", code, *arguments)
        return self.machine.run(*command, user=user, stdin=stdin)

    def write(self, path: str, text: str) -> None:
        """Write a file that all users may read, and create its folders."""
        there = self.machine.path(path)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(text, "utf-8")

    def query(self, sql: str, *parameters: object) -> list[Any]:
        """Run a statement as PostgreSQL's superuser."""
        told = self.python(_QUERY, user="postgres", stdin=json.dumps([sql, parameters]))
        rows: list[Any] = json.loads(told)
        return rows

    def order(self, number: str, name: str = "Ann") -> None:
        """Insert an order, as a shop with tables in this database does."""
        self.query(
            "INSERT INTO dinedesk_kitchen.orders (order_number, status, customer_name, total_amount)"
            " VALUES (%s, 'confirmed', %s, 12.50)",
            number,
            name,
        )

    def till(self) -> Till:
        """Return the connected till POS_1."""
        command = (f"{PLACE}/bin/posctl", "listen", "--json", "--url", "wss://localhost:9010")
        whose = ("--tenant", "kitchen", "--ca", "/etc/posd/tls/ca.pem")
        return Till.start(
            self.machine.entering(*command, *whose, environ={"POSD_KEY": self.key}),
        )

    def certificate(self) -> str:
        """Return the certificate in the file."""
        return self.machine.path(CERTIFICATE).read_text("ascii").strip()

    def shown_certificate(self) -> str:
        """Return the certificate that the server sends to tills."""
        return self.python(_SHOWN).strip()

    def ask(self, path: str, at: str = LOCAL) -> str:
        """Return the answer of the trusted listener."""
        return self.python(_ASKED, at, path)


@cache
def shared() -> Installation:
    """Return the installation of this process. Skip the test if there cannot be one."""
    reason = machine.missing()
    if reason is not None:
        raise SkipTest(f"not run: {reason}")
    python, wheel = _interpreter(), built().wheel
    booted = Machine.start(bound=(Path(sys.prefix), wheel.parent, python.parents[1]))
    atexit.register(booted.close)
    posd = Installation(booted)
    _install(posd, python, wheel)
    _start_postgresql(posd)
    _set_up(posd)
    return posd


def _interpreter() -> Path:
    """Return the Python of the tests, or the system's of the same version if the unit hides the former."""
    base = Path(sys.base_prefix)
    if any(base.is_relative_to(folder) for folder in _CLOSED):
        base = Path("/usr")
    python = base / "bin" / _PYTHON
    if not python.exists():
        raise SkipTest(
            f"not run: the unit hides {sys.base_prefix} from the daemon; {python} would do"
        )
    return python


def _install(posd: Installation, python: Path, wheel: Path) -> None:
    posd.machine.run(str(python), "-m", "venv", "--without-pip", PLACE)
    site = posd.machine.path(f"{PLACE}/lib/{_PYTHON}/site-packages")
    for distribution in _required("posd", {}).values():
        _copy(distribution, site)
    posd.machine.run(
        *(sys.executable, "-m", "pip", "--python", f"{PLACE}/bin/python", "--isolated", "--quiet"),
        *("--disable-pip-version-check", "install", "--no-index", "--no-deps", str(wheel)),
    )
    files = f"{PLACE}/lib/{_PYTHON}/site-packages/posd/data"
    posd.machine.run("sh", "-c", f"cp {files}/systemd/posd* /usr/lib/systemd/system/")
    for kind in "sysusers", "tmpfiles":
        posd.machine.run("cp", f"{files}/systemd/{kind}.d/posd.conf", f"/usr/lib/{kind}.d/")
    posd.machine.run("systemd-sysusers")
    posd.machine.run("systemd-tmpfiles", "--create", "posd.conf")
    # Compile Twisted's plugin cache now, because the daemon cannot write there.
    posd.machine.run(f"{PLACE}/bin/twistd", "--help")
    posd.machine.run("cp", f"{files}/etc/posd.toml", "/etc/posd/")


def _required(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """Return the dependencies of a distribution in this environment, recursively, by name."""
    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", "tls")
        )
        if wanted and requirement.name not in found and "extra ==" not in str(requirement.marker):
            found[requirement.name] = importlib.metadata.distribution(requirement.name)
            _required(requirement.name, found)
    return found


def _copy(distribution: Distribution, site: Path) -> None:
    for file in distribution.files or ():
        source = Path(str(file.locate()))
        target = Path(os.path.normpath(site / file))
        if not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
        if target.parent == site.parents[2] / "bin":
            first, _, rest = target.read_text("utf-8").partition("\n")
            if first.startswith("#!"):
                target.write_text(f"#!{PLACE}/bin/python\n{rest}", "utf-8")


def _start_postgresql(posd: Installation) -> None:
    programs, data = preferred_binaries(os.environ).path.resolve(), "/var/lib/postgresql-of-tests"
    if not programs.is_relative_to("/usr"):
        # The programs of the wheel look for their libraries three levels above themselves.
        package = programs.parents[1]
        there = posd.machine.path("/opt/postgresql")
        for folder in package, package.with_name(f"{package.name}.libs"):
            if folder.is_dir():
                shutil.copytree(folder, there / folder.name, symlinks=True)
        programs = Path("/opt/postgresql", package.name, *programs.parts[-2:])
    posd.write("/etc/sysusers.d/postgresql.conf", "u postgres -\n")
    posd.machine.run("systemd-sysusers")
    posd.machine.run("install", "-d", "-o", "postgres", data)
    # The user of this name on the machine is accepted, and no other user.
    how = ("--auth=peer", "--no-sync", "--locale=C", "--encoding=UTF8", "--username=postgres")
    posd.machine.run(f"{programs}/initdb", *how, "-D", data, user="postgres")
    posd.machine.run(*machine.let_readers_in(data), user="postgres")
    unit = _POSTGRESQL.format(programs=programs, data=data)
    # The unit postgresql.service of Debian starts the existing clusters of this machine.
    posd.write("/etc/systemd/system/postgresql-of-tests.service", unit)
    posd.systemctl("daemon-reload")
    posd.systemctl("start", "postgresql-of-tests")
    socket = posd.machine.path("/run/postgresql/.s.PGSQL.5432")
    posd.machine.await_(socket.is_socket, "PostgreSQL")


def _set_up(posd: Installation) -> None:
    for command in ("bootstrap",), ("migrate",), ("tenant", "add", "kitchen", "--name", "Kitchen"):
        # PostgreSQL's superuser may not read the configuration of the daemon.
        posd.posctl("--dsn", "postgresql:///posd", *command, user="postgres")
    whose = ("--kind", "device", "--tenant", "kitchen", "--device", "POS_1")
    made = json.loads(posd.posctl("key", "create", *whose, "--json", user="posd"))
    posd.key = made["key"]
    make_certificate(posd)
    posd.write("/etc/posd/conf.d/local.toml", _CONFIGURATION)
    posd.systemctl("enable", "posd", "posd.socket")


def make_certificate(posd: Installation) -> None:
    """Issue a new certificate with the shop's own authority."""
    posd.posctl("make-cert", "--dir", "/etc/posd/tls", "--name", "localhost", "--replace")
    posd.machine.run("chgrp", "posd", "/etc/posd/tls/privkey.pem")
    posd.machine.run("chmod", "640", "/etc/posd/tls/privkey.pem")
