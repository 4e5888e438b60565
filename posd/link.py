"""One connection to PostgreSQL that heals, and the transactions on it.

The only importer of txpostgres, and of psycopg2 in the daemon; nothing untyped and no exception of
theirs gets past this module. What comes out is `Unavailable` (the server is away), `Busy` (a time
limit or a collision), `OutcomeUnknown` (lost during COMMIT) and `StatementFailed` (all the rest).

Why not txpostgres' own reconnection: its detector takes a cancelled statement or a refused lock for
a lost connection, and lets a transaction that was cut off go on in the next connection, outside of
any transaction.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import psycopg2
from psycopg2.extensions import Notify
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from txpostgres import txpostgres

from posd.errors import Busy, OutcomeUnknown, StatementFailed, Unavailable

T = TypeVar("T")
Row = tuple[Any, ...]
Parameters = Sequence[object] | Mapping[str, object]
"""Of a statement: `%s` by position or `%(name)s` by name."""

_CONNECT_SECONDS: Final = 5.0
_FIRST_RETRY_SECONDS: Final = 0.1
_LAST_RETRY_SECONDS: Final = 5.0
# A statement that the server itself should have ended by now is on a network that is gone.
_GRACE_SECONDS: Final = 5.0

# query_canceled, lock_not_available, deadlock_detected, serialization_failure
_BUSY: Final = frozenset({"57014", "55P03", "40P01", "40001"})


# txpostgres wants an IReactorFDSet too; every real reactor is both.
DatabaseReactor = IReactorTime


class Session(Protocol):
    """Somewhere a statement can be run: a pool, a link, or one transaction."""

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run a statement that returns rows."""

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        """Run a statement whose rows, if any, do not matter."""


