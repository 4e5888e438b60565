"""Everything that makes up a running posd, and how it is wired: the one place that knows every class."""

from __future__ import annotations

from collections.abc import Callable
from socket import gethostname
from typing import Any, Final
from uuid import uuid4

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from posd.config.model import Config, Listener
from posd.daemon import readiness
from posd.daemon.gauges import Gauges
from posd.daemon.operations import operations
from posd.daemon.stopping import Stopping
from posd.database.dsn import of_reader
from posd.database.link import Link, Session
from posd.database.pool import Database
from posd.database.readers import Readers
from posd.delivery.channels import is_set_back
from posd.delivery.feed import Feed
from posd.delivery.hub import Exchange
from posd.delivery.long_poll import Polls
from posd.delivery.presence import Presence
from posd.errors import Unavailable
from posd.events.orders import FINAL_STATUSES
from posd.maintenance.retention import Retention
from posd.monitoring.counters import Instruments
from posd.monitoring.exposition import Metrics
from posd.monitoring.health import Health
from posd.monitoring.reactor_lag import Lag
from posd.monitoring.tenant_survey import Survey
from posd.publishing.bell import Bell
from posd.publishing.doorman import Doorman
from posd.publishing.sequencer import Sequencer
from posd.security.auth import Authenticator
from posd.security.connection_limits import Connections
from posd.security.handshakes import HandshakeRates
from posd.security.key_index import KeyIndex
from posd.security.rate_limits import FailedAttempts
from posd.security.request_rates import RequestRates
from posd.security.validity import Validity
from posd.store import epochs, standing, stream, survey
from posd.values import Tenant
from posd.web.admission import Admission, Gate
from posd.web.api.events import Events
from posd.web.api.loyalty import LoyaltyPoints
from posd.web.api.publishing import Publisher
from posd.web.api.status import Monitor
from posd.web.http.call import UNKNOWN, Door
from posd.web.http.dispatch import Reception
from posd.web.http.input_turns import InputTurns
from posd.web.http.operations import Operation
from posd.web.http.rate_gate import RateGate
from posd.web.http.refusal_log import Strangers
from posd.web.http.router import Rooms, Root
from posd.web.http.site import BoundedSite
from posd.web.http.turns import RequestTurns
from posd.web.http.unsent import UnsentAnswers
from posd.web.http.wrong_protocol import WrongProtocols
from posd.web.websocket import TillFactory

# Connections that have not become a till's yet: handshakes and REST calls.
_SPARE_CHANNELS: Final = 2000
_PART_SECONDS: Final = 5.0
"""What a part has to end in: as long as a statement that is under way may take as installed."""

_LEASE_SECONDS: Final = 1.0

_log = Logger()


