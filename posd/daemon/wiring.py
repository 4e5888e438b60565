"""Creates the objects of a running posd and connects them. No other module knows all classes."""

from __future__ import annotations

from collections.abc import Callable
from socket import gethostname
from typing import Any, Final
from uuid import uuid4

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from posd.config.model import Config, ListenerConfig
from posd.daemon import readiness
from posd.daemon.gauges import Gauges
from posd.daemon.operations import operations
from posd.daemon.shutdown import Shutdown
from posd.database.dsn import with_reader_user
from posd.database.pool import Pool
from posd.database.reconnecting import Executor, ReconnectingConnection
from posd.database.shop_readers import ShopReaders
from posd.delivery.channels import is_set_back
from posd.delivery.feed import Feed
from posd.delivery.hub import Hub
from posd.delivery.long_poll import LongPolling
from posd.delivery.presence import Presence
from posd.errors import Unavailable
from posd.events.orders import FINAL_STATUSES
from posd.maintenance.retention import Retention
from posd.monitoring.counters import Counters
from posd.monitoring.exposition import MetricsExposition
from posd.monitoring.health import Health
from posd.monitoring.reactor_lag import ReactorLag
from posd.monitoring.tenant_survey import TenantSurvey
from posd.publishing.bell import Bell
from posd.publishing.doorman import Doorman
from posd.publishing.sequencer import Sequencer
from posd.security.auth import Authenticator
from posd.security.connection_limits import ConnectionLimits
from posd.security.handshakes import HandshakeRates
from posd.security.key_index import KeyIndex
from posd.security.rate_limits import FailedAttempts
from posd.security.request_rates import RequestRates
from posd.security.validity import Validity
from posd.store import epochs, stream, survey
from posd.store import stream_status as standing
from posd.values import Tenant
from posd.web.admission import AdmissionCheck, WebSocketAdmission
from posd.web.api.events import EventEndpoints
from posd.web.api.loyalty import LoyaltyEndpoints
from posd.web.api.publishing import PublishingEndpoints
from posd.web.api.status import StatusEndpoints
from posd.web.http.dispatch import Dispatcher
from posd.web.http.http_request import UNKNOWN_OPERATION, ListenerContext
from posd.web.http.input_turns import InputTurns
from posd.web.http.long_answers import UnsentAnswers
from posd.web.http.operations import Operation
from posd.web.http.rate_gate import RateGate
from posd.web.http.refusal_log import RefusalLog
from posd.web.http.request_turns import RequestTurns
from posd.web.http.router import RootResource, Routes
from posd.web.http.site import BoundedSite
from posd.web.http.wrong_protocol import WrongProtocols
from posd.web.websocket import TillFactory

# Connections that carry handshakes and REST requests. A WebSocket of a till is not counted.
_MOST_HTTP_CHANNELS: Final = 2000
_PART_SECONDS: Final = 5.0
"""The time in which a part must stop: the default of database.statement_timeout."""

_LEASE_SECONDS: Final = 1.0

_log = Logger()


