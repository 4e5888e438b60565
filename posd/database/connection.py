"""One connection to PostgreSQL, and the fence around the libraries that make it.

This module alone imports txpostgres, and psycopg2 in the daemon, so that no untyped value and no exception
of these
libraries reaches other modules. A statement raises `ConnectionLost`, `Busy` (a time limit or a collision),
another `Unavailable` (such as a full disk), or `StatementFailed` for all other errors.

Whatever the libraries raise, `close` closes the connection and raises nothing, and every pending result
ends. If a library fails, the failure is logged once, and the connection is closed and replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import psycopg2
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from txpostgres import txpostgres

from posd.database import session_settings
from posd.database import timestamps as moments
from posd.database.socket_reactor import NoSocket, SocketReactor, socket_shortage
from posd.errors import Busy, StatementFailed, Unavailable

T = TypeVar("T")

Row = tuple[Any, ...]
Parameters = Sequence[object] | Mapping[str, object]
"""The parameters of a statement: `%s` by position or `%(name)s` by name."""

DatabaseReactor = IReactorTime
"""txpostgres needs an IReactorFDSet too; every real reactor provides both."""

# By SQLSTATE or its beginning (https://www.postgresql.org/docs/current/errcodes-appendix.html).
# query_canceled, lock_not_available, deadlock_detected, serialization_failure
_BUSY: Final = ("57014", "55P03", "40P01", "40001")
# connection_exception, admin_shutdown and similar. PostgreSQL ends the connection with FATAL.
_LOST: Final = ("08", "57P")
_READ_ONLY: Final = "25006"
# insufficient_resources (a full disk), system_error: the statement may succeed later
_UNABLE: Final = ("53", "58")

_OF_VALUES: Final = (ValueError, TypeError, ArithmeticError)

_MAX_MESSAGE_LENGTH: Final = 1000
"""The number of characters of an error message that are kept."""

moments.read_within_bounds()


class ConnectionLost(Unavailable):
    """The connection ended before a statement was answered, or because of the answer.

    If `is_rolled_back`, PostgreSQL has answered that it did not execute the statement.
    """

    def __init__(self, *, is_rolled_back: bool = False) -> None:
        super().__init__("The connection to the database was lost.", retry_after=1)
        self.is_rolled_back = is_rolled_back


class _ConnectionEnded(Exception):
    """The pending result will not arrive: the connection was closed, or a library failed."""


class DatabaseConnection:
    """A connection from its opening to its end. It does not reconnect.

    `lost` is called with the connection and a line of text when an open connection ends by itself, in use or
    idle. `notified` is called with the channel and payload of each NOTIFY. A connection runs one statement at
    a time.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: DatabaseReactor,
        lost: Callable[[DatabaseConnection, str], None],
        notified: Callable[[str, str], None] | None = None,
        *,
        read_only: bool = False,
    ) -> None:
        self._reactor = reactor
        self._read_only = read_only
        self._lost = lost
        self._notified = notified
        self._open = False
        self._is_logged = False
        self._awaited: Deferred[Any] | None = None
        self._raw = self._new_raw()

    async def open(self, dsn: str) -> None:
        """Connect. Raises `Unavailable` with the message of libpq."""
        try:
            given = session_settings.connection_string(dsn)
            await self._await(self._raw.connect(given))
            if self._raw.escapes_backslashes:
                self._close_raw()
                self._raw = self._new_raw()
                await self._await(self._raw.connect(session_settings.with_standard_strings(given)))
                if self._raw.escapes_backslashes:
                    raise Unavailable(session_settings.UNQUOTABLE)
            self._raw.count_notices()
            self._raw.watch.settled = self._open = True
        except (psycopg2.Error, OSError, _ConnectionEnded) as error:
            # OSError: the process has no file descriptor left for the connection.
            # libpq has no message if it cannot open a socket.
            raise Unavailable(
                first_line(error if str(error) else socket_shortage() or error)
            ) from error
        except (CancelledError, Unavailable):
            raise
        except Exception as error:
            self._log_once(error)
            raise Unavailable(first_line(error)) from error

    async def run(self, sql: str, parameters: Parameters = (), *, rows: bool) -> list[Row]:
        """Run a statement and return its rows, if they are requested.

        Cancelling it drops the connection, because libpq would block the reactor while it informs
        PostgreSQL.
        """
        try:
            cursor = self._raw.cursor()
            # psycopg2 replaces placeholders only if there are parameters.
            await self._await(cursor.execute(sql, parameters or None))
            return cursor.fetchall() if rows else []
        except psycopg2.Error as error:
            # Without the cause: its DETAIL contains whole rows, which a traceback would print.
            raise self._translate(error) from None
        except _ConnectionEnded as error:
            raise ConnectionLost from error
        except CancelledError:
            raise
        except Exception as error:
            if isinstance(error, _OF_VALUES) and self._raw.at_rest:
                # psycopg2 could not convert a parameter or a result.
                raise
            self._fail(error)
            raise ConnectionLost from error

    def take_notice_count(self) -> int:
        """Return how many characters of messages (NOTICE, WARNING) the server has sent since the last
        call.
        """
        return self._raw.notices.taken()

    def close(self) -> None:
        """Close the connection in any state. A running statement fails. Raises nothing."""
        self._open = False
        self._close_raw()
        self._end_awaited("the connection was closed")

    def _new_raw(self) -> _RawConnection:
        raw = _RawConnection(self._reactor, self._connection_ended, self._fail)
        if self._notified is not None:
            raw.tell(self._notified)
        return raw

    def _close_raw(self) -> None:
        for step in (self._raw.watch.close, self._raw.shut):
            try:
                step()
            except Exception as error:
                self._log_once(error)

    def _await(self, result: Deferred[T]) -> Deferred[T]:
        """Wait for a result of txpostgres, or for the end of the connection.

        The Deferred of txpostgres is never cancelled, because txpostgres fires it in the next turn of the
        reactor, also if it has been cancelled in this turn.
        """

        def give_up(_: Deferred[T]) -> None:
            self._awaited = None
            self._connection_ended("a statement was given up")

        def bring(result: T | Failure) -> None:
            if self._awaited is awaited:
                self._awaited = None
                if isinstance(result, Failure):
                    awaited.errback(result)
                else:
                    awaited.callback(result)

        awaited: Deferred[T] = Deferred(give_up)
        self._awaited = awaited
        result.addBoth(bring)
        return awaited

    def _end_awaited(self, trouble: str) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            awaited.errback(_ConnectionEnded(trouble))

    def _connection_ended(self, trouble: str) -> None:
        if self._open:
            self._open = False
            self._lost(self, trouble)

    def _fail(self, error: Exception) -> None:
        """Drop the connection after an exception outside of a statement, because its state is unknown."""
        if not isinstance(error, (psycopg2.Error, NoSocket)):
            self._log_once(error)
        self._connection_ended(first_line(error))
        self._end_awaited(first_line(error))

    def _log_once(self, error: Exception) -> None:
        """Log an exception of a library, once for each connection."""
        if not self._is_logged:
            self._is_logged = True
            self._log.failure(
                "a library failed at a connection to the database; posd makes another one",
                Failure(error),
            )

    def _translate(self, error: psycopg2.Error) -> Exception:
        """Translate an exception, and end the connection if it cannot be used any more."""
        sqlstate = error.pgcode or ""
        # An error without a code means that PostgreSQL did not answer, unless psycopg2 refused the statement.
        unanswered = not sqlstate and not isinstance(error, psycopg2.ProgrammingError)
        if self._raw.gone or unanswered or self._is_losing(error, sqlstate):
            self._connection_ended(first_line(error))
            return ConnectionLost(is_rolled_back=sqlstate == _READ_ONLY)
        if sqlstate.startswith(_BUSY):
            return Busy("The database is busy. Try again.", retry_after=1)
        # On a connection that reads shops' tables, a shop's code can raise this. If the database has
        # failed, the other
        # connections notice.
        if sqlstate.startswith(_UNABLE) and not self._read_only:
            self._log.error("the database is in trouble: {error}", error=first_line(error))
            return Unavailable("The database cannot do this at the moment.", retry_after=5)
        message = (error.diag.message_primary or first_line(error))[:_MAX_MESSAGE_LENGTH]
        return StatementFailed(message, sqlstate, error.diag.constraint_name)

    def _is_losing(self, error: psycopg2.Error, sqlstate: str) -> bool:
        """Whether the connection cannot be used after an error with this code."""
        if sqlstate == _READ_ONLY:
            # On a connection that writes, this code means that the server has become a standby.
            return not self._read_only
        # An ERROR rolls back and keeps the connection. A trigger of a shop raises it with any code, for
        # example when its dblink cannot connect.
        return sqlstate.startswith(_LOST) and error.diag.severity_nonlocalized != "ERROR"


