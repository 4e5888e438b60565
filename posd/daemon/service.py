"""The daemon: start, listeners, signals, reload and stop.

An error that a retry cannot correct (a port in use, a schema of another version) ends the process with one
log line and status 78 (EX_CONFIG), after which the systemd unit does not restart it. If the database cannot
be reached, posd keeps running, answers 503, and reconnects by itself.
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
# Twisted's default of 50 is soon full when thousands of tills reconnect at once. A client that finds the
# queue full tries again after 1, 3 and 7 seconds (tcp(7), tcp_syn_retries).
BACKLOG: Final = 4096
_GC_THRESHOLD: Final = 5_000
_DRAIN_SECONDS: Final = 5.0
_LISTENER_SECONDS: Final = 2.0
# For all parts together. Each part has its own limit too. Less than TimeoutStopSec= of the unit.
_STOP_SECONDS: Final = 30.0
_FORCED_EXIT_SECONDS: Final = 40.0
_STATUS_SECONDS: Final = 0.5
_STALLED_SECONDS: Final = 5.0
"""How long a part must be stalled. After the machine was suspended, all parts are stalled for a moment."""
_USED_KEYS_SECONDS: Final = 60.0
_RECHECK_SECONDS: Final = 1.0
_FIRST_CONNECTION_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02
_EXTENSION_USEC: Final = 30_000_000


class Daemon(Service):
    """The service that twistd runs: the application, its listeners, signals and systemd notifications."""

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
        """Set the log observer of twistd as [logging] configures it, without an option of twistd."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        Service.setServiceParent(self, parent)

    def startService(self) -> None:
        # Reads the files of these modules now, because no request may wait for a file.
        phones.preload()
        regions.preload()
        # A full collection visits every object and blocks the reactor: 59 ms were measured. Almost all of
        # the time was spent on modules and tables that live as long as the process.
        gc.collect()
        gc.freeze()
        # The default is a collection after 700 net allocations. With this threshold, collections take 2 %
        # of the processor while batches are published, instead of 5 %.
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
        # twist begins to log when the reactor runs. It would print and log an earlier critical line.
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
                # Endpoints of plugins may raise any exception. posd cannot serve without the listener.
                self._fail(f"cannot listen on {listener.name!r} ({listener.endpoint}): {error}")
                return
        for name in inherited:
            self._log.warn(
                "no [[listen]] has the name {name} of an inherited socket; the socket is not served",
                name=name,
            )
        self._application.listening = True
        try:
            await self._check_schema()
        except SchemaError as error:
            self._fail(str(error))

    async def _await_first_connection(self) -> None:
        """Wait some seconds for the database, so that clients that waited at a kept socket get no 503."""
        database, until = (
            self._application.database,
            self._reactor.seconds() + _FIRST_CONNECTION_SECONDS,
        )
        while not (database.up or database.trouble) and self._reactor.seconds() < until:
            await deferLater(self._reactor, _POLL_SECONDS)

    async def _check_schema(self) -> None:
        """Wait for the database, then check its main schema. Raises `SchemaError`."""
        while self.running:
            try:
                await health.check_schema(self._application.database)
            except Refusal:
                # The connection was lost before the check.
                await deferLater(self._reactor, _RECHECK_SECONDS)
            else:
                self._application.schema_fits = True
                return

    async def _stop(self) -> None:
        """Close the listeners, then stop all parts in order, within `_STOP_SECONDS`."""
        stopping = Shutdown(self._reactor, _STOP_SECONDS)
        if self._is_process:
            stopping.exit_forcibly_after(_FORCED_EXIT_SECONDS, os.EX_SOFTWARE)
        began, tills = self._reactor.seconds(), len(self._application.hub)
        self._notifier.stopping()
        for timer in self._timers:
            if timer.running:
                timer.stop()
        self._set_status(f"stopping, disconnecting {_terminals(tills)}")
        for port in self._ports:
            await stopping.stop_part("a listener", _LISTENER_SECONDS, port.stopListening)
        if self._certificate_watch is not None and self._certificate_watch.running:
            self._certificate_watch.stopService()
        await self._application.stop(stopping, _DRAIN_SECONDS)
        self._log.info(
            "stopped in {seconds:.1f} s, {terminals} disconnected",
            seconds=self._reactor.seconds() - began,
            terminals=_terminals(tills),
        )
        if self._watchdog is not None:
            self._watchdog.stopService()

    async def _listen(
        self, listener: ListenerConfig, inherited: tuple[IStreamServerEndpoint, ...]
    ) -> None:
        """Listen on the configured endpoint, or on the inherited sockets instead."""
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
                raise StartError(
                    "trusted = true is not allowed, because other machines can reach it"
                )
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
        """Whether to notify the watchdog. A loop that makes no attempts any more needs a restart."""
        return not self._stalled_parts()

    def _stalled_parts(self) -> list[str]:
        """Return the stalled parts, if some part has been stalled for `_STALLED_SECONDS`."""
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
                remedy="restart posd" if self._watchdog is None else "systemd restarts posd",
            )
        self._stalled = stalled

    def _report_status(self) -> None:
        self._log_stalled()
        missing = self._application.health.missing()
        if not missing:
            if not self._ready:
                self._ready = True
                self._notifier.ready()
            connected = f"{_terminals(len(self._application.hub))} connected"
            self._set_status(connected, *self._troubles())
            return
        trouble = self._application.database.trouble or "starting"
        self._set_status(f"waiting for {', '.join(missing)}: {trouble}", *self._troubles())
        if not self._ready:
            self._notifier.extend_timeout(_EXTENSION_USEC)

    def _troubles(self) -> Iterator[str]:
        """Yield the problems that need an operator although posd works."""
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
            self._log.failure("the times of last use of keys could not be stored")

    def _install_signal_handlers(self) -> None:
        """Install handlers: SIGTERM stops posd with status 0, SIGHUP reloads the configuration.

        Twisted's own handler of SIGTERM would end the process by the signal, and not with status 0.
        """
        self._is_process = True
        stop = partial(self._reactor.callFromThread, self._stop_reactor)
        signal.signal(signal.SIGTERM, lambda *_: stop())
        reload = partial(self._reactor.callFromThread, self._reload)
        signal.signal(signal.SIGHUP, lambda *_: reload())

    def _reload(self) -> None:
        """Reload configuration and certificates, with the notifications of sd_notify(3)."""
        if not self.running:
            return
        # The READY=1 after a reload would end the start if posd was not ready before.
        if self._ready:
            self._notifier.reloading(time.monotonic_ns() // 1000)
        try:
            self._reloader.reload_files()
            if self._certificate_watch is not None:
                self._certificate_watch.check()
        except Exception:
            self._log.failure(
                "the reload failed with an unexpected error; correct the cause and reload again"
            )
        self._report_status()
        if self._ready:
            self._notifier.ready()

    def _apply(self, settings: Config) -> None:
        self._observer.configure(level=settings.logging.level, format_name=settings.logging.format)
        self._application.apply(settings)

    def _fail(self, message: str) -> None:
        """Log one line, stop in order, and exit with status 78."""
        if self._failed:
            return
        self._failed = True
        self._log.critical("{message}", message=message)
        atexit.register(_exit_with_config_status)
        self._stop_reactor()

    def _stop_reactor(self) -> None:
        if self.running:
            self._reactor.stop()


def _terminals(count: int) -> str:
    return f"{count} terminal" if count == 1 else f"{count} terminals"


def is_local(address: object) -> bool:
    """Return whether only this machine can reach an address: a unix socket or loopback."""
    if isinstance(address, UNIXAddress):
        return True
    host = getattr(address, "host", "")
    return bool(host) and ip_address(host).is_loopback


def _exit_with_config_status() -> None:
    """Exit with status 78. twistd would exit with 0, because the reactor was stopped in order.

    Called by atexit, after twistd has removed its pid file.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EX_CONFIG)
