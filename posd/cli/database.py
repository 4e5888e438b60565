"""The daemon's own statements, run by `posctl` on one blocking connection.

The functions of `posd.store` are coroutines over a `Session`. Over this one they never have to
wait for a reactor, so they can be run to their end where they are called, and every statement
exists once.
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

_PATIENCE: Final = 10.0
_PAUSE: Final = 0.2

# One process on the server's side.
_SNAPSHOT: Final = """
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL statement_timeout = %s;
    SET LOCAL max_parallel_workers_per_gather = 0
"""
_TOO_LONG: Final = ("57014", "55P03")
"""query_canceled, lock_not_available"""


@frozen
class BlockingExecutor:
    """A `Session` whose statements are over when they return, each its own transaction."""

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
    """Connect to a database whose main schema fits this posd; raises `SchemaError` if it does not.

    Nothing but psycopg2's errors comes out of the statements.
    """
    with closing(migrations.connect(dsn)) as connection:
        migrations.check_main(connection)
        yield BlockingExecutor(connection)


@frozen
class SnapshotQuerier:
    """A `Reader` of one moment of the database; a statement that fails leaves it usable.

    Raises `StatementFailed`, or `Busy` where the time was too short; a connection that is lost is
    psycopg2's error.
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
                if error.pgcode in _TOO_LONG:
                    raise Busy(migrations.first_line(error)) from error
                raise StatementFailed(migrations.first_line(error), error.pgcode or "") from error
            cursor.execute("RELEASE before")
            return rows


@contextmanager
def open_snapshot(dsn: str, statement_seconds: float) -> Iterator[SnapshotQuerier]:
    """As `executor`, of one moment, in which a statement may take so long."""
    with closing(migrations.connect(dsn)) as connection:
        migrations.check_main(connection)
        with connection.cursor() as cursor:
            cursor.execute(_SNAPSHOT, (int(statement_seconds * 1000),))
        yield SnapshotQuerier(connection)


def run_to_completion(statement: Coroutine[Any, Any, T]) -> T:
    """Run a function of `posd.store` on a `BlockingExecutor` to its end, and give its result."""
    try:
        statement.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    statement.close()
    raise RuntimeError("a statement on a blocking session waited for something else")


def retry_while_locked(statement: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
    """The result of a statement that gives up soon where somebody has a lock, tried for ten seconds.

    None if the lock was not to be had in that time. Nothing was changed then.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return run_to_completion(statement())
        except LockNotAvailable:
            if time.monotonic() > deadline:
                return None
            time.sleep(_PAUSE)
