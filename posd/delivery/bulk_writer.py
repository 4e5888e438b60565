"""Writes the pending writes of a node: one statement for each kind, however many tills there are.

An error in one kind, or in one row, does not stop the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar
from uuid import UUID

from twisted.logger import Logger

from posd.database.pool import Pool
from posd.delivery.pending_writes import PendingWrites, Subscription
from posd.errors import StatementFailed, Unavailable
from posd.store import cursors
from posd.store import presence as presence_store
from posd.values import Seq, StreamName, TenantId

R = TypeVar("R")

_PART_ROWS: Final = 500
"""Positions in earlier streams in one statement. Encoding 20,000 of them at once would block the reactor."""

_MOST_FAULTY_ROWS: Final = 16
"""Rows at fault that are searched for in one batch, with about ten statements for each.

When this number is reached, the rest of the part that fails is not written.
"""


class ProblemLog:
    """Logs a problem when it begins or changes and when it ends, but not each time in between."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._current: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._current)

    def began(self, what: str, error: Exception) -> None:
        if self._current.get(what) != str(error):
            self._current[what] = str(error)
            self._log.error(
                "{what} cannot be written; posd keeps them and tries again: {error}",
                what=what,
                error=error,
            )

    def ended(self, what: str) -> None:
        if self._current.pop(what, None) is not None:
            self._log.info("{what} are written again", what=what)


