"""Tests that use a real PostgreSQL through the reactor."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any, Final, TypeVar

import psycopg2
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from posd.database.reconnecting import ReconnectingConnection
from posd.testing.postgres import test_server
from tests.schema_case import Client

T = TypeVar("T")

REACTOR: Final[Any] = reactor
DEADLINE: Final = 300.0


class DatabaseCase(TestCase):
    """A database for each test, a copy of `template`.

    An error in the log fails a test, also an error that is logged only when memory is freed.
    """

    timeout = 600

    def setUp(self) -> None:
        server = test_server()
        self.dsn = server.fresh_database(self.template())
        self.addCleanup(self._free)
        # Collect only objects that the test has made: the others took 0.1 s for each test.
        gc.freeze()
        self.addCleanup(server.drop_database, self.dsn)
        self.admin = self.client()

    def template(self) -> str | None:
        """Return the name of the database to copy, or None for an empty one."""
        return None

    def client(self) -> Client:
        """Return a blocking session of the superuser, in autocommit mode."""
        connection = psycopg2.connect(self.dsn)
        connection.autocommit = True
        self.addCleanup(connection.close)
        return Client(connection)

    def _free(self) -> None:
        """Free the reference cycles of the test, so that errors logged by that count for it."""
        gc.collect()
        gc.unfreeze()

    async def up(self, link: ReconnectingConnection) -> ReconnectingConnection:
        """Start a link, wait until it is up, and stop it at the end of the test."""
        link.startService()
        self.addCleanup(link.stopService)
        await until(lambda: link.up, "the link is up")
        return link

    def run_elsewhere(self, *statements: str) -> None:
        """Run statements on another connection, and close it in any case."""
        with closing(psycopg2.connect(self.dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)

    def backends(self, name: str) -> list[int]:
        """Return the process ids of the sessions with this application name in this database."""
        rows = self.admin.rows(
            "SELECT pid FROM pg_stat_activity"
            " WHERE application_name = %s AND datname = current_database() ORDER BY pid",
            name,
        )
        return [pid for (pid,) in rows]


async def until(happened: Callable[[], bool], what: str) -> None:
    """Wait until a condition in another process holds."""
    deadline = REACTOR.seconds() + DEADLINE
    while not happened():
        if REACTOR.seconds() > deadline:
            raise AssertionError(f"not within {DEADLINE} s: {what}")
        await deferLater(REACTOR, 0.005)


def begin(work: Awaitable[T]) -> Deferred[T]:
    """Begin work whose end the test awaits later."""

    async def whole() -> T:
        return await work

    return Deferred.fromCoroutine(whole())
