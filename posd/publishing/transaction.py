"""The transaction of a batch: it turns rows of the outbox and requests into numbered events and orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from attrs import asdict, define, evolve, field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database.reconnecting import Executor, TransactionExecutor
from posd.errors import PosdError, Refusal
from posd.events.timezones import is_zone
from posd.protocol import jsontext
from posd.publishing import batch
from posd.publishing.outbox import OutboxPortion
from posd.publishing.publication import OrderOutcome, PublicationRequest, PublicationResult
from posd.publishing.request_entries import accept_requests, appended
from posd.publishing.workload import StepWorkload
from posd.store import idempotency, orders, presence, tenants
from posd.store import ledger_rows as movements
from posd.store import sequencing as numbering
from posd.values import AppendedEvents, Tenant, TenantId

_SHOPS_SECONDS: Final = 60.0
"""The time for which the rows of the table `tenants` are cached."""
_UNUSED_TIME: Final = datetime.min
"""A placeholder for the database's time, which is needed only for orders of the shops' tables."""

_log = Logger()


class TenantsFailed(PosdError):
    """The tables of some tenants could not be read or written. `failures` has the reason by tenant."""

    def __init__(self, failures: Mapping[TenantId, str]) -> None:
        super().__init__("; ".join(failures.values()))
        self.failures = failures


class OutboxChanged(PosdError):
    """The row that has failed is not in the outbox any more, or has changed."""


@frozen
class TransactionOutcome:
    """The effects of a transaction."""

    taken: Sequence[numbering.OutboxRow] = ()
    """The rows that the transaction has deleted from the outbox."""
    failed: Sequence[numbering.LogEntry] = ()
    """The events that the transaction has logged as failed."""
    published: Mapping[str, int] = field(factory=dict)
    """The number of events with a position, by source: `hook`, `sql` or `rest`."""
    reused: Sequence[tuple[str, str]] = ()
    """The orders that have the id of an earlier order: the tenant's slug and the id."""
    warned: Sequence[numbering.LogEntry] = ()
    """The published events with warnings."""
    left_out: Sequence[batch.SkippedOrder] = ()
    """The orders that have become no event."""
    appended: Sequence[AppendedEvents] = ()
    """The events of each tenant's stream."""
    missing_columns: Mapping[TenantId, frozenset[str]] = field(factory=dict)
    """The adopted columns that a shop's tables lack now, for each tenant whose tables were read."""
    early: Sequence[PublicationRequest] = ()
    """The requests that were left out, because older rows of their tenants are in the outbox."""


