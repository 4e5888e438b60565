"""What a running posd can be asked by HTTP: each operation, with the parts that it needs."""

from __future__ import annotations

from posd.database import migrations
from posd.database.pool import Database
from posd.delivery.presence import Presence
from posd.delivery.terminal_reports import Terminals
from posd.monitoring.exposition import Metrics
from posd.monitoring.health import Health
from posd.publishing.sequencer import Sequencer
from posd.security.auth import Authenticator
from posd.store import presence as books
from posd.web.api.events import Events
from posd.web.api.giftcards import GiftCards
from posd.web.api.health import HealthEndpoints
from posd.web.api.keys import OperatorKeys
from posd.web.api.loyalty import LoyaltyPoints
from posd.web.api.metrics import MetricsEndpoint
from posd.web.api.orders import Orders
from posd.web.api.pending import PendingOrders
from posd.web.api.publishing import Publisher
from posd.web.api.reports import DailyReports
from posd.web.api.status import Monitor
from posd.web.api.tenants import Operators
from posd.web.api.terminals import TerminalEndpoints
from posd.web.http.dispatch import Reception
from posd.web.http.operations import Operation
from posd.web.openapi.endpoints import Description


def operations(
    *,
    authenticator: Authenticator,
    database: Database,
    events: Events,
    health: Health,
    loyalty: LoyaltyPoints,
    metrics: Metrics,
    monitor: Monitor,
    presence: Presence,
    publisher: Publisher,
    reception: Reception,
    sequencer: Sequencer,
) -> tuple[Operation, ...]:
    """All operations, with those that describe the others."""
    terminals = TerminalEndpoints(authenticator, Terminals(database, presence, sequencer), database)
    described = (
        *publisher.operations,
        *events.operations,
        *Orders(publisher, database).operations,
        *PendingOrders(database).operations,
        *terminals.operations,
        *monitor.operations,
        *DailyReports(database).operations,
        *GiftCards(database).operations,
        *loyalty.operations,
        *Operators(database, migrations.expected()["tenant"]).operations,
        *OperatorKeys(database).operations,
        *HealthEndpoints(health, reception, lambda: books.counts(database)).operations,
        *MetricsEndpoint(metrics).operations,
    )
    return (*described, *Description(described).operations)
