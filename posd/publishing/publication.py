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
from posd.store.idempotency import Idempotency
from posd.values import Appended, Draft, Seq, TenantId

_ANSWERS_IN_A_TURN: Final = 20


@frozen
class Publication:
    """One publisher's request: its events are published all together or not at all.

    One with a `condition` is about a single order, and is told how that stands afterwards. `size` is the
    length of the body that it came in, in bytes.
    """

    tenant_id: TenantId
    drafts: Sequence[Draft]
    idempotency: Idempotency | None = None
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
class Published:
    """What became of a publication.

    `ids` has a position for each event, None for one that told nothing new. `connections` counts the
    tenant's connected tills on all nodes. `replayed`: the answer is that of an earlier, equal call.
    `order` is there where the publication had a condition.
    """

    ids: tuple[Seq | None, ...]
    connections: int
    replayed: bool = False
    order: OrderOutcome | None = None


@define(eq=False)
class Request:
    """A publication and whoever waits for its answer.

    `result` is found out in the transaction, perhaps in several that fail, and is told after the
    one that did not. `follows` is the last row of the outbox that comes before it, None while that is not
    known. `orderly`: it waits for that row, since `waits_since`. `queued`: it waits for its transaction.
    """

    publication: Publication
    answer: Deferred[Published] = field(factory=Deferred)
    result: Published | Refusal | None = None
    follows: int | None = None
    orderly: bool = True
    waits_since: float | None = None
    queued: bool = False
    tenant_id: TenantId = field(init=False)
    items: list[batch.Item] = field(init=False)
    is_plain: bool = field(init=False)
    """Whether its events are about no order, and it has no Idempotency-Key."""

    def __attrs_post_init__(self) -> None:
        asked = self.publication
        self.tenant_id = asked.tenant_id
        self.items = [
            batch.Item(asked.tenant_id, each, None, asked.condition) for each in asked.drafts
        ]
        self.is_plain = asked.idempotency is None and all(
            each.place[1] is None for each in self.items
        )


async def answer(clock: IReactorTime, requests: Iterable[Request]) -> None:
    """Tell each its result, some in each turn of the reactor: to write an answer takes about 0.1 ms."""
    for told, request in enumerate(requests):
        if told and told % _ANSWERS_IN_A_TURN == 0:
            await deferLater(clock, 0)
        if isinstance(request.result, Published):
            request.answer.callback(request.result)
        elif request.result is not None:
            request.answer.errback(request.result)


def fail(requests: Iterable[Request], error: Exception) -> None:
    """Tell those who have not been told anything yet."""
    fail_all([each.answer for each in requests if not each.answer.called], error)


def not_served() -> Unavailable:
    """What publishers are told while their tenant is left out."""
    return Unavailable("This tenant cannot be served at the moment.", retry_after=5)


def hand_on(
    appended: Iterable[Appended],
    to: Callable[[Appended], None],
    failed: Callable[[TenantId], None],
) -> None:
    """Give `to` what was committed. Whatever it raises, the batch was published: `failed` is told instead."""
    for each in appended:
        try:
            to(each)
        except Exception:
            failed(each.tenant_id)