@define(eq=False)
class Parts:
    """The parts by name, made of a configuration in the order in which they need each other."""

    reactor: Any
    settings: Config
    certificate: Callable[[], Validity | None] = lambda: None
    """From when until when the certificate is valid that new connections get; None without TLS."""
    reload_failed: Callable[[], bool] = lambda: False
    """Whether new files were found, of the configuration or of certificates, that cannot be used."""
    listening: bool = field(default=False, init=False)
    """Whether all listeners are open."""
    fitting: bool = field(default=False, init=False)
    """Whether the main schema was found to be what this posd needs."""
    instruments: Instruments = field(factory=Instruments, init=False)
    database: Database = field(init=False)
    presence: Presence = field(init=False)
    exchange: Exchange = field(init=False)
    numbering: Link = field(init=False)
    readers: Readers = field(init=False)
    doorman: Doorman = field(init=False)
    bell: Bell = field(init=False)
    sequencer: Sequencer = field(init=False)
    failed_attempts: FailedAttempts = field(init=False)
    key_index: KeyIndex = field(init=False)
    authenticator: Authenticator = field(init=False)
    rates: RequestRates = field(init=False)
    input_turns: InputTurns = field(init=False)
    connections: Connections = field(init=False)
    admission: Admission = field(init=False)
    events: Events = field(init=False)
    feed: Feed = field(init=False)
    retention: Retention = field(init=False)
    reception: Reception = field(init=False)
    publisher: Publisher = field(init=False)
    strangers: Strangers = field(init=False)
    wrong_protocols: WrongProtocols = field(init=False)
    lag: Lag = field(init=False)
    monitor: Monitor = field(init=False)
    health: Health = field(init=False)
    unsent: UnsentAnswers = field(init=False)
    loyalty: LoyaltyPoints = field(init=False)

    def __attrs_post_init__(self) -> None:
        reactor, limits, node_id = self.reactor, self.settings.limits, uuid4()
        dsn, timeout = self.settings.database.dsn, self.settings.database.statement_timeout
        self.database = Database(
            reactor,
            dsn,
            size=self.settings.database.pool_size,
            statement_timeout=timeout,
            waited=self.instruments.waited,
        )
        self.presence = Presence(reactor, self.database, node_id)
        self.exchange = Exchange(
            reactor,
            self.database,
            self.presence,
            heartbeat=self.settings.delivery.heartbeat,
            send_queue_bytes=self.settings.delivery.send_queue_bytes,
            send_queue_total=limits.send_queue_total,
            instruments=self.instruments,
        )
        # Before anything is numbered on a connection, it is looked whose database that is now.
        self.numbering = Link(
            reactor,
            dsn,
            name="posd sequencer",
            statement_timeout=timeout,
            prepare=self._recognise,
            changed=lambda link: self.doorman.link_changed(link),
            retries=self.database.retries,
        )
        self.doorman = Doorman(
            reactor,
            self.numbering,
            node_id,
            gethostname(),
            changed=self._doorman_changed,
            instruments=self.instruments,
        )
        self.readers = Readers(
            reactor, self.settings.database.reader_dsn or of_reader(dsn), self.database.retries
        )
        self.sequencer = Sequencer(
            reactor,
            self.numbering,
            self.readers,
            node_id,
            event_bytes=limits.event_bytes,
            connections_here=self.exchange.connections,
            appended=self.exchange.channels.append,
            fence_lost=self.doorman.lost,
            saw=lambda rows: self.bell.saw(rows),
            instruments=self.instruments,
        )
        self.bell = Bell(
            reactor,
            self.numbering,
            look=self.sequencer.look,
            wake=self.sequencer.wake,
            instruments=self.instruments,
        )
        self.failed_attempts = FailedAttempts(limits.failed_auth_per_minute, reactor.seconds)
        self.key_index = KeyIndex(reactor, self.database)
        self.authenticator = Authenticator(
            reactor,
            self.database,
            self.key_index,
            self.failed_attempts,
            self.instruments.attempt_failed,
        )
        self.strangers = Strangers(reactor.seconds, self.instruments.handshake_refused)
        self.wrong_protocols = WrongProtocols(reactor.seconds)
        self.lag = Lag(reactor, self.instruments.lagged)
        self.input_turns = InputTurns(reactor, HandshakeRates(reactor.seconds))
        self.rates = RequestRates(
            limits.requests_per_second_per_credential,
            limits.bytes_per_second_per_credential,
            limits.requests_per_second_per_address,
            reactor.seconds,
            self.instruments.rate_limited,
        )
        self.connections = Connections(limits.connections, limits.connections_per_tenant)
        self.admission = Admission(self.exchange, self.connections)
        polls = Polls(reactor, self.exchange, self.connections, self.presence.settle)
        self.events = Events(polls, self.admission, reactor)
        self.feed = Feed(
            reactor,
            self.database,
            dsn,
            node_id,
            statement_timeout=timeout,
            bell=self.bell,
            delivery=self.exchange.channels,
            doorkeeper=self.exchange,
            cache=self.authenticator,
            clock=self.instruments.clock,
        )
        self.retention = Retention(
            reactor, self.database, node_id, self.settings.delivery.retention
        )
        self.reception = Reception(
            self.authenticator,
            reactor.seconds,
            self.strangers,
            RequestTurns(reactor, self.instruments.rate_limited),
        )
        self.publisher = Publisher(
            self.reception,
            self.sequencer,
            limits.publish_per_second_per_tenant,
            reactor.seconds,
        )
        self.monitor = Monitor(self._report)
        self.unsent = UnsentAnswers(reactor, self.rates.answered)
        self.loyalty = LoyaltyPoints(self.database, limits.points_per_day_per_till)
        self.health = readiness.health(self)

    async def _recognise(self, session: Session) -> None:
        """Name streams anew where the database is not the one that it was.

        Its fingerprint tells a backup that was promoted or loaded, but not a data directory that was
        put back; there the heads are behind what tills on this node were sent already.
        """
        if not await epochs.recognise(session):
            _log.warn(
                "this is another database than before (a standby was promoted, or a backup restored): all"
                " streams have a new name, and terminals go on as far as no events are lost"
            )
        # Noted before the heads are read: another node may number meanwhile, and we deliver that.
        delivered = self.exchange.channels.delivered()
        heads = await stream.heads(session, delivered)
        set_back = [each for each in heads if is_set_back(heads[each], delivered[each])]
        if set_back:
            _log.error("the streams of tenants {ids} were set back", ids=set_back)
            await epochs.set_back(session, [heads[each] for each in set_back])
        self.exchange.recall()

    def start(self) -> None:
        """Start all that runs by itself, what others need first."""
        for part in (
            self.database,
            self.presence,
            self.exchange,
            self.numbering,
            self.readers,
            self.sequencer,
            self.doorman,
            self.feed,
            self.retention,
            self.lag,
        ):
            part.startService()

    async def stop(self, stopping: Stopping, drain_seconds: float) -> None:
        """Send the tills home, commit what was accepted, close the books; what others need last."""
        for name, seconds, ending in (
            ("the measuring of lag", _PART_SECONDS, self.lag.stopService),
            (
                "the drain of tills",
                2 * drain_seconds + _PART_SECONDS,
                lambda: self.exchange.drain(drain_seconds),
            ),
            ("retention", _PART_SECONDS, self.retention.stopService),
            ("the sequencer", _PART_SECONDS, self.sequencer.stopService),
            # The next node takes the lease within a second. If it cannot be given up it lapses by itself.
            ("the lease of the doorman", _LEASE_SECONDS, self.doorman.stopService),
            ("the exchange", _PART_SECONDS, self.exchange.stopService),
            ("presence", _PART_SECONDS, self.presence.stopService),
            ("the feed", _PART_SECONDS, self.feed.stopService),
            ("the sequencer's connection", _PART_SECONDS, self.numbering.stopService),
            ("the connections that read shops' tables", _PART_SECONDS, self.readers.stopService),
            ("the pool of connections", _PART_SECONDS, self.database.stopService),
        ):
            await stopping.part(name, seconds, ending)

    def site(self, listener: Listener) -> BoundedSite:
        """What one listener serves."""
        gate = Gate(
            self.authenticator,
            self.admission,
            TillFactory(self.exchange, self.rates, self.reactor),
            self.strangers,
        )
        rooms = Rooms(gate, self.reception, self.operations)
        served = self.instruments.served
        door = Door(listener.trusted, listener.proxies, served, self.unsent)
        root = Root(door, rooms)
        return BoundedSite(
            root,
            self.reactor,
            _SPARE_CHANNELS,
            lambda status: served(UNKNOWN, status, 0.0),
            self.wrong_protocols.noticed,
            root.body_bytes,
            RateGate(self.key_index, self.rates, door),
        )

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All that can be asked by HTTP."""
        return operations(
            authenticator=self.authenticator,
            database=self.database,
            events=self.events,
            health=self.health,
            loyalty=self.loyalty,
            metrics=self.metrics(),
            monitor=self.monitor,
            presence=self.presence,
            publisher=self.publisher,
            reception=self.reception,
            sequencer=self.sequencer,
        )

    def metrics(self) -> Metrics:
        """What Prometheus is told."""
        gauges = Gauges(
            health=self.health,
            exchange=self.exchange,
            connections=self.connections,
            sequencer=self.sequencer,
            database=self.database,
            doorman=self.doorman,
            feed=self.feed,
            clock=self.instruments.clock,
            send_queue_limit=lambda: self.settings.limits.send_queue_total,
            certificate=self.certificate,
            reload_failed=self.reload_failed,
        )
        surveyed = Survey(
            lambda most: survey.survey(self.database, most, FINAL_STATUSES), self.reactor
        )
        counted = self.instruments.registry
        return Metrics(gauges.readings(), counted, self.exchange.counts, surveyed.families)

    def apply(self, settings: Config) -> None:
        """Put limits and delivery in force, and ask the database again what it thinks of every key."""
        limits, delivery = settings.limits, settings.delivery
        self.exchange.adjust(
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
        self.publisher.per_second = limits.publish_per_second_per_tenant
        self.loyalty.points_per_day = limits.points_per_day_per_till
        self.retention.seconds = delivery.retention
        self.settings = settings
        self.authenticator.forget_all()
        Deferred.fromCoroutine(self._recheck())

    async def _recheck(self) -> None:
        try:
            await self.exchange.recheck()
        except Unavailable:
            # The feed does the same regularly, and tells.
            return
        except Exception:
            _log.failure("it could not be looked whose keys have ended")

    def _doorman_changed(self, fence: int | None) -> None:
        self.bell.stop()
        self.sequencer.fence = fence
        if fence is not None:
            self.bell.start()

    async def _report(self, tenant: Tenant) -> standing.StreamReport | None:
        return await self.database.transaction(
            lambda session: standing.report(session, tenant), tenant=tenant.id
        )
