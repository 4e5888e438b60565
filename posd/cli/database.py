"""The daemon's own statements, run by `posctl` on one blocking connection.

The functions of `posd.store` are coroutines over a `Session`. Over this one they never have to
wait for a reactor, so they can be run to their end where they are called, and every statement
exists once.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from attrs import frozen
from psycopg2.extensions import connection as Connection  # noqa: N812

from posd import migrations
from posd.link import Parameters, Row

T = TypeVar("T")


@frozen
class BlockingSession:
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
def session(dsn: str) -> Iterator[BlockingSession]:
    """Connect to a database whose main schema fits this posd; raises `SchemaError` if it does not.

    Nothing but psycopg2's errors comes out of the statements.
    """
    with closing(migrations.connect(dsn)) as connection:
        migrations.check_main(connection)
        yield BlockingSession(connection)


def complete(statement: Coroutine[Any, Any, T]) -> T:
    """Run a function of `posd.store` on a `BlockingSession` to its end, and give its result."""
    try:
        statement.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    statement.close()
    raise RuntimeError("a statement on a blocking session waited for something else")
