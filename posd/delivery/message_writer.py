"""Writes what tills said and refused into their tenants' schemas, each tenant's for itself.

A tenant whose tables are locked, slow or gone delays its own messages, and neither another tenant's nor
the books.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database.coalescing import Coalescer
from posd.database.pool import Database
from posd.delivery.bulk_writer import in_parts
from posd.delivery.pending_writes import Device, Messages, Nack, T, Word
from posd.errors import StatementFailed, Unavailable
from posd.security.log_sampler import LogSampler
from posd.store import presence as books
from posd.values import Seq, Tenant, TenantId, Terminal

_WAIT_SECONDS: Final = 5.0
"""How long a till that comes back waits for what it refused to be written."""


class MessageWriter:
    """Keeps messages of tills until they are written; those of one tenant by one task at a time."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, database: Database) -> None:
        self._clock = clock
        self._database = database
        self._sampler = LogSampler(clock.seconds)
        self._pending = Messages()
        self._tenants: dict[TenantId, Tenant] = {}
        """The tenants whose tills have sent anything, as the last of these tills knew them."""
        self._writes: dict[TenantId, Coalescer[None, None]] = {}
        self._refusing: Counter[Device] = Counter()
        """How many refusals of each device are still to be written."""

    def said(self, terminal: Terminal, kind: str, body: bytes) -> None:
        """A till sent a message that is only logged."""
        word = Word(f"pos_{kind}", body.decode(), terminal.device_id)
        self._kept(terminal, self._pending.say(terminal.tenant.id, word))

    def refused(self, terminal: Terminal, seq: Seq, reason: str) -> None:
        """A till cannot process event `seq`."""
        device = terminal.device_id or ""
        nack = Nack(seq, device, reason, terminal.stream_id)
        kept = self._pending.refuse(terminal.tenant.id, nack)
        if kept:
            self._refusing[terminal.tenant.id, device] += 1
        self._kept(terminal, kept)

    def begin(self) -> None:
        """Begin to write the messages of each tenant for which that is not under way."""
        for tenant_id in self._pending.tenants:
            if not self._writes[tenant_id].running:
                Deferred.fromCoroutine(self._quietly(tenant_id))

    async def write(self) -> None:
        """Write everything, as far as the database can be reached."""
        work = [self._quietly(each) for each in self._writes]
        await gatherResults([Deferred.fromCoroutine(each) for each in work])

    async def settle(self, device: Device) -> None:
        """Wait until what a device has refused is written. Raises `Unavailable` if that takes too long."""
        if self._refusing[device]:
            await self._writes[device[0]].ask(None)

    def _writing(self, tenant_id: TenantId) -> Coalescer[None, None]:
        async def write(keys: Sequence[None]) -> Mapping[None, None]:
            await self._all_of(self._tenants[tenant_id])
            return {None: None}

        return Coalescer(self._clock, write, seconds=_WAIT_SECONDS)

    async def _quietly(self, tenant_id: TenantId) -> None:
        try:
            await self._writes[tenant_id].ask(None)
        except Unavailable:
            # The database is away or busy: what is not written yet is kept.
            return
        except Exception:
            self._log.failure(
                "messages of tills of tenant {tenant_id} were not written, and are kept",
                tenant_id=tenant_id,
            )

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
        kept: dict[TenantId, list[T]],
        tenant: Tenant,
        write: Callable[[Sequence[T]], Awaitable[None]],
    ) -> None:
        """Write one kind of messages. What is refused is lost, by name, and stops no other."""
        messages, done = kept.pop(tenant.id, []), 0

        async def write_part(part: Sequence[T]) -> None:
            nonlocal done
            await write(part)
            self._done(tenant, part)
            done += len(part)

        def blame(part: Sequence[T], error: Exception) -> None:
            nonlocal done
            self._done(tenant, part)
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
            kept[tenant.id] = messages[done:] + kept.get(tenant.id, [])
            raise

    def _done(self, tenant: Tenant, part: Sequence[Word | Nack]) -> None:
        """These messages are written, or lost."""
        self._pending.written(tenant.id, part)
        for each in part:
            if isinstance(each, Nack):
                device = (tenant.id, each.device_id)
                self._refusing[device] -= 1
                if not self._refusing[device]:
                    del self._refusing[device]

    def _kept(self, terminal: Terminal, kept: bool) -> None:
        tenant = terminal.tenant
        if kept:
            self._tenants[tenant.id] = tenant
            if tenant.id not in self._writes:
                self._writes[tenant.id] = self._writing(tenant.id)
            return
        unsaid = self._sampler.take(tenant.id)
        if unsaid is not None:
            self._log.warn(
                "a message of a till was not stored, since too many wait for the database:"
                " tenant={tenant} unsaid={unsaid}",
                tenant=tenant.slug,
                unsaid=unsaid,
            )
