"""One connection to PostgreSQL, and the fence around the libraries that make it.

The only importer of txpostgres, and of psycopg2 in the daemon: nothing untyped and no exception of
theirs gets past this module. What comes out of a statement is `ConnectionLost`, `Busy` (a time limit
or a collision), another `Unavailable` (a full disk) or `StatementFailed` (all the rest).

Whatever the libraries raise, `close` closes and raises nothing, and what is awaited ends: a
connection that a library fails at is logged once, closed, and replaced by its link.
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
"""Of a statement: `%s` by position or `%(name)s` by name."""

DatabaseReactor = IReactorTime
"""txpostgres wants an IReactorFDSet too; every real reactor is both."""

# By SQLSTATE or its beginning (https://www.postgresql.org/docs/current/errcodes-appendix.html).
# query_canceled, lock_not_available, deadlock_detected, serialization_failure
_BUSY: Final = ("57014", "55P03", "40P01", "40001")
# connection_exception, admin_shutdown and its like. PostgreSQL ends the connection with FATAL.
_LOST: Final = ("08", "57P")
_READ_ONLY: Final = "25006"
# insufficient_resources (a full disk), system_error: the statement is as good as it ever was
_UNABLE: Final = ("53", "58")

_OF_VALUES: Final = (ValueError, TypeError, ArithmeticError)

_MAX_MESSAGE_LENGTH: Final = 1000
"""Characters of an error's message that are kept."""

moments.read_within_bounds()


class ConnectionLost(Unavailable):
    """The connection ended before the answer to a statement was there, or because of that answer.

    `is_rolled_back`: PostgreSQL has answered that it did not execute the statement.
    """

    def __init__(self, *, is_rolled_back: bool = False) -> None:
        super().__init__("The connection to the database was lost.", retry_after=1)
        self.is_rolled_back = is_rolled_back


class _ConnectionEnded(Exception):
    """What is awaited will not come: the connection was closed, or a library failed at it."""


class DatabaseConnection:
    """A connection, from when it is made until it is lost or closed; it is not made again.

    `lost` is called with the connection and a line of text when it ends by itself after it was open,
    while it is in use or idle; `notified` with the channel and payload of each NOTIFY. A connection
    runs one statement at a time.
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
        """Connect. Raises `Unavailable` in the words of libpq."""
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
            # OSError: no descriptor is left to watch the connection with.
            # libpq says nothing where it cannot open a socket.
            raise Unavailable(
                first_line(error if str(error) else socket_shortage() or error)
            ) from error
        except (CancelledError, Unavailable):
            raise
        except Exception as error:
            self._log_once(error)
            raise Unavailable(first_line(error)) from error

    async def run(self, sql: str, parameters: Parameters = (), *, rows: bool) -> list[Row]:
        """Run a statement; its rows, if they are wanted.

        To cancel it gives up the connection too: to let PostgreSQL know, libpq would have to be
        waited for, and the reactor with it.
        """
        try:
            cursor = self._raw.cursor()
            # psycopg2 looks for placeholders only where there are parameters.
            await self._await(cursor.execute(sql, parameters or None))
            return cursor.fetchall() if rows else []
        except psycopg2.Error as error:
            # Without its cause, whose DETAIL has whole rows in it: a traceback would print them.
            raise self._translate(error) from None
        except _ConnectionEnded as error:
            raise ConnectionLost from error
        except CancelledError:
            raise
        except Exception as error:
            if isinstance(error, _OF_VALUES) and self._raw.at_rest:
                # psycopg2 could not write a parameter, or could not read a result.
                raise
            self._fail(error)
            raise ConnectionLost from error

    def take_notice_count(self) -> int:
        """How many characters of messages (NOTICE, WARNING) the server has sent since the last call."""
        return self._raw.notices.taken()

    def close(self) -> None:
        """Close it, however far it came; what runs on it fails. Raises nothing."""
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
        """What txpostgres will bring, unless the connection ends before.

        The Deferred of txpostgres is never cancelled: it tells a result in the reactor's next turn,
        and tells it also to a caller that cancels in this one.
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
        """Give up a connection after an exception outside of a statement: its state is unknown."""
        if not isinstance(error, (psycopg2.Error, NoSocket)):
            self._log_once(error)
        self._connection_ended(first_line(error))
        self._end_awaited(first_line(error))

    def _log_once(self, error: Exception) -> None:
        """Log what a library raised, once for a connection."""
        if not self._is_logged:
            self._is_logged = True
            self._log.failure(
                "a library failed at a connection to the database; posd makes another one",
                Failure(error),
            )

    def _translate(self, error: psycopg2.Error) -> Exception:
        """Translate, and say so if it is the connection that failed."""
        sqlstate = error.pgcode or ""
        # Without a code PostgreSQL never answered, unless psycopg2 itself did not like the statement.
        unanswered = not sqlstate and not isinstance(error, psycopg2.ProgrammingError)
        if self._raw.gone or unanswered or self._is_losing(error, sqlstate):
            self._connection_ended(first_line(error))
            return ConnectionLost(is_rolled_back=sqlstate == _READ_ONLY)
        if sqlstate.startswith(_BUSY):
            return Busy("The database is busy. Try again.", retry_after=1)
        # Where shops' tables are read, a shop's code can raise this. If the database is in trouble, the other
        # connections notice.
        if sqlstate.startswith(_UNABLE) and not self._read_only:
            self._log.error("the database is in trouble: {error}", error=first_line(error))
            return Unavailable("The database cannot do this at the moment.", retry_after=5)
        message = (error.diag.message_primary or first_line(error))[:_MAX_MESSAGE_LENGTH]
        return StatementFailed(message, sqlstate, error.diag.constraint_name)

    def _is_losing(self, error: psycopg2.Error, sqlstate: str) -> bool:
        """Whether the connection cannot be used after an error with this code."""
        if sqlstate == _READ_ONLY:
            # On a connection that writes, it means that the server has become a standby.
            return not self._read_only
        # An ERROR rolls back and keeps the connection. A trigger of a shop raises it with any code, for
        # example when its dblink cannot connect.
        return sqlstate.startswith(_LOST) and error.diag.severity_nonlocalized != "ERROR"


