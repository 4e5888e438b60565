"""The event stream by HTTP: `GET /api/{tenant}/events`, `…/events/stream`, `POST …/events/ack`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

from attrs import define
from msgspec import Meta
from twisted.internet.interfaces import IReactorTime

from posd.delivery.long_poll import LongPolling, OnHold, PollingTerminal, PollQuery
from posd.protocol import jsontext
from posd.values import Position, Seq
from posd.web.admission import AdmissionCheck, resume_position
from posd.web.http.channel import BoundedChannel
from posd.web.http.http_request import HTTPRequest
from posd.web.http.models import (
    UNSET,
    Moment,
    RequestModel,
    ResponseModel,
    SuccessModel,
    Unset,
    also_named,
    to_json_members,
)
from posd.web.http.operations import TILLS, DeclaredError, Operation, TenantRequest, model_response
from posd.web.http.responses import Response, StreamingResponse
from posd.web.sse import EventStream

_LAST_SEQ: Final = 2**63 - 1
_LONGEST_WAIT: Final = 45
"""Seconds. It is below the timeout of proxies, after which a client gets 504 instead of an empty page: 50 s
for HAProxy with Debian's configuration, 60 s for nginx and most load balancers."""
_TYPE: Final = "[a-z][a-z0-9_]{0,49}"

EventPosition = Annotated[
    Seq,
    Meta(
        ge=0,
        le=_LAST_SEQ,
        description="A position in the stream of the tenant. 0 is the position before"
        " the first event.",
    ),
]
StreamIdOfPosition = Annotated[
    UUID,
    Meta(
        description="The `streamId` that the position belongs to. A position of an "
        "earlier stream is valid as far as both streams have the same events.",
        extra={"also": ("streamId",)},
    ),
]


class PollRequest(RequestModel, frozen=True, rename=None):
    """The position to continue from, and the limits of the answer."""

    after: EventPosition | Unset = UNSET
    limit: Annotated[int, Meta(ge=1, le=500, description="The maximum number of events.")] = 100
    wait: Annotated[
        int,
        Meta(
            ge=0,
            le=60,
            description=(
                "How many seconds to wait if there is no event yet. posd answers after"
                f" {_LONGEST_WAIT} s at the latest."
            ),
        ),
    ] = 0
    types: (
        Annotated[
            str,
            Meta(
                pattern=f"^{_TYPE}(,{_TYPE})*$",
                max_length=1000,
                description="Only events of these types, separated by commas.",
            ),
        ]
        | Unset
    ) = UNSET
    stream_id: StreamIdOfPosition | Unset = UNSET


class StreamRequest(RequestModel, frozen=True, rename=None):
    """The position to resume from. The header `Last-Event-ID` has the same meaning."""

    last_event_id: Annotated[EventPosition, also_named("lastEventId")] | Unset = UNSET
    stream_id: StreamIdOfPosition | Unset = UNSET


class AckRequest(RequestModel, frozen=True):
    """The position up to which the terminal has stored all events."""

    id: EventPosition
    stream_id: UUID | Unset = UNSET


class MessageEntry(ResponseModel, frozen=True):
    """One event, as on a WebSocket. There may be other members beside `data`."""

    type: Annotated[str, Meta(pattern=f"^{_TYPE}$")]
    id: Annotated[Seq, Meta(ge=1)]
    tenant: str
    timestamp: Moment
    data: dict[str, Any]
    replay: (
        Annotated[Literal[True], Meta(description="Only replayed events have this member.")] | Unset
    ) = UNSET


class BatchResponse(SuccessModel, frozen=True):
    """The events after a position. `next` is the `after` of the next call."""

    events: list[MessageEntry]
    next: EventPosition
    has_more: bool
    last_event_id: EventPosition
    stream_id: UUID
    resync: Literal["retention", "reset", "ahead"] | None


class CursorResponse(SuccessModel, frozen=True):
    """The cursor of the terminal."""

    id: EventPosition


_CONNECTING: Final = (
    DeclaredError(
        429, "too_many_connections", "The tenant or the terminal has too many connections."
    ),
    DeclaredError(429, "too_many_devices", "The tenant has too many devices."),
    DeclaredError(503, "overloaded", "posd has reached its maximum number of connections."),
)


