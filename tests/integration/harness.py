"""posd as in a shop: a real PostgreSQL, real TLS, and the daemon as a process.

    shop = Shop.open(tenants=["kitchen"])          # a database, schemas, keys, certificates
    posd = shop.start()                            # twistd posd on a free port of 127.0.0.1
    …
    posd.stop(); shop.close()

All calls block. Use them in threads and in trial's synchronous tests. trial has no `setUpClass`: the first
of several tests creates what they share, and `atexit` closes it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import psycopg2
from attrs import define, field, frozen
from psycopg2.extensions import connection as Connection  # noqa: N812

from posd.database import migrations
from posd.database import provisioning as provision
from posd.security import private_ca as certificates
from posd.testing.ports import PortReservation, reserve
from posd.testing.postgres import PostgresServer, test_server
from tests.integration import forked

ROOT = forked.ROOT
_START_SECONDS = 300.0
_LOOK_SECONDS = 20.0
TWISTD = forked.PROGRAMS["twistd"]


def prepare(dsn: str) -> None:
    """Create posd's schemas in an empty database, for `TestServer.template`."""
    migrations.bootstrap(dsn)
    with closing(migrations.connect(dsn)) as connection:
        provision.migrate(connection)


@define(eq=False)
class Shop:
    """Tenants in a database, keys and certificates, and the daemons that were started for them.

    `server` is a PostgreSQL of the test's own, if it was given, to kill and restart.
    """

    dsn: str
    folder: Path
    ca: Path
    server: PostgresServer | None = None
    _certificate: Path = field(kw_only=True)
    _private_key: Path = field(kw_only=True)
    _shared: bool = field(kw_only=True)
    _daemons: list[Daemon] = field(init=False, factory=list)

    @classmethod
    def open(
        cls, tenants: Sequence[str] = ("kitchen",), *, server: PostgresServer | None = None
    ) -> Self:
        """Create a database with these tenants, on the server of the tests or of the caller."""
        if server is None:
            shared = test_server()
            dsn = shared.fresh_database(shared.template(prepare))
        else:
            dsn = server.dsn("posd")
            prepare(dsn)
        return cls.at(dsn, tenants, server=server, shared=server is None)

    @classmethod
    def at(
        cls,
        dsn: str,
        tenants: Sequence[str],
        *,
        server: PostgresServer | None = None,
        shared: bool = False,
    ) -> Self:
        """Add these tenants to a database of posd. A `shared` database is dropped with the shop."""
        folder = Path(tempfile.mkdtemp(prefix="posd-shop-"))
        made = certificates.make(folder / "tls", ["localhost", "127.0.0.1"])
        shop = cls(
            dsn,
            folder,
            made.ca_path,
            server,
            certificate=made.certificate_path,
            private_key=made.key_path,
            shared=shared,
        )
        for slug in tenants:
            shop.add_tenant(slug)
        return shop

    def add_tenant(self, slug: str) -> None:
        with closing(migrations.connect(self.dsn)) as connection:
            provision.add_tenant(
                connection, slug, slug.title(), currency="GBP", timezone="Europe/London"
            )

    def connect(self) -> Connection:
        """Open a connection of the superuser, in autocommit mode."""
        connection = psycopg2.connect(self.dsn)
        connection.autocommit = True
        return connection

    def query(self, sql: str, parameters: Sequence[object] | None = None) -> list[Any]:
        """Run a statement as the superuser. Return its rows, if it has any."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []

    def key(
        self, kind: str = "tenant", slug: str | None = "kitchen", device: str | None = None
    ) -> str:
        """Make a key of a tenant, or of all tenants where `slug` is None; the forked daemons know it then.

        posd hears of a new key by a notification, and refuses it if that takes more than a tenth of a second:
        on a busy machine it may.
        """
        secret = f"pos_{secrets.token_hex(32)}"
        self.query(
            "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, device_id, key_sha256, preview)"
            " VALUES ((SELECT id FROM dinedesk_main.tenants WHERE slug = %s), %s, %s, %s, 'test')",
            (slug, kind, device, hashlib.sha256(secret.encode()).digest()),
        )
        made = time.monotonic()
        for daemon in self._daemons:
            daemon.wait_for_look(made)
        return secret

    def order(self, slug: str = "kitchen", *, name: str = "Ann", total: str = "12.50") -> int:
        """Insert an order with one item, as a shop does, in one transaction. Return its id."""
        schema = f"dinedesk_{slug.replace('-', '_')}"
        ((order_id,),) = self.query(
            f"WITH placed AS (INSERT INTO {schema}.orders (customer_name, total_amount)"
            " VALUES (%s, %s) RETURNING id), line AS ("
            f" INSERT INTO {schema}.order_items (order_id, name, price, quantity)"
            " SELECT id, 'Naan', 3.50, 2 FROM placed) SELECT id FROM placed",
            (name, total),
        )
        return int(order_id)

    def publish(self, slug: str, kind: str, data: Mapping[str, object]) -> int:
        """Publish by SQL. Return the id of the row in the outbox."""
        ((row_id,),) = self.query(
            "SELECT dinedesk_main.pos_publish(%s, %s, %s::jsonb)", (slug, kind, json.dumps(data))
        )
        return int(row_id)

    def start(
        self,
        more: str = "",
        *,
        port: int | None = None,
        wait: bool = True,
        dsn: str | None = None,
        environ: Mapping[str, str] = {},
        twistd: Sequence[str] = (),
    ) -> Daemon:
        """Start a daemon. `more` is further configuration. With `wait`, wait until it is ready.

        `dsn` replaces the connection string. `environ` is added to its environment. `twistd` is the
        command, for instance `TWISTD`; without it and without `environ`, posd is forked (see `forked`).
        """
        port = port or free_port()
        path = self.folder / f"posd-{port}.toml"
        path.write_text(
            f"[database]\ndsn = {json.dumps(dsn or self.dsn)}\n"
            f'[[listen]]\nname = "https"\nendpoint = "tcp:port={port}:interface=127.0.0.1"\ntls = true\n'
            f"[tls]\ncertificate = {json.dumps(str(self._certificate))}\n"
            f"private_key = {json.dumps(str(self._private_key))}\n"
            f'[logging]\nformat = "text"\nlevel = "info"\n{more}\n'
        )
        log_path = self.folder / f"posd-{port}.log"
        daemon = Daemon.start(path, port, self.ca, log_path, environ, twistd)
        self._daemons.append(daemon)
        if wait:
            daemon.wait_ready()
        return daemon

    def close(self) -> None:
        """Stop the daemons that still run, and forget the database."""
        for daemon in self._daemons:
            daemon.kill()
        undeclared = [each for daemon in self._daemons for each in daemon.undeclared()]
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._shared:
            test_server().drop_database(self.dsn)
        if undeclared:
            raise AssertionError(f"refusals that no operation declares: {undeclared}")


@define(eq=False)
class Daemon:
    """A `twistd posd`."""

    port: int
    ca: Path
    log_path: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        config: Path,
        port: int,
        ca: Path,
        log_path: Path,
        environ: Mapping[str, str] = {},
        twistd: Sequence[str] = (),
    ) -> Self:
        arguments = ["-n", "--pidfile=", "posd", "--config", str(config)]
        if not (environ or twistd):
            process = forked.start("twistd", arguments, cwd=config.parent, log=log_path)
            return cls(port, ca, log_path, process)
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                [*(twistd or TWISTD), *arguments],
                cwd=config.parent,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    **environ,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return cls(port, ca, log_path, process)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def tls(self) -> ssl.SSLContext:
        """Return the TLS context of a client that trusts this daemon."""
        return ssl.create_default_context(cafile=str(self.ca))

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def undeclared(self) -> list[str]:
        """Refusals that the description of the API does not declare."""
        return re.findall(r"\S+ \S+ does not declare \d+ \w+", self.log())

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] = {},
        patience: float = 300.0,
    ) -> Reply:
        """Call the REST API. `body` is sent as JSON, or as it is if it is bytes. `patience` is in seconds."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **headers}
        if key is not None:
            sent["X-API-Key"] = key
        connection = http.client.HTTPSConnection(
            "localhost", self.port, timeout=patience, context=self.tls()
        )
        with closing(connection):
            connection.request(method, path, body=data, headers=sent)
            answer = connection.getresponse()
            content = answer.read()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            is_json = content and headers.get("content-type") == "application/json"
            return Reply(answer.status, json.loads(content) if is_json else None, headers, content)

    def wait_ready(self, seconds: float = _START_SECONDS) -> float:
        """Wait until /health/ready is successful. Return the seconds."""
        return self._wait_for("/health/ready", seconds)

    def wait_listening(self, seconds: float = _START_SECONDS) -> float:
        """Wait until it answers, with or without a database. Return the seconds."""
        return self._wait_for("/health/live", seconds)

    def wait_for_look(self, since: float) -> None:
        """Wait until it has looked for new keys, if it is forked and can; `since` is of `time.monotonic`."""
        told = Path(forked.looks_of(self.log_path))
        deadline = time.monotonic() + _LOOK_SECONDS
        while told.exists() and self.process.poll() is None and time.monotonic() < deadline:
            # The file is empty while it is written.
            if float(told.read_text() or 0) >= since:
                return
            time.sleep(0.002)

    def _wait_for(self, path: str, seconds: float) -> float:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if self.process.poll() is not None:
                raise AssertionError(f"posd ended with {self.process.returncode}:\n{self.log()}")
            try:
                if self.request("GET", path).status == 200:
                    return time.monotonic() - began
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.02)
        raise AssertionError(f"no 200 from {path} after {seconds} s:\n{self.log()}")

    def terminate(self) -> None:
        """Send SIGTERM. May be called repeatedly."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self, seconds: float = 300.0) -> int:
        """SIGTERM; the exit status."""
        self.terminate()
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Send SIGKILL. May be called repeatedly."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@frozen
class Reply:
    """An HTTP response. Names of headers are in lower case."""

    status: int
    json: Any
    headers: Mapping[str, str]
    content: bytes = b""


def free_port() -> int:
    """Return a port of 127.0.0.1 that is reserved until this process ends."""
    _reserved.append(reserve())
    return _reserved[-1].number


_reserved: list[PortReservation] = []
