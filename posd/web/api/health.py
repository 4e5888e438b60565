"""Health checks: whether the process answers, whether it can serve tills, and the number of connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from attrs import define

from posd import __version__
from posd.errors import Unavailable
from posd.monitoring.health import Health
from posd.protocol import json_literals as literals
from posd.web.http.dispatch import Dispatcher
from posd.web.http.models import UNSET, Moment, ResponseModel, Unset
from posd.web.http.operations import (
    ADMINS,
    ANYBODY_AT_TENANT,
    NOBODY,
    Operation,
    Request,
    model_response,
)
from posd.web.http.responses import Response


class HealthResponse(ResponseModel, frozen=True):
    """`ok`, or `unavailable` with the `missing` parts; `degraded` has the parts that posd works
    without."""

    status: str
    missing: list[str] | Unset = UNSET
    degraded: list[str] | Unset = UNSET


class ConnectionsSummary(ResponseModel, frozen=True):
    """The number of connections of a tenant."""

    tenant: str
    count: int


class DeployedHealthResponse(ResponseModel, frozen=True):
    """The answer that existing monitoring polls, with the connections of all nodes."""

    status: str
    service: str
    connections: list[ConnectionsSummary]
    timestamp: Moment


class TenantHealthResponse(ResponseModel, frozen=True):
    """`ok`, or `degraded` while the database is unavailable. Existing tills read this answer."""

    status: str
    tenant: str
    timestamp: Moment
    version: str


@define(eq=False)
class HealthEndpoints:
    """`/health/live`, `/health/ready`, `/health` for existing monitoring, and the health of a tenant.

    `counts` reads the number of connections of each tenant, on all nodes.
    """

    health: Health
    dispatcher: Dispatcher
    counts: Callable[[], Awaitable[list[tuple[str, int]]]]

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/health/live",
                self.live,
                "Check that the process answers",
                NOBODY,
                {200: HealthResponse},
                tag="Health",
            ),
            Operation(
                "GET",
                "/health/ready",
                self.ready,
                "Check that posd can serve tills and orders",
                NOBODY,
                {200: HealthResponse, 503: HealthResponse},
                tag="Health",
            ),
            Operation(
                "GET",
                "/health",
                self.deployed,
                "Read the number of connections of each tenant",
                ADMINS,
                {200: DeployedHealthResponse},
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
            "Check that posd serves the tills and orders of a tenant",
            ANYBODY_AT_TENANT,
            {200: TenantHealthResponse, 503: TenantHealthResponse},
            checks_key_itself=True,
            description="While the database is unavailable, posd cannot check keys and "
            "accepts any key.",
            tag="Health",
        )

    async def live(self, request: Request[None]) -> Response:
        """Answer, to show that the process runs."""
        return model_response(HealthResponse(status="ok"))

    async def ready(self, request: Request[None]) -> Response:
        """Return whether posd can serve tills and orders; if not, 503 with the missing parts.

        A degraded node stays in the load balancer, because the other nodes are degraded too.
        """
        missing, degraded = self.health.missing(), self.health.degraded() or UNSET
        if missing:
            answer = HealthResponse(status="unavailable", missing=missing, degraded=degraded)
            return model_response(answer, 503, {"Retry-After": "2"})
        return model_response(HealthResponse(status="ok", degraded=degraded))

    async def at_tenant(self, request: Request[None]) -> Response:
        """Check the key and return the health of a tenant.

        While keys cannot be looked up, any key gets 503. That reveals no more than `/health/ready`.
        """
        slug = request.path["tenant"]
        well = not {"database", "sequencer"} & {*self.health.missing()}
        try:
            await self.dispatcher.admit(self._at_tenant, slug, request.http_request)
        except Unavailable:
            well = False
        answer = TenantHealthResponse(
            status="ok" if well else "degraded",
            tenant=slug,
            timestamp=literals.timestamp(datetime.now(UTC)),
            version=__version__,
        )
        return model_response(answer) if well else model_response(answer, 503, {"Retry-After": "2"})

    async def deployed(self, request: Request[None]) -> Response:
        counts = await self.counts()
        return model_response(
            DeployedHealthResponse(
                status="ok",
                service="WebSocket Server",
                connections=[
                    ConnectionsSummary(tenant=slug, count=count) for slug, count in counts
                ],
                timestamp=literals.timestamp(datetime.now(UTC)),
            )
        )
