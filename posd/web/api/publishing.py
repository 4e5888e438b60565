"""Publishing by REST: `POST /api/{tenant}/events`, and `POST /broadcast` for existing platforms."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from datetime import tzinfo
from types import MappingProxyType
from typing import Annotated, Any, Final

from attrs import define, field, frozen
from msgspec import Meta

from posd.errors import BadRequest, TooLarge, TooManyRequests, Unprocessable
from posd.events import normalise
from posd.events.timezones import zone
from posd.protocol import jsontext
from posd.protocol.json_size import exceeds
from posd.publishing.publication import Publication, PublicationResult
from posd.publishing.sequencer import Sequencer
from posd.security.auth import require_kind
from posd.security.client_credit import BURST_SECONDS
from posd.security.rate_limits import Clock, TokenBuckets
from posd.values import SLUG, WARNING_CODES, EventDraft, KeyKind, Seq, Tenant
from posd.web.http import idempotency
from posd.web.http.dispatch import Dispatcher
from posd.web.http.http_request import HTTPRequest
from posd.web.http.models import (
    UNSET,
    RequestModel,
    ResponseModel,
    SuccessModel,
    Unset,
    schema_reference,
)
from posd.web.http.operations import (
    LONG_BODY_BYTES,
    PLATFORMS,
    DeclaredError,
    Operation,
    Request,
    TenantRequest,
    model_response,
)
from posd.web.http.responses import Response
from posd.web.http.stepwise import run_at_once, run_in_steps
from posd.web.openapi.event_schemas import ref

_MOST_EVENTS: Final = 500
_MEMBERS: Final = frozenset(("type", "data", "timestamp"))
"""Known members of an event. Other members are published beside `data`."""
_EMPTY: Final[Mapping[str, object]] = MappingProxyType({})
_MOST_WARNINGS: Final = 100
Position = Annotated[Seq, Meta(ge=1, description="A position in the stream of the tenant.")]


@frozen
class BodySource:
    """The context for reading events from a body.

    `zone` is the time zone of the shop. `repaired` is true if characters of the body were replaced.
    """

    zone: tzinfo
    repaired: bool


EventToPublish = Annotated[dict[str, Any], schema_reference("EventToPublish")]


class EventsRequest(RequestModel, frozen=True):
    """One event, or up to 500 events in `events`. Members beside `data` are published beside
    `data`."""

    type: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,49}$")] | Unset = UNSET
    data: dict[str, Any] | Unset = UNSET
    events: Annotated[list[EventToPublish], Meta(min_length=1, max_length=500)] | Unset = UNSET

    extra_schema = {"anyOf": [ref("EventToPublish"), {"required": ["events"]}]}


class WarningEntry(ResponseModel, frozen=True):
    """A value that posd repaired or could not read. `member` is its path."""

    member: str
    code: Annotated[str, Meta(extra_json_schema={"enum": [*WARNING_CODES]})]
    message: str


Warnings = Annotated[
    list[WarningEntry],
    Meta(
        description="The values that posd repaired or could not read. Left out if there are none."
    ),
]


class EventResponse(SuccessModel, frozen=True, kw_only=True):
    """The positions of the events. Null: the event has nothing new.

    `connections` is the number of connected tills of the tenant, on all nodes.
    """

    id: Position | Unset | None = UNSET
    ids: list[Position | None] | Unset = UNSET
    connections: int
    warnings: Warnings | Unset = UNSET


class BroadcastRequest(RequestModel, frozen=True):
    """The request of existing broadcasters."""

    tenant: str
    event: EventToPublish


class BroadcastResponse(SuccessModel, frozen=True):
    """The answer that existing broadcasters expect."""

    message: str
    connections: int
    warnings: Warnings | Unset = UNSET


@define(eq=False)
class PublishingEndpoints:
    """The endpoints of publishing platforms. A tenant may publish `per_second` events on average."""

    dispatcher: Dispatcher
    sequencer: Sequencer
    per_second: int
    clock: Clock
    _events: TokenBuckets = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._events = TokenBuckets(self.clock)

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/api/{tenant}/events",
                self.events,
                "Publish events",
                PLATFORMS,
                {201: EventResponse, 200: EventResponse},
                body_model=EventsRequest,
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
                {200: BroadcastResponse},
                body_model=BroadcastRequest,
                refusals=(
                    *PUBLISHING_REFUSALS,
                    DeclaredError(
                        400, "missing_tenant_or_event", "`tenant` or `event` is missing."
                    ),
                    DeclaredError(400, "invalid_tenant", "`tenant` is not the slug of a tenant."),
                    DeclaredError(
                        403, "tenant_mismatch", "`X-Tenant-ID` is not the tenant of the body."
                    ),
                    DeclaredError(
                        404,
                        "unknown_tenant",
                        "There is no such tenant. Only a trusted listener, which requires"
                        " no key, gives this answer.",
                    ),
                ),
                idempotent=True,
                body_bytes=LONG_BODY_BYTES,
                trusted=True,
                checks_key_itself=True,
                tag="Platform",
                example={
                    "tenant": "kitchen",
                    "event": {"type": "new_order", "data": {"orderId": "A-3", "totalAmount": 9.5}},
                },
            ),
        )

    async def events(self, request: TenantRequest[None]) -> Response:
        """Publish `{"type", "data"}`, or up to 500 events as `{"events": [{"type", "data"}, …]}`."""
        body = request.http_request.json()
        several = "events" in body
        events = _event_list(body["events"]) if several else [body]
        await self.check_sizes(request.http_request, events)
        source = BodySource(zone(request.tenant.timezone), request.http_request.repaired)
        drafting = _read_drafts(events, "events[{}]." if several else "", source)
        drafted = (
            await run_in_steps(drafting) if request.http_request.is_long else run_at_once(drafting)
        )
        idempotency_key = request.idempotency_key(_idempotent_content(drafted))
        # Requests of a tenant may share a commit, so they must not wait for each other's turn. The sequencer
        # preserves their order, and has its own limits.
        request.http_request.release_turn()
        published = await self.publish(
            Publication(request.tenant.id, drafted, idempotency_key, size=request.http_request.size)
        )
        ids = list(published.ids)
        answer = EventResponse(
            connections=published.connections,
            warnings=warning_entries(drafted, several=several),
            **_id_members(ids, several=several),
        )
        status = 201 if any(seq is not None for seq in ids) else 200
        return model_response(answer, status, replayed=published.replayed)

    async def broadcast(self, request: Request[None]) -> Response:
        """Publish `{"tenant", "event": {"type", "timestamp", "data", …}}` of an existing platform."""
        http_request = request.http_request
        if _needs_key(http_request):
            # Check the key before the body is parsed, which is the most expensive part.
            await self.dispatcher.authenticator.require_known_key(
                http_request.key, http_request.address
            )
        await http_request.parse()
        body = http_request.json()
        slug, event = body.get("tenant"), body.get("event")
        if not isinstance(slug, str) or not slug or not isinstance(event, dict):
            raise BadRequest("Missing tenant or event", code="missing_tenant_or_event")
        tenant = await self._broadcast_tenant(http_request, slug)
        await self.check_sizes(http_request, [event])
        drafted = [
            read_event(event, "event.", BodySource(zone(tenant.timezone), http_request.repaired))
        ]
        idempotency_key = idempotency.idempotency_key(
            http_request,
            tenant.id,
            KeyKind.PLATFORM.value,
            "POST /broadcast",
            _idempotent_content(drafted),
        )
        # The URL names no tenant, so the broadcasts of a key for all tenants share their turns. The order of
        # one tenant must not wait for the commit of another tenant's.
        http_request.release_turn()
        published = await self.publish(
            Publication(tenant.id, drafted, idempotency_key, size=http_request.size)
        )
        answer = BroadcastResponse(
            message=f"Event broadcasted to {slug}",
            connections=published.connections,
            warnings=warning_entries(drafted),
        )
        return model_response(answer, replayed=published.replayed)

    async def check_sizes(self, http_request: HTTPRequest, events: Sequence[object]) -> None:
        """Raise `TooLarge` (`event_too_large`) if an event has more than twice the permitted bytes.

        Normalisation can shorten an event, but not by half. The exact size is checked after it.
        """
        allowed = self.sequencer.event_bytes
        values = jsontext.most_values(2 * allowed)
        if http_request.size > 2 * allowed:
            for event in events:
                if await run_in_steps(exceeds(event, 2 * allowed, values)):
                    raise TooLarge(
                        f"The event has more than {2 * allowed} bytes, of which {allowed} are allowed,"
                        f" or more than {values} values.",
                        code="event_too_large",
                    )

    async def publish(self, publication: Publication) -> PublicationResult:
        """Publish events. Raises `TooManyRequests` if the tenant exceeds its rate of events."""
        # The burst permits a platform to catch up after an interruption.
        seconds = max(BURST_SECONDS, _MOST_EVENTS / self.per_second)
        bucket = self._events.get(publication.tenant_id, self.per_second, seconds)
        count = len(publication.drafts)
        if not bucket.take(count):
            what, seconds_to_wait = (
                "This tenant exceeds its rate of events.",
                bucket.seconds_to_wait(count),
            )
            raise TooManyRequests(what, retry_after=max(1, math.ceil(seconds_to_wait)))
        return await self.sequencer.publish(publication)

    async def _broadcast_tenant(self, http_request: HTTPRequest, slug: str) -> Tenant:
        """Authenticate a broadcast, or accept it without a key on a trusted listener. Return its tenant."""
        if SLUG.fullmatch(slug) is None:
            raise BadRequest("This is not the slug of a tenant.", code="invalid_tenant")
        http_request.check_tenant(slug)
        authenticator = self.dispatcher.authenticator
        if _needs_key(http_request):
            credential = await authenticator.find_credential(
                slug, http_request.key, None, http_request.address
            )
            require_kind(credential.principal, KeyKind.PLATFORM)
            return credential.tenant
        return await authenticator.trusted_tenant(slug)


PUBLISHING_REFUSALS: Final = (
    DeclaredError(400, "invalid_events", "`events` is not a list of 1 to 500 events."),
    DeclaredError(400, "invalid_event", "An event is not an object."),
    DeclaredError(413, "event_too_large", "An event exceeds `limits.event_bytes`."),
    DeclaredError(422, "invalid_event", "The data cannot become an event."),
    DeclaredError(429, "too_many_requests", "The tenant exceeds its rate of events."),
)


def _needs_key(http_request: HTTPRequest) -> bool:
    return not http_request.listener_context.trusted or http_request.key is not None


def _id_members(ids: list[Seq | None], *, several: bool) -> dict[str, Any]:
    return {"ids": ids} if several else {"id": ids[0]}


def _idempotent_content(drafted: Sequence[EventDraft]) -> list[object]:
    """Return the content of a publication for its fingerprint: the normalised events."""
    return [[each.type, each.data, each.extra_members] for each in drafted]


def warning_entries(
    drafted: Sequence[EventDraft], *, several: bool = False
) -> list[WarningEntry] | Unset:
    """Return up to 100 warnings about events. If `several`, their paths have the index of the event."""
    entries = [
        WarningEntry(
            member=f"events[{index}].{each.member}" if several else each.member,
            code=each.code,
            message=each.message,
        )
        for index, draft in enumerate(drafted)
        for each in draft.warnings
    ]
    return entries[:_MOST_WARNINGS] or UNSET


def _event_list(events: object) -> list[object]:
    if not isinstance(events, list) or not 0 < len(events) <= _MOST_EVENTS:
        raise BadRequest(f"events must be a list of 1 to {_MOST_EVENTS}.", code="invalid_events")
    return events


def _read_drafts(
    events: Sequence[object], where: str, source: BodySource
) -> Generator[None, None, list[EventDraft]]:
    drafted = []
    for index, event in enumerate(events):
        drafted.append(read_event(event, where, source, index))
        yield
    return drafted


def read_event(event: object, where: str, source: BodySource, index: int = 0) -> EventDraft:
    """Return an event in its normalised form. Raises `BadRequest` and `Unprocessable`.

    Error messages begin with `where`, formatted with `index`.
    """
    if not isinstance(event, dict):
        what = where.format(index) or "event"
        raise BadRequest(f"{what} must be an object.", code="invalid_event")
    extra_members = _EMPTY
    if not _MEMBERS.issuperset(event):
        extra_members = {name: value for name, value in event.items() if name not in _MEMBERS}
    kind, data = event.get("type"), event.get("data")
    try:
        # The limit for the body is higher, because the body contains the event. Readers of the event have the
        # lower limit.
        if jsontext.is_deeper_than(data, jsontext.DEPTH) or (
            extra_members and jsontext.is_deeper_than(extra_members, jsontext.DEPTH)
        ):
            what = f"data is nested more than {jsontext.DEPTH} levels deep."
            raise Unprocessable(what, code="invalid_event")
        return normalise.draft(
            kind, data, extra_members, zone=source.zone, repaired=source.repaired
        )
    except Unprocessable as refusal:
        raise Unprocessable(
            f"{where.format(index)}{refusal.message}", code=refusal.code
        ) from refusal