@define(eq=False)
class BatchTransaction:
    """The steps of the sequencer's transaction. Larger events than `event_bytes` fail."""

    clock: IReactorTime
    node_id: UUID
    event_bytes: int
    connections_here: Callable[[TenantId], int]
    oldest_row: numbering.OutboxRow | None = field(init=False, default=None)
    """The first row that the last transaction has taken, even if the transaction was rolled back."""
    _shops: dict[TenantId, Tenant] = field(init=False, factory=dict)
    _shops_since: float = field(init=False, default=0.0)
    _unknown_zones: dict[TenantId, str] = field(init=False, factory=dict)
    """The unknown time zones that have been logged, by tenant."""

    async def number(
        self,
        executor: TransactionExecutor,
        requests: Sequence[PublicationRequest],
        portions: Sequence[OutboxPortion] = (),
    ) -> TransactionOutcome:
        """Publish portions of the outbox and then requests. Set the results of the requests.

        A request with `is_ordered` is left out while the outbox has older rows of its tenant. So if a shop
        commits and then sends a request, its events are published in that order.

        The steps are: take the rows, read the orders of the rows and requests, make log entries, store the
        entries. Raises `TenantsFailed`, `FenceLost`, `BatchTooLarge`, and the errors of the database. The
        caller then has to roll back.
        """
        self.oldest_row = None
        seen = [(each.tenant_id, row_id) for each in portions for row_id in each.ids]
        asking = {(each.tenant_id, each.after_row_id) for each in requests if each.is_ordered}
        rows_now = {(p.tenant_id, each): row for p in portions for each, row in p.orders.items()}
        found = await numbering.take_rows(
            executor,
            seen,
            asking,
            rows_now.keys() | _orders([item for each in requests for item in each.items]),
            node_id=self.node_id,
            fence=portions[0].fence if portions else None,
        )
        early = _postponed(requests, found.behind)
        requests = [each for each in requests if each not in early]
        if not requests and not found.rows:
            return TransactionOutcome(early=early)
        taken = found.rows
        self.oldest_row = taken[0] if taken else None
        tenant_ids = {each.tenant_id for each in requests} | {row.tenant_id for row in taken}
        shops = await self.shops(executor, tenant_ids)
        items = self._read_items(taken, shops)
        fresh = await self._answer_replays(executor, requests)
        states = await self._states(executor, items, found.published, rows_now)
        ledger_rows = await self._ledger_rows(executor, items)
        order_batch = batch.OrderBatch(states, shops, self.event_bytes, found.now, ledger_rows)
        made = self._make_entries(order_batch, items)
        entries = [entry for _, entry in made]
        failed = [entry for entry in entries if entry.failure is not None]
        accepted = accept_requests(order_batch, entries, fresh)
        elsewhere = await self._connections_elsewhere(executor, requests, entries)
        recorded = await self._record(executor, entries, fresh)
        entry_results = list(zip(entries, recorded, strict=True))
        elsewhere |= {entry.tenant_id: each.elsewhere for entry, each in entry_results}
        for each in accepted:
            each.set_result(recorded)
        self._set_connection_counts(requests, elsewhere)
        await self._store_answers(executor, fresh)
        sources = [*(source for source, _ in made), *["rest"] * (len(entries) - len(made))]
        published = Counter(
            sources[n] for n, (_, each) in enumerate(entry_results) if each.seq is not None
        )
        reused = [
            (shops[each.tenant_id].slug, each.order_id or "") for each in entries if each.reuses_id
        ]
        warned = [entry for entry, each in entry_results if entry.warnings and each.seq is not None]
        return TransactionOutcome(
            taken,
            failed,
            published,
            reused,
            warned,
            order_batch.left_out,
            appended(entry_results),
            order_batch.missing_columns,
            early,
        )

    def is_plain(self, requests: Sequence[PublicationRequest]) -> bool:
        """Whether the requests can be numbered without reading anything first.

        This is so if their events are about no order, if they have no Idempotency-Key, and if their tenants
        are cached.
        """
        return self._shops_are_fresh and all(
            each.is_plain and each.tenant_id in self._shops for each in requests
        )

    async def number_plain(
        self, executor: TransactionExecutor, requests: Sequence[PublicationRequest]
    ) -> TransactionOutcome | None:
        """Do the work of `number` in one round trip instead of two, for plain requests.

        Returns None, and publishes nothing, if the outbox has older rows of their tenants. The transaction
        has ended in both cases, so `number` needs another one.
        """
        self.oldest_row = None
        order_batch = batch.OrderBatch({}, self._shops, self.event_bytes, _UNUSED_TIME)
        entries: list[numbering.LogEntry] = []
        accepted = accept_requests(order_batch, entries, requests)
        if not entries:
            return TransactionOutcome()
        asking = {(each.tenant_id, each.after_row_id) for each in requests if each.is_ordered}
        recorded = await numbering.record_plain_and_commit(executor, self.node_id, asking, entries)
        if recorded is None:
            return None
        entry_results = list(zip(entries, recorded, strict=True))
        for each in accepted:
            each.set_result(recorded)
        self._set_connection_counts(
            requests, {entry.tenant_id: each.elsewhere for entry, each in entry_results}
        )
        stored = [entry for entry, each in entry_results if each.seq is not None]
        return TransactionOutcome(
            published=Counter({"rest": len(stored)}) if stored else {},
            warned=[entry for entry in stored if entry.warnings],
            appended=appended(entry_results),
        )

    def _read_items(
        self, rows: Sequence[numbering.OutboxRow], shops: batch.Shops
    ) -> list[batch.BatchItem | batch.LedgerChange | batch.RejectedRow]:
        """Turn rows of the outbox into items. Raises `BatchTooLarge`."""
        work = StepWorkload(self.clock, [row.tenant_id for row in rows])

        def measured() -> Iterator[numbering.OutboxRow]:
            # `batch.read` works on the row between this `yield` and the next line.
            for row in rows:
                yield row
                work.done(row.tenant_id)

        return batch.read(measured(), shops)

    def _make_entries(
        self,
        order_batch: batch.OrderBatch,
        items: Sequence[batch.BatchItem | batch.LedgerChange | batch.RejectedRow],
    ) -> list[tuple[str, numbering.LogEntry]]:
        """Make the log entries for rows of the outbox, each with its source. Raises `BatchTooLarge`."""
        work = StepWorkload(self.clock, [item.partition_key[0] for item in items])
        made: list[tuple[str, numbering.LogEntry]] = []
        for item in items:
            entries = order_batch.outbox_entries([item])
            made += [(batch.source(item), entry) for entry in entries]
            work.done(item.partition_key[0], sum(entry.size for entry in entries))
        return made

    async def reject(
        self, executor: Executor, row: numbering.OutboxRow, reason: str, fence: int | None
    ) -> None:
        """Log a row of the outbox as failed. Raises `OutboxChanged` if the row was deleted or changed."""
        found = await numbering.take_rows(
            executor, [(row.tenant_id, row.id)], node_id=self.node_id, fence=fence
        )
        if [*found.rows] != [row]:
            raise OutboxChanged
        entry = batch.RejectedRow(row, reason).entry(self.event_bytes)
        await numbering.record_entries(executor, self.node_id, [entry])

    def name_of(self, tenant_id: TenantId) -> str:
        """Return the name of a tenant in the log: its slug if the tenant is cached, and its id otherwise."""
        shop = self._shops.get(tenant_id)
        return str(tenant_id) if shop is None else shop.slug

    @property
    def _shops_are_fresh(self) -> bool:
        return self.clock.seconds() - self._shops_since <= _SHOPS_SECONDS

    async def shops(self, executor: Executor, tenant_ids: Collection[TenantId]) -> batch.Shops:
        """Return at least the tenants `tenant_ids` that exist. A tenant is read once a minute at most.

        Disabled tenants are included, because their accepted events are published.
        """
        if not self._shops_are_fresh:
            self._shops, self._shops_since = {}, self.clock.seconds()
        if missing := set(tenant_ids) - self._shops.keys():
            found = await tenants.by_id(executor, missing)
            self._shops = self._shops | found
            for shop in found.values():
                self._check_time_zone(shop)
        return self._shops

    def _check_time_zone(self, shop: Tenant) -> None:
        """Log once if a shop has an unknown time zone, so that posd reads its times as UTC."""
        if is_zone(shop.timezone):
            self._unknown_zones.pop(shop.id, None)
        elif self._unknown_zones.get(shop.id) != shop.timezone:
            self._unknown_zones[shop.id] = shop.timezone
            _log.error(
                "tenant {tenant} has the unknown time zone {zone}: times that name no offset are read"
                " as UTC. Set tenants.timezone to a name of the IANA database, such as Europe/London.",
                tenant=shop.slug,
                zone=shop.timezone,
            )

    async def _answer_replays(
        self, executor: Executor, requests: Sequence[PublicationRequest]
    ) -> list[PublicationRequest]:
        """Set the stored result of requests whose Idempotency-Key was used before. Return the others."""
        calls = [call for each in requests if (call := each.publication.idempotency)]
        answers = await idempotency.find_responses(executor, calls) if calls else {}
        fresh = []
        for request in requests:
            call = request.publication.idempotency
            answer = answers.get(call.scope) if call is not None else None
            if call is None or answer is None:
                fresh.append(request)
            elif answer.fingerprint != call.fingerprint:
                request.result = idempotency.key_mismatch()
            else:
                request.result = _replayed_result(answer.body)
        return fresh

    async def _states(
        self,
        executor: Executor,
        items: Sequence[batch.BatchItem | batch.LedgerChange | batch.RejectedRow],
        published: Mapping[tuple[TenantId, str], numbering.StoredText | None],
        rows_now: Mapping[tuple[TenantId, str], str],
    ) -> Mapping[tuple[TenantId, str], numbering.OrderState]:
        """Return the orders of a batch, each as posd's record and as the row of the shop's table.

        `published` has the records of the orders whose ids were known before the rows were taken. This
        method reads the others: the orders of events that `pos_publish()` has written, whose ids are in the
        data of the rows.
        """
        if missing := _orders(items) - published.keys():
            published = {**published, **await numbering.stored_orders(executor, missing)}
        return {
            order: numbering.OrderState(stored, rows_now.get(order))
            for order, stored in published.items()
        }

    async def _ledger_rows(
        self,
        executor: Executor,
        items: Sequence[batch.BatchItem | batch.LedgerChange | batch.RejectedRow],
    ) -> dict[movements.Noted, str]:
        """Return the changed rows of the shops' ledgers as JSON text. Raises `TenantsFailed`."""
        noted = [(i.tenant_id, i.kind, i.key) for i in items if isinstance(i, batch.LedgerChange)]
        if not noted:
            return {}
        rows, failures = await movements.load_rows(executor, noted)
        if failures:
            raise TenantsFailed(failures)
        return rows

    async def _connections_elsewhere(
        self,
        executor: Executor,
        requests: Sequence[PublicationRequest],
        entries: Sequence[numbering.LogEntry],
    ) -> dict[TenantId, int]:
        """Return the number of connections on other nodes, for tenants without an entry in this batch.

        The statement that stores the entries returns the number for the other tenants.
        """
        asking = {each.tenant_id for each in requests if not isinstance(each.result, Refusal)}
        missing = asking - {each.tenant_id for each in entries}
        return (
            await presence.count_on_other_nodes(executor, self.node_id, missing) if missing else {}
        )

    async def _record(
        self,
        executor: TransactionExecutor,
        entries: Sequence[numbering.LogEntry],
        requests: Sequence[PublicationRequest],
    ) -> list[numbering.RecordedEntry]:
        """Store the entries. Also commit, unless results for an Idempotency-Key have to be stored next."""
        if not entries:
            return []
        for entry in entries:
            if entry.reuses_id and entry.order_id is not None and entry.snapshot is not None:
                await orders.replace_order(
                    executor, entry.tenant_id, entry.order_id, entry.snapshot
                )
        if any(each.publication.idempotency for each in requests):
            return await numbering.record_entries(executor, self.node_id, entries)
        return await numbering.record_and_commit(executor, self.node_id, entries)

    def _set_connection_counts(
        self, requests: Sequence[PublicationRequest], elsewhere: Mapping[TenantId, int]
    ) -> None:
        """Set `connections` of the results: the number of the tenant's tills on all nodes."""
        for request in requests:
            if isinstance(request.result, PublicationResult):
                count = self.connections_here(request.tenant_id)
                count += elsewhere.get(request.tenant_id, 0)
                request.result = evolve(request.result, connections=count)

    async def _store_answers(
        self, executor: Executor, requests: Sequence[PublicationRequest]
    ) -> None:
        answers = [
            (call, 201, _stored_answer(request.result))
            for request in requests
            if (call := request.publication.idempotency)
            and isinstance(request.result, PublicationResult)
        ]
        if answers:
            await idempotency.store_responses(executor, answers)


