"""What publishers ask of the sequencer, and what they are told."""

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
"""To write an answer takes about 0.1 ms."""


@frozen
class Publication:
    """One publisher's request: its events are published all together or not at all.

    One with a `condition` is about a single order, and its answer says how that order stands afterwards.
    `size` is the length of the request's body in bytes.
    """

    tenant_id: TenantId
    drafts: Sequence[EventDraft]
    idempotency: IdempotencyKey | None = None
    condition: Condition | None = None
    size: int = 0


@frozen
class OrderOutcome:
    """How an order stands after a publication; `previous` is the status that it had before."""

    order_id: str
    version: int
    status: str
    previous: str | None


@frozen
class PublicationResult:
    """What became of a publication.

    `ids` has a position for each event, None for one that told nothing new. `connections` is how many tills
    of the tenant are connected to any node. `replayed` says that the answer is that of an earlier call with
    the same Idempotency-Key. `order` is set if the publication had a condition.
    """

    ids: tuple[Seq | None, ...]
    connections: int
    replayed: bool = False
    order: OrderOutcome | None = None


@define(eq=False)
class PublicationRequest:
    """A publication, and the `answer` for which its publisher waits.

    `result` is set in the transaction, and becomes the answer after the COMMIT. A transaction that fails may
    have set it too; the next one sets it again.

    `queued` says that it is in the queue, for the first time or again. `after_row_id` is the id of the
    last row of
    the outbox that its tenant has committed before it; None while that is not known. `is_ordered` says
    that it is not published before that row. `waiting_since` is when it was found to come after such a row.
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
    """Whether its events are about no order, and it has no Idempotency-Key."""

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
    """Give each request its result as its answer, some of them in each turn of the reactor."""
    for index, request in enumerate(requests):
        if index and index % _RESULTS_PER_TURN == 0:
            await deferLater(clock, 0)
        if isinstance(request.result, PublicationResult):
            request.answer.callback(request.result)
        elif request.result is not None:
            request.answer.errback(request.result)


def fail(requests: Iterable[PublicationRequest], error: Exception) -> None:
    """Fail those requests that have no answer yet."""
    fail_all([each.answer for each in requests if not each.answer.called], error)


def tenant_unavailable() -> Unavailable:
    """The answer to a tenant's requests while these are refused (`BatchPublishing.shut`)."""
    return Unavailable("This tenant cannot be served at the moment.", retry_after=5)


def deliver_appended(
    appended: Iterable[AppendedEvents],
    to: Callable[[AppendedEvents], None],
    failed: Callable[[TenantId], None],
) -> None:
    """Give each to `to`. It was committed, so nothing is raised: `failed` is called if `to` raises."""
    for each in appended:
        try:
            to(each)
        except Exception:
            failed(each.tenant_id)
