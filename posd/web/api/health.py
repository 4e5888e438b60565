"""What load balancers and operators ask: is it alive, is it ready, who is connected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from attrs import define

from posd import __version__
from posd.errors import Unavailable
from posd.monitoring.health import Health
from posd.protocol import literals
from posd.web.http.dispatch import Reception
from posd.web.http.models import UNSET, Given, Moment, Unset
from posd.web.http.operations import ADMINS, ANYBODY_AT_TENANT, NOBODY, Ask, Operation, given
from posd.web.http.requests import Answer


class HealthGiven(Given, frozen=True):
    """`ok`, or `unavailable` with what is missing; `degraded` has what is done without."""

    status: str
    missing: list[str] | Unset = UNSET
    degraded: list[str] | Unset = UNSET


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


class TenantHealthGiven(Given, frozen=True):
    """`ok`, or `degraded` while the database is away. Tills read this shape as it is."""

    status: str
    tenant: str
    timestamp: Moment
    version: str


@define(eq=False)
class HealthEndpoints:
    """`/health/live`, `/health/ready`, the deployed `/health`, and each tenant's own.

    `counts` tells how many connections each tenant has, on all nodes.
    """

    health: Health
    reception: Reception
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
            self._at_tenant,
        )

    @property
    def _at_tenant(self) -> Operation:
        return Operation(
            "GET",
            "/api/{tenant}/health",
            self.at_tenant,
            "Whether a shop's tills and orders are served",
            ANYBODY_AT_TENANT,
            {200: TenantHealthGiven, 503: TenantHealthGiven},
            own_keys=True,
            description="While the database is away no key can be looked up, and any is taken.",
            tag="Health",
        )

    async def live(self, ask: Ask[None]) -> Answer:
        """The process answers."""
        return given(HealthGiven(status="ok"))

    async def ready(self, ask: Ask[None]) -> Answer:
        """It can take tills and orders; if not, 503 with what is missing.

        A node that only does without something stays in the load balancer: the others do so too.
        """
        missing, degraded = self.health.missing(), self.health.degraded() or UNSET
        if missing:
            answer = HealthGiven(status="unavailable", missing=missing, degraded=degraded)
            return given(answer, 503, {"Retry-After": "2"})
        return given(HealthGiven(status="ok", degraded=degraded))

    async def at_tenant(self, ask: Ask[None]) -> Answer:
        """Served by whether keys can be looked up; 503 to any key tells no more than `ready`."""
        slug = ask.path["tenant"]
        well = not {"database", "sequencer"} & {*self.health.missing()}
        try:
            await self.reception.admit(self._at_tenant, slug, ask.call)
        except Unavailable:
            well = False
        answer = TenantHealthGiven(
            status="ok" if well else "degraded",
            tenant=slug,
            timestamp=literals.timestamp(datetime.now(UTC)),
            version=__version__,
        )
        return given(answer) if well else given(answer, 503, {"Retry-After": "2"})

    async def deployed(self, ask: Ask[None]) -> Answer:
        counts = await self.counts()
        return given(
            DeployedHealthGiven(
                status="ok",
                service="WebSocket Server",
                connections=[ConnectionsGiven(tenant=slug, count=count) for slug, count in counts],
                timestamp=literals.timestamp(datetime.now(UTC)),
            )
        )