class BulkWriter:
    """Writes `PendingWrites`.

    `heads_moved` is called with the tenants whose heads were moved. `lease` registers the node again.
    """

    _log = Logger()

    def __init__(
        self,
        database: Pool,
        node_id: UUID,
        *,
        heads_moved: Callable[[set[TenantId]], None],
        lease: Callable[[], Awaitable[None]],
    ) -> None:
        # Statements of `for_all` run before those of single callers. Many callers wait for these.
        self._database = database.for_all
        self._node_id = node_id
        self._heads_moved = heads_moved
        self._lease = lease
        self.problems = ProblemLog(self._log)

    async def write(self, pending: PendingWrites) -> None:
        """Write each kind and remove it from `pending`. What cannot be written now stays in `pending`.

        Raises `Unavailable` if the database cannot be reached. The kinds that were written by then are
        removed.
        """
        await self._write_kind("connections", lambda: self._write_connected(pending))
        await self._write_kind(
            "connections that have ended", lambda: self._write_disconnected(pending)
        )
        await self._write_kind("claims of connections", lambda: self._write_claims(pending))
        await self._write_kind("heartbeats of connections", lambda: self._write_heartbeats(pending))
        await self._write_kind(
            "positions of legacy terminals", lambda: self._write_legacy_positions(pending)
        )
        await self._write_kind(
            "positions in earlier streams", lambda: self._write_sent_positions(pending)
        )
        await self._write_kind("acknowledgements", lambda: self._write_acks(pending))
        await self._write_kind("heads of streams", lambda: self._write_heads(pending))

    async def _write_kind(self, what: str, write: Callable[[], Awaitable[None]]) -> None:
        """Write one kind. If PostgreSQL refuses all rows for another reason than their data, keep them."""
        try:
            await write()
        except StatementFailed as error:
            self.problems.began(what, error)
        else:
            self.problems.ended(what)

    async def _write_connected(self, pending: PendingWrites) -> None:
        rows: list[presence_store.Connection] = [
            (each.connection_id, each.tenant.id, each.device_id, each.connected_at)
            for each in pending.connected.values()
        ]

        async def enter(rows: Sequence[presence_store.Connection]) -> None:
            try:
                await presence_store.insert_connections(self._database, self._node_id, rows)
            except StatementFailed as error:
                if error.constraint != presence_store.NODE_KNOWN:
                    raise
                # A failover, or a crash of PostgreSQL, has emptied the unlogged tables of nodes and
                # connections.
                await self._lease()
                await presence_store.insert_connections(self._database, self._node_id, rows)

        await in_parts(rows, enter, self._report_lost("connection {row} was not written"))
        pending.connected = {}

    async def _write_disconnected(self, pending: PendingWrites) -> None:
        if pending.disconnected:
            await presence_store.delete_connections(self._database, pending.disconnected)
            pending.disconnected = set()

    async def _write_claims(self, pending: PendingWrites) -> None:
        if not pending.claims:
            return
        claims = {each: claim.terminal for each, claim in pending.claims.items()}
        rows: list[presence_store.Connection] = [
            (each, terminal.tenant.id, terminal.device_id, terminal.connected_at)
            for each, terminal in claims.items()
        ]
        lost = await presence_store.claim_devices(self._database, rows)
        for connection_id, claim in pending.claims.items():
            claim.won = connection_id not in lost
        pending.claims = {}

    async def _write_heartbeats(self, pending: PendingWrites) -> None:
        if pending.heartbeats:
            await presence_store.update_connections(
                self._database, list(pending.heartbeats.values())
            )
            pending.heartbeats = {}

    async def _write_legacy_positions(self, pending: PendingWrites) -> None:
        moves = _sorted_moves(
            {k: seq for k, seq in pending.legacy_positions.items() if k not in pending.acks}
        )
        await in_parts(
            moves,
            lambda rows: cursors.advance_legacy(self._database, rows),
            self._report_lost("position {row} of a legacy terminal was not written"),
        )
        pending.legacy_positions = {}

    async def _write_sent_positions(self, pending: PendingWrites) -> None:
        """Write positions in earlier streams in parts. After an outage these are all devices of the node."""
        moves: list[cursors.Reached] = [
            (*key, seq, key in pending.using_positions)
            for key, seq in sorted(pending.sent_positions.items())
        ]
        for start in range(0, len(moves), _PART_ROWS):
            await in_parts(
                moves[start : start + _PART_ROWS],
                lambda rows: cursors.mark_astray(self._database, rows),
                self._report_lost(
                    "position {row} of a device in an earlier stream was not written"
                ),
            )
        pending.sent_positions, pending.using_positions = {}, set()

    async def _write_acks(self, pending: PendingWrites) -> None:
        accepted: list[tuple[StreamName, Seq]] = []

        async def acknowledge(rows: Sequence[cursors.Move]) -> None:
            accepted.extend(await cursors.advance(self._database, rows))

        await in_parts(
            _sorted_moves(pending.acks),
            acknowledge,
            self._report_lost("acknowledgement {row} was not written"),
        )
        pending.acks_written(accepted)

    async def _write_heads(self, pending: PendingWrites) -> None:
        """Move the heads to the positions that were sent, and to those that were confirmed."""
        heads_moved = sorted(pending.sent.keys() | pending.received.keys())
        heads = [
            (*each, pending.sent.get(each, 0), pending.received.get(each, 0))
            for each in heads_moved
        ]
        await in_parts(
            heads,
            lambda rows: presence_store.update_progress(self._database, rows),
            self._report_lost("head {row} of a stream was not moved"),
        )
        self._heads_moved({tenant_id for tenant_id, _ in heads_moved})
        pending.sent, pending.received = {}, {}

    def _report_lost(self, text: str) -> Callable[[Sequence[R], Exception], None]:
        def report_lost(rows: Sequence[R], error: Exception) -> None:
            for row in rows[:1]:
                self._log.error(
                    text + " (the first of {count} rows); posd drops these rows: {error}",
                    row=row,
                    count=len(rows),
                    error=error,
                )

        return report_lost


async def in_parts(
    rows: Sequence[R],
    write: Callable[[Sequence[R]], Awaitable[None]],
    report_lost: Callable[[Sequence[R], Exception], None],
) -> None:
    """Write rows with one statement. If the data of some rows is at fault, write all other rows.

    Rows at fault are found by halving and passed to `report_lost`, one at a time. After `_MOST_FAULTY_ROWS`
    rows, the rest of the part that fails is passed as a whole. Raises `Unavailable`, and `StatementFailed`
    if no row is at fault.
    """
    faulty = 0
    parts = [rows] if rows else []
    while parts:
        part = parts.pop()
        try:
            await write(part)
        except Unavailable:
            raise
        except Exception as error:
            if isinstance(error, StatementFailed) and not error.about_data:
                raise
            if len(part) == 1 or faulty >= _MOST_FAULTY_ROWS:
                faulty += 1
                report_lost(part, error)
            else:
                half = len(part) // 2
                parts += [part[half:], part[:half]]


def _sorted_moves(positions: dict[Subscription, Seq]) -> list[cursors.Move]:
    """Return the moves in one order for all nodes, so that two nodes do not deadlock."""
    return [(*key, seq) for key, seq in sorted(positions.items())]
