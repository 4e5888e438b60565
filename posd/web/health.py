"""What load balancers and operators ask: is it alive, is it ready, who is connected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from attrs import define

from posd import jsontext
from posd.auth import Authenticator, of_kind
from posd.health import Health
from posd.values import KeyKind
from posd.web.render import Answer, Call


@define(eq=False)
class HealthEndpoints:
    """`/health/live`, `/health/ready` and the deployed `/health`.

    `counts` tells how many connections each tenant has, on all nodes.
    """

    health: Health
    authenticator: Authenticator
    counts: Callable[[], Awaitable[list[tuple[str, int]]]]

    async def live(self, call: Call) -> Answer:
        """The process answers."""
        return Answer({"status": "ok"})

    async def ready(self, call: Call) -> Answer:
        """It can take tills and orders; if not, 503 with what is missing."""
        missing = self.health.missing()
        if missing:
            return Answer({"status": "unavailable", "missing": missing}, 503, {"Retry-After": "2"})
        return Answer({"status": "ok"})

    async def deployed(self, call: Call) -> Answer:
        """The shape that is polled today, with the connections of all nodes."""
        if not call.door.trusted:
            of_kind(await self.authenticator.anywhere(call.key, call.address), KeyKind.ADMIN)
        counts = await self.counts()
        return Answer(
            {
                "status": "ok",
                "service": "WebSocket Server",
                "connections": [{"tenant": slug, "count": count} for slug, count in counts],
                "timestamp": jsontext.timestamp(datetime.now(UTC)),
            }
        )
