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
from posd.config.model import Config, ListenerConfig
from posd.daemon import readiness, systemd
from posd.daemon.accept_pauses import AcceptPauses
from posd.daemon.reload import Reload
from posd.daemon.shutdown import Shutdown
from posd.daemon.wiring import Application
from posd.errors import Refusal, SchemaError, StartError
from posd.events import phones, regions
from posd.monitoring import health, logs
from posd.security.certificate_watch import CertificateWatch
from posd.security.server_tls import ServerTLS
from posd.security.validity import Validity
from posd.web.http.tls_endpoint import PlainEndpoint, TLSEndpoint

EX_CONFIG: Final = 78
# Twisted's fifty are soon full when a whole town's tills come back at once, and whoever finds no
# place tries again after one second, three, seven (tcp(7), tcp_syn_retries).
BACKLOG: Final = 4096
_GC_THRESHOLD: Final = 5_000
_DRAIN_SECONDS: Final = 5.0
_LISTENER_SECONDS: Final = 2.0
# For all parts together, of which each has its own bound; less than TimeoutStopSec= of the unit.
_STOP_SECONDS: Final = 30.0
_FORCED_EXIT_SECONDS: Final = 40.0
_STATUS_SECONDS: Final = 0.5
_STALLED_SECONDS: Final = 5.0
"""How long a part has to be found stalled. After a machine was suspended, all are for a moment."""
_USED_KEYS_SECONDS: Final = 60.0
_RECHECK_SECONDS: Final = 1.0
_FIRST_CONNECTION_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02
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
        self._certificate_watch = (
            None if self._tls is None else CertificateWatch(reactor, self._tls)
        )
        self._notifier = systemd.Notifier(environ)
        self._timers = {
            LoopingCall(self._report_status): _STATUS_SECONDS,
            LoopingCall(self._record_used_keys): _USED_KEYS_SECONDS,
        }
        self._watchdog: Service | None = None
        self._ports: list[IListeningPort] = []
        self._ready = False
        self._failed = False
        self._is_process = False
        self._stalled: list[str] = []
        self._stalled_since: float | None = None
        self._status = ""
        self._application = Application(reactor, settings, self._certificate, self._reload_failed)
        self._reloader = Reload(path, environ, settings, self._tls, self._apply)

    def setServiceParent(self, parent: Any) -> None:
        """[logging] decides how the log looks, under twistd without any option of its own."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        Service.setServiceParent(self, parent)

    def startService(self) -> None:
        # Before anybody waits: nothing on a request's path may read a file.
        phones.preload()
        regions.preload()
        # A full collection looks at every object and stops all connections meanwhile: up to 59 ms,
        # measured, of which almost all went to modules and tables that live as long as the process.
        gc.collect()
        gc.freeze()
        # A collection is due after so many more objects than were freed, not after 700. While batches
        # are published, collections take 2 % of the processor then instead of 5 %.
        gc.set_threshold(_GC_THRESHOLD)
        Service.startService(self)
        self._reactor.callWhenRunning(self._install_signal_handlers)
        self._application.start()
        if self._certificate_watch is not None:
            self._reactor.callWhenRunning(self._certificate_watch.startService)
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
        self._reactor.callWhenRunning(self._schedule_start)

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    def _schedule_start(self) -> None:
        started = Deferred.fromCoroutine(self._start())
        started.addErrback(lambda failure: self._fail(failure.getErrorMessage()))

    async def _start(self) -> None:
        inherited = systemd.inherited_endpoints(self._reactor, self._environ)
        if inherited:
            await self._await_first_connection()
        if not self.running:
            return
        for listener in self._application.settings.listen:
            try:
                await self._listen(listener, inherited.pop(listener.name, ()))
            except Exception as error:
                # Whatever an endpoint has to say: without its listener posd would be deaf.
                self._fail(f"cannot listen on {listener.name!r} ({listener.endpoint}): {error}")
                return
        for name in inherited:
            self._log.warn("no listener is called {name}, as an inherited socket is", name=name)
        self._application.listening = True
        try:
            await self._check_schema()
        except SchemaError as error:
            self._fail(str(error))

    async def _await_first_connection(self) -> None:
        """Give the first connection a moment, so that who waited at a kept socket gets no 503."""
        database, until = (
            self._application.database,
            self._reactor.seconds() + _FIRST_CONNECTION_SECONDS,
        )
        while not (database.up or database.trouble) and self._reactor.seconds() < until:
            await deferLater(self._reactor, _POLL_SECONDS)

    async def _check_schema(self) -> None:
        """Wait for the database, and see that it is one for posd."""
        while self.running:
            try:
                await health.check_schema(self._application.database)
            except Refusal:
                # It went away again.
                await deferLater(self._reactor, _RECHECK_SECONDS)
            else:
                self._application.schema_fits = True
                return

    async def _stop(self) -> None:
        """Close the listeners, then stop all parts in order, within a bounded time."""
        stopping = Shutdown(self._reactor, _STOP_SECONDS)
        if self._is_process:
            stopping.exit_forcibly_after(_FORCED_EXIT_SECONDS, os.EX_SOFTWARE)
        began, tills = self._reactor.seconds(), len(self._application.hub)
        self._notifier.stopping()
        for timer in self._timers:
            if timer.running:
                timer.stop()
        self._set_status(f"stopping, {tills} terminals are sent home")
        for port in self._ports:
            await stopping.stop_part("a listener", _LISTENER_SECONDS, port.stopListening)
        if self._certificate_watch is not None and self._certificate_watch.running:
            self._certificate_watch.stopService()
        await self._application.stop(stopping, _DRAIN_SECONDS)
        self._log.info(
            "stopped in {seconds:.1f} s, with {tills} terminals that were sent home",
            seconds=self._reactor.seconds() - began,
            tills=tills,
        )
        if self._watchdog is not None:
            self._watchdog.stopService()

    async def _listen(
        self, listener: ListenerConfig, inherited: tuple[IStreamServerEndpoint, ...]
    ) -> None:
        """Listen where the configuration says, or on the sockets that were handed to us instead."""
        site = self._application.site(listener)
        description = endpoint_syntax.with_backlog(listener.endpoint, BACKLOG)
        endpoints = inherited or (serverFromString(self._reactor, description),)
        turns = self._application.input_turns
        for endpoint in endpoints:
            if listener.tls and self._tls is not None:
                wrapped: IStreamServerEndpoint = TLSEndpoint(
                    self._tls, endpoint, turns, listener.proxies
                )
            else:
                wrapped = PlainEndpoint(endpoint, turns)
            port = await wrapped.listen(site)
            self._ports.append(port)
            AcceptPauses(self._reactor, port)
            if listener.trusted and not is_local(port.getHost()):
                raise StartError("others can reach it, so it cannot be trusted")
            address = port.getHost()
            self._log.info("listening: {name} {address}", name=listener.name, address=address)

    def _certificate(self) -> Validity | None:
        return None if self._tls is None else self._tls.validity

    def _reload_failed(self) -> bool:
        has_unusable_files = (
            self._certificate_watch is not None and self._certificate_watch.has_unusable_files
        )
        return has_unusable_files or bool(self._reloader.trouble)

    def _is_alive(self) -> bool:
        """Whether the watchdog may be fed: a loop that makes no attempts any more needs a restart."""
        return not self._stalled_parts()

    def _stalled_parts(self) -> list[str]:
        """The parts that are stalled, if some were for long enough that the reactor could run them."""
        stalled, now = readiness.stalled(self._application), self._reactor.seconds()
        if not stalled:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        since = self._stalled_since
        return stalled if since is not None and now - since >= _STALLED_SECONDS else []

    def _log_stalled(self) -> None:
        stalled = self._stalled_parts()
        if stalled and stalled != self._stalled:
            self._log.critical(
                "no attempt for a minute: {parts}; posd is not ready; {remedy}",
                parts=", ".join(stalled),
                remedy="restart it" if self._watchdog is None else "systemd restarts it",
            )
        self._stalled = stalled

    def _report_status(self) -> None:
        self._log_stalled()
        missing = self._application.health.missing()
        if not missing:
            if not self._ready:
                self._ready = True
                self._notifier.ready()
            self._set_status(f"{len(self._application.hub)} terminals connected", *self._troubles())
            return
        trouble = self._application.database.trouble or "starting"
        self._set_status(f"waiting for {', '.join(missing)}: {trouble}", *self._troubles())
        if not self._ready:
            self._notifier.extend_timeout(_EXTENSION_USEC)

    def _troubles(self) -> Iterator[str]:
        """What posd does its work with, and somebody has to see to all the same."""
        if degraded := self._application.health.degraded():
            yield f"degraded: {', '.join(degraded)}"
        if self._reloader.trouble:
            yield f"not reloaded: {self._reloader.trouble}"
        if self._certificate_watch is not None and self._certificate_watch.trouble:
            yield self._certificate_watch.trouble

    def _set_status(self, *phrases: str) -> None:
        status = "; ".join(phrases)
        if status != self._status:
            self._status = status
            self._notifier.status(status)

    async def _record_used_keys(self) -> None:
        try:
            await self._application.authenticator.record_used_keys()
        except Refusal:
            return
        except Exception:
            self._log.failure("it could not be noted which keys were used")

    def _install_signal_handlers(self) -> None:
        """SIGTERM is a clean stop, status 0; Twisted's own handler would end by the signal again."""
        self._is_process = True
        stop = partial(self._reactor.callFromThread, self._stop_reactor)
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
            self._reloader.reload_files()
            if self._certificate_watch is not None:
                self._certificate_watch.check()
        except Exception:
            self._log.failure("the reload has failed")
        self._report_status()
        if self._ready:
            self._notifier.ready()

    def _apply(self, settings: Config) -> None:
        self._observer.configure(level=settings.logging.level, format_name=settings.logging.format)
        self._application.apply(settings)

    def _fail(self, message: str) -> None:
        """End the process in order, with one line and a status that says so."""
        if self._failed:
            return
        self._failed = True
        self._log.critical("{message}", message=message)
        atexit.register(_exit_with_config_status)
        self._stop_reactor()

    def _stop_reactor(self) -> None:
        if self.running:
            self._reactor.stop()


def is_local(address: object) -> bool:
    """Whether only this machine can reach what listens here."""
    if isinstance(address, UNIXAddress):
        return True
    host = getattr(address, "host", "")
    return bool(host) and ip_address(host).is_loopback


def _exit_with_config_status() -> None:
    """twistd would exit with 0: to it the reactor was stopped, and that is all.

    Only once it has cleared up behind itself, its file with the process id above all.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EX_CONFIG)
