"""An executor on one connection: for a statement, or for a transaction."""

from __future__ import annotations

from typing import Final, Protocol

from posd.database.connection import ConnectionLost, DatabaseConnection, Parameters, Row
from posd.errors import Busy, OutcomeUnknown, StatementFailed, Unavailable

_FINISH: Final = """
    SELECT set_config('posd.answer', ({})::text, false); COMMIT; SELECT current_setting('posd.answer')
"""
# In a transaction with a deadline, posd drops the connection this many seconds after the deadline.
_LAST_GRACE_SECONDS: Final = 0.5


class ConnectionHolder(Protocol):
    """The object that reconnects: it has one connection after the other."""

    statement_timeout: float

    def seconds(self) -> float:
        """The time by the reactor's clock."""

    def holds(self, connection: DatabaseConnection) -> bool:
        """Whether this is the present connection."""

    async def run(
        self,
        connection: DatabaseConnection,
        sql: str,
        parameters: Parameters,
        rows: bool,
        patience: float | None = None,
    ) -> list[Row]:
        """Run a statement on this connection, and drop the connection after this many seconds."""

    def end(self, connection: DatabaseConnection, trouble: str) -> None:
        """Drop a connection whose state is unknown."""


class BoundExecutor:
    """An executor on the present connection, never on its successor."""

    def __init__(self, holder: ConnectionHolder, connection: DatabaseConnection) -> None:
        self._holder = holder
        self._connection = connection
        # BEGIN travels with the first statement of a transaction, to save a round trip.
        self._prefix = ""
        self._open = False
        self._failure: Exception | None = None
        self._deadline: float | None = None
        self._work_until: float | None = None
        self.is_committed = False

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return await self._run(sql, parameters, True)

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        await self._run(sql, parameters, False)

    async def query_in_transaction(
        self, sql: str, parameters: Parameters, deadline: float, work_seconds: float | None = None
    ) -> list[Row]:
        """Run a statement that is a transaction by itself, in one round trip: see `Link.query`."""
        self._limit(deadline, work_seconds)
        try:
            return await self._run(sql, parameters, True)
        except ConnectionLost as error:
            if error.is_rolled_back:
                raise
            raise _commit_lost() from error

    def begin(self, deadline: float | None = None, work_seconds: float | None = None) -> None:
        self._prefix = "BEGIN; "
        self._limit(deadline, work_seconds)

    def _limit(self, deadline: float | None, work_seconds: float | None) -> None:
        self._deadline = deadline
        if work_seconds is not None:
            self._work_until = self._holder.seconds() + work_seconds

    async def commit(self) -> None:
        """Commit, or raise the earlier error if `work` ignored it.

        PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK and without an error.
        """
        if not self._open:
            return
        if self._failure is not None:
            raise self._failure
        if not self._holder.holds(self._connection):
            raise ConnectionLost
        try:
            await self._end_transaction("COMMIT", self._seconds_left(self._deadline))
        except ConnectionLost as error:
            raise _commit_lost() from error

    async def finish(self, sql: str, parameters: Parameters = ()) -> str:
        """See `Transaction.finish`.

        psycopg2 keeps the result of the last statement of a string only, so a setting of the session carries
        the value over the COMMIT.
        """
        if self._failure is not None:
            raise self._failure
        try:
            ((answer,),) = await self._run(_FINISH.format(sql), parameters, True)
        except ConnectionLost as error:
            raise _commit_lost() from error
        self._open, self.is_committed = False, True
        return str(answer)

    async def rollback(self) -> None:
        if self._open:
            try:
                await self._end_transaction("ROLLBACK", None if self._deadline is None else 0.0)
            except (Unavailable, StatementFailed):
                self._holder.end(self._connection, "could not roll back")

    async def _run(self, sql: str, parameters: Parameters, rows: bool) -> list[Row]:
        try:
            left = self._seconds_left(self._deadline)
            if left is not None:
                # Each statement may take the time that is left. PostgreSQL applies the smaller one of this
                # and the session's that counts.
                work_left = self._seconds_left(self._work_until) or left
                seconds = min(left, work_left, self._holder.statement_timeout)
                sql = f"SET LOCAL statement_timeout = {max(1, int(seconds * 1000))}; {sql}"
            prefix, self._prefix = self._prefix, ""
            self._open = self._open or bool(prefix)
            return await self._holder.run(
                self._connection, prefix + sql, parameters, rows, _with_grace(left)
            )
        except Exception as failure:
            self._failure = failure
            raise

    async def _end_transaction(self, sql: str, left: float | None) -> None:
        """End the transaction."""
        await self._holder.run(self._connection, sql, (), False, _with_grace(left))

    def _seconds_left(self, until: float | None) -> float | None:
        """Return the seconds until a deadline. Raises `Busy` if it has passed."""
        if until is None:
            return None
        left = until - self._holder.seconds()
        if left <= 0:
            raise Busy("The call could not be completed in time. Try again.", retry_after=1)
        return left


def _with_grace(left: float | None) -> float | None:
    return None if left is None else left + _LAST_GRACE_SECONDS


def _commit_lost() -> OutcomeUnknown:
    message = "The connection to the database was lost during COMMIT."
    return OutcomeUnknown(message, retry_after=1)
