"""Writes what tills said and refused into the tables of all tenants, with one statement for many tenants.

A tenant whose tills talk much delays the others by one statement of bounded size: each statement has a share
of every tenant's messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database.coalescing import Coalescer
from posd.database.pool import Database
from posd.delivery.bulk_writer import Troubles, in_parts
from posd.delivery.pending_writes import Device, Kept, Messages, Nack, T, Word, put_back, take_piece
from posd.errors import StatementFailed, Unavailable
from posd.security.log_sampler import LogSampler
from posd.store import presence as books
from posd.values import Seq, Terminal

_WAIT_SECONDS: Final = 5.0
"""How long a till that comes back waits for what it refused to be written."""
_PIECE_BYTES: Final = 256 * 1024
"""Of messages in one statement: some ten milliseconds."""


class MessageWriter:
    """Keeps messages of tills until they are written. There is one statement at a time."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, database: Database) -> None:
        self._database = database
        self._sampler = LogSampler(clock.seconds)
        self._pending = Messages()
        self._writes: Coalescer[None, None] = Coalescer(
            clock, self._write_all, seconds=_WAIT_SECONDS
        )
        self._refusing: Counter[Device] = Counter()
        """How many refusals of each device are still to be written."""
        self._troubles = Troubles(self._log)

    def said(self, terminal: Terminal, kind: str, body: bytes) -> None:
        """A till sent a message that is only logged."""
        word = Word(terminal.tenant, f"pos_{kind}", body.decode(), terminal.device_id)
        if not self._pending.say(word):
            self._not_kept(terminal)

    def refused(self, terminal: Terminal, seq: Seq, reason: str) -> None:
        """A till cannot process event `seq`."""
        device = terminal.device_id or ""
        if self._pending.refuse(Nack(terminal.tenant, seq, device, reason, terminal.stream_id)):
            self._refusing[terminal.tenant.id, device] += 1
        else:
            self._not_kept(terminal)

    def begin(self) -> None:
        """Begin to write what there is, if nothing is being written."""
        if self._pending and not self._writes.running:
            Deferred.fromCoroutine(self.write())

    async def write(self) -> None:
        """Write everything, as far as the database can be reached. What cannot be written is kept."""
        try:
            await self._writes.ask(None)
        except Unavailable:
            return
        except Exception:
            self._log.failure("messages of tills were not written, and are kept")

    async def settle(self, device: Device) -> None:
        """Wait until what a device has refused is written. Raises `Unavailable` if that takes too long."""
        if self._refusing[device]:
            await self._writes.ask(None)

    async def _write_all(self, keys: Sequence[None]) -> Mapping[None, None]:
        """Write what is there now. What comes meanwhile is for the next time."""
        # A till that comes back waits for the refusals.
        await self._kind("refusals of tills", self._pending.nacks, self._refuse)
        await self._kind("messages of tills", self._pending.words, self._say)
        return {None: None}

    async def _refuse(self, nacks: Sequence[Nack]) -> None:
        rows = [(n.tenant.id, n.seq, n.device_id, n.reason, n.stream_id) for n in nacks]
        await books.nacks(self._database, rows)

    async def _say(self, words: Sequence[Word]) -> None:
        rows = [(each.tenant.id, each.kind, each.body, each.device_id) for each in words]
        await books.said(self._database, rows)

    async def _kind(
        self, what: str, kept: Kept[T], write: Callable[[Sequence[T]], Awaitable[None]]
    ) -> None:
        """Write one kind of messages. What PostgreSQL refuses for another reason than data is kept."""
        left, piece, done = dict(kept), list[T](), 0
        kept.clear()

        def finish(part: Sequence[T]) -> None:
            nonlocal done
            self._done(part)
            done += len(part)

        async def write_part(part: Sequence[T]) -> None:
            await write(part)
            finish(part)

        def blame(part: Sequence[T], error: Exception) -> None:
            self._lost(part, error)
            finish(part)

        try:
            while left:
                piece, done = take_piece(left, _PIECE_BYTES), 0
                try:
                    await write_part(piece)
                except StatementFailed as error:
                    if not error.about_data:
                        raise
                    # Each tenant by itself: what one of them has wrong must not cost another a message.
                    for _, some in groupby(piece, lambda each: each.tenant.id):
                        await in_parts(list(some), write_part, blame)
        except StatementFailed as error:
            self._troubles.begun(what, error)
        else:
            self._troubles.over(what)
        finally:
            for later in left.values():
                put_back(kept, later)
            put_back(kept, piece[done:])

    def _lost(self, part: Sequence[Word | Nack], error: Exception) -> None:
        self._log.error(
            "{count} messages of {slug}, the first from {device}, were not written and are lost: {error}",
            count=len(part),
            slug=part[0].tenant.slug,
            device=part[0].device_id,
            error=error,
        )

    def _done(self, part: Sequence[Word | Nack]) -> None:
        """These messages are written, or lost."""
        self._pending.written(part)
        for each in part:
            if isinstance(each, Nack):
                device = (each.tenant.id, each.device_id)
                self._refusing[device] -= 1
                if not self._refusing[device]:
                    del self._refusing[device]

    def _not_kept(self, terminal: Terminal) -> None:
        unsaid = self._sampler.take(terminal.tenant.id)
        if unsaid is not None:
            self._log.warn(
                "a message of a till was not stored, since too many wait for the database:"
                " tenant={tenant} unsaid={unsaid}",
                tenant=terminal.tenant.slug,
                unsaid=unsaid,
            )
