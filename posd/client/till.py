"""The till: it stays connected, stores each event before its acknowledgement, and misses no event."""

from __future__ import annotations

import random as chance
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from attrs import define, field, frozen
from twisted.application.internet import ClientService
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from posd.client.connection import ClientConnection, HandshakeRequest, connection_factory
from posd.client.cursor import DurableCursor
from posd.client.event_queue import EventQueue, Handle, OnResync
from posd.client.outcome import NextStep, Outcome, reconnect_pause
from posd.client.position import PositionFile
from posd.client.received import Connected, ReceivedEvent, ServerError, parse_message
from posd.errors import InvalidMessage
from posd.files import strip_secret
from posd.security.client_tls import client_context
from posd.security.dialing import BaseUrl, Credentials, Random
from posd.values import Position, Seq

T = TypeVar("T")

STEADY = 10.0
"""Seconds after which a connection counts as steady: the back-off then starts again."""


@frozen
class Summary:
    """The counts of a till at its end.

    `received`, `stored` and `refused` count events; `refused` are those that it could not process.
    `breaches` counts violations of the protocol by the server, such as a gap in the stream.
    `acknowledged` is the last position that was acknowledged.
    """

    received: int
    stored: int
    refused: int
    reconnects: int
    breaches: int
    acknowledged: Seq | None
    position: Position | None
    outcome: Outcome


@implementer(IStreamClientEndpoint)
@frozen
class _ReportingEndpoint:
    """An endpoint that reports why an attempt failed, because ClientService does not."""

    endpoint: IStreamClientEndpoint
    failed: Callable[[Failure], None]

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        def report(failure: Failure) -> Failure:
            self.failed(failure)
            return failure

        return self.endpoint.connect(protocolFactory).addErrback(report)


