"""posd from the first listener to the last commit: started in order, reloaded, stopped in order.

What a retry would not mend (a port that is taken, a schema that does not fit) ends the process with
one line and status 78 (EX_CONFIG), for which the systemd unit does not restart it. A database that
is away does not: posd stays, answers 503, and goes on by itself.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from posd.config import endpoints as endpoint_syntax
from posd.config.model import Config, Listener
from posd.daemon import readiness, systemd
from posd.daemon.accepting import Rests
from posd.daemon.reload import Reload
from posd.daemon.stopping import Stopping
from posd.daemon.wiring import Parts
from posd.errors import Refusal, SchemaError, StartError
from posd.events import phones, regions
from posd.monitoring import health, logs
from posd.security.certificate_watch import Renewal
from posd.security.server_tls import ServerTLS
from posd.security.validity import Validity
from posd.web.http.tls_endpoint import PlainEndpoint, TLSEndpoint

EX_CONFIG: Final = 78
# Twisted's fifty are soon full when a whole town's tills come back at once, and whoever finds no
# place tries again after one second, three, seven (tcp(7), tcp_syn_retries).
BACKLOG: Final = 4096
_NEW_OBJECTS: Final = 5_000
_DRAIN_SECONDS: Final = 5.0
_LISTENER_SECONDS: Final = 2.0
# For all parts together, of which each has its own bound; less than TimeoutStopSec= of the unit.
_STOP_SECONDS: Final = 30.0
_LAST_RESORT_SECONDS: Final = 40.0
_STATUS_SECONDS: Final = 0.5
_RESUMED_SECONDS: Final = 5.0
"""How long a part has to be found stalled. After a machine was suspended, all are for a moment."""
_USED_SECONDS: Final = 60.0
_RECHECK_SECONDS: Final = 1.0
_MEETING_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.02
_EXTENSION_USEC: Final = 30_000_000


class Daemon(Service):
    """A posd with its listeners, its signals and its service manager."""

    _log = Logger()

    def __init__(
        self, reactor: Any, path: Path, settings: Config, environ: Mapping[str, str]
    ) -> None:
        self._reactor = reactor
        self._environ = environ
        self._observer = logs.LogObserver(
            level=settings.logging.level, format_name=settings.logging.format
        )
        self._tls = ServerTLS(settings.tls) if any(each.tls for each in settings.listen) else None
        self._renewal = None if self._tls is None else Renewal(reactor, self._tls)
        self._notifier = systemd.Notifier(environ)
        self._timers = {
            LoopingCall(self._tell_status): _STATUS_SECONDS,
            LoopingCall(self._note_used): _USED_SECONDS,
        }
        self._watchdog: Service | None = None
        self._ports: list[IListeningPort] = []
        self._ready = False
        self._failed = False
        self._is_process = False
        self._stalled: list[str] = []
        self._stalled_since: float | None = None
        self._status = ""
        self._parts = Parts(reactor, settings, self._certificate, self._reload_failed)
        self._reloaded = Reload(path, environ, settings, self._tls, self._apply)

    def setServiceParent(self, parent: Any) -> None:
        """[logging] decides how the log looks, under twistd without any option of its own."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        Service.setServiceParent(self, parent)

    def startService(self) -> None:
        # Before anybody waits: nothing on a request's path may read a file.
        phones.load()
        regions.load()
        # A full collection looks at every object and stops all connections meanwhile: up to 59 ms,
        # measured, of which almost all went to modules and tables that live as long as the process.
        gc.collect()
        gc.freeze()
        # A collection is due after so many more objects than were freed, not after 700. While batches
        # are published, collections take 2 % of the processor then instead of 5 %.
        gc.set_threshold(_NEW_OBJECTS)
        Service.startService(self)
        self._reactor.callWhenRunning(self._take_signals)
        self._parts.start()
        if self._renewal is not None:
            self._reactor.callWhenRunning(self._renewal.startService)
        for timer, seconds in self._timers.items():
            timer.clock = self._reactor
            timer.start(seconds, now=False)
        interval = systemd.watchdog_interval(self._environ)
        if interval is not None:
            self._watchdog = systemd.Watchdog(
                self._reactor, self._notifier, interval, self._is_alive
            )
            self._watchdog.startService()
        # twist begins to log only then, and what is critical before that it prints and logs.
        self._reactor.callWhenRunning(self._begin)

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    def _begin(self) -> None:
        started = Deferred.fromCoroutine(self._start())
        started.addErrback(lambda failure: self._fail(failure.getErrorMessage()))

    async def _start(self) -> None:
        inherited = systemd.inherited_endpoints(self._reactor, self._environ)
        if inherited:
            await self._meet_database()
        if not self.running:
            return
        for listener in self._parts.settings.listen:
            try:
                await self._listen(listener, inherited.pop(listener.name, ()))
            except Exception as error:
                # Whatever an endpoint has to say: without its listener posd would be deaf.
                self._fail(f"cannot listen on {listener.name!r} ({listener.endpoint}): {error}")
                return
        for name in inherited:
            self._log.warn("no listener is called {name}, as an inherited socket is", name=name)
        self._parts.listening = True
        try:
            await self._check_schema()
        except SchemaError as error:
            self._fail(str(error))

    async def _meet_database(self) -> None:
        """Give the first connection a moment, so that who waited at a kept socket gets no 503."""
        database, until = self._parts.database, self._reactor.seconds() + _MEETING_SECONDS
        while not (database.up or database.trouble) and self._reactor.seconds() < until:
            await deferLater(self._reactor, _LOOK_SECONDS)

    async def _check_schema(self) -> None:
        """Wait for the database, and see that it is one for posd."""
        while self.running:
            try:
                await health.check_schema(self._parts.database)
            except Refusal:
                # It went away again.
                await deferLater(self._reactor, _RECHECK_SECONDS)
            else:
                self._parts.fitting = True
                return

    async def _stop(self) -> None:
        """Close the listeners, then stop all parts in order, within a bounded time."""
        stopping = Stopping(self._reactor, _STOP_SECONDS)
        if self._is_process:
            stopping.end_anyway(_LAST_RESORT_SECONDS, os.EX_SOFTWARE)
        began, tills = self._reactor.seconds(), len(self._parts.exchange)
        self._notifier.stopping()
        for timer in self._timers:
            if timer.running:
                timer.stop()
        self._say(f"stopping, {tills} terminals are sent home")
        for port in self._ports:
            await stopping.part("a listener", _LISTENER_SECONDS, port.stopListening)
        if self._renewal is not None and self._renewal.running:
            self._renewal.stopService()
        await self._parts.stop(stopping, _DRAIN_SECONDS)
        self._log.info(
            "stopped in {seconds:.1f} s, with {tills} terminals that were sent home",
            seconds=self._reactor.seconds() - began,
            tills=tills,
        )
        if self._watchdog is not None:
            self._watchdog.stopService()

    async def _listen(
        self, listener: Listener, inherited: tuple[IStreamServerEndpoint, ...]
    ) -> None:
        """Listen where the configuration says, or on the sockets that were handed to us instead."""
        site = self._parts.site(listener)
        description = endpoint_syntax.with_backlog(listener.endpoint, BACKLOG)
        endpoints = inherited or (serverFromString(self._reactor, description),)
        turns = self._parts.input_turns
        for endpoint in endpoints:
            if listener.tls and self._tls is not None:
                paced: IStreamServerEndpoint = TLSEndpoint(
                    self._tls, endpoint, turns, listener.proxies
                )
            else:
                paced = PlainEndpoint(endpoint, turns)
            port = await paced.listen(site)
            self._ports.append(port)
            Rests(self._reactor, port)
            if listener.trusted and not is_local(port.getHost()):
                raise StartError("others can reach it, so it cannot be trusted")
            address = port.getHost()
            self._log.info("listening: {name} {address}", name=listener.name, address=address)

    def _certificate(self) -> Validity | None:
        return None if self._tls is None else self._tls.validity

    def _reload_failed(self) -> bool:
        refused = self._renewal is not None and self._renewal.refused
        return refused or bool(self._reloaded.trouble)

    def _is_alive(self) -> bool:
        """Whether the watchdog may be fed: a loop that makes no attempts any more needs a restart."""
        return not self._found_stalled()

    def _found_stalled(self) -> list[str]:
        """The parts that are stalled, if some were for long enough that the reactor could run them."""
        stalled, now = readiness.stalled(self._parts), self._reactor.seconds()
        if not stalled:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        since = self._stalled_since
        return stalled if since is not None and now - since >= _RESUMED_SECONDS else []

    def _look_for_stalled(self) -> None:
        stalled = self._found_stalled()
        if stalled and stalled != self._stalled:
            self._log.critical(
                "no attempt for a minute: {parts}; posd is not ready; {remedy}",
                parts=", ".join(stalled),
                remedy="restart it" if self._watchdog is None else "systemd restarts it",
            )
        self._stalled = stalled

    def _tell_status(self) -> None:
        self._look_for_stalled()
        missing = self._parts.health.missing()
        if not missing:
            if not self._ready:
                self._ready = True
                self._notifier.ready()
            self._say(f"{len(self._parts.exchange)} terminals connected", *self._troubles())
            return
        trouble = self._parts.database.trouble or "starting"
        self._say(f"waiting for {', '.join(missing)}: {trouble}", *self._troubles())
        if not self._ready:
            self._notifier.extend_timeout(_EXTENSION_USEC)

    def _troubles(self) -> Iterator[str]:
        """What posd does its work with, and somebody has to see to all the same."""
        if degraded := self._parts.health.degraded():
            yield f"degraded: {', '.join(degraded)}"
        if self._reloaded.trouble:
            yield f"not reloaded: {self._reloaded.trouble}"
        if self._renewal is not None and self._renewal.trouble:
            yield self._renewal.trouble

    def _say(self, *news: str) -> None:
        status = "; ".join(news)
        if status != self._status:
            self._status = status
            self._notifier.status(status)

    async def _note_used(self) -> None:
        try:
            await self._parts.authenticator.note_used()
        except Refusal:
            return
        except Exception:
            self._log.failure("it could not be noted which keys were used")

    def _take_signals(self) -> None:
        """SIGTERM is a clean stop, status 0; Twisted's own handler would end by the signal again."""
        self._is_process = True
        stop = partial(self._reactor.callFromThread, self._end)
        signal.signal(signal.SIGTERM, lambda *_: stop())
        reload = partial(self._reactor.callFromThread, self._reload)
        signal.signal(signal.SIGHUP, lambda *_: reload())

    def _reload(self) -> None:
        """Read configuration and certificates again, as systemd wants to be told of it."""
        if not self.running:
            return
        # Before the first READY=1, another one would say that the start is over.
        if self._ready:
            self._notifier.reloading(time.monotonic_ns() // 1000)
        try:
            self._reloaded.again()
            if self._renewal is not None:
                self._renewal.look()
        except Exception:
            self._log.failure("the reload has failed")
        self._tell_status()
        if self._ready:
            self._notifier.ready()

    def _apply(self, settings: Config) -> None:
        self._observer.configure(level=settings.logging.level, format_name=settings.logging.format)
        self._parts.apply(settings)

    def _fail(self, message: str) -> None:
        """End the process in order, with one line and a status that says so."""
        if self._failed:
            return
        self._failed = True
        self._log.critical("{message}", message=message)
        atexit.register(_exit_config)
        self._end()

    def _end(self) -> None:
        if self.running:
            self._reactor.stop()


def is_local(address: object) -> bool:
    """Whether only this machine can reach what listens here."""
    if isinstance(address, UNIXAddress):
        return True
    host = getattr(address, "host", "")
    return bool(host) and ip_address(host).is_loopback


def _exit_config() -> None:
    """twistd would exit with 0: to it the reactor was stopped, and that is all.

    Only once it has cleared up behind itself, its file with the process id above all.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EX_CONFIG)
