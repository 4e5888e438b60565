"""`twistd posd` and `twist posd`: the one place that knows every concrete class.

`makeService` puts the parts together; `Daemon` starts them in order and stops them in order. What
a retry would not mend (the configuration, a certificate, a port that is taken, a schema that does
not fit) ends the process with one line and status 78 (EX_CONFIG), for which the systemd unit does
not restart it. A database that is away does not: posd stays, answers 503, and goes on by itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn
from uuid import uuid4

from attrs import define, field
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString, wrapServerTLS
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.usage import Options as UsageOptions

from posd import __version__, config, health, logs, systemd
from posd.auth import Authenticator
from posd.config import Config, Listener
from posd.database import Database
from posd.errors import ConfigError, Refusal, SchemaError, StartError
from posd.exchange import Exchange
from posd.feed import Feed
from posd.health import Health
from posd.limits import Connections, FailedAttempts
from posd.link import Link
from posd.presence import Presence
from posd.sequencer import Sequencer
from posd.store import stream
from posd.tls import ServerTLS
from posd.web.admission import Gate
from posd.web.health import HealthEndpoints
from posd.web.publishing import Publisher
from posd.web.render import Door
from posd.web.site import BoundedSite
from posd.web.tree import Rooms, tree
from posd.ws import TillFactory

EX_CONFIG: Final = 78
_DEFAULT_CONFIG: Final = "/etc/posd/posd.toml"
_DRAIN_SECONDS: Final = 5.0
_STATUS_SECONDS: Final = 0.5
_EXTENSION_USEC: Final = 30_000_000
# Connections that have not become a till's yet: handshakes and REST calls.
_SPARE_CHANNELS: Final = 2000

_log = Logger()


class Options(UsageOptions):
    """The command line of `twistd posd`."""

    synopsis = "[--config FILE]"
    longdesc = "Delivers a restaurant's online orders to its tills, at once, every one, in order."
    optParameters = [["config", "c", None, f"The configuration ($POSD_CONFIG, {_DEFAULT_CONFIG})."]]

    def opt_version(self) -> None:
        """Print posd's version and exit."""
        print(f"posd {__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        path = Path(self["config"] or os.environ.get("POSD_CONFIG") or _DEFAULT_CONFIG)
        self["path"] = path
        try:
            self["loaded"] = config.load(path, os.environ)
        except ConfigError as error:
            _give_up(str(error))


def makeService(options: Options) -> IService:
    """Put the daemon together. Ends the process if a certificate cannot be used."""
    from twisted.internet import reactor

    try:
        return Daemon(reactor, options["path"], options["loaded"], os.environ)
    except StartError as error:
        _give_up(str(error))


@define(eq=False)
class Parts:
    """Everything that makes up a running posd, wired."""

    reactor: Any
    settings: Config
    database: Database = field(init=False)
    presence: Presence = field(init=False)
    exchange: Exchange = field(init=False)
    numbering: Link = field(init=False)
    sequencer: Sequencer = field(init=False)
    failed_attempts: FailedAttempts = field(init=False)
    authenticator: Authenticator = field(init=False)
    connections: Connections = field(init=False)
    feed: Feed = field(init=False)
    publisher: Publisher = field(init=False)
    health: Health = field(init=False)

    def __attrs_post_init__(self) -> None:
        reactor, limits, node_id = self.reactor, self.settings.limits, uuid4()
        dsn, timeout = self.settings.database.dsn, self.settings.database.statement_timeout
        self.database = Database(
            reactor, dsn, size=self.settings.database.pool_size, statement_timeout=timeout
        )
        self.presence = Presence(reactor, self.database, node_id)
        self.exchange = Exchange(
            reactor,
            self.database,
            self.presence,
            heartbeat=self.settings.delivery.heartbeat,
            outbox_bytes=self.settings.delivery.outbox_bytes,
            outbox_total=limits.outbox_total,
        )
        # Before anything is numbered on a connection, it is looked whose database that is now.
        self.numbering = Link(
            reactor,
            dsn,
            name="posd sequencer",
            statement_timeout=timeout,
            prepare=_recognise,
        )
        self.sequencer = Sequencer(
            reactor,
            self.numbering,
            node_id,
            event_bytes=limits.event_bytes,
            connections_here=self.exchange.connections,
        )
        self.failed_attempts = FailedAttempts(limits.failed_auth_per_minute, reactor.seconds)
        self.authenticator = Authenticator(reactor, self.database, self.failed_attempts)
        self.connections = Connections(limits.connections, limits.connections_per_tenant)
        self.feed = Feed(
            reactor,
            self.database,
            dsn,
            node_id,
            statement_timeout=timeout,
            numbering=self.sequencer,
            delivery=self.exchange,
            cache=self.authenticator,
        )
        self.publisher = Publisher(
            self.authenticator,
            self.sequencer,
            self.database,
            limits.publish_per_second_per_tenant,
            reactor.seconds,
        )
        self.health = Health(
            {
                "database": lambda: self.database.up,
                "feed": lambda: self.feed.up,
                "sequencer": lambda: self.numbering.up,
                "not draining": lambda: not self.exchange.draining,
            }
        )

    def site(self, listener: Listener) -> BoundedSite:
        """What one listener serves."""
        gate = Gate(
            self.authenticator,
            self.exchange,
            self.connections,
            TillFactory(self.exchange, self.reactor),
        )
        rooms = Rooms(
            gate, self.publisher, HealthEndpoints(self.health, self.authenticator, self.database)
        )
        door = Door(listener.trusted, listener.proxies)
        return BoundedSite(tree(door, rooms), self.reactor, _SPARE_CHANNELS)

    def apply(self, settings: Config) -> None:
        """Put new limits in force; everything else of the configuration needs a restart."""
        limits = settings.limits
        self.failed_attempts.per_minute = limits.failed_auth_per_minute
        self.connections.total = limits.connections
        self.connections.per_tenant = limits.connections_per_tenant
        self.publisher.per_second = limits.publish_per_second_per_tenant
        self.settings = settings


class Daemon(Service):
    """posd, from the first listener to the last commit."""

    def __init__(
        self, reactor: Any, path: Path, settings: Config, environ: Mapping[str, str]
    ) -> None:
        self._reactor = reactor
        self._path = path
        self._environ = environ
        self._observer = logs.LogObserver(
            level=settings.logging.level, format_name=settings.logging.format
        )
        self._tls = ServerTLS(settings.tls) if any(each.tls for each in settings.listen) else None
        self._notifier = systemd.Notifier(environ)
        self._timers = {
            LoopingCall(self._tell_status): _STATUS_SECONDS,
            LoopingCall(self._note_used): 60.0,
        }
        self._watchdog: Service | None = None
        self._ports: list[IListeningPort] = []
        self._ready = False
        self._status = ""
        self.parts = Parts(reactor, settings)

    def setServiceParent(self, parent: Any) -> None:
        """[logging] decides how the log looks, under twistd without any option of its own."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        Service.setServiceParent(self, parent)

    def startService(self) -> None:
        Service.startService(self)
        self._reactor.callWhenRunning(self._take_signals)
        parts = self.parts
        for part in (
            parts.database,
            parts.presence,
            parts.exchange,
            parts.numbering,
            parts.sequencer,
            parts.feed,
        ):
            part.startService()
        for timer, seconds in self._timers.items():
            timer.clock = self._reactor
            timer.start(seconds, now=False)
        interval = systemd.watchdog_interval(self._environ)
        if interval is not None:
            self._watchdog = systemd.Watchdog(self._reactor, self._notifier, interval)
            self._watchdog.startService()
        started = Deferred.fromCoroutine(self._start())
        started.addErrback(lambda failure: self._fail(failure.getErrorMessage()))

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        for listener in self.parts.settings.listen:
            try:
                self._ports += await self._listen(listener)
            except Exception as error:
                # Whatever an endpoint has to say: without its listener posd would be deaf.
                self._fail(f"cannot listen on {listener.name!r} ({listener.endpoint}): {error}")
                return
        await self.parts.database.when_up()
        try:
            await health.check_schema(self.parts.database)
        except SchemaError as error:
            self._fail(str(error))
        except Refusal:
            # It went away again. A schema that does not fit shows with the first tenant.
            return

    async def _stop(self) -> None:
        """Nobody new; tills sent home; what was accepted is committed; the books closed."""
        self._notifier.stopping()
        parts = self.parts
        for port in self._ports:
            await _finished(port.stopListening())
        for timer in self._timers:
            if timer.running:
                timer.stop()
        await parts.exchange.drain(_DRAIN_SECONDS)
        await parts.sequencer.stopService()
        parts.exchange.stopService()
        await parts.presence.stopService()
        await parts.feed.stopService()
        await parts.numbering.stopService()
        await parts.database.stopService()
        if self._watchdog is not None:
            self._watchdog.stopService()

    async def _listen(self, listener: Listener) -> list[IListeningPort]:
        inherited = systemd.inherited_endpoints(self._reactor, self._environ)
        endpoints: tuple[IStreamServerEndpoint, ...] = inherited.get(listener.name) or (
            serverFromString(self._reactor, listener.endpoint),
        )
        ports = []
        site = self.parts.site(listener)
        for endpoint in endpoints:
            if listener.tls and self._tls is not None:
                endpoint = wrapServerTLS(self._tls, endpoint)
            port = await endpoint.listen(site)
            _log.info("listening: {name} {address}", name=listener.name, address=port.getHost())
            ports.append(port)
        return ports

    def _tell_status(self) -> None:
        missing = self.parts.health.missing()
        if not missing:
            if not self._ready:
                self._ready = True
                self._notifier.ready()
            self._say(f"{len(self.parts.exchange)} terminals connected")
            return
        trouble = self.parts.database.trouble or "starting"
        self._say(f"waiting for {', '.join(missing)}: {trouble}")
        if not self._ready:
            self._notifier.extend_timeout(_EXTENSION_USEC)

    def _say(self, status: str) -> None:
        if status != self._status:
            self._status = status
            self._notifier.status(status)

    def _note_used(self) -> Deferred[None]:
        noted = Deferred.fromCoroutine(self.parts.authenticator.note_used())
        return noted.addErrback(lambda failure: failure.trap(Refusal) and None)

    def _take_signals(self) -> None:
        """SIGTERM is a clean stop, status 0; Twisted's own handler would end by the signal again."""
        stop = partial(self._reactor.callFromThread, self._reactor.stop)
        signal.signal(signal.SIGTERM, lambda *_: stop())
        reload = partial(self._reactor.callFromThread, self._reload)
        signal.signal(signal.SIGHUP, lambda *_: reload())

    def _reload(self) -> None:
        """Read configuration and certificates again. What cannot be used changes nothing."""
        self._notifier.reloading(int(self._reactor.seconds() * 1_000_000))
        try:
            settings = config.load(self._path, self._environ)
            if self._tls is not None:
                self._tls.reload(settings.tls)
        except (ConfigError, StartError) as error:
            _log.error("not reloaded, the old state stays in force: {error}", error=str(error))
        else:
            self._observer.configure(
                level=settings.logging.level, format_name=settings.logging.format
            )
            self.parts.apply(settings)
            _log.info("reloaded {path}", path=str(self._path))
        self._notifier.ready()

    def _fail(self, message: str) -> None:
        """End the process in order, with one line and a status that says so."""
        print(f"posd: {message}", file=sys.stderr)
        self._reactor.addSystemEventTrigger("after", "shutdown", _exit_config)
        self._reactor.callWhenRunning(self._reactor.stop)


def _give_up(message: str) -> NoReturn:
    for line in message.splitlines():
        print(f"posd: {line}", file=sys.stderr)
    sys.exit(EX_CONFIG)


def _exit_config() -> None:
    """twistd would exit with 0: to it the reactor was stopped, and that is all."""
    sys.stderr.flush()
    os._exit(EX_CONFIG)


async def _recognise(session: Any) -> None:
    if not await stream.recognise(session):
        _log.warn("this is another database than before; every stream has a new name")


async def _finished(stopping: Any) -> None:
    if isinstance(stopping, Deferred):
        await stopping