@define(eq=False, slots=False, kw_only=True)
class Till(Service):
    """A terminal of one tenant, as a service that is started once.

    `url` is the server's, such as `wss://pos.example.com:9010`. `ca` is a PEM file of the authorities to
    trust; None means those of the system. `credentials` is the client certificate. An `endpoint`
    replaces host, port, `ca` and `credentials` for the connection.

    `handle` is called with one event at a time, in order. When it returns, or its awaitable fires, the
    event must be durable. Then the position moves, is saved to `position_file`, and, if the terminal
    has a device id and `ack` is true, is acknowledged. Without `after` and without a saved position, a
    terminal with a device id resumes at its cursor, and another terminal receives new events only.

    `on_resync` is called, in order with the events, if the server cannot replay. The till must reload
    its open orders (see `pending_orders`). The stream continues after the position in the second
    argument. `on_connected` and `on_disconnected` are called when a connection begins and ends.

    While `backlog` events wait for `handle`, nothing is read, and the server holds events back.

    Raises ValueError for an invalid URL, key or device id, StartError for unusable files of `ca` or
    `credentials`, and PositionUnreadable.
    """

    _reactor: IReactorTime = field(kw_only=False)
    _url: str = field(kw_only=False)
    _tenant: str = field(kw_only=False)
    _key: str = field(kw_only=False, repr=False)
    _handle: Handle
    _device_id: str | None = None
    _ca: Path | None = None
    _credentials: Credentials | None = None
    _endpoint: IStreamClientEndpoint | None = None
    _after: Seq | None = None
    _stream_id: UUID | None = None
    _position_file: PositionFile | None = None
    _ack: bool = True
    _on_resync: OnResync | None = None
    _on_connected: Callable[[Connected], object] | None = None
    _on_disconnected: Callable[[Outcome], object] | None = None
    _backlog: int = 64
    _longest_message: int = 1 << 20
    _random: Random = chance.random

    _connection: ClientConnection | None = field(default=None, init=False)
    _requested: Seq | None = field(default=None, init=False)
    _connected_at: float | None = field(default=None, init=False)
    _connections: int = field(default=0, init=False)
    _breaches: int = field(default=0, init=False)
    _failures: int = field(default=0, init=False)
    _pause: float = field(default=0.0, init=False)
    _final: Outcome | None = field(default=None, init=False)
    _disconnected: Deferred[None] | None = field(default=None, init=False)
    _summary: Summary | None = field(default=None, init=False)
    _waiting: list[Deferred[Summary]] = field(factory=list, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._server = BaseUrl.parse(self._url, "wss", "ws")
        self._key = strip_secret(self._key)  # it is often read from a file that ends with a newline
        for name, value in (("key", self._key), ("device id", self._device_id or "-")):
            if not value or not value.isprintable():
                raise ValueError(f"the {name} must be printable and not empty")
        self._cursor = DurableCursor(self._reactor, self._initial_position(), self._position_file)
        self._event_queue = EventQueue(
            self._handle, self._on_resync, self._cursor, self._backlog, self._ack
        )
        self._client = ClientService(
            _ReportingEndpoint(self._endpoint or self._default_endpoint(), self._unreachable),
            connection_factory(self, self._server, self._reactor, self._longest_message),
            retryPolicy=lambda _attempt: self._pause,
            clock=self._reactor,
        )

    def _initial_position(self) -> Position | None:
        if self._after is not None:
            return Position(self._after, self._stream_id)
        return self._position_file.load() if self._position_file is not None else None

    def _default_endpoint(self) -> IStreamClientEndpoint:
        endpoint = HostnameEndpoint(self._reactor, self._server.host, self._server.port, timeout=15)
        if not self._server.secure:
            return endpoint
        trust = client_context(self._server.host, self._ca, self._credentials)
        return wrapClientTLS(trust, endpoint)

    @property
    def position(self) -> Position | None:
        """The position up to which all events have been handled."""
        return self._cursor.position

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._client.startService()

    def stopService(self) -> Deferred[None]:
        """Finish the current event, acknowledge it and close. The Deferred fires after that."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._finish(Outcome("stopped", NextStep.STOP))
        return self.when_finished().addCallback(lambda _: None)

    def when_finished(self) -> Deferred[Summary]:
        """Return a Deferred that fires when the till has stopped.

        A till stops after `stopService()`, if its key is not valid, and if it was superseded. `outcome`
        of the summary is the reason.
        """
        finished: Deferred[Summary] = Deferred()
        if self._summary is not None:
            finished.callback(self._summary)
        else:
            self._waiting.append(finished)
        return finished

    # Methods that a connection calls.

    async def opening(self, connection: ClientConnection) -> HandshakeRequest:
        """Wait for the current event, and return a request to resume after the last stored event."""
        self._connection = connection
        self._connections += 1
        await self._event_queue.idle()
        query, headers = {}, {"X-API-Key": self._key}
        position = self._cursor.position
        self._requested = None if position is None else position.seq
        if position is not None:
            query["last_event_id"] = str(position.seq)
            if position.stream_id is not None:
                query["stream_id"] = str(position.stream_id)
        if self._device_id is not None:
            headers["X-Device-ID"] = self._device_id
        return HandshakeRequest(self._server.path("ws", "pos", self._tenant), query, headers)

    def received(self, connection: ClientConnection, text: bytes) -> None:
        """Handle one message. A violation of the protocol ends the connection.

        No event is lost by that: the next connection resumes after the last stored event.
        """
        try:
            match parse_message(text):
                case Connected() as greeting:
                    self._on_greeting(connection, greeting)
                case ReceivedEvent() as event:
                    self._event_queue.take(event)
                case ServerError(code, explanation):
                    self._log.warn(
                        "the server refused a message: {code}: {text}", code=code, text=explanation
                    )
        except InvalidMessage as error:
            self._breaches += 1
            self._log.error(
                "the server violated the protocol: {why}; the till reconnects", why=str(error)
            )
            self._cursor.save_now()
            connection.hang_up(
                Outcome(f"the server violated the protocol: {error}", NextStep.WAIT), 1002
            )

    def ended(self, connection: ClientConnection, outcome: Outcome) -> None:
        """Handle the end of a connection."""
        self._connection = None
        self._event_queue.lost()
        self._decide(outcome)
        if self._disconnected is not None:
            self._disconnected.callback(None)

    def _on_greeting(self, connection: ClientConnection, greeting: Connected) -> None:
        self._event_queue.greeted(connection, greeting, self._requested)
        self._connected_at = self._reactor.seconds()
        connection.set_idle_timeout(2 * greeting.heartbeat + 5)
        self._notify_observer(self._on_connected, greeting)

    def _unreachable(self, failure: Failure) -> None:
        if self._final is None:
            self._decide(Outcome.lost(failure))

    def _decide(self, outcome: Outcome) -> None:
        """Set the pause that ClientService asks for next, or finish."""
        since, self._connected_at = self._connected_at, None
        steady = since is not None and self._reactor.seconds() - since >= STEADY
        self._failures = 1 if steady else self._failures + 1
        self._log.info("disconnected: {why}", why=outcome.reason)
        if outcome.next_step is not NextStep.STOP:
            self._pause = reconnect_pause(outcome, self._failures, self._random)
        self._notify_observer(self._on_disconnected, outcome)
        if outcome.next_step is NextStep.STOP:
            self._finish(outcome)
        if self._final is not None:
            self._client.stopService()

    def _notify_observer(self, observer: Callable[[T], object] | None, news: T) -> None:
        """Call an observer. An exception is logged and does not stop the till."""
        if observer is not None:
            try:
                observer(news)
            except Exception:
                self._log.failure("a callback of the till's owner failed; the till continues")

    # The end of the till.

    def _finish(self, outcome: Outcome) -> None:
        if self._final is None:
            self._final = outcome
            Deferred.fromCoroutine(self._shut_down(outcome)).addErrback(
                lambda failure: self._log.failure("stopping the till failed", failure)
            )

    async def _shut_down(self, outcome: Outcome) -> None:
        """Finish the current event, acknowledge it, and close the connection."""
        self._event_queue.stop()
        if self._connection is None:
            self._client.stopService()  # end an attempt or a pause
        else:
            self._connection.pause()
        await self._event_queue.idle()
        self._cursor.save_now()
        if self._connection is not None:
            self._disconnected = Deferred()
            self._connection.hang_up(outcome)
            await self._disconnected
        await self._client.stopService()
        self._cursor.close()
        counts = self._event_queue.counts
        self._summary = Summary(
            received=counts.received,
            stored=counts.stored,
            refused=counts.refused,
            reconnects=max(0, self._connections - 1),
            breaches=self._breaches,
            acknowledged=self._cursor.acknowledged,
            position=self._cursor.position,
            outcome=outcome,
        )
        self._log.info("finished: {why}", why=outcome.reason)
        waiting, self._waiting = self._waiting, []
        for finished in waiting:
            finished.callback(self._summary)
