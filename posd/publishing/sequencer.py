"""The one way in: everything that is published is normalised, numbered and stored here.

One loop, one transaction at a time, on a link of its own. While a transaction is in flight whatever
else arrives is collected for the next one, so concurrent publishers share a commit without waiting
for a timer. A lock in the database lets one sequencer work at a time, whichever node it is on.

The shops' tables are read on other connections, before the transaction (`posd.publishing.outbox`), so no
code of a shop runs here and no tenant waits for another one's tables.

What a publisher asks follows what its tenant has committed before, up to a batch of it
(`posd.publishing.following`).

What goes wrong is kept small. A tenant whose rows cannot be numbered is left out for a while and keeps them.
A batch that is refused is done again in parts, and those in halves, until what is at fault fails alone; the
shops' orders are read again for that. Nothing leaves the outbox without having become an event or a `failed`
row with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final
from uuid import UUID

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from posd.database.link import Link
from posd.database.readers import Readers
from posd.errors import Conflict, StatementFailed, Unavailable, Unprocessable, is_about_data
from posd.monitoring.counters import Instruments
from posd.publishing.following import SOON_SECONDS, Following
from posd.publishing.journal import Journal
from posd.publishing.outbox import Outbox, Portion
from posd.publishing.publication import Publication as Publication
from posd.publishing.publication import Published as Published
from posd.publishing.publication import Request, answer, fail, hand_on, not_served
from posd.publishing.quarantine import Aside
from posd.publishing.request_queue import RequestQueue
from posd.publishing.transaction import Numbering, OutboxChanged, TenantsFailed
from posd.publishing.workload import TooMuch
from posd.store import stream
from posd.store.stream import FenceLost
from posd.values import Appended, TenantId
from posd.waiting import Pulse

_MANY_WAITING: Final = 1000
# For how long, at most, the outbox of a tenant is left alone whose rows cannot be numbered.
_LONGEST_ASIDE: Final = 300.0


class Sequencer(Service):
    """Numbers what `publish` brings and what `wake` says is in the outbox."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        link: Link,
        readers: Readers,
        node_id: UUID,
        *,
        event_bytes: int,
        connections_here: Callable[[TenantId], int],
        appended: Callable[[Appended], None] = lambda appended: None,
        fence_lost: Callable[[], None] = lambda: None,
        saw: Callable[[int], None] = lambda rows: None,
        instruments: Instruments | None = None,
    ) -> None:
        self._reactor = reactor
        self._instruments = instruments or Instruments()
        self._link = link
        # Is given what was committed, so that this node's tills have it without a read.
        self._appended = appended
        self._fence_lost = fence_lost
        # Is told after each look how many rows it has seen.
        self._saw = saw
        self._numbering = Numbering(reactor, node_id, event_bytes, connections_here)
        self._journal = Journal(self._instruments, self._numbering.name_of)
        # Tenants whose rows stay in the outbox, and those whose requests are refused as well.
        self._aside: Aside[TenantId] = Aside(reactor, _LONGEST_ASIDE)
        self._shut: Aside[TenantId] = Aside(reactor)
        self._queue = RequestQueue()
        self._outbox = Outbox(
            reactor,
            link,
            readers,
            shops=self._numbering.shops,
            changed=self._was_read,
            failed=self._journal.unreadable,
        )
        self._outbox_waits = False
        self._working = False
        self._soon: IDelayedCall | None = None
        self._ended: Deferred[None] | None = None
        self._following = Following(reactor, self._outbox.is_reading, self._is_left_out)
        self._pulse = Pulse()
        self._running_keys: set[tuple[object, ...]] = set()

    def stopService(self) -> Deferred[None]:
        """Finish what was accepted. Nothing is accepted afterwards."""
        Service.stopService(self)
        if not self._working and not self._queue:
            return succeed(None)
        self._ended = Deferred()
        return self._ended

    @property
    def event_bytes(self) -> int:
        """The largest event that is published, from the next transaction on."""
        return self._numbering.event_bytes

    @event_bytes.setter
    def event_bytes(self, most: int) -> None:
        self._numbering.event_bytes = most

    @property
    def waiting(self) -> int:
        """How many publications wait for their transaction."""
        return len(self._queue)

    @property
    def left_out(self) -> int:
        """How many tenants are left out, or in quarantine."""
        return len({*self._aside.now(), *self._shut.now(), *self._outbox.quarantine})

    @property
    def stalled(self) -> bool:
        """Whether it has work, or no connection, and has tried nothing for a minute."""
        idle = not self._working or not self._pulse.stalled or not self._link.pulse.stalled
        return self._link.stalled or not idle

    @property
    def serves_all(self) -> bool:
        """Whether no tenant is left out because its tables cannot be read or written."""
        return not self.left_out

    @property
    def fence(self) -> int | None:
        """That of the doorman's lease, if this node has it. Without it only requests are numbered."""
        return self._outbox.fence

    @fence.setter
    def fence(self, fence: int | None) -> None:
        """What was read under the lease before is dropped. With a lease the outbox is looked at."""
        self._outbox.fence = fence
        if fence is not None:
            self.wake()

    def wake(self) -> None:
        """Look into the outbox, now or after the transaction that is in flight; only the doorman does."""
        if self.fence is not None:
            self._outbox_waits = True
            self._start()

    async def has_news(self) -> bool:
        """Whether a look into the outbox would see something: a question that costs less than the look."""
        return await self._outbox.has_news(self._aside.now())

    async def publish(self, publication: Publication) -> Published:
        """Publish, and return after the COMMIT.

        Raises `Unprocessable`, `TooLarge` and `Conflict` (a first call with this `Idempotency-Key`
        is still running) about the publication, and `Unavailable` or a subclass when the database
        does not answer; only with `OutcomeUnknown` the events may be published all the same.
        """
        if not self.running:
            raise Unavailable("Publishing is not possible at the moment.", retry_after=2)
        if publication.tenant_id in self._shut:
            raise not_served()
        call = publication.idempotency
        if call is not None and call.scope in self._running_keys:
            raise Conflict("The first call with this key is still running.", code="still_running")
        request = Request(publication)
        self._queue.append(request)
        if call is not None:
            self._running_keys.add(call.scope)
        try:
            self._start()
            return await request.answer
        finally:
            if call is not None:
                self._running_keys.discard(call.scope)

    def _start(self) -> None:
        if not self._working and (self.running or self._queue):
            self._working = True
            self._pulse.beat()
            Deferred.fromCoroutine(self._loop())

    def _start_soon(self) -> None:
        if self._soon is None or not self._soon.active():
            self._soon = self._reactor.callLater(SOON_SECONDS, self._start)

    def _was_read(self, again: bool) -> None:
        """The orders of a tenant were read, or cannot be."""
        self._outbox_waits = self._outbox_waits or again
        self._start()

    async def _loop(self) -> None:
        try:
            while True:
                requests: list[Request] = []
                away = False
                try:
                    portions = await self._portions()
                    if not self._outbox.is_alone(portions):
                        requests = self._queue.next_batch(self._following.waits)
                    if not requests and not portions and not self._is_due:
                        break
                    await self._settle(requests, portions)
                except Unavailable:
                    # The rows stay in the outbox; the feed wakes us when the database is back.
                    away = True
                    requests = requests or self._queue.next_batch()
                except Exception:
                    self._log.failure("a batch of {count} requests failed", count=len(requests))
                # Those of a batch that had to be divided, whose turn did not come.
                missed = [each for each in requests if not each.queued]
                fail(missed, Unavailable("Publishing failed. Try again.", retry_after=1))
                if away and len(self._queue) >= _MANY_WAITING:
                    # Every batch fails at once then. Thousands of answers are not given in one turn.
                    await deferLater(self._reactor, 0)
        finally:
            self._working = False
            if self._queue:
                self._start_soon()
            elif self._ended is not None:
                self._ended.callback(None)
                self._ended = None

    @property
    def _is_due(self) -> bool:
        """Whether the outbox is to be looked at. Only the doorman does."""
        return self._outbox_waits and self.fence is not None and bool(self.running or self._queue)

    async def _portions(self) -> list[Portion]:
        """What of the outbox is ready to be numbered, after a look at it if there is reason for one."""
        if self._is_due:
            self._outbox_waits = False
            self._pulse.beat()
            try:
                self._saw(await self._outbox.look(self._aside.now()))
            except StatementFailed as error:
                # Requests can be numbered all the same.
                self._log.error("the outbox cannot be looked at: {error}", error=error)
        return self._outbox.next_batch(others_wait=bool(self._queue))

    def _is_left_out(self, tenant_id: TenantId) -> bool:
        return tenant_id in self._aside or tenant_id in self._outbox.quarantine

    async def _settle(self, requests: Sequence[Request], portions: Sequence[Portion] = ()) -> None:
        """Publish requests and portions of the outbox; each fails only for its own faults.

        Raises `Unavailable`: what was not done by then can only be done later.
        """
        if not requests and not portions:
            return
        try:
            await self._commit(requests, portions)
        except TenantsFailed as trouble:
            await self._leave_out(trouble.failures, requests, portions)
        except TooMuch as trouble:
            self._outbox.lighten(trouble.tenant_id, trouble.rows)
            self._outbox_waits = True
            self._queue.put_back(requests)
        except Unavailable as error:
            fail(requests, error)
            raise
        except Exception as error:
            # What is older goes first.
            for each in portions:
                await self._again(each, error if len(portions) == 1 and not requests else None)
            if portions:
                await self._settle(requests)
            elif len(requests) > 1:
                half = len(requests) // 2
                await self._settle(requests[:half])
                await self._settle(requests[half:])
            else:
                self._blame(requests[0], error)

    async def _again(self, portion: Portion, error: Exception | None) -> None:
        """Publish the rows of a batch that was refused; `error` if nothing else was in it.

        Orders are read again, since the shop may have changed them meanwhile. Nobody waits for that here.
        """
        if not portion.was_read:
            await self._settle_rows(portion.tenant_id, len(portion.ids))
        elif error is not None and portion.is_one:
            await self._blame_row(error)
        else:
            self._outbox.divide(portion, was_alone=error is not None)
        self._outbox_waits = True

    async def _settle_rows(self, tenant_id: TenantId, rows: int) -> None:
        """Publish up to `rows` of one tenant's outbox, the oldest first; one that cannot be fails alone."""
        portion = None if tenant_id in self._aside else await self._outbox.one(tenant_id, rows)
        if portion is None:
            return
        try:
            await self._commit([], [portion])
        except TenantsFailed as trouble:
            await self._leave_out(trouble.failures, [], [portion])
        except Unavailable:
            raise
        except Exception as error:
            if rows > 1:
                await self._settle_rows(tenant_id, rows // 2)
                await self._settle_rows(tenant_id, rows - rows // 2)
            else:
                await self._blame_row(error)

    async def _commit(self, requests: Sequence[Request], portions: Sequence[Portion]) -> None:
        self._pulse.beat()
        began = self._reactor.seconds()
        self._following.try_now(requests)
        try:
            outcome = await self._link.transaction(
                lambda session: self._numbering.number(session, requests, portions)
            )
        except FenceLost:
            self._fence_lost()
            await self._settle(requests)
            return
        except TooMuch:
            raise
        except Exception:
            self._instruments.batch_failed()
            raise
        hand_on(outcome.appended, self._appended, self._journal.not_handed_on)
        seconds = self._reactor.seconds() - began
        self._journal.committed(outcome, seconds)
        self._outbox.accepted(portions, seconds)
        self._following.too_early(outcome.early, [each.tenant_id for each in portions])
        self._queue.put_back(outcome.early)
        if outcome.taken or outcome.early:
            # More may have come for those tenants, which the last look has passed by.
            self._outbox_waits = True
        answer(each for each in requests if not each.queued)

    async def _leave_out(
        self,
        failures: Mapping[TenantId, str],
        requests: Sequence[Request],
        portions: Sequence[Portion],
    ) -> None:
        """Do a batch without the tenants that failed. The outbox is looked at anew for the others.

        It may be that only something in the outbox is at fault. So at first a tenant loses its place
        there, and what publishers ask is tried once more without that.
        """
        had_rows = {each.tenant_id for each in portions}
        spared = failures.keys() & had_rows
        self._outbox_waits = self._outbox_waits or bool(had_rows)
        for tenant_id, reason in failures.items():
            self._leave(self._aside if tenant_id in spared else self._shut, tenant_id, reason)
        shut = failures.keys() - spared
        fail((each for each in requests if each.tenant_id in shut), not_served())
        await self._settle([each for each in requests if each.tenant_id not in failures])
        await self._settle([each for each in requests if each.tenant_id in spared])

    def _blame(self, request: Request, error: Exception) -> None:
        """A request has failed alone."""
        if not isinstance(error, StatementFailed):
            self._log.failure("an event could not be worked on")
        self._journal.refused(request, error)
        refusal = Unprocessable("The event cannot be stored.", code="invalid_event")
        fail([request], refusal if is_about_data(error) else error)

    async def _blame_row(self, error: Exception) -> None:
        """The oldest row of a tenant's outbox has failed alone."""
        row = self._numbering.oldest
        badly_made = is_about_data(error)
        if not isinstance(error, StatementFailed):
            self._log.failure("an event could not be worked on")
        if row is None:
            # There was none yet: the sequencer cannot work at all.
            raise error
        if isinstance(error, StatementFailed) and not badly_made:
            self._leave(self._aside, row.tenant_id, str(error))
        else:
            await self._reject(row, str(error) if badly_made else "posd failed at this event")

    async def _reject(self, row: stream.OutboxRow, reason: str) -> None:
        """Log the outbox row that just failed alone as failed, since it cannot be published."""
        try:
            await self._link.transaction(
                lambda session: self._numbering.reject(session, row, reason, self.fence)
            )
        except FenceLost:
            self._fence_lost()
        except StatementFailed as error:
            self._leave(self._aside, row.tenant_id, str(error))
        except OutboxChanged:
            # It is found out anew which row is at fault.
            self._outbox_waits = True
        else:
            self._journal.rejected(row, reason)

    def _leave(self, aside: Aside[TenantId], tenant_id: TenantId, reason: str) -> None:
        self._journal.unnumbered(tenant_id, reason, aside.add(tenant_id))
