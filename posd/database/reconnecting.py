"""A connection to PostgreSQL that reconnects, and the transactions on it.

txpostgres' own reconnection cannot be used: it takes a cancelled statement or a refused lock for a lost
connection, and lets an interrupted transaction continue on the next connection, outside of any transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from posd.database import session_settings
from posd.database.bound import BoundExecutor
from posd.database.connection import ConnectionLost, DatabaseConnection, first_line
from posd.database.connection import DatabaseReactor as DatabaseReactor
from posd.database.connection import Parameters as Parameters
from posd.database.connection import Row as Row
from posd.database.dsn import rotate_hosts
from posd.database.exclusive_turns import ExclusiveTurns
from posd.database.reconnect_pauses import ReconnectPauses
from posd.errors import OutcomeUnknown, StatementFailed, Unavailable
from posd.waiting import AttemptPulse, with_timeout

T = TypeVar("T")

_CONNECT_SECONDS: Final = 5.0
_MAX_WAITING: Final = 5000
# The server should have ended the statement by now, so the network is probably down.
_GRACE_SECONDS: Final = 5.0
_LOCK_SECONDS: Final = 2.0
_IDLE_SECONDS: Final = 5.0
_NO_ANSWER: Final = "no answer in time"


class Querier(Protocol):
    """An object that can read rows."""

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run a statement that returns rows."""


class Executor(Querier, Protocol):
    """An object that can run a statement: a pool, a connection, or a transaction."""

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        """Run a statement and discard its rows."""


class TransactionExecutor(Executor, Protocol):
    """An executor in one transaction, whose last statement can commit it."""

    async def finish(self, sql: str, parameters: Parameters = ()) -> str:
        """Run a SELECT of one value and commit, in one round trip; the value as text, empty for NULL.

        No statement can follow. Raises `OutcomeUnknown` if the connection is lost in this call.
        """


