"""Makes entries of requests, of all events of one or of none, and results of what was stored."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from attrs import frozen

from posd.errors import NotFound, Refusal
from posd.publishing import batch
from posd.publishing.publication import OrderOutcome, Published, Request
from posd.store import numbering
from posd.values import Appended, Event, TenantId


def appended(placed: Sequence[tuple[numbering.Entry, numbering.Recorded]]) -> list[Appended]:
    """The events that got a position, by stream, as they would be read from the log."""
    events: dict[tuple[TenantId, UUID], list[Event]] = {}
    for entry, each in placed:
        if each.seq is not None and each.stream_id is not None:
            events.setdefault((entry.tenant_id, each.stream_id), []).append(
                Event(
                    each.seq,
                    entry.type,
                    entry.data.encode(),
                    each.created_at,
                    entry.beside.encode(),
                )
            )
    return [Appended(*stream_name, of_tenant) for stream_name, of_tenant in events.items()]


@frozen
class Judged:
    """A request that was not refused. `numbers` has the index of each event's entry, None without one."""

    request: Request
    numbers: Sequence[int | None]
    order: OrderOutcome | None

    def settle(self, recorded: Sequence[numbering.Recorded]) -> None:
        """Give the request its result. An event without a position is one of a tenant that was deleted."""
        seqs = [None if number is None else recorded[number].seq for number in self.numbers]
        if any(n is not None and seq is None for n, seq in zip(self.numbers, seqs, strict=True)):
            self.request.result = NotFound("There is no such tenant.", code="unknown_tenant")
        else:
            self.request.result = Published(tuple(seqs), 0, order=self.order)


def judge(
    ledger: batch.Ledger, entries: list[numbering.Entry], requests: Sequence[Request]
) -> list[Judged]:
    """Append the entries of requests to `entries`. The result of a refused request is its refusal."""
    judged = []
    for request in requests:
        try:
            made, order = _asked(ledger, request)
        except Refusal as refusal:
            request.result = refusal
            continue
        numbers = iter(range(len(entries), len(entries) + len(made)))
        judged.append(
            Judged(request, [None if each is None else next(numbers) for each in made], order)
        )
        entries += [each for each in made if each is not None]
    return judged


def _asked(
    ledger: batch.Ledger, request: Request
) -> tuple[list[numbering.Entry | None], OrderOutcome | None]:
    """A request's entries and, if it has a condition, how its order stands now. Raises `Refusal`."""
    items = request.items
    tenant_id, order_id = items[0].place if items else (request.tenant_id, None)
    if request.publication.condition is None or order_id is None:
        return ledger.request(items), None
    before = ledger.order((tenant_id, order_id))
    made = ledger.request(items)
    after = ledger.order((tenant_id, order_id))
    if after is None:
        return made, None
    previous = None if before is None else before.status
    return made, OrderOutcome(order_id, after.version, after.status, previous)
