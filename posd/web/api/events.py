"""The stream without a WebSocket: `GET /api/{tenant}/events`, `…/events/stream`, `POST …/events/ack`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

from attrs import define
from msgspec import Meta
from twisted.internet.interfaces import IReactorTime

from posd.delivery.long_poll import Caller, Hold, Polls, Wish
from posd.protocol import jsontext
from posd.values import Position, Seq
from posd.web.admission import Admission, resume_position
from posd.web.http.call import Call
from posd.web.http.channel import BoundedChannel
from posd.web.http.models import UNSET, Given, Moment, Success, Taken, Unset, called, plain
from posd.web.http.operations import TILLS, Operation, Refused, TenantAsk, given
from posd.web.http.requests import Answer, Takeover
from posd.web.sse import EventStream

_LAST_SEQ: Final = 2**63 - 1
_LONGEST_WAIT: Final = 45
"""Seconds. A proxy gives up a request that is not answered: HAProxy as Debian configures it after 50 s, nginx
and most balancers after 60 s. The client would get 504 instead of an empty page."""
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
History = Annotated[
    UUID,
    Meta(
        description="The `streamId` that the position belongs to. A position of an "
        "earlier stream is valid as far as both streams have the same events.",
        extra={"also": ("streamId",)},
    ),
]


class PollTaken(Taken, frozen=True, rename=None):
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
    stream_id: History | Unset = UNSET


class StreamTaken(Taken, frozen=True, rename=None):
    """The position to resume from. The header `Last-Event-ID` has the same meaning."""

    last_event_id: Annotated[EventPosition, called("lastEventId")] | Unset = UNSET
    stream_id: History | Unset = UNSET


class AckTaken(Taken, frozen=True):
    """The position up to which the terminal has stored all events."""

    id: EventPosition
    stream_id: UUID | Unset = UNSET


class MessageGiven(Given, frozen=True):
    """One event, as on a WebSocket. There may be other members beside `data`."""

    type: Annotated[str, Meta(pattern=f"^{_TYPE}$")]
    id: Annotated[Seq, Meta(ge=1)]
    tenant: str
    timestamp: Moment
    data: dict[str, Any]
    replay: (
        Annotated[Literal[True], Meta(description="Only replayed events have this member.")] | Unset
    ) = UNSET


class BatchGiven(Success, frozen=True):
    """The events after a position. `next` is the `after` of the next call."""

    events: list[MessageGiven]
    next: EventPosition
    has_more: bool
    last_event_id: EventPosition
    stream_id: UUID
    resync: Literal["retention", "reset", "ahead"] | None


class CursorGiven(Success, frozen=True):
    """The cursor of the terminal."""

    id: EventPosition


_CONNECTING: Final = (
    Refused(429, "too_many_connections", "The tenant or the terminal has too many connections."),
    Refused(429, "too_many_devices", "The tenant has too many devices."),
    Refused(503, "overloaded", "posd has reached its maximum number of connections."),
)


@define(eq=False)
class Events:
    """The endpoints by which a till follows its tenant's stream without a WebSocket."""

    polls: Polls
    admission: Admission
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
                {200: BatchGiven},
                takes=PollTaken,
                refusals=(
                    Refused(
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
                {200: MessageGiven},
                takes=StreamTaken,
                refusals=(
                    Refused(400, "invalid_position", "`Last-Event-ID` is not a position."),
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
                media="text/event-stream",
            ),
            Operation(
                "POST",
                "/api/{tenant}/events/ack",
                self.acknowledge,
                "Acknowledge events",
                TILLS,
                {200: CursorGiven},
                takes=AckTaken,
                refusals=(
                    Refused(409, "stream_changed", "The event at this position is lost."),
                    Refused(422, "beyond_head", "The event does not exist yet."),
                    Refused(422, "no_device", "A terminal without a name has no cursor."),
                    _CONNECTING[1],
                ),
                tag="Stream",
                example={"id": 1042},
            ),
        )

    async def poll(self, ask: TenantAsk[PollTaken]) -> Answer:
        """Answered after a wait too, so that the request is a till's meanwhile."""
        taken = ask.taken
        position = None
        if taken.after is not UNSET:
            position = Position(taken.after, _known(taken.stream_id))
        types = frozenset(() if taken.types is UNSET else taken.types.split(","))
        wish = Wish(taken.limit, float(min(taken.wait, _LONGEST_WAIT)), types)
        batch = await self.polls.answer(_caller(ask), position, wish, _hold(ask.call))
        answer = BatchGiven(
            events=[],
            next=batch.position,
            has_more=batch.position < batch.last,
            last_event_id=batch.last,
            stream_id=batch.stream_id,
            resync=None if batch.resync is None else batch.resync.value,
        )
        written = [jsontext.Written(message) for message in batch.messages]
        return Answer(plain(answer) | {"events": written})

    async def stream(self, ask: TenantAsk[StreamTaken]) -> Answer:
        """Everything is checked and looked up before the first byte, as it is for a WebSocket."""
        taken = ask.taken
        if ask.call.header("last-event-id") or taken.last_event_id is UNSET:
            position = resume_position(ask.call)
        else:
            position = Position(taken.last_event_id, _known(taken.stream_id))
        admitted = await self.admission.admit(ask.tenant, ask.principal, ask.device_id, position)
        line = EventStream(admitted, self.admission.exchange, self.reactor)
        return Takeover({}, begin=line.begin, forgo=admitted.left)

    async def acknowledge(self, ask: TenantAsk[AckTaken]) -> Answer:
        """Answered when it is written."""
        stream_id = _known(ask.taken.stream_id)
        # All terminals that acknowledge at the same time wait for the same statements.
        ask.call.give_turn()
        seq = await self.polls.acknowledge(_caller(ask), ask.taken.id, stream_id)
        return given(CursorGiven(id=seq))


def _caller(ask: TenantAsk[Any]) -> Caller:
    return Caller(ask.tenant, ask.principal, ask.device_id)


def _known(stream_id: UUID | Unset) -> UUID | None:
    return None if stream_id is UNSET else stream_id


def _hold(call: Call) -> Hold:
    """What a poll calls when it begins to wait."""

    def hold(leave: Callable[[], None]) -> Callable[[], None]:
        # Other requests with the same key, an acknowledgement for example, do not wait for this one.
        call.give_turn()
        channel = cast("BoundedChannel | None", call.request.channel)
        if channel is None:
            # Whoever asked has gone already.
            leave()
            return lambda: None
        channel.hold(leave)
        return channel.let_go

    return hold
