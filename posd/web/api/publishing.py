"""Publishing by REST: `POST /api/{tenant}/events` and the deployed `POST /broadcast`."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from datetime import tzinfo
from types import MappingProxyType
from typing import Annotated, Any, Final

from attrs import define, field, frozen
from msgspec import Meta

from posd.errors import BadRequest, TooLarge, TooManyRequests, Unprocessable
from posd.events import normalise as drafts
from posd.events.timezones import zone
from posd.protocol import jsontext
from posd.protocol.jsonsize import exceeds
from posd.publishing.publication import Publication, Published
from posd.publishing.sequencer import Sequencer
from posd.security.auth import of_kind
from posd.security.credit import BURST_SECONDS
from posd.security.rate_limits import Buckets, Clock
from posd.values import SLUG, WARNING_CODES, Draft, KeyKind, Seq, Tenant
from posd.web.http import idempotency
from posd.web.http.call import Call
from posd.web.http.dispatch import Reception
from posd.web.http.models import UNSET, Given, Success, Taken, Unset, component
from posd.web.http.operations import (
    LONG_BODY_BYTES,
    PLATFORMS,
    Ask,
    Operation,
    Refused,
    TenantAsk,
    given,
)
from posd.web.http.pieces import at_once, in_pieces
from posd.web.http.requests import Answer
from posd.web.openapi.event_schemas import ref

_MOST_EVENTS: Final = 500
_MEMBERS: Final = frozenset(("type", "data", "timestamp"))
"""Of an event. Its other members stand beside the data."""
_EMPTY: Final[Mapping[str, object]] = MappingProxyType({})
_MOST_WARNINGS: Final = 100
Position = Annotated[Seq, Meta(ge=1, description="A position in the stream of the tenant.")]


@frozen
class Source:
    """What is known of a body that events are read from.

    `zone` is the shop's; `repaired`: characters of the body were replaced.
    """

    zone: tzinfo
    repaired: bool


EventToPublish = Annotated[dict[str, Any], component("EventToPublish")]


class EventsTaken(Taken, frozen=True):
    """One event, or up to 500 events in `events`. Members beside `data` are published beside
    `data`."""

    type: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,49}$")] | Unset = UNSET
    data: dict[str, Any] | Unset = UNSET
    events: Annotated[list[EventToPublish], Meta(min_length=1, max_length=500)] | Unset = UNSET

    beyond = {"anyOf": [ref("EventToPublish"), {"required": ["events"]}]}


class WarningGiven(Given, frozen=True):
    """A value that posd repaired or could not read. `member` is its path."""

    member: str
    code: Annotated[str, Meta(extra_json_schema={"enum": [*WARNING_CODES]})]
    message: str


Warnings = Annotated[
    list[WarningGiven],
    Meta(
        description="The values that posd repaired or could not read. Left out if there are none."
    ),
]


class EventGiven(Success, frozen=True, kw_only=True):
    """The positions of the events. Null: the event has nothing new.

    `connections` is the number of connected tills of the tenant, on all nodes.
    """

    id: Position | Unset | None = UNSET
    ids: list[Position | None] | Unset = UNSET
    connections: int
    warnings: Warnings | Unset = UNSET


class BroadcastTaken(Taken, frozen=True):
    """The request of existing broadcasters."""

    tenant: str
    event: EventToPublish


class BroadcastGiven(Success, frozen=True):
    """The answer that existing broadcasters expect."""

    message: str
    connections: int
    warnings: Warnings | Unset = UNSET


@define(eq=False)
class Publisher:
    """The endpoints by which a platform publishes. `per_second` events of one tenant, on average."""

    reception: Reception
    sequencer: Sequencer
    per_second: int
    clock: Clock
    _events: Buckets = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._events = Buckets(self.clock)

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/api/{tenant}/events",
                self.events,
                "Publish events",
                PLATFORMS,
                {201: EventGiven, 200: EventGiven},
                describes=EventsTaken,
                refusals=PUBLISHING_REFUSALS,
                idempotent=True,
                body_bytes=LONG_BODY_BYTES,
                tag="Platform",
                example={"type": "new_order", "data": {"orderId": "A-2", "totalAmount": 12.5}},
            ),
            Operation(
                "POST",
                "/broadcast",
                self.broadcast,
                "Publish an event with the older call",
                PLATFORMS,
                {200: BroadcastGiven},
                describes=BroadcastTaken,
                refusals=(
                    *PUBLISHING_REFUSALS,
                    Refused(400, "missing_tenant_or_event", "`tenant` or `event` is missing."),
                    Refused(400, "invalid_tenant", "`tenant` is not the slug of a tenant."),
                    Refused(403, "tenant_mismatch", "`X-Tenant-ID` is not the tenant of the body."),
                    Refused(
                        404,
                        "unknown_tenant",
                        "There is no such tenant. Only a trusted listener, which requires"
                        " no key, gives this answer.",
                    ),
                ),
                idempotent=True,
                body_bytes=LONG_BODY_BYTES,
                trusted=True,
                own_keys=True,
                tag="Platform",
                example={
                    "tenant": "kitchen",
                    "event": {"type": "new_order", "data": {"orderId": "A-3", "totalAmount": 9.5}},
                },
            ),
        )

    async def events(self, ask: TenantAsk[None]) -> Answer:
        """`{"type", "data"}`, or `{"events": [{"type", "data"}, …]}` of up to 500."""
        body = ask.call.json()
        several = "events" in body
        events = _listed(body["events"]) if several else [body]
        await self.check_sizes(ask.call, events)
        source = Source(zone(ask.tenant.timezone), ask.call.repaired)
        drafting = _drafts(events, "events[{}]." if several else "", source)
        made = await in_pieces(drafting) if ask.call.is_long else at_once(drafting)
        named = ask.named(_moved(made))
        # The commit is waited for together. The sequencer keeps a tenant's requests in their order, and has
        # bounds and turns of its own for them.
        ask.call.give_turn()
        published = await self.publish(Publication(ask.tenant.id, made, named, size=ask.call.size))
        ids = list(published.ids)
        answer = EventGiven(
            connections=published.connections,
            warnings=warned(made, several=several),
            **_placed(ids, several=several),
        )
        status = 201 if any(seq is not None for seq in ids) else 200
        return given(answer, status, replayed=published.replayed)

    async def broadcast(self, ask: Ask[None]) -> Answer:
        """The deployed broadcaster's call, `{"tenant", "event": {"type", "timestamp", "data", …}}`."""
        call = ask.call
        if _asks_for_key(call):
            # Before the body is read, which takes longer than all the rest.
            await self.reception.authenticator.somewhere(call.key, call.address)
        await call.parse()
        body = call.json()
        slug, event = body.get("tenant"), body.get("event")
        if not isinstance(slug, str) or not slug or not isinstance(event, dict):
            raise BadRequest("Missing tenant or event", code="missing_tenant_or_event")
        tenant = await self._addressed(call, slug)
        await self.check_sizes(call, [event])
        made = [one_event(event, "event.", Source(zone(tenant.timezone), call.repaired))]
        named = idempotency.named(
            call, tenant.id, KeyKind.PLATFORM.value, "POST /broadcast", _moved(made)
        )
        # The deployed broadcaster sends an order once. Those of all its tenants have one turn in common,
        # in which they must not wait for the commit of another tenant's.
        call.give_turn()
        published = await self.publish(Publication(tenant.id, made, named, size=call.size))
        answer = BroadcastGiven(
            message=f"Event broadcasted to {slug}",
            connections=published.connections,
            warnings=warned(made),
        )
        return given(answer, replayed=published.replayed)

    async def check_sizes(self, call: Call, events: Sequence[object]) -> None:
        """Raise `TooLarge` (`event_too_large`) for an event that cannot fit, before it is read further.

        An event may become shorter while it is read, but not by half.
        """
        allowed = self.sequencer.event_bytes
        values = jsontext.most_values(2 * allowed)
        if call.size > 2 * allowed:
            for event in events:
                if await in_pieces(exceeds(event, 2 * allowed, values)):
                    raise TooLarge(
                        f"The event has more than {2 * allowed} bytes, of which {allowed} are allowed,"
                        f" or more than {values} values.",
                        code="event_too_large",
                    )

    async def publish(self, publication: Publication) -> Published:
        """Publish within the tenant's rate."""
        # A platform that was away catches up.
        seconds = max(BURST_SECONDS, _MOST_EVENTS / self.per_second)
        bucket = self._events.get(publication.tenant_id, self.per_second, seconds)
        count = len(publication.drafts)
        if not bucket.take(count):
            what, wait = "This tenant exceeds its rate of events.", bucket.wait(count)
            raise TooManyRequests(what, retry_after=max(1, math.ceil(wait)))
        return await self.sequencer.publish(publication)

    async def _addressed(self, call: Call, slug: str) -> Tenant:
        """The tenant of a broadcast: with a platform key, or without one on a trusted listener."""
        if SLUG.fullmatch(slug) is None:
            raise BadRequest("This is not the slug of a tenant.", code="invalid_tenant")
        call.check_tenant(slug)
        authenticator = self.reception.authenticator
        if _asks_for_key(call):
            credential = await authenticator.at_tenant(slug, call.key, None, call.address)
            of_kind(credential.principal, KeyKind.PLATFORM)
            return credential.tenant
        return await authenticator.unasked(slug)