class ReconnectingConnection(Service):
    """A connection that reconnects, after a pause of `retries`, when it is lost.

    `prepare` runs on every new connection before any other statement; if it fails, the connection is dropped
    and made again. `changed` is called when the connection comes up, goes down, or is refused by PostgreSQL.
    `notified` gets the channel and payload of each NOTIFY. If it is `quiet`, it does not log that the
    server is unavailable, because another connection does. If it is `read_only`, statements that write fail.

    Up to 5,000 statements wait, and run in order. While the connection is down, and when it goes down, they
    fail at once with `Unavailable`. Cancelling a running statement drops the connection.
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
        prepare: Callable[[Executor], Awaitable[None]] | None = None,
        changed: Callable[[ReconnectingConnection], None] = lambda link: None,
        notified: Callable[[str, str], None] | None = None,
        quiet: bool = False,
        read_only: bool = False,
        retries: ReconnectPauses | None = None,
    ) -> None:
        self._reactor = reactor
        self._retries = retries or ReconnectPauses(reactor)
        self._dsn = dsn
        # The number of attempts to connect without an answer in time. Each attempt begins at the next host.
        self._timed_out_attempts = 0
        self._read_only = read_only
        self.statement_timeout = statement_timeout
        self.settings = session_settings.startup_statements(
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
        self._connection: DatabaseConnection | None = None
        self._turns = ExclusiveTurns(_MAX_WAITING)
        self._retry: Deferred[None] | None = None
        self._loop: Deferred[None] = succeed(None)
        self._loss: Deferred[None] | None = None
        self.up = False
        self.trouble: str | None = None
        """Why the connection is not up, in the words of PostgreSQL or libpq; None while it is up."""
        self.refusal: StatementFailed | None = None
        """Why a reachable server refused the connection; None if it has been up since."""
        self.pulse = AttemptPulse()
        """Beats at the start of each connection and statement."""

    @property
    def stalled(self) -> bool:
        """Whether it is down and has not tried to connect for a minute."""
        return bool(self.running) and not self.up and self.pulse.stalled

    def startService(self) -> None:
        Service.startService(self)
        self.pulse.beat()
        self._loop = Deferred.fromCoroutine(self._reconnect_forever())
        self._loop.addErrback(lambda failure: self._log.failure("link ended", failure=failure))

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        if self._retry is not None:
            self._retry.cancel()
        self.drop()
        return self._loop

    async def query(
        self,
        sql: str,
        parameters: Parameters = (),
        *,
        deadline: float | None = None,
        work_seconds: float | None = None,
    ) -> list[Row]:
        """Run a statement that returns rows.

        With a `deadline` the statement is a transaction by itself, in one round trip:
        PostgreSQL commits the statements of one string together, before it says that they are done
        (https://www.postgresql.org/docs/current/protocol-flow.html, "Multiple Statements in a Simple Query").
        """
        if deadline is None:
            return await self._in_turn(lambda bound: bound.query(sql, parameters))
        return await self._in_turn(
            lambda bound: bound.query_in_transaction(sql, parameters, deadline, work_seconds)
        )

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        await self._in_turn(lambda bound: bound.execute(sql, parameters))

    async def transaction(
        self,
        work: Callable[[TransactionExecutor], Awaitable[T]],
        *,
        deadline: float | None = None,
        work_seconds: float | None = None,
    ) -> T:
        """Run `work` in one transaction and commit it; roll back if it raises, or if that fails.

        If `work` raises after it has committed by `TransactionExecutor.finish`, the outcome is unknown to
        the caller (`OutcomeUnknown`).

        `deadline` is a time of the reactor's clock. If COMMIT has not begun by then, the transaction is
        rolled
        back and `Busy` is raised. A COMMIT that has begun may take half a second longer; then its outcome is
        unknown. The statements may take `work_seconds` together, if that is less. COMMIT has until the
        deadline.
        """

        async def whole(bound: BoundExecutor) -> T:
            bound.begin(deadline, work_seconds)
            try:
                result = await work(bound)
                await bound.commit()
            except Exception as error:
                if bound.is_committed:
                    self._log.failure("posd failed after a transaction was committed")
                    raise OutcomeUnknown("posd failed after COMMIT.", retry_after=1) from error
                await bound.rollback()
                raise
            return result

        return await self._in_turn(whole)

    def take_notice_count(self) -> int:
        """Return the number of characters of messages (NOTICE, WARNING) received since the last call."""
        return 0 if self._connection is None else self._connection.take_notice_count()

    def drop(self) -> None:
        """Close the connection. While the service runs, it reconnects. Raises nothing."""
        connection, self._connection = self._connection, None
        gone, self._loss = self._loss, None
        was_up, self.up = self.up, False
        try:
            if connection is not None:
                connection.close()
            if was_up:
                self._notify_changed()
            # No statement can run, so the waiting ones fail at once.
            self._turns.fail(_unreachable)
        finally:
            # The loop must continue whatever happened to the callers.
            if gone is not None:
                gone.callback(None)

    async def _in_turn(self, work: Callable[[BoundExecutor], Awaitable[T]]) -> T:
        if not self.up:
            raise _unreachable()
        await self._turns.take()
        try:
            if not self.up or self._connection is None:
                raise _unreachable()
            return await work(BoundExecutor(self, self._connection))
        finally:
            self._turns.give_back()

    def _notify_changed(self) -> None:
        try:
            self._changed(self)
        except Exception:
            self._log.failure("a change of a link to the database could not be followed")

    def seconds(self) -> float:
        """The time by the reactor's clock."""
        return self._reactor.seconds()

    def holds(self, connection: DatabaseConnection) -> bool:
        """Whether this is the present connection."""
        return connection is self._connection

    async def run(
        self,
        connection: DatabaseConnection,
        sql: str,
        parameters: Parameters,
        rows: bool,
        patience: float | None = None,
    ) -> list[Row]:
        """Run a statement on this connection only. It would have another meaning on the next one."""
        if not self.holds(connection):
            raise ConnectionLost
        self.pulse.beat()
        if patience is None:
            patience = self.statement_timeout + _GRACE_SECONDS
        watchdog = self._watch(connection, patience)
        try:
            return await connection.run(sql, parameters, rows=rows)
        finally:
            if watchdog.active():
                watchdog.cancel()

    async def _reconnect_forever(self) -> None:
        failures = 0
        while self.running:
            gone: Deferred[None] = Deferred()
            try:
                up = await self._connect(gone)
            except Exception:
                # An error of posd itself must not end this loop either.
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
        self._connection = connection = DatabaseConnection(
            self._reactor, self.end, self._notified, read_only=self._read_only
        )
        try:
            await with_timeout(self._reactor, _CONNECT_SECONDS, self._open(connection))
        except TimeoutError:
            # A host that is off uses up the whole time. libpq goes on to the next host by itself only
            # when a host refuses: `connect_timeout` counts in its blocking calls alone.
            self._timed_out_attempts += 1
            self.end(connection, _NO_ANSWER)
        except Exception as error:
            # The reason does not matter: posd tries again later, after a refused role too.
            self.end(connection, first_line(error))
            if isinstance(error, StatementFailed):
                self.refusal = error
                self._notify_changed()
        if not self.holds(connection):
            return False
        self._loss, self.up, self.trouble, self.refusal = gone, True, None, None
        self._retries.succeeded()
        self._notify_changed()
        return True

    async def _open(self, connection: DatabaseConnection) -> None:
        await connection.open(rotate_hosts(self._dsn, self._timed_out_attempts))
        bound = BoundExecutor(self, connection)
        await bound.execute(self.settings)
        if self._prepare is not None:
            await self._prepare(bound)

    def _watch(self, connection: DatabaseConnection, seconds: float) -> IDelayedCall:
        return self._reactor.callLater(seconds, self.end, connection, _NO_ANSWER)

    def end(self, connection: DatabaseConnection, trouble: str) -> None:
        """Drop a connection, if it has not been dropped before."""
        if self.holds(connection):
            if trouble != self.trouble and self.running and not self._quiet:
                self._log.warn("no connection to the database: {trouble}", trouble=trouble)
            self.trouble = trouble
            self.drop()


def _unreachable() -> Unavailable:
    return Unavailable("The database cannot be reached.", retry_after=2)
