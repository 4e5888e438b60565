"""One connection to PostgreSQL, and the fence around the libraries that make it.

The only importer of txpostgres, and of psycopg2 in the daemon: nothing untyped and no exception of
theirs gets past this module. What comes out of a statement is `ConnectionLost`, `Busy` (a time limit
or a collision), another `Unavailable` (a full disk) or `StatementFailed` (all the rest).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import psycopg2
from psycopg2.extensions import Notify
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from txpostgres import txpostgres

from posd.errors import Busy, StatementFailed, Unavailable

T = TypeVar("T")

Row = tuple[Any, ...]
Parameters = Sequence[object] | Mapping[str, object]
"""Of a statement: `%s` by position or `%(name)s` by name."""

DatabaseReactor = IReactorTime
"""txpostgres wants an IReactorFDSet too; every real reactor is both."""

# By SQLSTATE or its beginning (https://www.postgresql.org/docs/current/errcodes-appendix.html).
# query_canceled, lock_not_available, deadlock_detected, serialization_failure
_BUSY: Final = ("57014", "55P03", "40P01", "40001")
# connection_exception, admin_shutdown and its like, read_only_sql_transaction: a standby by now
_LOST: Final = ("08", "57P", "25006")
# insufficient_resources (a full disk), system_error: the statement is as good as it ever was
_UNABLE: Final = ("53", "58")


class ConnectionLost(Unavailable):
    """The connection ended before the answer to a statement was there."""

    def __init__(self) -> None:
        super().__init__("The connection to the database was lost.", retry_after=1)


class Connection:
    """A connection, from when it is made until it is lost or closed; it is not made again.

    `lost` is told, in some words, when it ends by itself after it was open, whether somebody was
    using it or not; `notified` the channel and payload of each NOTIFY. It runs one statement at a
    time.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: DatabaseReactor,
        lost: Callable[[Connection, str], None],
        notified: Callable[[str, str], None] | None = None,
    ) -> None:
        self._lost = lost
        self._open = False
        self._raw = _RawConnection(reactor, self._ended)
        if notified is not None:
            self._raw.tell(notified)

    async def open(self, dsn: str) -> None:
        """Connect. Raises `Unavailable` in the words of libpq."""
        try:
            await self._raw.connect(dsn)
        except (psycopg2.Error, ConnectionClosed) as error:
            raise Unavailable(line(error)) from error
        self._open = True

    async def run(self, sql: str, parameters: Parameters = (), *, rows: bool) -> list[Row]:
        """Run a statement; its rows, if they are wanted.

        Whoever cancels it gives up the connection too: to let PostgreSQL know, libpq would have to
        be waited for, and the reactor with it.
        """
        try:
            cursor = self._raw.cursor()
            # psycopg2 looks for placeholders only where there are parameters.
            await _abandonable(cursor.execute(sql, parameters or None), self._raw.given_up)
            return cursor.fetchall() if rows else []
        except psycopg2.Error as error:
            # Without its cause, whose DETAIL has whole rows in it: whoever prints a traceback, prints
            # those too.
            raise self._judge(error) from None
        except ConnectionClosed as error:
            # It was closed meanwhile.
            raise ConnectionLost from error

    def close(self) -> None:
        """Close it, however far it came; what runs on it fails."""
        self._open = False
        self._raw.shut()

    def _ended(self, trouble: str) -> None:
        if self._open:
            self._open = False
            self._lost(self, trouble)

    def _judge(self, error: psycopg2.Error) -> Exception:
        """Translate, and say so if it is the connection that failed."""
        sqlstate = error.pgcode or ""
        # Without a code PostgreSQL never answered, unless psycopg2 itself did not like the statement.
        unanswered = not sqlstate and not isinstance(error, psycopg2.ProgrammingError)
        if self._raw.closed or unanswered or sqlstate.startswith(_LOST):
            self._ended(line(error))
            return ConnectionLost()
        if sqlstate.startswith(_BUSY):
            return Busy("The database is busy. Try again.", retry_after=1)
        if sqlstate.startswith(_UNABLE):
            self._log.error("the database is in trouble: {error}", error=line(error))
            return Unavailable("The database cannot do this at the moment.", retry_after=5)
        message = error.diag.message_primary or line(error)
        return StatementFailed(message, sqlstate, error.diag.constraint_name)


class _RawCursor(txpostgres.Cursor):  # type: ignore[misc]
    """txpostgres' cursor, which takes a statement that timed out for one that was given up."""

    def _handleCancellation(self, failure: Failure) -> Failure:
        """What the server cancelled is an error like any other."""
        return failure


class _RawConnection(txpostgres.Connection):  # type: ignore[misc]
    """txpostgres' connection, telling when the server ends it while it is idle.

    Without this the reactor logs an unhandled error for each idle connection of a server that
    goes down, and nobody learns of it until the next statement.
    """

    cursorFactory = _RawCursor

    def __init__(self, reactor: DatabaseReactor, ended: Callable[[str], None]) -> None:
        super().__init__(reactor)
        self.ended = ended

    def doRead(self) -> None:
        try:
            super().doRead()
        except (psycopg2.Error, ValueError) as error:
            # ValueError: it was lost while it was made, and has no descriptor to watch any more.
            self.ended(line(error))

    def connectionLost(self, reason: Failure) -> None:
        """The reactor watches it no more, so whatever comes would not be heard."""
        super().connectionLost(reason)
        self.ended(reason.getErrorMessage())

    def tell(self, notified: Callable[[str, str], None]) -> None:
        """Call `notified(channel, payload)` for each NOTIFY."""

        def observe(notify: Notify) -> None:
            notified(notify.channel, notify.payload)

        self.addNotifyObserver(observe)

    def given_up(self) -> None:
        """Nobody waits for the statement that runs."""
        self.ended("a statement was given up")

    def shut(self) -> None:
        if self._connection is not None:
            self.close()


def _abandonable(statement: Deferred[T], abandon: Callable[[], None]) -> Deferred[T]:
    """What a statement will bring, for somebody who may cancel.

    txpostgres tells a result in the reactor's next turn, and tells it too to whoever cancels in this
    one; so its own Deferred is never cancelled.
    """
    wanted = True

    def give_up(_: Deferred[T]) -> None:
        nonlocal wanted
        wanted = False
        abandon()

    def bring(result: T | Failure) -> None:
        if wanted:
            awaited.callback(cast(T, result))

    awaited: Deferred[T] = Deferred(give_up)
    statement.addBoth(bring)
    return awaited


def line(error: BaseException) -> str:
    """What libpq or PostgreSQL said, on one line."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
