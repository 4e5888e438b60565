"""`GET /api/{tenant}/pos-status`: what a platform shows of a shop's tills."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from attrs import define
from twisted.web.server import Request

from posd.errors import NotFound
from posd.protocol.literals import timestamp
from posd.store.standing import StreamReport, TerminalStanding
from posd.values import Seq, Tenant
from posd.web.http.call import Call
from posd.web.http.models import Given, Moment, Success
from posd.web.http.operations import ANYBODY_AT_TENANT, Operation, Refused, TenantAsk, given
from posd.web.http.requests import Answer


class TerminalGiven(Given, frozen=True):
    """A terminal, connected or not. Only a terminal that acknowledges has `behind`."""

    device_id: str | None
    connected_since: Moment | None
    last_seen: Moment | None
    last_sent_id: Seq | None
    last_ack_id: Seq | None
    behind: int | None


class WebSocketGiven(Given, frozen=True):
    """The tills of a tenant, on all nodes."""

    connected: bool
    active: int
    url: str
    terminals: list[TerminalGiven]


class CountGiven(Given, frozen=True, rename=None):
    """The number of events of a type in the last 24 hours."""

    event_type: str
    count: int
    last_event: Moment


class LoggedGiven(Given, frozen=True, rename=None):
    """A row of the log. `id` is null if the row has no position."""

    id: Seq | None
    event_type: str
    status: str
    created_at: Moment


class StatusGiven(Success, frozen=True):
    """The status of the tills of a tenant."""

    tenant: str
    websocket: WebSocketGiven
    last_event_id: Seq
    undelivered: int
    events24h: list[CountGiven]
    recent_events: list[LoggedGiven]
    timestamp: Moment


@define(eq=False)
class Monitor:
    """The endpoint; `report` reads how a tenant stands, on all nodes."""

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
                {200: StatusGiven},
                refusals=(Refused(404, "unknown_tenant", "The tenant was deleted a moment ago."),),
            ),
        )

    async def status(self, ask: TenantAsk[None]) -> Answer:
        """Every kind of key may ask. Terminals that are away are listed too, after the others."""
        report = await self.report(ask.tenant)
        if report is None:
            raise NotFound("There is no such tenant.", code="unknown_tenant")
        active = sum(each.connected_since is not None for each in report.terminals)
        slug = ask.tenant.slug
        return given(
            StatusGiven(
                tenant=slug,
                websocket=WebSocketGiven(
                    connected=active > 0,
                    active=active,
                    url=_url(ask.call, slug),
                    terminals=[
                        TerminalGiven(**terminal_members(each)) for each in report.terminals
                    ],
                ),
                last_event_id=report.last_seq,
                undelivered=report.undelivered,
                events24h=[
                    CountGiven(
                        event_type=each.type, count=each.count, last_event=timestamp(each.last)
                    )
                    for each in report.day
                ],
                recent_events=[
                    LoggedGiven(
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
    """The members of a `TerminalGiven`."""
    return {
        "device_id": standing.device_id,
        "connected_since": moment(standing.connected_since),
        "last_seen": moment(standing.last_seen),
        "last_sent_id": standing.sent,
        "last_ack_id": standing.acked,
        "behind": standing.behind,
    }


def moment(when: datetime | None) -> str | None:
    """A point in time as posd writes it, if there is one."""
    return None if when is None else timestamp(when)


def _url(call: Call, slug: str) -> str:
    """Where tills connect, by the name under which the caller reached us."""
    scheme = "wss" if Request.isSecure(call.request) else "ws"
    return f"{scheme}://{call.header('host') or 'localhost'}/ws/pos/{slug}"
