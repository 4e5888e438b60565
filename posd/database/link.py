"""A connection to PostgreSQL that heals, and the transactions on it.

Why not txpostgres' own reconnection: its detector takes a cancelled statement or a refused lock for
a lost connection, and lets a transaction that was cut off go on in the next connection, outside of
any transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from posd.database import session_settings
from posd.database.connection import Connection, ConnectionLost, line
from posd.database.connection import DatabaseReactor as DatabaseReactor
from posd.database.connection import Parameters as Parameters
from posd.database.connection import Row as Row
from posd.database.dsn import rotated
from posd.database.retries import Retries
from posd.database.turns import Turns
from posd.errors import Busy, OutcomeUnknown, StatementFailed, Unavailable
from posd.waiting import Pulse, within

T = TypeVar("T")

_CONNECT_SECONDS: Final = 5.0
_MOST_WAITING: Final = 5000
# A statement that the server itself should have ended by now is on a network that is gone.
_GRACE_SECONDS: Final = 5.0
_LOCK_SECONDS: Final = 2.0
_IDLE_SECONDS: Final = 5.0
_NO_ANSWER: Final = "no answer in time"
# The same where somebody waits who has a deadline.
_LAST_GRACE_SECONDS: Final = 0.5


class Reader(Protocol):
    """Somewhere rows can be read."""

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run a statement that returns rows."""


class Session(Reader, Protocol):
    """Somewhere a statement can be run: a pool, a link, or one transaction."""

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        """Run a statement whose rows, if any, do not matter."""


