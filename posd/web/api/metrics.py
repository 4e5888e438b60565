"""`GET /metrics`: the metrics for Prometheus."""

from __future__ import annotations

from attrs import define

from posd.monitoring.exposition import CONTENT_TYPE, MetricsExposition
from posd.web.http.operations import ADMINS, Operation, Request
from posd.web.http.responses import PreparedText, Response


@define(eq=False)
class MetricsEndpoint:
    """The endpoint. While the database is unavailable, it answers without the metrics from the database."""

    metrics: MetricsExposition

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/metrics",
                self.scrape,
                "Read metrics for Prometheus",
                ADMINS,
                {200: "Metrics in the text format of Prometheus."},
                trusted=True,
                description=(
                    "The metrics of this node. While the database is unavailable, "
                    "`posd_database_up` is 0, and the metrics that are read from the "
                    "database are left out."
                ),
                tag="Health",
                media_type="text/plain",
            ),
        )

    async def scrape(self, request: Request[None]) -> Response:
        return PreparedText({}, text=await self.metrics.text(), content_type=CONTENT_TYPE)