class Link(Service):
    """One connection that is made again, with back-off, whenever it is lost.

    `prepare` runs on every new connection before anybody else may use it; if it fails the
    connection is dropped and made again. `changed` is told when the link comes up and when it goes
    down; `notified` gets the channel and payload of each NOTIFY. Statements wait for each other;
    while the link is down they fail at once with `Unavailable`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: DatabaseReactor,
        dsn: str,
        *,
        name: str,
        statement_timeout: float,
        role: str | None = "posd",
        prepare: Callable[[Session], Awaitable[None]] | None = None,
        changed: Callable[[Link], None] = lambda link: None,
        notified: Callable[[str, str], None] | None = None,
    ) -> None:
        self._reactor = reactor
        self._dsn = dsn
        self._statement_timeout = statement_timeout
        self._settings = _settings(name, statement_timeout, role)
        self._prepare = prepare
        self._changed = changed
        self._notified = notified
        self._connection: _Connection | None = None
        self._turn = DeferredLock()
        self._retry: Deferred[None] | None = None
        self._loop: Deferred[None] = succeed(None)
        self._gone: Deferred[None] | None = None
        self.up = False
        self.trouble: str | None = None
        """Why the link is not up, as PostgreSQL or libpq said it; None while it is."""

    def startService(self) -> None:
        Service.startService(self)
        self._loop = Deferred.fromCoroutine(self._keep_up())
        self._loop.addErrback(lambda failure: self._log.failure("link ended", failure=failure))

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        if self._retry is not None:
            self._retry.cancel()
        self.drop()
        return self._loop

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return await self._in_turn(lambda bound: bound.query(sql, parameters))

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        await self._in_turn(lambda bound: bound.execute(sql, parameters))

    async def transaction(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Run `work` in one transaction and commit it; roll back if it raises, or if that fails."""

        async def whole(bound: _Bound) -> T:
            try:
                bound.begin()
                result = await work(bound)
                await bound.commit()
            except BaseException:
                await bound.rollback()
                raise
            return result

        return await self._in_turn(whole)

    def drop(self) -> None:
        """Close the connection; while the service runs, another is made."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.shut()
        if self.up:
            self.up = False
            self._changed(self)
        gone, self._gone = self._gone, None
        if gone is not None:
            gone.callback(None)

    async def _in_turn(self, work: Callable[[_Bound], Awaitable[T]]) -> T:
        await self._turn.acquire()
        try:
            if not self.up or self._connection is None:
                raise Unavailable("The database cannot be reached.", retry_after=2)
            return await work(_Bound(self, self._connection))
        finally:
            self._turn.release()

    async def _run(
        self, connection: _Connection, sql: str, parameters: Parameters, rows: bool
    ) -> list[Row]:
        """Run a statement on that very connection; on its successor it would mean another thing."""
        if connection is not self._connection:
            raise Unavailable("The connection to the database was lost.", retry_after=1)
        watchdog = self._watch(connection, self._statement_timeout + _GRACE_SECONDS)
        try:
            cursor = connection.cursor()
            # psycopg2 looks for placeholders only where there are parameters.
            await cursor.execute(sql, parameters or None)
            return cursor.fetchall() if rows else []
        except psycopg2.Error as error:
            raise self._judge(connection, error) from error
        except CancelledError as error:
            # txpostgres' word for query_canceled: nobody here ever cancels a running statement.
            raise Busy("The database took too long. Try again.", retry_after=1) from error
        except Exception as error:
            # The reactor's ConnectionDone and ConnectionLost, when the link was dropped meanwhile.
            if connection is self._connection:
                raise
            raise Unavailable("The connection to the database was lost.", retry_after=1) from error
        finally:
            if watchdog.active():
                watchdog.cancel()

    async def _keep_up(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        while self.running:
            gone: Deferred[None] = Deferred()
            if await self._connect(gone):
                pause = _FIRST_RETRY_SECONDS
                await gone
            if not self.running:
                return
            self._retry = deferLater(self._reactor, pause * random.uniform(0.5, 1.0))
            try:
                await self._retry
            except CancelledError:
                return
            pause = min(pause * 2, _LAST_RETRY_SECONDS)

    async def _connect(self, gone: Deferred[None]) -> bool:
        connection = _Connection(self._reactor, self._lost)
        if self._notified is not None:
            connection.tell(self._notified)
        self._connection = connection
        watchdog = self._watch(connection, _CONNECT_SECONDS)
        try:
            await connection.connect(self._dsn)
            await connection.runOperation(self._settings)
            if self._prepare is not None:
                await self._prepare(_Bound(self, connection))
            if connection is not self._connection:
                raise Unavailable("The connection was lost while it was being made.")
        except Exception as error:
            # Any reason will do: a refused role and a server that is away both mean "later".
            self._blame(_line(error))
            self.drop()
            return False
        finally:
            if watchdog.active():
                watchdog.cancel()
        self._gone, self.up, self.trouble = gone, True, None
        self._changed(self)
        return True

    def _watch(self, connection: _Connection, seconds: float) -> IDelayedCall:
        return self._reactor.callLater(seconds, self._lost, connection, "no answer in time")

    def _lost(self, connection: _Connection, trouble: str) -> None:
        if connection is self._connection:
            self._blame(trouble)
            self.drop()

    def _blame(self, trouble: str) -> None:
        if trouble != self.trouble and self.running:
            self._log.warn("no connection to the database: {trouble}", trouble=trouble)
        self.trouble = trouble

    def _judge(self, connection: _Connection, error: psycopg2.Error) -> Exception:
        """Translate, and drop the connection if it is the connection that failed."""
        sqlstate = error.pgcode
        if connection.closed or sqlstate is None or sqlstate[:2] == "08" or sqlstate[:3] == "57P":
            self._lost(connection, _line(error))
            return Unavailable("The connection to the database was lost.", retry_after=1)
        if sqlstate in _BUSY:
            return Busy("The database is busy. Try again.", retry_after=1)
        message = error.diag.message_primary or _line(error)
        return StatementFailed(message, sqlstate, error.diag.constraint_name)


class _Bound:
    """A session on one connection as it is now; never on the one that replaces it."""

    def __init__(self, link: Link, connection: _Connection) -> None:
        self._link = link
        self._connection = connection
        # BEGIN travels with the first statement of a transaction, to save a round trip.
        self._prefix = ""
        self._open = False

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return await self._run(sql, parameters, True)

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        await self._run(sql, parameters, False)

    def begin(self) -> None:
        self._prefix = "BEGIN; "

    async def commit(self) -> None:
        if not self._open:
            return
        try:
            await self._run("COMMIT", (), False)
        except Busy:
            raise
        except Unavailable:
            message = "The connection to the database was lost during COMMIT."
            raise OutcomeUnknown(message, retry_after=1) from None

    async def rollback(self) -> None:
        if self._open:
            try:
                await self._run("ROLLBACK", (), False)
            except (Unavailable, StatementFailed):
                self._link._lost(self._connection, "could not roll back")

    async def _run(self, sql: str, parameters: Parameters, rows: bool) -> list[Row]:
        prefix, self._prefix = self._prefix, ""
        self._open = self._open or bool(prefix)
        return await self._link._run(self._connection, prefix + sql, parameters, rows)


class _Connection(txpostgres.Connection):  # type: ignore[misc]
    """txpostgres' connection, telling its link when the server ends it while it is idle.

    Without this the reactor logs an unhandled error for each idle connection of a server that
    goes down, and nobody learns of it until the next statement.
    """

    def __init__(self, reactor: DatabaseReactor, lost: Callable[[_Connection, str], None]) -> None:
        super().__init__(reactor)
        self._lost = lost

    def doRead(self) -> None:
        try:
            super().doRead()
        except psycopg2.Error as error:
            self._lost(self, _line(error))

    def tell(self, notified: Callable[[str, str], None]) -> None:
        """Call `notified(channel, payload)` for each NOTIFY."""

        def observe(notify: Notify) -> None:
            notified(notify.channel, notify.payload)

        self.addNotifyObserver(observe)

    def shut(self) -> None:
        """Close it, however far it came."""
        if self._connection is not None:
            self.close()


def _settings(name: str, statement_timeout: float, role: str | None) -> str:
    """What each session of posd begins with (data model, "posd's sessions").

    By statement and not by libpq's `options`, so that a refused role has an SQLSTATE and
    connection poolers do not matter. The role sheds the rights of a more powerful login.
    """
    milliseconds = int(statement_timeout * 1000)
    settings = [
        f"SET application_name = '{name}'",
        f"SET statement_timeout = {milliseconds}",
        # statement_timeout does not act during COMMIT, lock_timeout does.
        "SET lock_timeout = '2s'",
        "SET idle_in_transaction_session_timeout = '5s'",
        "SET timezone = 'UTC'",
        "SET search_path = pg_catalog",
    ]
    if role is not None:
        settings.insert(0, f"SET ROLE {role}")
    return "; ".join(settings)


def _line(error: BaseException) -> str:
    """What libpq or PostgreSQL said, on one line."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