class _RawCursor(txpostgres.Cursor):  # type: ignore[misc]
    """txpostgres' cursor, which takes a statement that timed out for one that was given up."""

    def _handleCancellation(self, failure: Failure) -> Failure:
        """What the server cancelled is an error like any other."""
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
    """txpostgres' connection, telling when the server ends it while it is idle.

    Without this the reactor logs an unhandled error for each idle connection of a server that
    goes down, and nobody learns of it until the next statement.
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
        """Whether nothing can be done with it any more."""
        return bool(self._raw_property(lambda raw: raw.closed, True))

    @property
    def at_rest(self) -> bool:
        """Whether it is open and no statement is under way."""
        return bool(self._raw_property(lambda raw: not raw.closed and not raw.isexecuting(), False))

    @property
    def escapes_backslashes(self) -> bool:
        """Whether a backslash means something in a plain literal, as psycopg2 found it."""
        setting = "standard_conforming_strings"
        return bool(
            self._raw_property(lambda raw: raw.get_parameter_status(setting) == "off", False)
        )

    def doRead(self) -> None:
        """Move on; and once it is open, go on listening.

        txpostgres would listen while it connects too, where libpq may only be asked again for what
        it has said that it waits for.
        """
        if self.watch.settled:
            super().doRead()
        else:
            txpostgres._PollingMixin.doRead(self)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor watches it no more, so whatever comes would not be heard."""
        super().connectionLost(reason)
        self.ended(reason.getErrorMessage())

    def tell(self, notified: Callable[[str, str], None]) -> None:
        """Call `notified(channel, payload)` for each NOTIFY, in the order in which they come."""
        self._is_logged = notified

    def checkForNotifies(self) -> None:
        """Tell what one read has brought, before the next read.

        txpostgres begins a task of the global Cooperator for each read. Tasks take turns, so a later
        notification can be told before an earlier one, and what is not told yet grows without bound.
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
        """Count what psycopg2 would keep."""
        self._connection.notices = self.notices

    def shut(self) -> None:
        """Close psycopg2's connection, if there is one. What was awaited of it never comes."""
        if self._connection is not None and not self._connection.closed:
            self._connection.close()

    def _raw_property(self, question: Callable[[Any], object], otherwise: bool) -> object:
        """The answer of psycopg2's connection, or `otherwise` if it has none."""
        try:
            return question(self._connection)
        except Exception:
            return otherwise


def first_line(error: BaseException) -> str:
    """What libpq or PostgreSQL said, on one line of bounded length: a shop's code can raise any text."""
    said = str(error).strip().split("\n", 1)[0]
    return said[:_MAX_MESSAGE_LENGTH] or type(error).__name__
