"""What `posctl demo` is played on: everything an installation has, in a temporary folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from attrs import field, frozen

from posd.cli import database
from posd.cli.failures import Failure
from posd.cli.keys import issue
from posd.database import migrations
from posd.database import provisioning as provision
from posd.protocol import jsontext
from posd.security import private_ca as certificates
from posd.testing.daemon import Daemon
from posd.testing.ports import Reservation, reserve
from posd.testing.server import Server
from posd.values import KeyKind

TENANT: Final = "kitchen"
TILL: Final = "POS_1"
OWN_TILL: Final = "DEMO"
"""The till that the demonstration is itself, so that whoever tries `posctl listen` is another."""

_USUAL_PORT: Final = 9010

_CONFIGURATION: Final = """\
[database]
dsn = {dsn}
admin_dsn = {admin_dsn}

[[listen]]
name = "https"
endpoint = "tcp:port={port}:interface=127.0.0.1"
tls = true

[tls]
certificate = {certificate}
private_key = {private_key}

[logging]
format = "text"
"""


@frozen
class Stage:
    """A posd that runs, and what is needed to reach it. Keys are by the name of their holder."""

    folder: Path
    config: Path
    port: int
    ca: Path
    dsn: str
    keys: Mapping[str, str] = field(repr=False)
    daemon: Daemon

    @property
    def url(self) -> str:
        """Where tills connect to."""
        return f"wss://localhost:{self.port}"

    @property
    def rest_url(self) -> str:
        """Where platforms publish."""
        return f"https://localhost:{self.port}"

    def key_file(self, holder: str) -> Path:
        """A file that has this holder's key and nothing else."""
        return self.folder / f"{holder}.key"


@contextmanager
def stage(port: int | None, tell: Callable[[str], None]) -> Iterator[Stage]:
    """Set everything up, and take it away again.

    `tell` hears of each step. Without a `port` the usual one is taken if it is free, or else any.
    Raises `NoServer`, `ServerFailed` and `DaemonFailed`, and `Failure` for a port in use.
    """
    with (
        _reserve(port) as reserved,
        tempfile.TemporaryDirectory(prefix="posd-demo-") as temporary,
        Server.start() as server,
    ):
        chosen = reserved.number
        folder = Path(temporary)
        tell(f"PostgreSQL {server.binaries.version} runs in {server.folder}")
        dsn = server.dsn("posd")
        _prepare(dsn)
        tell(f"tenant {TENANT} has its schema")
        keys = _keys(dsn, folder)
        made = certificates.make(folder / "tls", ["localhost", "127.0.0.1"])
        config = folder / "posd.toml"
        config.write_text(
            _CONFIGURATION.format(
                dsn=_quoted(server.dsn("posd", "posd")),
                admin_dsn=_quoted(dsn),
                port=chosen,
                certificate=_quoted(str(made.certificate_path)),
                private_key=_quoted(str(made.key_path)),
            )
        )
        tell("keys and certificates are made")
        with Daemon.start(config, folder) as daemon:
            tell(f"posd runs as process {daemon.pid}")
            yield Stage(folder, config, chosen, made.ca_path, dsn, keys, daemon)


def _prepare(dsn: str) -> None:
    migrations.bootstrap(dsn)
    with closing(migrations.connect(dsn)) as connection:
        provision.migrate(connection)
        provision.add_tenant(
            connection, TENANT, "The Kitchen", currency="GBP", timezone="Europe/London"
        )


def _keys(dsn: str, folder: Path) -> dict[str, str]:
    with database.session(dsn) as session:
        keys = {
            "till": issue(session, KeyKind.DEVICE, TENANT, TILL).secret,
            "demo": issue(session, KeyKind.DEVICE, TENANT, OWN_TILL).secret,
            "platform": issue(session, KeyKind.PLATFORM, TENANT).secret,
            "admin": issue(session, KeyKind.ADMIN).secret,
        }
    for holder, secret in keys.items():
        (folder / f"{holder}.key").write_text(f"{secret}\n")
    return keys


def _reserve(wanted: int | None) -> Reservation:
    """The port that was asked for, or the usual one, or any."""
    if wanted is not None:
        try:
            return reserve(wanted)
        except OSError:
            message = f"port {wanted} is in use: name another by --port"
            raise Failure(message, os.EX_UNAVAILABLE) from None
    try:
        return reserve(_USUAL_PORT)
    except OSError:
        return reserve()


def _quoted(text: str) -> str:
    """A string in TOML: its basic strings are written like those of JSON (TOML 1.0, "String")."""
    return jsontext.encode(text).decode()
