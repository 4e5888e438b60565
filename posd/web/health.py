"""What load balancers and operators ask: is it alive, is it ready, who is connected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from attrs import define

from posd import jsontext
from posd.health import Health
from posd.web.operations import ADMINS, NOBODY, Ask, Operation, given
from posd.web.render import Answer
from posd.web.shapes import UNSET, Given, Moment, Unset


class HealthGiven(Given, frozen=True):
    """`ok`, or `unavailable` with what is missing."""

    status: str
    missing: list[str] | Unset = UNSET


class ConnectionsGiven(Given, frozen=True):
    """How many connections a tenant has."""

    tenant: str
    count: int


class DeployedHealthGiven(Given, frozen=True):
    """The shape that is polled today, with the connections of all nodes."""

    status: str
    service: str
    connections: list[ConnectionsGiven]
    timestamp: Moment


@define(eq=False)
class HealthEndpoints:
    """`/health/live`, `/health/ready` and the deployed `/health`.

    `counts` tells how many connections each tenant has, on all nodes.
    """

    health: Health
    counts: Callable[[], Awaitable[list[tuple[str, int]]]]

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/health/live",
                self.live,
                "Whether the process answers",
                NOBODY,
                {200: HealthGiven},
                tag="Health",
            ),
            Operation(
                "GET",
                "/health/ready",
                self.ready,
                "Whether it can take tills and orders",
                NOBODY,
                {200: HealthGiven, 503: HealthGiven},
                tag="Health",
            ),
            Operation(
                "GET",
                "/health",
                self.deployed,
                "Who is connected",
                ADMINS,
                {200: DeployedHealthGiven},
                trusted=True,
                tag="Health",
            ),
        )

    async def live(self, ask: Ask[None]) -> Answer:
        """The process answers."""
        return given(HealthGiven(status="ok"))

    async def ready(self, ask: Ask[None]) -> Answer:
        """It can take tills and orders; if not, 503 with what is missing."""
        missing = self.health.missing()
        if missing:
            answer = HealthGiven(status="unavailable", missing=missing)
            return given(answer, 503, {"Retry-After": "2"})
        return given(HealthGiven(status="ok"))

    async def deployed(self, ask: Ask[None]) -> Answer:
        counts = await self.counts()
        return given(
            DeployedHealthGiven(
                status="ok",
                service="WebSocket Server",
                connections=[ConnectionsGiven(tenant=slug, count=count) for slug, count in counts],
                timestamp=jsontext.timestamp(datetime.now(UTC)),
            )
        )