class Link(Service):
    """One connection that is made again, after a pause of `retries`, whenever it is lost.

    `prepare` runs on every new connection before anybody else may use it; if it fails the
    connection is dropped and made again. `changed` is told when the link comes up, when it goes
    down, and when PostgreSQL will not have it; `notified` gets the channel and payload of each
    NOTIFY. A `quiet` link leaves it to another one to log that the server is away. On a link that is
    `read_only` a statement that would write fails like any other.

    Statements wait for each other in their order, up to 5,000 of them. While the link is down, and
    when it goes down, they fail at once with `Unavailable`. To cancel a running statement gives up
    the connection with it.
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
        quiet: bool = False,
        read_only: bool = False,
        retries: Retries | None = None,
    ) -> None:
        self._reactor = reactor
        self._retries = retries or Retries(reactor)
        self._dsn = dsn
        # How many attempts to connect had no answer in time; each one begins at the next host.
        self._unanswered = 0
        self._read_only = read_only
        self._statement_timeout = statement_timeout
        self.settings = session_settings.statements(
            application_name=name,
            statement_timeout=statement_timeout,
            lock_timeout=_LOCK_SECONDS,
            idle_in_transaction=_IDLE_SECONDS,
            role=role,
        )
        self._prepare = prepare
        self._changed = changed
        self._notified = notified
        self._quiet = quiet
        self._connection: Connection | None = None
        self._turns = Turns(_MOST_WAITING)
        self._retry: Deferred[None] | None = None
        self._loop: Deferred[None] = succeed(None)
        self._gone: Deferred[None] | None = None
        self.up = False
        self.trouble: str | None = None
        """Why the link is not up, as PostgreSQL or libpq said it; None while it is."""
        self.refusal: StatementFailed | None = None
        """What a server that is there has against the link; None if it has been up since."""
        self.pulse = Pulse()
        """Beats when a connection or a statement is begun."""

    @property
    def stalled(self) -> bool:
        """Whether it is down and has not tried to connect for a minute."""
        return bool(self.running) and not self.up and self.pulse.stalled

    def startService(self) -> None:
        Service.startService(self)
        self.pulse.beat()
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

    async def transaction(
        self, work: Callable[[Session], Awaitable[T]], *, deadline: float | None = None
    ) -> T:
        """Run `work` in one transaction and commit it; roll back if it raises, or if that fails.

        What the `deadline`, of the reactor's clock, finds before its COMMIT is `Busy` and rolled back; a
        COMMIT that is under way then may go on for half a second, after which its outcome is unknown.
        """

        async def whole(bound: _Bound) -> T:
            bound.begin(deadline)
            try:
                result = await work(bound)
                await bound.commit()
            except Exception:
                await bound.rollback()
                raise
            return result

        return await self._in_turn(whole)

    def noticed(self) -> int:
        """How many characters of messages (NOTICE, WARNING) the server has sent since the last call."""
        return 0 if self._connection is None else self._connection.noticed()

    def drop(self) -> None:
        """Close the connection; while the service runs, another one is made. Raises nothing."""
        connection, self._connection = self._connection, None
        gone, self._gone = self._gone, None
        was_up, self.up = self.up, False
        try:
            if connection is not None:
                connection.close()
            if was_up:
                self._tell_changed()
            # Nothing can be done, so they need not wait for who has the turn.
            self._turns.fail(_unreachable)
        finally:
            # Whatever became of the rest, the loop goes on.
            if gone is not None:
                gone.callback(None)

    async def _in_turn(self, work: Callable[[_Bound], Awaitable[T]]) -> T:
        if not self.up:
            raise _unreachable()
        await self._turns.take()
        try:
            if not self.up or self._connection is None:
                raise _unreachable()
            return await work(_Bound(self, self._connection))
        finally:
            self._turns.give_back()

    def _tell_changed(self) -> None:
        try:
            self._changed(self)
        except Exception:
            self._log.failure("a change of a link to the database could not be followed")

    def _holds(self, connection: Connection) -> bool:
        return connection is self._connection

    async def _run(
        self,
        connection: Connection,
        sql: str,
        parameters: Parameters,
        rows: bool,
        patience: float | None = None,
    ) -> list[Row]:
        """Run a statement on that very connection; on its successor it would mean another thing."""
        if not self._holds(connection):
            raise ConnectionLost
        self.pulse.beat()
        if patience is None:
            patience = self._statement_timeout + _GRACE_SECONDS
        watchdog = self._watch(connection, patience)
        try:
            return await connection.run(sql, parameters, rows=rows)
        finally:
            if watchdog.active():
                watchdog.cancel()

    async def _keep_up(self) -> None:
        failures = 0
        while self.running:
            gone: Deferred[None] = Deferred()
            try:
                up = await self._connect(gone)
            except Exception:
                # Not even a mistake of posd's own may end this loop.
                self._log.failure("a connection to the database could not be made")
                self.drop()
                up = False
            if up:
                failures = 0
                await gone
            if not self.running:
                return
            failures += 1
            self._retry = self._retries.pause(failures)
            try:
                await self._retry
            except CancelledError:
                return

    async def _connect(self, gone: Deferred[None]) -> bool:
        self.pulse.beat()
        self._connection = connection = Connection(
            self._reactor, self._end, self._notified, read_only=self._read_only
        )
        try:
            await within(self._reactor, _CONNECT_SECONDS, self._open(connection))
        except TimeoutError:
            # A host whose machine is off takes all the time. libpq goes on to the next host by itself only
            # when a host refuses: `connect_timeout` counts in its blocking calls alone.
            self._unanswered += 1
            self._end(connection, _NO_ANSWER)
        except Exception as error:
            # Any reason will do: a refused role and a server that is away both mean "later".
            self._end(connection, line(error))
            if isinstance(error, StatementFailed):
                self.refusal = error
                self._tell_changed()
        if not self._holds(connection):
            return False
        self._gone, self.up, self.trouble, self.refusal = gone, True, None, None
        self._retries.succeeded()
        self._tell_changed()
        return True

    async def _open(self, connection: Connection) -> None:
        await connection.open(rotated(self._dsn, self._unanswered))
        bound = _Bound(self, connection)
        await bound.execute(self.settings)
        if self._prepare is not None:
            await self._prepare(bound)

    def _watch(self, connection: Connection, seconds: float) -> IDelayedCall:
        return self._reactor.callLater(seconds, self._end, connection, _NO_ANSWER)

    def _end(self, connection: Connection, trouble: str) -> None:
        """Drop a connection, unless it was dropped already, for whatever reason that was."""
        if self._holds(connection):
            if trouble != self.trouble and self.running and not self._quiet:
                self._log.warn("no connection to the database: {trouble}", trouble=trouble)
            self.trouble = trouble
            self.drop()


class _Bound:
    """A session on one connection as it is now; never on the one that replaces it."""

    def __init__(self, link: Link, connection: Connection) -> None:
        self._link = link
        self._connection = connection
        # BEGIN travels with the first statement of a transaction, to save a round trip.
        self._prefix = ""
        self._open = False
        self._failure: Exception | None = None
        self._deadline: float | None = None

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return await self._run(sql, parameters, True)

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        await self._run(sql, parameters, False)

    def begin(self, deadline: float | None = None) -> None:
        self._prefix, self._deadline = "BEGIN; ", deadline

    async def commit(self) -> None:
        """Commit; or raise what went wrong before, if `work` went on all the same.

        PostgreSQL answers the COMMIT of a transaction that has failed with a ROLLBACK, not with an
        error.
        """
        if not self._open:
            return
        if self._failure is not None:
            raise self._failure
        if not self._link._holds(self._connection):
            raise ConnectionLost
        try:
            await self._last("COMMIT", self._left())
        except ConnectionLost as error:
            message = "The connection to the database was lost during COMMIT."
            raise OutcomeUnknown(message, retry_after=1) from error

    async def rollback(self) -> None:
        if self._open:
            try:
                await self._last("ROLLBACK", None if self._deadline is None else 0.0)
            except (Unavailable, StatementFailed):
                self._link._end(self._connection, "could not roll back")

    async def _run(self, sql: str, parameters: Parameters, rows: bool) -> list[Row]:
        try:
            left = self._left()
            if left is not None:
                # Each statement may take what those before it have left. It is the smaller one of this
                # and the session's that counts.
                seconds = min(left, self._link._statement_timeout)
                sql = f"SET LOCAL statement_timeout = {max(1, int(seconds * 1000))}; {sql}"
            prefix, self._prefix = self._prefix, ""
            self._open = self._open or bool(prefix)
            return await self._link._run(
                self._connection, prefix + sql, parameters, rows, _patience(left)
            )
        except Exception as failure:
            self._failure = failure
            raise

    async def _last(self, sql: str, left: float | None) -> None:
        """End the transaction."""
        await self._link._run(self._connection, sql, (), False, _patience(left))

    def _left(self) -> float | None:
        """How many seconds there are until the deadline. Raises `Busy` if it is past."""
        if self._deadline is None:
            return None
        left = self._deadline - self._link._reactor.seconds()
        if left <= 0:
            raise Busy("This could not be done in time. Try again.", retry_after=1)
        return left


def _patience(left: float | None) -> float | None:
    return None if left is None else left + _LAST_GRACE_SECONDS


def _unreachable() -> Unavailable:
    return Unavailable("The database cannot be reached.", retry_after=2)