class _RawCursor(txpostgres.Cursor):  # type: ignore[misc]
    """txpostgres' cursor, which would treat a statement that timed out as cancelled by its caller."""

    def _handleCancellation(self, failure: Failure) -> Failure:
        """Treat a statement that the server cancelled as failed."""
        return failure


class _NoticeCounter:
    """The list of messages that psycopg2 appends to, of which only the length is kept."""

    def __init__(self) -> None:
        self._size = 0

    def append(self, message: str) -> None:
        self._size += len(message)

    def taken(self) -> int:
        size, self._size = self._size, 0
        return size


class _RawConnection(txpostgres.Connection):  # type: ignore[misc]
    """txpostgres' connection, which reports when the server ends it while it is idle.

    Otherwise the reactor would log an unhandled error for each idle connection of a server that stops, and
    posd would notice only at the next statement.
    """

    cursorFactory = _RawCursor
    _log = Logger()

    def __init__(
        self,
        reactor: DatabaseReactor,
        ended: Callable[[str], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.watch = SocketReactor(reactor, failed)
        self.ended = ended
        self.notices = _NoticeCounter()
        self._is_logged: Callable[[str, str], None] = lambda channel, payload: None
        super().__init__(self.watch)

    @property
    def gone(self) -> bool:
        """Whether the connection cannot be used any more."""
        return bool(self._raw_property(lambda raw: raw.closed, True))

    @property
    def at_rest(self) -> bool:
        """Whether the connection is open and runs no statement."""
        return bool(self._raw_property(lambda raw: not raw.closed and not raw.isexecuting(), False))

    @property
    def escapes_backslashes(self) -> bool:
        """Whether a backslash is an escape in a plain literal, as psycopg2 has found."""
        setting = "standard_conforming_strings"
        return bool(
            self._raw_property(lambda raw: raw.get_parameter_status(setting) == "off", False)
        )

    def doRead(self) -> None:
        """Continue the present operation, and listen for notifications once the connection is open.

        txpostgres would also listen while it connects. libpq may be called then only for the event that it
        has asked to wait for.
        """
        if self.watch.settled:
            super().doRead()
        else:
            txpostgres._PollingMixin.doRead(self)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor no longer watches the socket, so no data would be noticed."""
        super().connectionLost(reason)
        self.ended(reason.getErrorMessage())

    def tell(self, notified: Callable[[str, str], None]) -> None:
        """Call `notified(channel, payload)` for each NOTIFY, in the order of arrival."""
        self._is_logged = notified

    def checkForNotifies(self) -> None:
        """Deliver the notifications of one read before the next read.

        txpostgres starts a task of the global Cooperator for each read. Tasks take turns, so a later
        notification
        could be delivered before an earlier one, and undelivered notifications would accumulate without a
        bound.
        """
        fresh = self._connection.notifies
        if not fresh:
            return
        notifications = fresh[:]
        del fresh[:]
        for each in notifications:
            try:
                self._is_logged(each.channel, each.payload)
            except Exception:
                self._log.failure("a notification could not be told")

    def count_notices(self) -> None:
        """Count notices instead of keeping them."""
        self._connection.notices = self.notices

    def shut(self) -> None:
        """Close psycopg2's connection, if there is one. Its pending results never arrive."""
        if self._connection is not None and not self._connection.closed:
            self._connection.close()

    def _raw_property(self, question: Callable[[Any], object], otherwise: bool) -> object:
        """Return a property of psycopg2's connection, or `otherwise` if there is no connection."""
        try:
            return question(self._connection)
        except Exception:
            return otherwise


def first_line(error: BaseException) -> str:
    """Return an error message as one line of bounded length, because a shop's code can raise any text."""
    said = str(error).strip().split("\n", 1)[0]
    return said[:_MAX_MESSAGE_LENGTH] or type(error).__name__