PUBLISHING_REFUSALS: Final = (
    Refused(400, "invalid_events", "`events` is not a list of 1 to 500 events."),
    Refused(400, "invalid_event", "An event is not an object."),
    Refused(413, "event_too_large", "An event exceeds `limits.event_bytes`."),
    Refused(422, "invalid_event", "The data cannot become an event."),
    Refused(429, "too_many_requests", "The tenant exceeds its rate of events."),
)


def _asks_for_key(call: Call) -> bool:
    return not call.door.trusted or call.key is not None


def _placed(ids: list[Seq | None], *, several: bool) -> dict[str, Any]:
    return {"ids": ids} if several else {"id": ids[0]}


def _moved(made: Sequence[Draft]) -> list[object]:
    """What a publication moves: its events, however they were spelled."""
    return [[each.type, each.data, each.beside] for each in made]


def warned(made: Sequence[Draft], *, several: bool = False) -> list[WarningGiven] | Unset:
    """The warnings about events, as many as an answer has; `several`: with the event in the path."""
    given = [
        WarningGiven(
            member=f"events[{index}].{each.member}" if several else each.member,
            code=each.code,
            message=each.message,
        )
        for index, draft in enumerate(made)
        for each in draft.warnings
    ]
    return given[:_MOST_WARNINGS] or UNSET


