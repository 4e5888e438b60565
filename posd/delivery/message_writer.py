"""Writes what tills said and refused into their tenants' schemas, each tenant's for itself.

A tenant whose tables are locked, slow or gone delays its own messages, and neither another tenant's nor
the books.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from posd.database.pool import Database
from posd.delivery.bulk_writer import in_parts
from posd.delivery.pending_writes import Messages, Nack, T, Word
from posd.errors import StatementFailed, Unavailable
from posd.monitoring.log_sampler import LogSampler
from posd.store import presence as books
from posd.values import Tenant, Terminal


class MessageWriter:
    """Keeps messages of tills until they are written; those of one tenant by one task at a time."""

    _log = Logger()

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._sampler = LogSampler(clock)
        self._pending = Messages()
        self._writing: dict[Tenant, Deferred[None]] = {}

    def said(self, terminal: Terminal, kind: str, body: bytes) -> None:
        """A till sent a message that is only logged."""
        word = Word(f"pos_{kind}", body.decode(), terminal.device_id)
        self._kept(terminal, self._pending.say(terminal.tenant, word))

    def refused(self, terminal: Terminal, seq: int, reason: str) -> None:
        """A till cannot process event `seq`."""
        nack = Nack(seq, terminal.device_id or "", reason, terminal.stream_id)
        self._kept(terminal, self._pending.refuse(terminal.tenant, nack))

    def begin(self) -> None:
        """Begin to write the messages of each tenant for which that is not under way."""
        for tenant in self._pending.tenants - self._writing.keys():
            self._writing[tenant] = writing = Deferred.fromCoroutine(self._write(tenant))
            writing.addBoth(self._ended, tenant)

    async def write(self) -> None:
        """Write everything, as far as the database can be reached."""
        self.begin()
        await gatherResults(list(self._writing.values()))

    def _ended(self, result: object, tenant: Tenant) -> None:
        self._writing.pop(tenant, None)

    async def _write(self, tenant: Tenant) -> None:
        try:
            await self._all_of(tenant)
        except Unavailable:
            # The database is away or busy: what is not written yet is kept.
            return
        except Exception:
            self._log.failure("messages of tills of {slug} could not be written", slug=tenant.slug)

    async def _all_of(self, tenant: Tenant) -> None:
        session = self._database.of(tenant.id)

        async def log(words: Sequence[Word]) -> None:
            rows = [(each.kind, each.body, each.device_id) for each in words]
            await books.said(session, tenant, rows)

        async def refuse(nacks: Sequence[Nack]) -> None:
            rows = [(each.seq, each.device_id, each.reason, each.stream_id) for each in nacks]
            await books.nacks(session, tenant, rows)

        await self._kind(self._pending.words, tenant, log)
        await self._kind(self._pending.nacks, tenant, refuse)

    async def _kind(
        self,
        kept: dict[Tenant, list[T]],
        tenant: Tenant,
        write: Callable[[Sequence[T]], Awaitable[None]],
    ) -> None:
        """Write one kind of messages. What is refused is lost, by name, and stops no other."""
        messages, done = kept.pop(tenant, []), 0

        async def write_part(part: Sequence[T]) -> None:
            nonlocal done
            await write(part)
            self._pending.written(tenant, part)
            done += len(part)

        def blame(part: Sequence[T], error: Exception) -> None:
            nonlocal done
            self._pending.written(tenant, part)
            done += len(part)
            self._log.error(
                "{count} messages of {slug}, the first from {device}, were not written and are lost: {error}",
                count=len(part),
                slug=tenant.slug,
                device=part[0].device_id,
                error=error,
            )

        try:
            await in_parts(messages, write_part, blame)
        except StatementFailed as error:
            # Their table is gone or not posd's to write: it would be the same the next time.
            blame(messages[done:], error)
        except BaseException:
            kept[tenant] = messages[done:] + kept.get(tenant, [])
            raise

    def _kept(self, terminal: Terminal, kept: bool) -> None:
        unsaid = None if kept else self._sampler.take(terminal.tenant.id)
        if unsaid is not None:
            self._log.warn(
                "a message of a till was not stored, since too many wait for the database:"
                " tenant={tenant} unsaid={unsaid}",
                tenant=terminal.tenant.slug,
                unsaid=unsaid,
            )
