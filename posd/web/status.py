"""`GET /api/{tenant}/pos-status`: what a platform shows of a shop's tills."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from attrs import define

from posd.auth import Authenticator
from posd.errors import NotFound
from posd.jsontext import timestamp
from posd.store.standing import Report, TerminalStanding
from posd.values import Tenant
from posd.web.render import Answer, Call


@define(eq=False)
class Monitor:
    """The endpoint; `report` reads how a tenant stands, on all nodes."""

    authenticator: Authenticator
    report: Callable[[Tenant], Awaitable[Report | None]]

    async def status(self, call: Call, slug: str) -> Answer:
        """Every kind of key may ask. Terminals that are away are listed too, after the others."""
        credential = await self.authenticator.at_tenant(slug, call.key, None, call.address)
        call.check_tenant(slug)
        report = await self.report(credential.tenant)
        if report is None:
            raise NotFound("There is no such tenant.", code="unknown_tenant")
        active = sum(each.connected_since is not None for each in report.terminals)
        return Answer(
            {
                "success": True,
                "tenant": slug,
                "websocket": {
                    "connected": active > 0,
                    "active": active,
                    "url": _url(call, slug),
                    "terminals": [_terminal(each) for each in report.terminals],
                },
                "lastEventId": report.last_seq,
                "undelivered": report.undelivered,
                "events24h": [
                    {
                        "event_type": each.type,
                        "count": each.count,
                        "last_event": timestamp(each.last),
                    }
                    for each in report.day
                ],
                "recentEvents": [
                    {
                        "id": each.seq,
                        "event_type": each.type,
                        "status": each.status,
                        "created_at": timestamp(each.created_at),
                    }
                    for each in report.recent
                ],
                "timestamp": timestamp(datetime.now(UTC)),
            }
        )


def _terminal(standing: TerminalStanding) -> dict[str, object]:
    return {
        "deviceId": standing.device_id,
        "connectedSince": _moment(standing.connected_since),
        "lastSeen": _moment(standing.last_seen),
        "lastSentId": standing.sent,
        "lastAckId": standing.acked,
        "behind": standing.behind,
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _url(call: Call, slug: str) -> str:
    """Where tills connect, by the name under which the caller reached us."""
    scheme = "wss" if call.request.isSecure() else "ws"
    return f"{scheme}://{call.header('host') or 'localhost'}/ws/pos/{slug}"