@define(eq=False)
class Application:
    """The parts of a posd, created from a configuration in the order of their dependencies."""

    reactor: Any
    settings: Config
    certificate: Callable[[], Validity | None] = lambda: None
    """Returns the validity of the certificate for new connections, or None without TLS."""
    reload_failed: Callable[[], bool] = lambda: False
    """Returns whether the last new configuration or certificate was unusable."""
    listening: bool = field(default=False, init=False)
    """Whether all listeners are open."""
    schema_fits: bool = field(default=False, init=False)
    """Whether the main schema has been checked and has the version of this posd."""
    counters: Counters = field(factory=Counters, init=False)
    database: Pool = field(init=False)
    presence: Presence = field(init=False)
    hub: Hub = field(init=False)
    numbering: ReconnectingConnection = field(init=False)
    readers: ShopReaders = field(init=False)
    doorman: Doorman = field(init=False)
    bell: Bell = field(init=False)
    sequencer: Sequencer = field(init=False)
    failed_attempts: FailedAttempts = field(init=False)
    key_index: KeyIndex = field(init=False)
    authenticator: Authenticator = field(init=False)
    rates: RequestRates = field(init=False)
    input_turns: InputTurns = field(init=False)
    connections: ConnectionLimits = field(init=False)
    admission: AdmissionCheck = field(init=False)
    events: EventEndpoints = field(init=False)
    feed: Feed = field(init=False)
    retention: Retention = field(init=False)
    dispatcher: Dispatcher = field(init=False)
    publishing_endpoints: PublishingEndpoints = field(init=False)
    refusal_log: RefusalLog = field(init=False)
    wrong_protocols: WrongProtocols = field(init=False)
    reactor_lag: ReactorLag = field(init=False)
    status_endpoints: StatusEndpoints = field(init=False)
    health: Health = field(init=False)
    unsent: UnsentAnswers = field(init=False)
    loyalty: LoyaltyEndpoints = field(init=False)

    def __attrs_post_init__(self) -> None:
        reactor, limits, node_id = self.reactor, self.settings.limits, uuid4()
        dsn, timeout = self.settings.database.dsn, self.settings.database.statement_timeout
        self.database = Pool(
            reactor,
            dsn,
            size=self.settings.database.pool_size,
            statement_timeout=timeout,
            waited=self.counters.waited,
        )
        self.presence = Presence(reactor, self.database, node_id)
        self.hub = Hub(
            reactor,
            self.database,
            self.presence,
            heartbeat=self.settings.delivery.heartbeat,
            send_queue_bytes=self.settings.delivery.send_queue_bytes,
            send_queue_total=limits.send_queue_total,
            counters=self.counters,
        )
        # A new connection may lead to another database, so `_identify_database` runs before numbering.
        self.numbering = ReconnectingConnection(
            reactor,
            dsn,
            name="posd sequencer",
            statement_timeout=timeout,
            prepare=self._identify_database,
            changed=lambda connection: self.doorman.connection_changed(connection),
            retries=self.database.retries,
        )
        self.doorman = Doorman(
            reactor,
            self.numbering,
            node_id,
            gethostname(),
            changed=self._doorman_changed,
            counters=self.counters,
        )
        self.readers = ShopReaders(
            reactor,
            self.settings.database.reader_dsn or with_reader_user(dsn),
            self.database.retries,
        )
        self.sequencer = Sequencer(
            reactor,
            self.numbering,
            self.readers,
            node_id,
            event_bytes=limits.event_bytes,
            connections_here=self.hub.connections,
            appended=self.hub.channels.append,
            fence_lost=self.doorman.lease_lost,
            rows_seen=lambda rows: self.bell.rows_seen(rows),
            counters=self.counters,
        )
        self.bell = Bell(
            reactor,
            self.numbering,
            look=self.sequencer.look,
            wake=self.sequencer.wake,
            counters=self.counters,
        )
        self.failed_attempts = FailedAttempts(limits.failed_auth_per_minute, reactor.seconds)
        self.key_index = KeyIndex(reactor, self.database)
        self.authenticator = Authenticator(
            reactor,
            self.database,
            self.key_index,
            self.failed_attempts,
            self.counters.attempt_failed,
        )
        self.refusal_log = RefusalLog(reactor.seconds, self.counters.handshake_refused)
        self.wrong_protocols = WrongProtocols(reactor.seconds)
        self.reactor_lag = ReactorLag(reactor, self.counters.lagged)
        self.input_turns = InputTurns(reactor, HandshakeRates(reactor.seconds))
        self.rates = RequestRates(
            limits.requests_per_second_per_credential,
            limits.bytes_per_second_per_credential,
            limits.requests_per_second_per_address,
            reactor.seconds,
            self.counters.rate_limited,
        )
        self.connections = ConnectionLimits(limits.connections, limits.connections_per_tenant)
        self.admission = AdmissionCheck(self.hub, self.connections)
        polls = LongPolling(reactor, self.hub, self.connections, self.presence.write_pending)
        self.events = EventEndpoints(polls, self.admission, reactor)
        self.feed = Feed(
            reactor,
            self.database,
            dsn,
            node_id,
            statement_timeout=timeout,
            bell=self.bell,
            delivery=self.hub.channels,
            revoker=self.hub,
            cache=self.authenticator,
            clock=self.counters.clock,
        )
        self.retention = Retention(
            reactor, self.database, node_id, self.settings.delivery.retention
        )
        self.dispatcher = Dispatcher(
            self.authenticator,
            reactor.seconds,
            self.refusal_log,
            RequestTurns(reactor, self.counters.rate_limited),
        )
        self.publishing_endpoints = PublishingEndpoints(
            self.dispatcher,
            self.sequencer,
            limits.publish_per_second_per_tenant,
            reactor.seconds,
        )
        self.status_endpoints = StatusEndpoints(self._stream_report)
        self.unsent = UnsentAnswers(reactor, self.rates.charge_answer)
        self.loyalty = LoyaltyEndpoints(self.database, limits.points_per_day_per_till)
        self.health = readiness.health(self)

    async def _identify_database(self, executor: Executor) -> None:
        """Give the streams new ids if the database is not the one that this node has used.

        The fingerprint of the database changes when a standby is promoted or a dump is loaded. It does not
        change when an old data directory is restored. Then the heads of streams are behind the positions
        that this node has already delivered.
        """
        if not await epochs.is_same_history(executor):
            _log.warn(
                "the database is another one than before (a standby was promoted, or a backup was restored):"
                " all streams get a new id, and terminals continue unless events are lost"
            )
        # Read before the heads, because another node may number events in between, which are delivered here.
        delivered = self.hub.channels.delivered()
        heads = await stream.load_heads(executor, delivered)
        set_back = [each for each in heads if is_set_back(heads[each], delivered[each])]
        if set_back:
            _log.error(
                "the streams of tenants {ids} were set back (an old data directory was restored): they get a"
                " new id",
                ids=set_back,
            )
            await epochs.begin_new_history(executor, [heads[each] for each in set_back])
        self.hub.record_all_positions()

    def start(self) -> None:
        """Start all services. A service starts after those that it needs."""
        for part in (
            self.database,
            self.presence,
            self.hub,
            self.numbering,
            self.readers,
            self.sequencer,
            self.doorman,
            self.feed,
            self.retention,
            self.reactor_lag,
        ):
            part.startService()

    async def stop(self, shutdown: Shutdown, drain_seconds: float) -> None:
        """Disconnect the tills, commit accepted events, and stop all services.

        A service stops before those that it needs.
        """
        for name, seconds, stop_function in (
            ("the measurement of lag", _PART_SECONDS, self.reactor_lag.stopService),
            (
                "the drain of tills",
                2 * drain_seconds + _PART_SECONDS,
                lambda: self.hub.drain(drain_seconds),
            ),
            ("retention", _PART_SECONDS, self.retention.stopService),
            ("the sequencer", _PART_SECONDS, self.sequencer.stopService),
            # Another node takes a released lease within a second. An unreleased lease expires by itself.
            ("the lease of the doorman", _LEASE_SECONDS, self.doorman.stopService),
            ("the hub", _PART_SECONDS, self.hub.stopService),
            ("presence", _PART_SECONDS, self.presence.stopService),
            ("the feed", _PART_SECONDS, self.feed.stopService),
            ("the sequencer's connection", _PART_SECONDS, self.numbering.stopService),
            ("the connections that read shops' tables", _PART_SECONDS, self.readers.stopService),
            ("the pool of connections", _PART_SECONDS, self.database.stopService),
        ):
            await shutdown.stop_part(name, seconds, stop_function)

    def site(self, listener: ListenerConfig) -> BoundedSite:
        """Return the site of one listener."""
        websocket_admission = WebSocketAdmission(
            self.authenticator,
            self.admission,
            TillFactory(self.hub, self.rates, self.reactor),
            self.refusal_log,
        )
        routes = Routes(websocket_admission, self.dispatcher, self.operations)
        served = self.counters.served
        listener_context = ListenerContext(listener.trusted, listener.proxies, served, self.unsent)
        root = RootResource(listener_context, routes)
        return BoundedSite(
            root,
            self.reactor,
            _MOST_HTTP_CHANNELS,
            lambda status: served(UNKNOWN_OPERATION, status, 0.0),
            self.wrong_protocols.log_connection,
            root.body_bytes,
            RateGate(self.key_index, self.rates, listener_context),
        )

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations of the HTTP API."""
        return operations(
            authenticator=self.authenticator,
            database=self.database,
            events=self.events,
            health=self.health,
            loyalty=self.loyalty,
            metrics=self.metrics(),
            status_endpoints=self.status_endpoints,
            presence=self.presence,
            publishing_endpoints=self.publishing_endpoints,
            dispatcher=self.dispatcher,
            sequencer=self.sequencer,
        )

    def metrics(self) -> MetricsExposition:
        """Return the metrics for Prometheus."""
        gauges = Gauges(
            health=self.health,
            hub=self.hub,
            connections=self.connections,
            sequencer=self.sequencer,
            database=self.database,
            doorman=self.doorman,
            feed=self.feed,
            clock=self.counters.clock,
            send_queue_limit=lambda: self.settings.limits.send_queue_total,
            certificate=self.certificate,
            reload_failed=self.reload_failed,
        )
        tenant_survey = TenantSurvey(
            lambda most: survey.survey_tenants(self.database, most, FINAL_STATUSES), self.reactor
        )
        registry = self.counters.registry
        return MetricsExposition(
            gauges.readings(), registry, self.hub.counts, tenant_survey.families
        )

    def apply(self, settings: Config) -> None:
        """Apply new limits and delivery settings, and check all keys in the database again."""
        limits, delivery = settings.limits, settings.delivery
        self.hub.reconfigure(
            heartbeat=delivery.heartbeat,
            send_queue_bytes=delivery.send_queue_bytes,
            send_queue_total=limits.send_queue_total,
        )
        self.sequencer.event_bytes = limits.event_bytes
        self.failed_attempts.per_minute = limits.failed_auth_per_minute
        self.connections.total = limits.connections
        self.connections.per_tenant = limits.connections_per_tenant
        self.rates.requests_per_credential = limits.requests_per_second_per_credential
        self.rates.bytes_per_credential = limits.bytes_per_second_per_credential
        self.rates.requests_per_address = limits.requests_per_second_per_address
        self.publishing_endpoints.per_second = limits.publish_per_second_per_tenant
        self.loyalty.points_per_day = limits.points_per_day_per_till
        self.retention.seconds = delivery.retention
        self.settings = settings
        self.authenticator.forget_all()
        Deferred.fromCoroutine(self._recheck())

    async def _recheck(self) -> None:
        try:
            await self.hub.recheck()
        except Unavailable:
            # The feed checks the keys regularly, and logs that the database cannot be reached.
            return
        except Exception:
            _log.failure(
                "the keys of connected terminals could not be checked; the feed checks them again"
            )

    def _doorman_changed(self, fence: int | None) -> None:
        self.bell.stop()
        self.sequencer.fence = fence
        if fence is not None:
            self.bell.start()

    async def _stream_report(self, tenant: Tenant) -> standing.StreamReport | None:
        return await self.database.transaction(
            lambda executor: standing.tenant_report(executor, tenant), tenant=tenant.id
        )
