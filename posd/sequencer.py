"""The one way in: everything that is published is normalised, numbered and stored here.

One loop, one transaction at a time, on a link of its own. While a transaction is in flight whatever
else arrives is collected for the next one, so concurrent publishers share a commit without waiting
for a timer. A lock in the database lets one sequencer work at a time, whichever node it is on.

What goes wrong is kept small. A tenant whose rows cannot be read is set aside for a while and keeps
its rows. A batch that the database refuses is done again piece by piece, so that the piece at fault
fails alone. Nothing leaves the outbox without having become an event or a `failed` row with a reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, cast
from uuid import UUID

from attrs import define, field, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd import batch, jsontext
from posd.aside import Aside
from posd.errors import (
    Busy,
    Conflict,
    PosdError,
    Refusal,
    StatementFailed,
    Unavailable,
    Unprocessable,
)
from posd.link import Link, Session
from posd.store import idempotency, stream, tenants
from posd.store.idempotency import Idempotency
from posd.values import Draft, Seq, Tenant, TenantId

_MOST_ROWS: Final = 500
_MOST_EVENTS: Final = 1000
_MOST_WAITING: Final = 10_000
_SHOPS_SECONDS: Final = 60.0


@frozen
class Publication:
    """One publisher's request: its events are published all together or not at all."""

    tenant_id: TenantId
    drafts: Sequence[Draft]
    idempotency: Idempotency | None = None


@frozen
class Published:
    """What became of a publication.

    `ids` has a position for each event, None for one that told nothing new. `connections` counts the
    tenant's connected tills on all nodes. `replayed`: the answer is that of an earlier, equal call.
    """

    ids: tuple[Seq | None, ...]
    connections: int
    replayed: bool = False


@define(eq=False)
class _Waiting:
    """A publication and whoever waits for its answer."""

    publication: Publication
    answer: Deferred[Published] = field(factory=Deferred)
    result: Published | Refusal | None = None

    @property
    def items(self) -> list[batch.Item]:
        tenant_id = self.publication.tenant_id
        return [batch.Item(tenant_id, draft) for draft in self.publication.drafts]


class _TenantsFailed(PosdError):
    """Some tenants' rows could not be read; by tenant why."""

    def __init__(self, failures: dict[TenantId, str]) -> None:
        super().__init__("; ".join(failures.values()))
        self.failures = failures


