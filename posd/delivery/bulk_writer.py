"""Writes what a node has noted into the books: a statement for each kind, however many tills there are.

What goes wrong with one kind, or with one row, stops no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar
from uuid import UUID

from twisted.logger import Logger

from posd.database.pool import Database
from posd.delivery.pending_writes import Notes, Subscription
from posd.errors import StatementFailed, Unavailable
from posd.store import cursors
from posd.store import presence as books
from posd.values import Seq, StreamName, TenantId

R = TypeVar("R")

_PIECE: Final = 500
"""Positions in earlier streams in one statement: to write out 20,000 of them would stop the reactor."""

_MOST_BLAMED: Final = 16
"""Rows that are looked for in one batch, at some ten statements each; the rest of the part goes unwritten."""


class Troubles:
    """Logs what goes wrong when it begins or changes, and when it is over; not each time in between."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._current: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._current)

    def begun(self, what: str, error: Exception) -> None:
        if self._current.get(what) != str(error):
            self._current[what] = str(error)
            self._log.error(
                "{what} cannot be written, are kept and tried again: {error}",
                what=what,
                error=error,
            )

    def over(self, what: str) -> None:
        if self._current.pop(what, None) is not None:
            self._log.info("{what} are written again", what=what)


class BulkWriter:
    """Writes `Notes`. `moved` is told the tenants whose heads were moved, `lease` enters the node anew."""

    _log = Logger()

    def __init__(
        self,
        database: Database,
        node_id: UUID,
        *,
        moved: Callable[[set[TenantId]], None],
        lease: Callable[[], Awaitable[None]],
    ) -> None:
        # Many callers wait for these statements.
        self._database = database.for_all
        self._node_id = node_id
        self._moved = moved
        self._lease = lease
        self.troubles = Troubles(self._log)

    async def write(self, notes: Notes) -> None:
        """Write each kind of note and forget it; what is left in `notes` could not be written now.

        Raises `Unavailable` when the database is away; what was written by then is forgotten too.
        """
        await self._kind("connections", lambda: self._connected(notes))
        await self._kind("connections that have ended", lambda: self._gone(notes))
        await self._kind("claims of connections", lambda: self._claims(notes))
        await self._kind("sightings of connections", lambda: self._seen(notes))
        await self._kind("positions of legacy tills", lambda: self._follows(notes))
        await self._kind("positions in earlier streams", lambda: self._reached(notes))
        await self._kind("acknowledgements", lambda: self._acks(notes))
        await self._kind("heads of streams", lambda: self._progress(notes))

    async def _kind(self, what: str, write: Callable[[], Awaitable[None]]) -> None:
        """Write one kind. If PostgreSQL refuses all of it, that is no row's fault: it is kept."""
        try:
            await write()
        except StatementFailed as error:
            self.troubles.begun(what, error)
        else:
            self.troubles.over(what)

    async def _connected(self, notes: Notes) -> None:
        rows: list[books.Connection] = [
            (each.connection_id, each.tenant.id, each.device_id, each.connected_at)
            for each in notes.connected.values()
        ]

        async def enter(rows: Sequence[books.Connection]) -> None:
            try:
                await books.connected(self._database, self._node_id, rows)
            except StatementFailed as error:
                if error.constraint != books.NODE_KNOWN:
                    raise
                # A failover, or a crash of PostgreSQL, has emptied the books.
                await self._lease()
                await books.connected(self._database, self._node_id, rows)

        await in_parts(rows, enter, self._blame("connection {row} was not entered"))
        notes.connected = {}

    async def _gone(self, notes: Notes) -> None:
        if notes.gone:
            await books.disconnected(self._database, notes.gone)
            notes.gone = set()

    async def _claims(self, notes: Notes) -> None:
        if not notes.claims:
            return
        claims = {each: claim.terminal for each, claim in notes.claims.items()}
        rows: list[books.Connection] = [
            (each, terminal.tenant.id, terminal.device_id, terminal.connected_at)
            for each, terminal in claims.items()
        ]
        lost = await books.claim(self._database, rows)
        for connection_id, claim in notes.claims.items():
            claim.won = connection_id not in lost
        notes.claims = {}

    async def _seen(self, notes: Notes) -> None:
        if notes.seen:
            await books.seen(self._database, list(notes.seen.values()))
            notes.seen = {}

    async def _follows(self, notes: Notes) -> None:
        moves = _moves({k: seq for k, seq in notes.follows.items() if k not in notes.acks})
        await in_parts(
            moves,
            lambda rows: cursors.followed(self._database, rows),
            self._blame("the position {row} of a legacy till was not written"),
        )
        notes.follows = {}

    async def _reached(self, notes: Notes) -> None:
        """Of all devices that this node knows, after the database was away: so in pieces."""
        moves: list[cursors.Reached] = [
            (*key, seq, key in notes.spoken) for key, seq in sorted(notes.reached.items())
        ]
        for start in range(0, len(moves), _PIECE):
            await in_parts(
                moves[start : start + _PIECE],
                lambda rows: cursors.sent_astray(self._database, rows),
                self._blame("the position {row} of a device in an earlier stream was not written"),
            )
        notes.reached, notes.spoken = {}, set()

    async def _acks(self, notes: Notes) -> None:
        accepted: list[tuple[StreamName, Seq]] = []

        async def acknowledge(rows: Sequence[cursors.Move]) -> None:
            accepted.extend(await cursors.acknowledged(self._database, rows))

        await in_parts(
            _moves(notes.acks),
            acknowledge,
            self._blame("the acknowledgement {row} was not written"),
        )
        notes.acks_are_written(accepted)

    async def _progress(self, notes: Notes) -> None:
        """Move the heads on to what was sent, and to what was acknowledged or else confirmed."""
        moved = sorted(notes.sent.keys() | notes.received.keys())
        heads = [(*each, notes.sent.get(each, 0), notes.received.get(each, 0)) for each in moved]
        await in_parts(
            heads,
            lambda rows: books.progress(self._database, rows),
            self._blame("the head {row} of a stream was not moved"),
        )
        self._moved({tenant_id for tenant_id, _ in moved})
        notes.sent, notes.received = {}, {}

    def _blame(self, text: str) -> Callable[[Sequence[R], Exception], None]:
        def blame(rows: Sequence[R], error: Exception) -> None:
            for row in rows[:1]:
                self._log.error(
                    text + " (of {count}), and is lost: {error}",
                    row=row,
                    count=len(rows),
                    error=error,
                )

        return blame


async def in_parts(
    rows: Sequence[R],
    write: Callable[[Sequence[R]], Awaitable[None]],
    blame: Callable[[Sequence[R], Exception], None],
) -> None:
    """Write rows with one statement; if the data of some is at fault, write all the others.

    Rows that fail are found by halving and told to `blame`, one at a time; after some, the part that is
    left is blamed as a whole. Raises `Unavailable`, and `StatementFailed` where no row is at fault.
    """
    blamed = 0
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
            if len(part) == 1 or blamed >= _MOST_BLAMED:
                blamed += 1
                blame(part, error)
            else:
                half = len(part) // 2
                parts += [part[half:], part[:half]]


def _moves(positions: dict[Subscription, Seq]) -> list[cursors.Move]:
    """In one order everywhere, so that two nodes do not wait for each other."""
    return [(*key, seq) for key, seq in sorted(positions.items())]
