"""One WebSocket connection of a till: opening, idle timeout, closing. `posd.client.till` handles messages.

Autobahn's timers would run on the global reactor, so they are switched off. Instead, one timeout for the
state of the connection runs on the clock that is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import urlencode

import txaio
from attrs import frozen
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from autobahn.websocket.types import ConnectingRequest
from twisted.internet.error import ConnectionClosed, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from posd.client.outcome import Fault, NextStep, Outcome
from posd.security.dialing import BaseUrl

OPENING_TIMEOUT = 15.0
"""Seconds from the TCP connection to the server's `connected` message."""

CLOSING_TIMEOUT = 5.0
"""Seconds from the first Close frame to the end of the TCP connection."""

_MAX_REFUSAL_LENGTH = 64 * 1024
_HTTP = b"HTTP/"
_HEADERS_END = b"\r\n\r\n"
_CONTENT_LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,9})[ \t]*\r$", re.I | re.M)


@frozen
class HandshakeRequest:
    """The request of one opening handshake. It differs for each connection, because the position moves."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def resource(self) -> str:
        """The request target (RFC 9112 §3.2)."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path


class ConnectionOwner(Protocol):
    """The object that a connection reports to."""

    def opening(self, connection: ClientConnection) -> Awaitable[HandshakeRequest]:
        """Return the request of the handshake. Called after the TCP connection has been made."""

    def received(self, connection: ClientConnection, text: bytes) -> None:
        """Handle a text message."""

    def ended(self, connection: ClientConnection, outcome: Outcome) -> None:
        """Handle the end of a connection. Called exactly once for each connection that was made."""