def _listed(events: object) -> list[object]:
    if not isinstance(events, list) or not 0 < len(events) <= _MOST_EVENTS:
        raise BadRequest(f"events must be a list of 1 to {_MOST_EVENTS}.", code="invalid_events")
    return events


def _drafts(
    events: Sequence[object], where: str, source: Source
) -> Generator[None, None, list[Draft]]:
    made = []
    for index, event in enumerate(events):
        made.append(one_event(event, where, source, index))
        yield
    return made


def one_event(event: object, where: str, source: Source, index: int = 0) -> Draft:
    """One event in its exact form; a refusal says by `where`, with its `index`, which one it was."""
    if not isinstance(event, dict):
        what = where.format(index) or "event"
        raise BadRequest(f"{what} must be an object.", code="invalid_event")
    beside = _EMPTY
    if not _MEMBERS.issuperset(event):
        beside = {name: value for name, value in event.items() if name not in _MEMBERS}
    kind, data = event.get("type"), event.get("data")
    try:
        # The body may be deeper, since it wraps them; whoever reads the event again may not.
        if jsontext.deeper(data, jsontext.DEPTH) or (
            beside and jsontext.deeper(beside, jsontext.DEPTH)
        ):
            what = f"data is nested more than {jsontext.DEPTH} levels deep."
            raise Unprocessable(what, code="invalid_event")
        return drafts.draft(kind, data, beside, zone=source.zone, repaired=source.repaired)
    except Unprocessable as refusal:
        raise Unprocessable(
            f"{where.format(index)}{refusal.message}", code=refusal.code
        ) from refusal
