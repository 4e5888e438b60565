"""The installation that `posctl demo` makes in a temporary folder."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from attrs import field, frozen

from posd.cli import database
from posd.cli.failures import CommandFailure
from posd.cli.keys import issue
from posd.cli.sample_orders import sample_order
from posd.database import migrations
from posd.database import provisioning as provision
from posd.protocol import jsontext
from posd.security import private_ca as certificates
from posd.testing.daemon import DaemonProcess
from posd.testing.ports import reserve
from posd.testing.server import PostgresServer
from posd.values import KeyKind

TENANT: Final = "kitchen"
TILL: Final = "POS_1"
OWN_TILL: Final = "DEMO"
"""The device id of the till in this process. `posctl listen` with TILL's key does not supersede it."""

_USUAL_PORT: Final = 9010
_TRIES: Final = 20
"""How many free ports of 127.0.0.1 are tried to find one that is also free at the other address."""
_PREFIX: Final = "posd-demo-"

_CONFIGURATION: Final = """\
[database]
dsn = {dsn}
admin_dsn = {admin_dsn}

{listeners}
[tls]
certificate = {certificate}
private_key = {private_key}

[logging]
format = "text"
"""


_LISTENER: Final = """\
[[listen]]
name = "{name}"
endpoint = "tcp:port={port}:interface={interface}"
tls = true
"""


