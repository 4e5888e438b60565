"""The one way in: everything that is published is normalised, numbered and stored here.

One loop, one transaction at a time, on a link of its own. While a transaction is in flight whatever
else arrives is collected for the next one, so concurrent publishers share a commit without waiting
for a timer. A lock in the database lets one sequencer work at a time, whichever node it is on.

The shops' tables are read on other connections, before the transaction (`posd.publishing.outbox`), so no
code of a shop runs here and no tenant waits for another one's tables.

What a publisher asks follows what its tenant has committed before, up to a batch of it
(`posd.publishing.following`).

What goes wrong in a batch is kept small (`posd.publishing.batches`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from posd.database.coalescing import fail_all
from posd.database.link import Link
from posd.database.readers import Readers
from posd.errors import Conflict, StatementFailed, Unavailable
from posd.monitoring.counters import Instruments
from posd.publishing.batches import Batches
from posd.publishing.following import SOON_SECONDS, Following
from posd.publishing.journal import Journal
from posd.publishing.outbox import Outbox, Portion
from posd.publishing.publication import Publication as Publication
from posd.publishing.publication import Published as Published
from posd.publishing.publication import Request, fail, not_served
from posd.publishing.quarantine import Aside
from posd.publishing.request_queue import RequestQueue
from posd.publishing.transaction import Numbering
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
        instruments = instruments or Instruments()
        self._link = link
        # Is told after each look how many rows it has seen.
        self._saw = saw
        self._numbering = Numbering(reactor, node_id, event_bytes, connections_here)
        self._journal = Journal(instruments, self._numbering.name_of)
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
        # Who waits for the next look.
        self._looked: list[Deferred[int]] = []
        self._working = False
        self._soon: IDelayedCall | None = None
        self._ended: Deferred[None] | None = None
        self._following = Following(reactor, self._outbox.is_reading, self._is_left_out)
        self._pulse = Pulse()
        self._batches = Batches(
            clock=reactor,
            link=link,
            numbering=self._numbering,
            journal=self._journal,
            outbox=self._outbox,
            queue=self._queue,
            following=self._following,
            aside=self._aside,
            shut=self._shut,
            pulse=self._pulse,
            instruments=instruments,
            appended=appended,
            look_again=self._look_again,
            fence_lost=fence_lost,
        )
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

    async def look(self) -> int:
        """Look as `wake` does; how many rows were seen that are to be numbered.

        Raises `StatementFailed` and `Unavailable` if it fails. Does not return if this node stops, or is not
        the doorman any more, before the look.
        """
        looked: Deferred[int] = Deferred()
        self._looked.append(looked)
        self.wake()
        return await looked

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

    def _look_again(self) -> None:
        self._outbox_waits = True

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
                    await self._batches.settle(requests, portions)
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
            looked, self._looked = self._looked, []
            try:
                rows = await self._outbox.look(self._aside.now())
            except Exception as error:
                fail_all(looked, error)
                if not isinstance(error, StatementFailed):
                    raise
                # Requests can be numbered all the same.
                self._log.error("the outbox cannot be looked at: {error}", error=error)
            else:
                self._saw(rows)
                for each in looked:
                    each.callback(rows)
        return self._outbox.next_batch(others_wait=bool(self._queue))

    def _is_left_out(self, tenant_id: TenantId) -> bool:
        return tenant_id in self._aside or tenant_id in self._outbox.quarantine
