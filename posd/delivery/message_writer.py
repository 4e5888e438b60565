"""Writes messages and refusals of tills into the tables of all tenants, one statement for many tenants.

Each statement has a bounded size and takes a share of every tenant's messages. So a tenant whose tills send
many messages delays the other tenants by one statement at most.
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
from posd.database.pool import Pool
from posd.delivery.bulk_writer import ProblemLog, in_parts
from posd.delivery.pending_writes import (
    ByTenant,
    Device,
    PendingMessages,
    RejectedEvent,
    T,
    TillMessage,
    put_back,
    take_part,
)
from posd.errors import StatementFailed, Unavailable
from posd.security.log_sampler import LogSampler
from posd.store import presence as presence_store
from posd.values import Seq, Terminal

_WAIT_SECONDS: Final = 5.0
"""How long a reconnecting till waits until its refusals are written."""
_PART_BYTES: Final = 256 * 1024
"""Bytes of messages in one statement, which takes about ten milliseconds."""


class MessageWriter:
    """Keeps messages of tills until they are written. One statement runs at a time."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, database: Pool) -> None:
        self._database = database
        self._sampler = LogSampler(clock.seconds)
        self._pending = PendingMessages()
        self._writes: Coalescer[None, None] = Coalescer(
            clock, self._write_all, seconds=_WAIT_SECONDS
        )
        self._unwritten_rejections: Counter[Device] = Counter()
        """The number of refusals of each device that are not written yet."""
        self._problems = ProblemLog(self._log)

    def said(self, terminal: Terminal, kind: str, body: bytes) -> None:
        """A till sent a message that is only logged."""
        message = TillMessage(terminal.tenant, f"pos_{kind}", body.decode(), terminal.device_id)
        if not self._pending.add_message(message):
            self._log_dropped(terminal)

    def refused(self, terminal: Terminal, seq: Seq, reason: str) -> None:
        """A till cannot process event `seq`."""
        device = terminal.device_id or ""
        if self._pending.add_rejected(
            RejectedEvent(terminal.tenant, seq, device, reason, terminal.stream_id)
        ):
            self._unwritten_rejections[terminal.tenant.id, device] += 1
        else:
            self._log_dropped(terminal)

    def start_write(self) -> None:
        """Begin to write the pending messages, unless a write is running."""
        if self._pending and not self._writes.running:
            Deferred.fromCoroutine(self.write())

    async def write(self) -> None:
        """Write all messages. Messages that cannot be written are kept."""
        try:
            await self._writes.ask(None)
        except Unavailable:
            return
        except Exception:
            self._log.failure("messages of tills were not written; posd keeps them and tries again")

    async def write_pending(self, device: Device) -> None:
        """Wait until the refusals of a device are written. Raises `Unavailable` if that takes too long."""
        if self._unwritten_rejections[device]:
            await self._writes.ask(None)

    async def _write_all(self, keys: Sequence[None]) -> Mapping[None, None]:
        """Write the messages that are pending now. Later messages are written by the next call."""
        # Refusals come first, since reconnecting tills wait for them.
        await self._write_kind("refusals of tills", self._pending.nacks, self._write_rejected)
        await self._write_kind("messages of tills", self._pending.messages, self._write_messages)
        return {None: None}

    async def _write_rejected(self, nacks: Sequence[RejectedEvent]) -> None:
        rows = [(n.tenant.id, n.seq, n.device_id, n.reason, n.stream_id) for n in nacks]
        await presence_store.insert_nacks(self._database, rows)

    async def _write_messages(self, messages: Sequence[TillMessage]) -> None:
        rows = [(each.tenant.id, each.kind, each.body, each.device_id) for each in messages]
        await presence_store.insert_messages(self._database, rows)

    async def _write_kind(
        self, what: str, by_tenant: ByTenant[T], write: Callable[[Sequence[T]], Awaitable[None]]
    ) -> None:
        """Write one kind of messages. Keep those that PostgreSQL refuses for another reason than their
        data.
        """
        left, piece, done = dict(by_tenant), list[T](), 0
        by_tenant.clear()

        def finish(part: Sequence[T]) -> None:
            nonlocal done
            self._mark_written(part)
            done += len(part)

        async def write_part(part: Sequence[T]) -> None:
            await write(part)
            finish(part)

        def report_lost(part: Sequence[T], error: Exception) -> None:
            self._log_lost(part, error)
            finish(part)

        try:
            while left:
                piece, done = take_part(left, _PART_BYTES), 0
                try:
                    await write_part(piece)
                except StatementFailed as error:
                    if not error.about_data:
                        raise
                    # Write each tenant's messages alone, so that a fault of one tenant costs no message
                    # of another.
                    for _, some in groupby(piece, lambda each: each.tenant.id):
                        await in_parts(list(some), write_part, report_lost)
        except StatementFailed as error:
            self._problems.began(what, error)
        else:
            self._problems.ended(what)
        finally:
            for later in left.values():
                put_back(by_tenant, later)
            put_back(by_tenant, piece[done:])

    def _log_lost(self, part: Sequence[TillMessage | RejectedEvent], error: Exception) -> None:
        self._log.error(
            "{count} messages of tenant {slug}, the first from {device}, were not written; posd drops"
            " them: {error}",
            count=len(part),
            slug=part[0].tenant.slug,
            device=part[0].device_id,
            error=error,
        )

    def _mark_written(self, part: Sequence[TillMessage | RejectedEvent]) -> None:
        """Stop counting messages that are written or lost."""
        self._pending.written(part)
        for each in part:
            if isinstance(each, RejectedEvent):
                device = (each.tenant.id, each.device_id)
                self._unwritten_rejections[device] -= 1
                if not self._unwritten_rejections[device]:
                    del self._unwritten_rejections[device]

    def _log_dropped(self, terminal: Terminal) -> None:
        unsaid = self._sampler.take(terminal.tenant.id)
        if unsaid is not None:
            self._log.warn(
                "a message of a till was not stored, because too many messages wait for the database;"
                " posd drops the message: tenant={tenant} unsaid={unsaid}",
                tenant=terminal.tenant.slug,
                unsaid=unsaid,
            )