def _orders(
    items: Iterable[batch.BatchItem | batch.LedgerChange | batch.RejectedRow],
) -> set[tuple[TenantId, str]]:
    """Return the orders that the items are about."""
    partition_keys = (item.partition_key for item in items)
    return {(tenant_id, order_id) for tenant_id, order_id in partition_keys if order_id is not None}


def _postponed(
    requests: Sequence[PublicationRequest], behind: Mapping[tuple[TenantId, int | None], int]
) -> list[PublicationRequest]:
    """Return the requests whose tenants have older rows in the outbox. Set their `after_row_id`."""
    early = []
    for each in requests:
        last = behind.get((each.tenant_id, each.after_row_id)) if each.is_ordered else None
        if last is not None:
            # The first row found is kept: a request does not wait for rows committed after its arrival.
            each.after_row_id = each.after_row_id or last
            early.append(each)
    return early


def _stored_answer(published: PublicationResult) -> str:
    """Return the JSON text of a result to store. `connections` is left out, since it is counted each time."""
    stored: dict[str, object] = {"ids": published.ids}
    if published.order is not None:
        stored["order"] = asdict(published.order)
    return jsontext.encode(stored).decode()


def _replayed_result(stored: str) -> PublicationResult:
    """Return the result that `_stored_answer` has written."""
    body = cast("dict[str, Any]", jsontext.decode_own(stored))
    order = OrderOutcome(**body["order"]) if "order" in body else None
    return PublicationResult(tuple(body["ids"]), 0, replayed=True, order=order)
