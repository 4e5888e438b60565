"""`GET /api/{tenant}/pos-status`: the status of a shop's tills, for platforms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from attrs import define
from twisted.web.server import Request

from posd.errors import NotFound
from posd.protocol.json_literals import timestamp
from posd.store.stream_status import StreamReport, TerminalStanding
from posd.values import Seq, Tenant
from posd.web.http.http_request import HTTPRequest
from posd.web.http.models import Moment, ResponseModel, SuccessModel
from posd.web.http.operations import (
    ANYBODY_AT_TENANT,
    DeclaredError,
    Operation,
    TenantRequest,
    model_response,
)
from posd.web.http.responses import Response


class TerminalEntry(ResponseModel, frozen=True):
    """A terminal, connected or not. Only a terminal that acknowledges has `behind`."""

    device_id: str | None
    connected_since: Moment | None
    last_seen: Moment | None
    last_sent_id: Seq | None
    last_ack_id: Seq | None
    behind: int | None


class WebSocketSummary(ResponseModel, frozen=True):
    """The tills of a tenant, on all nodes."""

    connected: bool
    active: int
    url: str
    terminals: list[TerminalEntry]


class CountEntry(ResponseModel, frozen=True, rename=None):
    """The number of events of a type in the last 24 hours."""

    event_type: str
    count: int
    last_event: Moment


class LoggedEntry(ResponseModel, frozen=True, rename=None):
    """A row of the log. `id` is null if the row has no position."""

    id: Seq | None
    event_type: str
    status: str
    created_at: Moment


class StatusResponse(SuccessModel, frozen=True):
    """The status of the tills of a tenant."""

    tenant: str
    websocket: WebSocketSummary
    last_event_id: Seq
    undelivered: int
    events24h: list[CountEntry]
    recent_events: list[LoggedEntry]
    timestamp: Moment


@define(eq=False)
class StatusEndpoints:
    """The endpoint. `report` reads the status of a tenant, on all nodes."""

    report: Callable[[Tenant], Awaitable[StreamReport | None]]

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/api/{tenant}/pos-status",
                self.status,
                "Read the status of the tills",
                ANYBODY_AT_TENANT,
                {200: StatusResponse},
                refusals=(
                    DeclaredError(404, "unknown_tenant", "The tenant was deleted a moment ago."),
                ),
            ),
        )

    async def status(self, request: TenantRequest[None]) -> Response:
        """Read the status, with any kind of key. Disconnected terminals follow the connected ones."""
        report = await self.report(request.tenant)
        if report is None:
            raise NotFound("There is no such tenant.", code="unknown_tenant")
        active = sum(each.connected_since is not None for each in report.terminals)
        slug = request.tenant.slug
        return model_response(
            StatusResponse(
                tenant=slug,
                websocket=WebSocketSummary(
                    connected=active > 0,
                    active=active,
                    url=_url(request.http_request, slug),
                    terminals=[
                        TerminalEntry(**terminal_members(each)) for each in report.terminals
                    ],
                ),
                last_event_id=report.last_seq,
                undelivered=report.undelivered,
                events24h=[
                    CountEntry(
                        event_type=each.type, count=each.count, last_event=timestamp(each.last)
                    )
                    for each in report.day
                ],
                recent_events=[
                    LoggedEntry(
                        id=each.seq,
                        event_type=each.type,
                        status=each.status,
                        created_at=timestamp(each.created_at),
                    )
                    for each in report.recent
                ],
                timestamp=timestamp(datetime.now(UTC)),
            )
        )


def terminal_members(standing: TerminalStanding) -> dict[str, Any]:
    """Return the members of a `TerminalEntry`."""
    return {
        "device_id": standing.device_id,
        "connected_since": moment(standing.connected_since),
        "last_seen": moment(standing.last_seen),
        "last_sent_id": standing.sent,
        "last_ack_id": standing.acked,
        "behind": standing.behind,
    }


def moment(when: datetime | None) -> str | None:
    """Return a time as posd formats it, or None."""
    return None if when is None else timestamp(when)


def _url(http_request: HTTPRequest, slug: str) -> str:
    """Return the URL for tills, with the Host of the request."""
    scheme = "wss" if Request.isSecure(http_request.request) else "ws"
    return f"{scheme}://{http_request.header('host') or 'localhost'}/ws/pos/{slug}"
