"""The requests of publishers to the sequencer, and their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from posd.database.coalescing import fail_all
from posd.errors import Refusal, Unavailable
from posd.events.order_transitions import Condition
from posd.publishing import batch
from posd.store.idempotency import IdempotencyKey
from posd.values import AppendedEvents, EventDraft, Seq, TenantId

_RESULTS_PER_TURN: Final = 20
"""An answer takes about 0.1 ms, so a turn of the reactor takes about 2 ms."""


@frozen
class Publication:
    """Events that are published together or not at all.

    A publication with a `condition` is about one order, and its result has the new state of the order.
    `size` is the length of the request's body in bytes.
    """

    tenant_id: TenantId
    drafts: Sequence[EventDraft]
    idempotency: IdempotencyKey | None = None
    condition: Condition | None = None
    size: int = 0


@frozen
class OrderOutcome:
    """The state of an order after a publication. `previous` is the status before, None for a new order."""

    order_id: str
    version: int
    status: str
    previous: str | None


@frozen
class PublicationResult:
    """The result of a publication.

    `ids` has the number of each event, or None if the event would have changed nothing. `connections` is the
    number of the tenant's tills that are connected to any node. `replayed` says that this is the result of
    an earlier request with the same Idempotency-Key. `order` is set if the publication has a condition.
    """

    ids: tuple[Seq | None, ...]
    connections: int
    replayed: bool = False
    order: OrderOutcome | None = None


@define(eq=False)
class PublicationRequest:
    """A publication, and the `answer` for which its publisher waits.

    The transaction sets `result`, which becomes the answer after the COMMIT. A transaction that fails may
    set `result` too; the next transaction replaces it.

    `queued`: the request is in the queue. `after_row_id`: the id of the last row of the outbox that its
    tenant has committed before the request; None while that row is unknown. `is_ordered`: the request must
    not be published before that row. `waiting_since`: the time at which the request began to wait for rows.
    """

    publication: Publication
    answer: Deferred[PublicationResult] = field(factory=Deferred)
    result: PublicationResult | Refusal | None = None
    after_row_id: int | None = None
    is_ordered: bool = True
    waiting_since: float | None = None
    queued: bool = False
    tenant_id: TenantId = field(init=False)
    items: list[batch.BatchItem] = field(init=False)
    is_plain: bool = field(init=False)
    """Whether the events are about no order, and the request has no Idempotency-Key."""

    def __attrs_post_init__(self) -> None:
        asked = self.publication
        self.tenant_id = asked.tenant_id
        self.items = [
            batch.BatchItem(asked.tenant_id, each, None, asked.condition) for each in asked.drafts
        ]
        self.is_plain = asked.idempotency is None and all(
            each.partition_key[1] is None for each in self.items
        )


async def answer(clock: IReactorTime, requests: Iterable[PublicationRequest]) -> None:
    """Send the results of the requests to their publishers, 20 in each turn of the reactor."""
    for index, request in enumerate(requests):
        if index and index % _RESULTS_PER_TURN == 0:
            await deferLater(clock, 0)
        if isinstance(request.result, PublicationResult):
            request.answer.callback(request.result)
        elif request.result is not None:
            request.answer.errback(request.result)


def fail(requests: Iterable[PublicationRequest], error: Exception) -> None:
    """Fail the requests that have no answer yet."""
    fail_all([each.answer for each in requests if not each.answer.called], error)


def tenant_unavailable() -> Unavailable:
    """Return the error for a tenant whose requests are refused (`BatchPublishing.request_quarantine`)."""
    return Unavailable("This tenant cannot be served at the moment.", retry_after=5)


def deliver_appended(
    appended: Iterable[AppendedEvents],
    to: Callable[[AppendedEvents], None],
    failed: Callable[[TenantId], None],
) -> None:
    """Call `to` with the committed events of each tenant. Call `failed` if `to` raises an exception.

    This function raises nothing, since the caller would take an exception for a failed transaction.
    """
    for each in appended:
        try:
            to(each)
        except Exception:
            failed(each.tenant_id)
