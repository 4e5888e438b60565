"""The PostgreSQL that tests share: one server for a process, as many empty databases as they want.

    database = test_server().fresh_database()      # a connection string

The server is the one that `POSD_TEST_DSN` names, by a connection string of a superuser; else one of
our own, started at the first call and gone with the process. Where there is neither, `NoServer`
says what was looked for: tests that need a database never skip themselves.
"""

from __future__ import annotations

import atexit
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import closing

import psycopg2
from attrs import define, field
from psycopg2 import sql
from psycopg2.extensions import make_dsn, parse_dsn

from posd.testing.binaries import Binaries, NoServer, find_binaries
from posd.testing.server import PostgresServer, ServerFailed

__all__ = [
    "Binaries",
    "NoServer",
    "PostgresServer",
    "ServerFailed",
    "TestServer",
    "find_binaries",
    "test_server",
]


@define(eq=False)
class TestServer:
    """A server to make databases on; `server` is None where it is the user's own."""

    _dsn: str
    server: PostgresServer | None = None
    _databases: set[str] = field(init=False, factory=set)
    _templates: dict[Callable[[str], None], str] = field(init=False, factory=dict)

    def dsn(self, dbname: str = "postgres", user: str | None = None) -> str:
        """The connection string of a database, as the superuser or as another role."""
        return str(make_dsn(self._dsn, dbname=dbname, **({"user": user} if user else {})))

    def fresh_database(self, template: str | None = None) -> str:
        """Make a database that nobody has used, empty or a copy of `template`; its DSN."""
        name = f"posd_test_{os.getpid()}_{secrets.token_hex(4)}"
        create = "CREATE DATABASE {} TEMPLATE {}"
        if self.server is not None and self.server.binaries.version >= 15:
            # The default, through the write-ahead log, takes twice the time where there is no fsync.
            create += " STRATEGY file_copy"
        self._execute(create, name, template or "template0")
        self._databases.add(name)
        return self.dsn(name)

    def template(self, prepare: Callable[[str], None]) -> str:
        """The name of a database that `prepare(dsn)` has filled, for `fresh_database`.

        It is made once in a process for each function, since a copy takes a fraction of the time
        that the migrations do. Nobody can connect to it afterwards, so it stays as it is.
        """
        if prepare not in self._templates:
            dsn = self.fresh_database()
            prepare(dsn)
            name = parse_dsn(dsn)["dbname"]
            self._execute("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
            self._templates[prepare] = name
        return self._templates[prepare]

    def drop_database(self, dsn: str) -> None:
        """Remove a database of ours, whoever is still connected to it."""
        name = parse_dsn(dsn)["dbname"]
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        self._databases.discard(name)

    def close(self) -> None:
        """Stop our server, or leave the user's as it was."""
        if self.server is not None:
            self.server.stop()
            return
        for name in sorted(self._databases):
            self.drop_database(self.dsn(name))

    def _execute(self, statement: str, *names: str) -> None:
        # CREATE and DROP DATABASE cannot run in a transaction block.
        with closing(psycopg2.connect(self._dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


_shared: TestServer | None = None


def test_server(environ: Mapping[str, str] = os.environ) -> TestServer:
    """This process's server, started if it is the first call."""
    global _shared
    if _shared is None:
        dsn = environ.get("POSD_TEST_DSN")
        if dsn:
            _shared = TestServer(dsn)
        else:
            server = PostgresServer.start()
            _shared = TestServer(server.dsn(), server)
        atexit.register(_shared.close)
    return _shared