class ClientConnection(WebSocketClientProtocol):  # type: ignore[misc]
    """The WebSocket protocol. It opens, times out, pauses and closes; it does not parse messages."""

    # At level debug Autobahn logs the whole handshake, which contains the key.
    log = txaio.make_logger(level="error")

    # Autobahn reads this before it has copied the factory's options, and ignores the AttributeError.
    # With a class attribute TCP_NODELAY is set, and small frames do not wait for an ACK (40 ms).
    tcpNoDelay = True

    def __init__(self, owner: ConnectionOwner, server: BaseUrl, clock: IReactorTime) -> None:
        super().__init__()
        self._owner = owner
        self._server = server
        self._clock = clock
        self._outcome: Outcome | None = None
        self._paused = False
        self._patience = OPENING_TIMEOUT
        self._deadline: IDelayedCall | None = None
        self._lost: Failure | None = None

    # The interface for the till.

    def send(self, text: bytes) -> None:
        """Send one text message. Does nothing if the connection is closing."""
        if self.state == self.STATE_OPEN:
            self.sendMessage(text)

    def set_idle_timeout(self, seconds: float) -> None:
        """Drop the connection if no data arrives for so many seconds."""
        self._patience = seconds
        if not self._paused:
            self._set_timeout(seconds)

    def pause(self) -> None:
        """Stop reading, so that TCP slows the server down. The idle timeout is off meanwhile."""
        if not self._paused and self.state == self.STATE_OPEN:
            self._paused = True
            self._set_timeout(None)
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again after `pause()`."""
        if self._paused and self.state == self.STATE_OPEN:
            self._paused = False
            self._set_timeout(self._patience)
            self.transport.resumeProducing()

    def hang_up(self, outcome: Outcome, code: int = 1000) -> None:
        """Close the connection and report `outcome`, whatever the server answers.

        Later messages are dropped. A connection that is not open yet is aborted.
        """
        if self._outcome is None:
            self._outcome = outcome
        if self.state == self.STATE_OPEN:
            self.resume()  # to read the server's Close frame after the unread data
            self.sendCloseFrame(code=code)
        elif self.state == self.STATE_CONNECTING:
            self.dropConnection(abort=True)

    # Methods that Twisted and Autobahn call.

    def connectionMade(self) -> None:
        self._set_timeout(OPENING_TIMEOUT)
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        if self.state == self.STATE_OPEN:
            self._restart_timeout()
        super().dataReceived(data)

    async def onConnecting(self, transport_details: object) -> ConnectingRequest:
        opening = await self._owner.opening(self)
        return ConnectingRequest(
            host=f"[{self._server.host}]" if ":" in self._server.host else self._server.host,
            port=self._server.port,
            resource=opening.resource,
            headers=dict(opening.headers),
            useragent="posd-till",
        )

    def processHandshake(self) -> None:
        """Delay the processing of a refusal until its body is complete, because Autobahn drops the rest."""
        if not self.data.startswith(_HTTP[: len(self.data)]):
            # The server uses another protocol. Autobahn would wait for headers that never come.
            self.hang_up(
                Outcome("the server did not answer with HTTP", NextStep.WAIT, fault=Fault.NO_ANSWER)
            )
            return
        head, end, body = self.data.partition(_HEADERS_END)
        if end and not head.startswith(b"HTTP/1.1 101") and len(body) < _content_length(head):
            return
        super().processHandshake()

    def failHandshake(self, reason: str) -> None:
        status = _status(self.http_status_line)
        if status is None or status == 101:
            broken = Outcome(
                f"the WebSocket handshake failed: {reason}", NextStep.WAIT, fault=Fault.NO_POSD
            )
            self._outcome = self._outcome or broken
        else:
            _, _, body = self.data.partition(_HEADERS_END)
            self._outcome = Outcome.refused(status, self.http_headers, body, datetime.now(UTC))
        super().failHandshake(reason)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._outcome is not None:
            return
        if isBinary:
            self.hang_up(Outcome("the server sent a binary message", NextStep.WAIT), 1003)
        else:
            self._owner.received(self, payload)

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False
    ) -> None:
        """Send a Close frame, and limit the wait for the server to end the TCP connection.

        The server ends it first (RFC 6455 §7.1.1). Autobahn would wait without a limit.
        """
        super().sendCloseFrame(code, reasonUtf8, isReply)
        self._set_timeout(CLOSING_TIMEOUT)

    def _set_timeout(self, seconds: float | None) -> None:
        """Replace the timeout. None switches it off."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None:
            self._deadline = self._clock.callLater(seconds, self._timed_out)

    def _restart_timeout(self) -> None:
        """Restart the idle timeout after data has arrived."""
        if self._deadline is not None:
            self._deadline.reset(self._patience)

    def _timed_out(self) -> None:
        self._deadline = None
        if self.state == self.STATE_CONNECTING:
            silence = Outcome("the server did not answer the handshake", NextStep.RETRY)
        else:
            silence = Outcome(f"no data from the server for {self._patience:g} s", NextStep.RETRY)
        if self._outcome is None and self.remoteCloseCode is None and not self.failedByMe:
            self._outcome = silence
        self.dropConnection(abort=True)

    def connectionLost(self, reason: Failure) -> None:
        self._set_timeout(None)
        self._lost = reason
        if not reason.check(ConnectionClosed):
            # Autobahn would log an error of TLS. The owner gets it in the outcome.
            reason = Failure(ConnectionLost())
        super().connectionLost(reason)

    def _is_unanswered(self) -> bool:
        """Return whether the connection ended without a line of HTTP from the server."""
        return not getattr(self, "http_status_line", "") and not self.data

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        outcome = self._outcome
        if outcome is None and self.failedByMe:
            broken = (self.localCloseReason or b"").decode()
            outcome = Outcome(f"the server violated RFC 6455: {broken}", NextStep.WAIT)
        if outcome is None and (wasClean or self.remoteCloseCode is not None):
            outcome = Outcome.closed(self.remoteCloseCode, self.remoteCloseReason)
        if outcome is None and self._lost is not None:
            outcome = Outcome.lost(self._lost)
            if self._is_unanswered() and outcome.fault is None:
                # A server that expects TLS regards the request as a broken TLS handshake, and closes
                # the connection with or without an alert.
                explanation = "the server closed the connection without an answer"
                outcome = Outcome(explanation, NextStep.RETRY, fault=Fault.NO_ANSWER)
        self._owner.ended(self, outcome or Outcome(reason or "lost", NextStep.RETRY))


def _content_length(head: bytes) -> int:
    """Return the Content-Length of a refusal, or 0 if it is missing or too large to wait for."""
    found = _CONTENT_LENGTH.search(head + b"\r\n")
    length = int(found[1]) if found else 0
    return length if length <= _MAX_REFUSAL_LENGTH else 0


def _status(line: str) -> int | None:
    words = line.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else None


def connection_factory(
    owner: ConnectionOwner, server: BaseUrl, clock: IReactorTime, max_length: int
) -> WebSocketClientFactory:
    """Return a factory of connections to `server` that accept messages of up to `max_length` bytes."""
    factory = WebSocketClientFactory(reactor=clock)
    factory.protocol = lambda: ClientConnection(owner, server, clock)
    factory.noisy = False
    factory.setProtocolOptions(
        maxFramePayloadSize=max_length,
        maxMessagePayloadSize=max_length,
        failByDrop=False,
        openHandshakeTimeout=0,
        closeHandshakeTimeout=0,
        serverConnectionDropTimeout=0,
        autoPingInterval=0,
    )
    return factory
