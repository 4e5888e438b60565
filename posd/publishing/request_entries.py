"""Makes the log entries of requests, and the results of requests from the stored entries.

All events of a request are published, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from attrs import frozen

from posd.errors import NotFound, Refusal
from posd.publishing import batch
from posd.publishing.publication import OrderOutcome, PublicationRequest, PublicationResult
from posd.store import sequencing as numbering
from posd.values import AppendedEvents, Event, TenantId


def appended(
    entry_results: Sequence[tuple[numbering.LogEntry, numbering.RecordedEntry]],
) -> list[AppendedEvents]:
    """Return the entries that have got a position as events of their streams."""
    events: dict[tuple[TenantId, UUID], list[Event]] = {}
    for entry, each in entry_results:
        if each.seq is not None and each.stream_id is not None:
            events.setdefault((entry.tenant_id, each.stream_id), []).append(
                Event(
                    each.seq,
                    entry.type,
                    entry.data.encode(),
                    each.created_at,
                    entry.extra_members.encode(),
                )
            )
    return [AppendedEvents(*stream_name, of_tenant) for stream_name, of_tenant in events.items()]


@frozen
class AcceptedRequest:
    """A request that was not refused.

    `entry_indexes` has an index into the batch's entries for each event, or None if the event has no entry.
    """

    request: PublicationRequest
    entry_indexes: Sequence[int | None]
    order: OrderOutcome | None

    def set_result(self, recorded: Sequence[numbering.RecordedEntry]) -> None:
        """Set the request's result. A recorded event without a position belongs to a deleted tenant."""
        seqs = [None if number is None else recorded[number].seq for number in self.entry_indexes]
        if any(
            n is not None and seq is None for n, seq in zip(self.entry_indexes, seqs, strict=True)
        ):
            self.request.result = NotFound("There is no such tenant.", code="unknown_tenant")
        else:
            self.request.result = PublicationResult(tuple(seqs), 0, order=self.order)


def accept_requests(
    order_batch: batch.OrderBatch,
    entries: list[numbering.LogEntry],
    requests: Sequence[PublicationRequest],
) -> list[AcceptedRequest]:
    """Append the entries of the requests to `entries`. Return the requests that are not refused.

    The result of a refused request is its refusal.
    """
    accepted = []
    for request in requests:
        try:
            made, order = _request_entries(order_batch, request)
        except Refusal as refusal:
            request.result = refusal
            continue
        entry_indexes = iter(range(len(entries), len(entries) + len(made)))
        accepted.append(
            AcceptedRequest(
                request, [None if each is None else next(entry_indexes) for each in made], order
            )
        )
        entries += [each for each in made if each is not None]
    return accepted


def _request_entries(
    order_batch: batch.OrderBatch, request: PublicationRequest
) -> tuple[list[numbering.LogEntry | None], OrderOutcome | None]:
    """Return the entries of a request and, if it has a condition, the new state of its order.

    Raises `Refusal`.
    """
    items = request.items
    tenant_id, order_id = items[0].partition_key if items else (request.tenant_id, None)
    if request.publication.condition is None or order_id is None:
        return order_batch.request(items), None
    before = order_batch.order((tenant_id, order_id))
    made = order_batch.request(items)
    after = order_batch.order((tenant_id, order_id))
    if after is None:
        return made, None
    previous = None if before is None else before.status
    return made, OrderOutcome(order_id, after.version, after.status, previous)
