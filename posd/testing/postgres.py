"""The PostgreSQL server of the tests: one server for a process, with new databases on demand.

    database = test_server().fresh_database()      # a connection string

If `POSD_TEST_DSN` is set, it is the connection string of a superuser on the server to use. Otherwise the
first call starts a server, which ends with the process. `NoServer` is raised if there is neither: tests
that need a database are never skipped.
"""

from __future__ import annotations

import atexit
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

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

_GRANTS_AND_SETTINGS = """
SELECT format('GRANT %%s ON DATABASE %%I TO %%s', acl.privilege_type, %(name)s, acl.grantee::regrole)
  FROM pg_database AS d, aclexplode(d.datacl) AS acl
 WHERE d.datname = %(template)s AND acl.grantee <> 0 AND acl.grantee <> d.datdba
 UNION ALL
SELECT format('ALTER ROLE %%s IN DATABASE %%I SET %%I = %%L', s.setrole::regrole, %(name)s,
              split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1))
  FROM pg_database AS d
  JOIN pg_db_role_setting AS s ON s.setdatabase = d.oid AND s.setrole <> 0, unnest(s.setconfig) AS setting
 WHERE d.datname = %(template)s
"""


@define(eq=False)
class TestServer:
    """A server for test databases. `server` is None if it is that of `POSD_TEST_DSN`."""

    _dsn: str
    server: PostgresServer | None = None
    _databases: set[str] = field(init=False, factory=set)
    _templates: dict[Callable[[str], None], str] = field(init=False, factory=dict)

    def dsn(self, dbname: str = "postgres", user: str | None = None) -> str:
        """Return the connection string of a database, for the superuser or another role."""
        return str(make_dsn(self._dsn, dbname=dbname, **({"user": user} if user else {})))

    def fresh_database(self, template: str | None = None) -> str:
        """Create a database, empty or as a copy of `template`. Return its connection string."""
        name = f"posd_test_{os.getpid()}_{secrets.token_hex(4)}"
        create = "CREATE DATABASE {} TEMPLATE {}"
        if self.server is not None and self.server.binaries.version >= 15:
            # The default strategy, WAL_LOG, takes twice the time without fsync.
            create += " STRATEGY file_copy"
        with self._administering() as cursor:
            _run(cursor, create, name, template or "template0")
            self._databases.add(name)
            if template is not None:
                # A copy has everything of its template but these.
                cursor.execute(_GRANTS_AND_SETTINGS, {"name": name, "template": template})
                for (statement,) in cursor.fetchall():
                    cursor.execute(statement)
        return self.dsn(name)

    def template(self, prepare: Callable[[str], None]) -> str:
        """Return the name of a database that `prepare(dsn)` has filled, for `fresh_database`.

        It is created once for each function, because a copy is much faster than the migrations. It
        does not allow connections afterwards, so it does not change.
        """
        if prepare not in self._templates:
            dsn = self.fresh_database()
            prepare(dsn)
            name = parse_dsn(dsn)["dbname"]
            self._execute("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
            self._templates[prepare] = name
        return self._templates[prepare]

    def drop_database(self, dsn: str) -> None:
        """Drop a test database, and end its connections."""
        name = parse_dsn(dsn)["dbname"]
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        self._databases.discard(name)

    def another(self, *, durable: bool = False, settings: Mapping[str, str] = {}) -> PostgresServer:
        """Start a server for one test, with parameters of its own; its caller stops it."""
        if self.server is None:
            return PostgresServer.start(durable=durable, settings=settings)
        return self.server.another(durable=durable, settings=settings)

    def close(self) -> None:
        """Stop our server, or drop the test databases on the server of `POSD_TEST_DSN`."""
        if self.server is not None:
            self.server.stop()
            return
        for name in sorted(self._databases):
            self.drop_database(self.dsn(name))

    def _execute(self, statement: str, *names: str) -> None:
        with self._administering() as cursor:
            _run(cursor, statement, *names)

    @contextmanager
    def _administering(self) -> Iterator[Any]:
        # CREATE and DROP DATABASE cannot run in a transaction block.
        with closing(psycopg2.connect(self._dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor


def _run(cursor: Any, statement: str, *names: str) -> None:
    cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


_shared: TestServer | None = None


def test_server(environ: Mapping[str, str] = os.environ) -> TestServer:
    """Return the server of this process. The first call starts it."""
    global _shared
    if _shared is None:
        dsn = environ.get("POSD_TEST_DSN")
        if dsn:
            _shared = TestServer(dsn)
        else:
            server = PostgresServer.start(keep_fresh=True)
            _shared = TestServer(server.dsn(), server)
        atexit.register(_shared.close)
    return _shared