@frozen
class ListenAddress:
    """Where posd listens: the host in URLs, and its address if it is not 127.0.0.1."""

    host: str = "localhost"
    address: str | None = None

    @property
    def written(self) -> str:
        """The host as it is written in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def names(self) -> list[str]:
        """The names and addresses that the certificate must be valid for."""
        names = ["localhost", "127.0.0.1", self.host, *([self.address] if self.address else [])]
        return [*dict.fromkeys(names)]


@frozen
class DemoServer:
    """A running posd and the data of its clients. `keys` has a key for each holder's name.

    `shown` is the path of the folder in the commands that are printed: the link if there is one.
    """

    folder: Path
    shown: Path
    listen_address: ListenAddress
    port: int
    dsn: str
    keys: Mapping[str, str] = field(repr=False)
    daemon: DaemonProcess

    @property
    def url(self) -> str:
        """The URL that tills connect to."""
        return f"wss://{self.listen_address.written}:{self.port}"

    @property
    def rest_url(self) -> str:
        """The base URL of the REST API."""
        return f"https://{self.listen_address.written}:{self.port}"

    @property
    def ca(self) -> Path:
        """The certificate of the authority that tills must trust."""
        return self.shown / "tls" / "ca.pem"

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.shown / "posd.toml"

    @property
    def pid_file(self) -> Path:
        """The file with the process id of the daemon. It is rewritten at a restart."""
        return self.shown / "posd.pid"

    def key_file(self, holder: str) -> Path:
        """The file with the key of a holder."""
        return self.shown / f"{holder}.key"


@contextmanager
def demo_server(
    port: int | None, host: str | None, link: Path | None, report: Callable[[str], None]
) -> Iterator[DemoServer]:
    """Set up and start an installation, and remove it at the end.

    `report` is called with a line for each step. Without `port`, 9010 is used if it is free, else any
    free port. `host` is a name or an address of this machine where posd listens too. `link` is
    created as a link to the folder. Raises `NoServer`, `ServerFailed`, `DaemonFailed`, and
    `CommandFailure` if the port is in use, the host is not this machine or the link cannot be created.
    """
    listen_address = ListenAddress() if host is None else _resolve_host(host)
    with (
        _reserve_port(port, listen_address) as chosen,
        tempfile.TemporaryDirectory(prefix=_PREFIX) as temporary,
        _symlink_to(link, Path(temporary)) as shown,
        PostgresServer.start() as server,
    ):
        folder = Path(temporary)
        report(f"PostgreSQL {server.binaries.version} runs in {server.folder}")
        dsn = server.dsn("posd")
        _prepare(dsn)
        report(f"tenant {TENANT} is added")
        keys = _keys(dsn, folder)
        made = certificates.make(folder / "tls", listen_address.names)
        (folder / "order.json").write_bytes(jsontext.encode(sample_order(0).data()))
        config = folder / "posd.toml"
        config.write_text(
            _CONFIGURATION.format(
                dsn=_quoted(server.dsn("posd", "posd")),
                admin_dsn=_quoted(dsn),
                listeners=_listeners(listen_address, chosen),
                certificate=_quoted(str(made.certificate_path)),
                private_key=_quoted(str(made.key_path)),
            )
        )
        report("keys and certificates are created")
        with DaemonProcess.start(config, folder) as daemon:
            report(f"posd runs as process {daemon.pid}")
            yield DemoServer(folder, shown, listen_address, chosen, dsn, keys, daemon)


def _prepare(dsn: str) -> None:
    migrations.bootstrap(dsn)
    with closing(migrations.connect(dsn)) as connection:
        provision.migrate(connection)
        provision.add_tenant(
            connection, TENANT, "The Kitchen", currency="GBP", timezone="Europe/London"
        )


def _keys(dsn: str, folder: Path) -> dict[str, str]:
    with database.open_executor(dsn) as executor:
        keys = {
            "till": issue(executor, KeyKind.DEVICE, TENANT, TILL).secret,
            "demo": issue(executor, KeyKind.DEVICE, TENANT, OWN_TILL).secret,
            "platform": issue(executor, KeyKind.PLATFORM, TENANT).secret,
            "admin": issue(executor, KeyKind.ADMIN).secret,
        }
    for holder, secret in keys.items():
        (folder / f"{holder}.key").write_text(f"{secret}\n")
    return keys


def _resolve_host(host: str) -> ListenAddress:
    """Return the address of this machine that a host name resolves to."""
    try:
        found = {
            str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        }
    except (OSError, UnicodeError):
        message = f"--host {host!r} is neither an IP address nor a known host name"
        raise CommandFailure(message, os.EX_NOHOST) from None
    if any(ip_address(each.partition("%")[0]).is_unspecified for each in found):
        message = f"--host {host} means all addresses: give the one that tablets connect to"
        raise CommandFailure(f"{message}; `hostname -I` prints those of this machine", os.EX_USAGE)
    if "127.0.0.1" in found:
        return ListenAddress(host)
    for address in sorted(found, key=lambda each: ":" in each):
        try:
            reserve(0, address).close()
        except OSError:
            continue
        return ListenAddress(host, address)
    message = f"--host {host} is not this machine: no interface has the address {min(found)}"
    raise CommandFailure(message, os.EX_NOHOST)


@contextmanager
def _reserve_port(wanted: int | None, listen_address: ListenAddress) -> Iterator[int]:
    """Reserve a port at all listen addresses: the wanted one, or else 9010, or else any."""
    with ExitStack() as kept:
        yield _reserved_ports(wanted, listen_address, kept)


def _reserved_ports(wanted: int | None, listen_address: ListenAddress, kept: ExitStack) -> int:
    for port in (wanted,) if wanted else (_USUAL_PORT, *[0] * _TRIES):
        with suppress(OSError), ExitStack() as trying:
            number = trying.enter_context(reserve(port)).number
            if listen_address.address is not None:
                trying.enter_context(reserve(number, listen_address.address))
            kept.push(trying.pop_all())
            return number
    message = "no port is free" if wanted is None else f"port {wanted} is in use"
    raise CommandFailure(f"{message}: choose another with --port", os.EX_UNAVAILABLE)


def _listeners(listen_address: ListenAddress, port: int) -> str:
    text = _LISTENER.format(name="https", port=port, interface="127.0.0.1")
    if listen_address.address is not None:
        # Twisted's endpoint strings need a backslash before a colon; TOML needs two for one.
        interface = listen_address.address.replace(":", r"\\:")
        text += _LISTENER.format(name="network", port=port, interface=interface)
    return text


@contextmanager
def _symlink_to(link: Path | None, folder: Path) -> Iterator[Path]:
    """Create the link, yield the path for printed commands, and remove the link at the end."""
    if link is None:
        yield folder
        return
    with suppress(FileNotFoundError):
        # A demonstration that was killed has left a dangling link.
        if link.is_symlink() and link.readlink().name.startswith(_PREFIX) and not link.exists():
            link.unlink()
    try:
        link.symlink_to(folder)
    except FileExistsError:
        raise CommandFailure(
            f"{link} already exists: choose another name with --dir", os.EX_CANTCREAT
        ) from None
    except (OSError, ValueError) as error:
        raise CommandFailure(f"{link} cannot be created: {error}", os.EX_CANTCREAT) from None
    try:
        yield link
    finally:
        with suppress(OSError):
            link.unlink()


def _quoted(text: str) -> str:
    """Write a TOML basic string. Its syntax is that of a JSON string (TOML 1.0, "String")."""
    return jsontext.encode(text).decode()
