"""Run the functions of `posd.store` on one blocking connection.

These functions are coroutines that take a `Session`. The sessions of this module never wait for a
reactor, so `run_to_completion` can run such a coroutine at once. `posctl` and the daemon thus share
their SQL statements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final, TypeVar

import psycopg2
from attrs import frozen
from psycopg2.errors import LockNotAvailable
from psycopg2.extensions import connection as Connection  # noqa: N812

from posd.database import migrations
from posd.database.reconnecting import Parameters, Row
from posd.errors import Busy, StatementFailed

T = TypeVar("T")

_LOCK_WAIT_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.2

# Without parallel workers the snapshot costs the server one process.
_SNAPSHOT: Final = """
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL statement_timeout = %s;
    SET LOCAL max_parallel_workers_per_gather = 0
"""
_TIMEOUT_SQLSTATES: Final = ("57014", "55P03")
"""query_canceled, lock_not_available"""


@frozen
class BlockingExecutor:
    """A `Session` that blocks. Each statement is a transaction of its own."""

    _connection: Connection

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall())

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)


@contextmanager
def open_executor(dsn: str) -> Iterator[BlockingExecutor]:
    """Connect to a database and check the version of its main schema.

    Raises `SchemaError` if the schema is not of this version of posd. The statements raise only the
    errors of psycopg2.
    """
    with closing(migrations.connect(dsn)) as connection:
        migrations.check_main(connection)
        yield BlockingExecutor(connection)


@frozen
class SnapshotQuerier:
    """A `Reader` in one snapshot of the database. A statement that fails does not end the snapshot.

    Raises `StatementFailed`, `Busy` if a statement times out, and psycopg2's error if the connection
    is lost.
    """

    _connection: Connection

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        with self._connection.cursor() as cursor:
            cursor.execute("SAVEPOINT before")
            try:
                cursor.execute(sql, parameters or None)
                rows = list(cursor.fetchall())
            except psycopg2.Error as error:
                if self._connection.closed:
                    raise
                cursor.execute("ROLLBACK TO before")
                if error.pgcode in _TIMEOUT_SQLSTATES:
                    raise Busy(migrations.first_line(error)) from error
                raise StatementFailed(migrations.first_line(error), error.pgcode or "") from error
            cursor.execute("RELEASE before")
            return rows


@contextmanager
def open_snapshot(dsn: str, statement_seconds: float) -> Iterator[SnapshotQuerier]:
    """Like `open_executor`, but read-only and in one snapshot, with a statement timeout."""
    with closing(migrations.connect(dsn)) as connection:
        migrations.check_main(connection)
        with connection.cursor() as cursor:
            cursor.execute(_SNAPSHOT, (int(statement_seconds * 1000),))
        yield SnapshotQuerier(connection)


def run_to_completion(statement: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of `posd.store` on a blocking session, and return its result."""
    try:
        statement.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    statement.close()
    raise RuntimeError("a coroutine on a blocking session waited for a Deferred")


def retry_while_locked(statement: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
    """Return the result of a statement with a short lock timeout, which is repeated for ten seconds.

    Return None if the lock was not available in this time. The statement has changed nothing then.
    """
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        try:
            return run_to_completion(statement())
        except LockNotAvailable:
            if time.monotonic() > deadline:
                return None
            time.sleep(_RETRY_SECONDS)