class Sequencer(Service):
    """Numbers what `publish` brings and what `wake` says is in the outbox."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        link: Link,
        node_id: UUID,
        *,
        event_bytes: int,
        connections_here: Callable[[TenantId], int],
    ) -> None:
        self._reactor = reactor
        self._link = link
        self._shops: dict[TenantId, Tenant] = {}
        self._shops_since = 0.0
        self._node_id = node_id
        self._event_bytes = event_bytes
        self._connections_here = connections_here
        self._aside = Aside(reactor)
        self._queue: deque[_Waiting] = deque()
        self._outbox_waits = False
        self._work: Deferred[None] = succeed(None)
        self._working = False
        # The oldest row of the transaction that is in flight.
        self._taken: stream.OutboxRow | None = None
        self._running_keys: set[tuple[object, ...]] = set()

    def stopService(self) -> Deferred[None]:
        """Finish what was accepted. Nothing is accepted afterwards."""
        Service.stopService(self)
        return self._work

    def wake(self) -> None:
        """Look into the outbox, now or after the transaction that is in flight."""
        self._outbox_waits = True
        self._start()

    async def publish(self, publication: Publication) -> Published:
        """Publish, and return after the COMMIT.

        Raises `Unprocessable`, `TooLarge` and `Conflict` (a first call with this `Idempotency-Key`
        is still running) about the publication, and `Unavailable` or a subclass when the database
        does not answer; only with `OutcomeUnknown` the events may be published all the same.
        """
        if not self.running or len(self._queue) >= _MOST_WAITING:
            raise Unavailable("Publishing is not possible at the moment.", retry_after=2)
        call = publication.idempotency
        if call is not None and call.scope in self._running_keys:
            raise Conflict("The first call with this key is still running.", code="still_running")
        waiting = _Waiting(publication)
        self._queue.append(waiting)
        if call is not None:
            self._running_keys.add(call.scope)
        try:
            self._start()
            return await waiting.answer
        finally:
            if call is not None:
                self._running_keys.discard(call.scope)

    def _start(self) -> None:
        if not self._working and self.running:
            self._working = True
            self._work = Deferred.fromCoroutine(self._loop())

    async def _loop(self) -> None:
        try:
            while self._queue or self._outbox_waits:
                requests = self._next_requests()
                self._outbox_waits = False
                try:
                    await self._settle(requests, _MOST_ROWS)
                except Unavailable as error:
                    # The rows stay in the outbox; the feed wakes us when the database is back.
                    _fail(requests, error)
                except Exception:
                    self._log.failure("a batch of {count} requests failed", count=len(requests))
                    _fail(requests, Unavailable("Publishing failed. Try again.", retry_after=1))
        finally:
            self._working = False

    def _next_requests(self) -> list[_Waiting]:
        requests: list[_Waiting] = []
        events = 0
        while self._queue and events < _MOST_EVENTS:
            requests.append(self._queue.popleft())
            events += len(requests[-1].publication.drafts)
        return requests

    async def _settle(self, requests: list[_Waiting], rows: int) -> None:
        """Do a batch; where it is refused, do its pieces each in a transaction of its own."""
        try:
            await self._commit(requests, rows)
            _answer(requests)
        except _TenantsFailed as trouble:
            self._set_aside(trouble.failures)
            refusal = Unavailable("This tenant cannot be served at the moment.", retry_after=5)
            _fail([r for r in requests if r.publication.tenant_id in trouble.failures], refusal)
            rest = [r for r in requests if r.publication.tenant_id not in trouble.failures]
            await self._settle(rest, rows)
        except StatementFailed as error:
            if len(requests) + (rows > 0) == 1:
                await self._isolate(requests, error)
                return
            for request in requests:
                await self._settle([request], 0)
            if rows:
                await self._settle([], rows)

    async def _isolate(self, requests: list[_Waiting], error: StatementFailed) -> None:
        """One publisher's request failed alone, or rows of the outbox did without any request."""
        for request in requests:
            self._log.error(
                "a publication of tenant {tenant_id} was refused: {error}",
                tenant_id=request.publication.tenant_id,
                error=error,
            )
            _fail([request], Unprocessable("The event cannot be stored.", code="invalid_event"))
        if requests:
            return
        for _ in range(_MOST_ROWS):
            try:
                if not await self._commit([], 1):
                    return
            except _TenantsFailed as trouble:
                self._set_aside(trouble.failures)
            except StatementFailed as alone:
                await self._reject(self._taken, str(alone))

    async def _reject(self, row: stream.OutboxRow | None, reason: str) -> None:
        """Log the outbox row that just failed alone as failed, since it cannot be published."""
        if row is None:
            return

        async def work(session: Session) -> None:
            rows = await stream.take(session, 1, self._aside.now(), patient=True)
            if rows != [row]:
                # An older row has come to light since; it was not the one that failed.
                raise Busy("The outbox has changed.")
            entries = [batch.Rejected(row, reason).entry(self._event_bytes)]
            self._note_failures(entries)
            await stream.record(session, self._node_id, entries)

        try:
            await self._link.transaction(work)
        except StatementFailed as error:
            self._set_aside({row.tenant_id: str(error)})
        except Busy:
            self._outbox_waits = True

    async def _commit(self, requests: list[_Waiting], rows: int) -> bool:
        """One transaction. Returns whether the outbox had any of `rows` to take.

        The results are in the requests, for `_answer` to give out after the commit.
        """

        async def work(session: Session) -> bool:
            taken = await stream.take(session, rows, self._aside.now(), patient=bool(requests))
            if not requests and not taken:
                return False
            self._taken = taken[0] if taken else None
            shops = await self._shops_of(session, requests, taken or ())
            items = batch.read(taken or (), shops)
            stored = await self._replay(session, requests)
            fresh = [request for request in requests if request not in stored]
            states = await self._states(session, items, fresh)
            ledger = batch.Ledger(states, shops, self._event_bytes, datetime.now(UTC))
            entries = ledger.outbox(items)
            self._note_failures(entries)
            await self._record(session, ledger, entries, fresh)
            self._outbox_waits = self._outbox_waits or len(taken or ()) == rows > 0
            return bool(taken)

        return await self._link.transaction(work)

    async def _shops_of(
        self, session: Session, requests: list[_Waiting], rows: Sequence[stream.OutboxRow]
    ) -> batch.Shops:
        """The tenants of a batch. What was read of them is used for a minute."""
        wanted = {each.publication.tenant_id for each in requests} | {r.tenant_id for r in rows}
        if self._reactor.seconds() - self._shops_since > _SHOPS_SECONDS:
            self._shops, self._shops_since = {}, self._reactor.seconds()
        if missing := wanted - self._shops.keys():
            self._shops |= await tenants.by_id(session, missing)
        return self._shops

    async def _replay(self, session: Session, requests: list[_Waiting]) -> set[_Waiting]:
        """Answer the requests that were made before as they were answered then."""
        keyed = {r.publication.idempotency: r for r in requests if r.publication.idempotency}
        answers = await idempotency.find(session, list(keyed)) if keyed else {}
        done = set()
        for call, request in keyed.items():
            answer = answers.get(call.scope)
            if answer is None:
                continue
            done.add(request)
            if answer.fingerprint != call.fingerprint:
                request.result = Unprocessable(
                    "This Idempotency-Key was used for another call.", code="idempotency_mismatch"
                )
            else:
                body = cast("dict[str, list[int | None]]", jsontext.decode(answer.body))
                connections = self._connections_here(call.tenant_id)
                request.result = Published(tuple(body["ids"]), connections, replayed=True)
        return done

    async def _states(
        self, session: Session, items: list[batch.Item | batch.Rejected], requests: list[_Waiting]
    ) -> dict[batch.OrderKey, stream.OrderState]:
        wanted: dict[batch.OrderKey, bool] = {}
        for item in (*items, *(item for request in requests for item in request.items)):
            if isinstance(item, batch.Item) and (key := item.order) is not None:
                wanted[key] = wanted.get(key, False) or item.touched is not None
        if not wanted:
            return {}
        states, failures = await stream.order_states(
            session, [(*key, touched) for key, touched in wanted.items()]
        )
        if failures:
            raise _TenantsFailed(failures)
        return states

    async def _record(
        self,
        session: Session,
        ledger: batch.Ledger,
        entries: list[stream.Entry],
        requests: list[_Waiting],
    ) -> None:
        places: list[tuple[_Waiting, list[int | None]]] = []
        for request in requests:
            try:
                made = ledger.request(request.items)
            except Refusal as refusal:
                request.result = refusal
                continue
            indexes: list[int | None] = []
            for entry in made:
                indexes.append(None if entry is None else len(entries))
                if entry is not None:
                    entries.append(entry)
            places.append((request, indexes))
        recorded = await stream.record(session, self._node_id, entries) if entries else []
        elsewhere = {
            entry.tenant_id: r.elsewhere for entry, r in zip(entries, recorded, strict=True)
        }
        for request, indexes in places:
            tenant_id = request.publication.tenant_id
            ids = tuple(None if index is None else recorded[index].seq for index in indexes)
            connections = self._connections_here(tenant_id) + elsewhere.get(tenant_id, 0)
            request.result = Published(ids, connections)
        await self._keep_answers(session, [request for request, _ in places])

    async def _keep_answers(self, session: Session, requests: list[_Waiting]) -> None:
        answers = [
            (call, 201, jsontext.encode({"ids": request.result.ids}).decode())
            for request in requests
            if (call := request.publication.idempotency) and isinstance(request.result, Published)
        ]
        if answers:
            await idempotency.store(session, answers)

    def _set_aside(self, failures: dict[TenantId, str]) -> None:
        for tenant_id, reason in failures.items():
            seconds = self._aside.add(tenant_id)
            self._log.error(
                "tenant {tenant_id} is set aside for {seconds} s: {reason}",
                tenant_id=tenant_id,
                seconds=seconds,
                reason=reason,
            )

    def _note_failures(self, entries: list[stream.Entry]) -> None:
        for entry in entries:
            if entry.failure is not None:
                self._log.error(
                    "an event of tenant {tenant_id} failed: {reason}",
                    tenant_id=entry.tenant_id,
                    event_type=entry.type,
                    reason=entry.failure,
                )


def _answer(requests: list[_Waiting]) -> None:
    for request in requests:
        result, request.result = request.result, None
        if isinstance(result, Published):
            request.answer.callback(result)
        elif result is not None:
            request.answer.errback(result)


def _fail(requests: list[_Waiting], error: Refusal) -> None:
    for request in requests:
        if not request.answer.called:
            request.answer.errback(error)
