"""Creates the operations of the HTTP API from the parts of a running posd."""

from __future__ import annotations

from posd.database import migrations
from posd.database.pool import Pool
from posd.delivery.presence import Presence
from posd.delivery.terminal_reports import TerminalReports
from posd.monitoring.exposition import MetricsExposition
from posd.monitoring.health import Health
from posd.publishing.sequencer import Sequencer
from posd.security.auth import Authenticator
from posd.store import presence as presence_store
from posd.web.api.events import EventEndpoints
from posd.web.api.giftcards import GiftCardEndpoints
from posd.web.api.health import HealthEndpoints
from posd.web.api.keys import KeyEndpoints
from posd.web.api.loyalty import LoyaltyEndpoints
from posd.web.api.metrics import MetricsEndpoint
from posd.web.api.orders import OrderEndpoints
from posd.web.api.pending import PendingEndpoints
from posd.web.api.publishing import PublishingEndpoints
from posd.web.api.reports import ReportEndpoints
from posd.web.api.status import StatusEndpoints
from posd.web.api.tenants import TenantEndpoints
from posd.web.api.terminals import TerminalEndpoints
from posd.web.http.dispatch import Dispatcher
from posd.web.http.operations import Operation
from posd.web.openapi.endpoints import Description


def operations(
    *,
    authenticator: Authenticator,
    database: Pool,
    events: EventEndpoints,
    health: Health,
    loyalty: LoyaltyEndpoints,
    metrics: MetricsExposition,
    status_endpoints: StatusEndpoints,
    presence: Presence,
    publishing_endpoints: PublishingEndpoints,
    dispatcher: Dispatcher,
    sequencer: Sequencer,
) -> tuple[Operation, ...]:
    """Return all operations, including those that describe the API."""
    terminals = TerminalEndpoints(
        authenticator, TerminalReports(database, presence, sequencer), database
    )
    described = (
        *publishing_endpoints.operations,
        *events.operations,
        *OrderEndpoints(publishing_endpoints, database).operations,
        *PendingEndpoints(database).operations,
        *terminals.operations,
        *status_endpoints.operations,
        *ReportEndpoints(database).operations,
        *GiftCardEndpoints(database).operations,
        *loyalty.operations,
        *TenantEndpoints(database, migrations.expected_files()["tenant"]).operations,
        *KeyEndpoints(database).operations,
        *HealthEndpoints(
            health, dispatcher, lambda: presence_store.count_by_tenant(database)
        ).operations,
        *MetricsEndpoint(metrics).operations,
    )
    return (*described, *Description(described).operations)
