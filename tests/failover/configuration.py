"""The configuration files of docs/high-availability.md, for machines at loopback addresses.

The page shows the files of `db1`. A line that names all machines is the same on all of them. In other
lines, `db1` and its address are replaced by those of the machine.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

import yaml
from attrs import frozen

from tests import documents

PAGE: Final = "docs/high-availability.md"
NETWORK: Final = "10.0.0."
HERE: Final = "127.0.0.1"
"""The machine of posd, HAProxy and PgBouncer."""
MACHINES: Final = (1, 2, 3)
DIRECT: Final = "direct"

_PROGRAMS: Final = "/usr/lib/postgresql/15/bin"
_FOLDERS: Final = {
    "/var/lib/postgresql/15/posd": "data",
    "/var/lib/postgresql": ".",
    "/var/lib/etcd/posd": "etcd",
    "/var/run/postgresql": ".",
    "/etc/posd": ".",
    "/etc/pgbouncer": ".",
}
"""The folders of the page and their replacements. A longer path precedes its prefix."""


def shown(language: str, *words: str) -> str:
    """Return the only block of the page with this language and these words."""
    (block,) = (each for each in documents.blocks(PAGE) if each.of(language, *words))
    return block.text


def own(text: str, number: int) -> str:
    """Return a file of `db1` for another machine."""
    return "".join(
        line
        if _names_all(line)
        else line.replace("db1", f"db{number}").replace(f"{NETWORK}11", f"{NETWORK}1{number}")
        for line in text.splitlines(keepends=True)
    )


def _names_all(line: str) -> bool:
    return f"{NETWORK}12" in line


@frozen
class Place:
    """The addresses of the machines: three addresses in `network`, such as `127.1.2.`.

    `programs` has the programs of PostgreSQL. Each machine has a folder for everything else.
    """

    network: str
    programs: Path

    def address(self, number: int) -> str:
        return f"{self.network}1{number}"

    @property
    def here(self) -> str:
        return f"{self.network}1"

    def put(self, text: str, folder: Path) -> str:
        """Return a file of the page with the addresses and folders of this cluster."""
        # A connection to a loopback address comes from 127.0.0.1.
        text = text.replace(f"{NETWORK}0/24", "127.0.0.0/8")
        text = text.replace(HERE, self.here).replace(NETWORK, self.network)
        text = text.replace(_PROGRAMS, str(self.programs))
        for name, here in _FOLDERS.items():
            text = text.replace(name, str(folder / here))
        return text

    def etcd(self, number: int, folder: Path) -> dict[str, str]:
        """Return the environment of a machine's etcd."""
        lines = self.put(own(shown("sh", "etcd"), number), folder).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def patroni(self, number: int, folder: Path) -> str:
        """Return a machine's patroni.yml."""
        return self.put(own(shown("yaml", "patroni"), number), folder)

    def haproxy(self, folder: Path) -> str:
        return self.put(shown("haproxy"), folder)

    def pgbouncer(self, folder: Path) -> str:
        return self.put(shown("ini", "pgbouncer"), folder)

    def dsn(self, through: str, folder: Path) -> str:
        """Return the connection string of posd: `direct`, or through `haproxy` or `pgbouncer`."""
        dsn = tomllib.loads(shown("toml", through))["database"]["dsn"]
        return self.put(str(dsn), folder)


def superuser() -> dict[str, str]:
    """Return the name and the password of PostgreSQL's superuser, as parameters of libpq."""
    settings: Any = yaml.safe_load(shown("yaml", "patroni"))
    account = settings["postgresql"]["authentication"]["superuser"]
    return {"user": account["username"], "password": account["password"]}