@define(eq=False)
class EventEndpoints:
    """The endpoints by which a till follows its tenant's stream without a WebSocket."""

    polls: LongPolling
    admission: AdmissionCheck
    reactor: IReactorTime

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/api/{tenant}/events",
                self.poll,
                "Poll for events",
                TILLS,
                {200: BatchResponse},
                request_model=PollRequest,
                refusals=(
                    DeclaredError(
                        400,
                        "position_required",
                        "`after` is missing, and a client without a name has no cursor.",
                    ),
                    *_CONNECTING,
                ),
                description=(
                    "Without `after`, the answer continues from the cursor of the "
                    "terminal. A position in `after` acknowledges all events up to it. "
                    "With `wait`, posd answers as soon as there is an event. `resync` is "
                    "the reason why posd cannot continue from the position: reload the "
                    "pending orders, then continue from `next`."
                ),
                tag="Stream",
            ),
            Operation(
                "GET",
                "/api/{tenant}/events/stream",
                self.stream,
                "Follow the stream by server-sent events",
                TILLS,
                {200: MessageEntry},
                request_model=StreamRequest,
                refusals=(
                    DeclaredError(400, "invalid_position", "`Last-Event-ID` is not a position."),
                    *_CONNECTING,
                ),
                description=(
                    "The first event is `connected`, the last one is `pos_closing`. "
                    "Neither has an id. `Last-Event-ID` has the same meaning as "
                    "`last_event_id` and takes precedence, because a client that "
                    "reconnects automatically keeps its URL and updates the header. Such "
                    "a client must not have `stream_id` in its URL."
                ),
                tag="Stream",
                media_type="text/event-stream",
            ),
            Operation(
                "POST",
                "/api/{tenant}/events/ack",
                self.acknowledge,
                "Acknowledge events",
                TILLS,
                {200: CursorResponse},
                request_model=AckRequest,
                refusals=(
                    DeclaredError(409, "stream_changed", "The event at this position is lost."),
                    DeclaredError(422, "beyond_head", "The event does not exist yet."),
                    DeclaredError(422, "no_device", "A terminal without a name has no cursor."),
                    _CONNECTING[1],
                ),
                tag="Stream",
                example={"id": 1042},
            ),
        )

    async def poll(self, request: TenantRequest[PollRequest]) -> Response:
        """Return the events after a position, after a wait if there are none."""
        arguments = request.arguments
        position = None
        if arguments.after is not UNSET:
            position = Position(arguments.after, _known_stream_id(arguments.stream_id))
        types = frozenset(() if arguments.types is UNSET else arguments.types.split(","))
        query = PollQuery(arguments.limit, float(min(arguments.wait, _LONGEST_WAIT)), types)
        page = await self.polls.answer(
            _polling_terminal(request), position, query, _on_wait(request.http_request)
        )
        answer = BatchResponse(
            events=[],
            next=page.position,
            has_more=page.position < page.last,
            last_event_id=page.last,
            stream_id=page.stream_id,
            resync=None if page.resync is None else page.resync.value,
        )
        written = [jsontext.RawJSON(message) for message in page.messages]
        return Response(to_json_members(answer) | {"events": written})

    async def stream(self, request: TenantRequest[StreamRequest]) -> Response:
        """Begin a stream of server-sent events. All checks come before the first byte of the answer."""
        arguments = request.arguments
        if request.http_request.header("last-event-id") or arguments.last_event_id is UNSET:
            position = resume_position(request.http_request)
        else:
            position = Position(arguments.last_event_id, _known_stream_id(arguments.stream_id))
        admitted = await self.admission.admit(
            request.tenant, request.principal, request.device_id, position
        )
        event_stream = EventStream(admitted, self.admission.hub, self.reactor)
        return StreamingResponse({}, begin=event_stream.begin, cancel=admitted.left)

    async def acknowledge(self, request: TenantRequest[AckRequest]) -> Response:
        """Store an acknowledgement. The answer follows its COMMIT."""
        stream_id = _known_stream_id(request.arguments.stream_id)
        # All terminals that acknowledge at the same time wait for the same statements.
        request.http_request.release_turn()
        seq = await self.polls.acknowledge(
            _polling_terminal(request), request.arguments.id, stream_id
        )
        return model_response(CursorResponse(id=seq))


def _polling_terminal(request: TenantRequest[Any]) -> PollingTerminal:
    return PollingTerminal(request.tenant, request.principal, request.device_id)


def _known_stream_id(stream_id: UUID | Unset) -> UUID | None:
    return None if stream_id is UNSET else stream_id


def _on_wait(http_request: HTTPRequest) -> OnHold:
    """Return the function that a poll calls when it begins to wait."""

    def detach_request(leave: Callable[[], None]) -> Callable[[], None]:
        # Other requests with the same key, an acknowledgement for example, do not wait for this one.
        http_request.release_turn()
        channel = cast("BoundedChannel | None", http_request.request.channel)
        if channel is None:
            # The client has already disconnected.
            leave()
            return lambda: None
        channel.detach_request(leave)
        return channel.reattach_request

    return detach_request
