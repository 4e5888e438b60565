"""An HTTP connection that limits the time and the size of each request, and handles one at a time."""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IAddress, IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from zope.interface import implementer

from posd import __version__
from posd.protocol import jsontext
from posd.web.http.bounded_request import BoundedRequest, RequestSite
from posd.web.http.deadline import DeadlineTimer
from posd.web.http.direct_write import Write, direct_write
from posd.web.http.headers import date, members
from posd.web.http.paced_input import PacedInput
from posd.web.http.request_head import RequestHead, read_head
from posd.web.http.sockets import limit_buffers
from posd.web.http.wrong_protocol import HINTS, LONGEST_OPENING, KnownProtocol, detect_protocol

IDLE_SECONDS: Final = 75
"""Seconds. nginx and AWS ALB close an idle connection to a server after 60 s, and must do so before posd.

If posd closes a connection while a proxy sends a request on it, the proxy answers its client with 502.
"""
_REQUEST_SECONDS: Final = 20.0
_HANG_UP_SECONDS: Final = 15.0
_LONGEST_LENGTH: Final = 20
"""The most digits of a Content-Length. int() raises an error for more than 4,300."""
# RFC 9110 §5.5 permits no control character but HTAB in a field value. Twisted refuses NUL, CR and LF only.
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PAUSE_SECONDS: Final = 1.0
"""After a request that exceeds a rate, posd does not read its connection for about this time.

Otherwise a client that sends the request again at once would keep posd busy. Connections of proxies are not
paused, because they carry requests of other clients. The time varies at random by half, so that a thousand
such connections do not resume in one turn of the reactor.
"""
_MOST_DOUBLINGS: Final = 3
"""How often the pause is doubled if a client without a valid key goes on: up to eight seconds."""


class ChannelSite(RequestSite, Protocol):
    """The interface of `posd.web.http.site.BoundedSite` that a connection uses."""

    clock: Any
    """The reactor."""
    refused: Callable[[int], None]
    """Called with the status of each refusal that is sent before there is a complete request."""
    on_wrong_protocol: Callable[[KnownProtocol, Any], None]
    """Called with the protocol and the transport if a client speaks another protocol than the listener."""

    def enter(self, channel: BoundedChannel) -> None:
        """Count a connection."""

    def request_answered(self, channel: BoundedChannel) -> None:
        """Note that a request on the connection was answered."""

    def leave(self, channel: BoundedChannel) -> None:
        """Stop counting a connection that is lost or has become a till's."""

    def restore(self, channel: BoundedChannel) -> None:
        """Count a connection again that is no longer a till's."""


@implementer(IHalfCloseableProtocol)
class BoundedChannel(HTTPChannel):
    """An HTTP connection with a deadline for each request, for idle time, and for closing.

    So posd closes the connection if a client never finishes its handshake, sends one byte every few seconds,
    or does not close its end.
    """

    site: ChannelSite
    transport: Any
    idle = True
    """Whether no request is being answered."""
    _is_expecting = False
    """Whether posd waits for the rest of a request. True for a new connection."""
    _opening: bytes | None = b""
    """The first bytes of the connection, until they suffice to recognise its protocol; None after that."""
    _deadline: DeadlineTimer
    """The time for the next request or for closing. It is cleared while posd answers."""
    _peer: IAddress | None = None
    _host: IAddress | None = None
    _is_closing = False
    _pause_timer: IDelayedCall | None = None
    _refusals = 0
    """The number of consecutive requests that exceeded a rate."""
    _on_lost: Callable[[], None] | None = None
    _send: Write | None = None
    """The function of `direct_write`, from the first answer on."""

    def connectionMade(self) -> None:
        self._deadline = DeadlineTimer(self.site.clock)
        HTTPChannel.connectionMade(self)
        limit_buffers(self.transport)
        self._deadline.set(_REQUEST_SECONDS, self._abort_timed_out)
        self._is_expecting = True
        self.site.enter(self)

    def setTimeout(self, period: int | None) -> int | None:
        """Store Twisted's idle time without a delayed call. `_deadline` takes its place."""
        previous, self.timeOut = self.timeOut, period
        return previous

    def resetTimeout(self) -> None:
        """Do nothing, so that a received byte does not extend the deadline of a request."""

    def getPeer(self) -> IAddress:
        """Return the client's address, cached. A `haproxy:` endpoint knows it before the first request."""
        if self._peer is None:
            self._peer = HTTPChannel.getPeer(self)
        return self._peer

    def getHost(self) -> IAddress:
        """Return the local address. It is cached."""
        if self._host is None:
            self._host = HTTPChannel.getHost(self)
        return self._host

    @property
    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """The method, target and version of the last head."""
        return self._command, self._path, self._version

    def dataReceived(self, data: bytes) -> None:
        if self._is_closing:
            # Twisted would go on parsing, and accept a request that was refused.
            return
        if self._opening is not None and self._begins_with_wrong_protocol(data):
            return
        if self.line_mode and not (self._buffer or self.requests) and self.persistent:
            head = read_head(data)
            if head is not None:
                self._begin(head, data[head.size :])
                return
        self._expect_request()
        HTTPChannel.dataReceived(self, data)

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        """Begin a request with a head that was read at once, as `lineReceived` does at the end of a head."""
        request = BoundedRequest(self)
        self.requests.append(request)
        self._command, self._path, self._version = head.method, head.target, b"HTTP/1.1"
        request.fields = head.fields
        self.length = head.length or 0
        self.allHeadersReceived()
        if self._is_closing:
            return
        length = self.length
        if len(rest) >= length:
            if length:
                request.handleContentChunk(rest[:length])
            self._finishRequestBody(rest[length:])  # type: ignore[no-untyped-call]
        else:
            self._expect_request()
            self._maybeChooseTransferDecoder(b"Content-Length", b"%d" % length)  # type: ignore[no-untyped-call]
            self.setRawMode()  # type: ignore[no-untyped-call]
            if rest:
                self.rawDataReceived(rest)

    def send(self, data: bytes) -> None:
        """Send an answer, or a part of one, in this turn of the reactor, unless the connection is closing."""
        if self._send is None:
            self._send = direct_write(self.transport)
        (self.transport.write if self._is_closing else self._send)(data)

    def _expect_request(self) -> None:
        """Set the deadline for the rest of a request that has begun."""
        if self.idle and not self._is_expecting:
            self._is_expecting = True
            self._deadline.set(_REQUEST_SECONDS, self._abort_timed_out)

    def _begins_with_wrong_protocol(self, data: bytes) -> bool:
        """Refuse a connection whose first bytes are another protocol's. Return whether it was refused."""
        opening = self._opening = (self._opening or b"") + data[:LONGEST_OPENING]
        if len(opening) >= LONGEST_OPENING:
            self._opening = None
        spoken = detect_protocol(opening)
        if spoken in (None, KnownProtocol.HTTP):
            return False
        self.site.on_wrong_protocol(spoken, self.transport)
        self.refuse(b"400 Bad Request", "bad_request", HINTS[spoken])
        return True

    def wrong_protocol(self, spoken: KnownProtocol) -> bytes:
        """Note a connection without TLS on a TLS port. Return the answer to send without TLS."""
        self.site.on_wrong_protocol(spoken, self.transport)
        self.site.refused(400)
        return _refusal(b"400 Bad Request", "bad_request", HINTS[spoken])

    def lineReceived(self, line: bytes) -> None:
        """Process a line of a head. Refuse one that is not valid.

        A folded header is refused (RFC 9112 §5.2), because programs interpret it differently.
        """
        if line.startswith((b" ", b"\t")) or _CONTROL.search(line) is not None:
            self._respondToBadRequestAndDisconnect()
        else:
            HTTPChannel.lineReceived(self, line)

    def headerReceived(self, line: bytes) -> bool:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and len(value.strip(b" \t")) > _LONGEST_LENGTH:
            self._respondToBadRequestAndDisconnect()
            return False
        return bool(HTTPChannel.headerReceived(self, line))

    def allHeadersReceived(self) -> None:
        request, version = self.requests[-1], self._version
        self.persistent = self.checkPersistence(request, version)
        request.gotLength(self.length)
        expected = request.fields.get("expect")
        if expected and expected[0].lower() == "100-continue" and version == b"HTTP/1.1":
            self._send100Continue()

    def checkPersistence(self, request: BoundedRequest, version: bytes) -> bool:
        """Return whether another request may follow (RFC 9112 §9.3).

        Connection is a comma-separated list that may have several lines. Twisted's own method reads the first
        line only, and splits it at spaces.
        """
        lines = request.fields.get("connection", ())
        if version == b"HTTP/1.1" and not (lines and "close" in members(lines)):
            return True
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    def _send100Continue(self) -> None:
        """Send `100 Continue`, unless the head was refused."""
        if not self._is_closing:
            HTTPChannel._send100Continue(self)

    def allContentReceived(self) -> None:
        if self._is_closing:
            # The request was refused after its head. The deadline for closing stays.
            return
        self.idle = self._is_expecting = False
        self._deadline.clear()
        HTTPChannel.allContentReceived(self)

    def requestDone(self, request: Any) -> None:
        self.idle = True
        self._deadline.set(IDLE_SECONDS, self.timeoutConnection)
        self.site.request_answered(self)
        if self._buffer or any(self._dataBuffer):
            # posd does not answer pipelined requests, since it would answer thousands in one turn of the
            # reactor. RFC 9112 §9.3.2 permits closing the connection; the client sends them again.
            self.persistent = False
        HTTPChannel.requestDone(self, request)
        if isinstance(request, BoundedRequest):
            if request.over_rate is not None:
                self.pause_reading(request)
            else:
                self._refusals = 0

    def pause_reading(self, request: BoundedRequest) -> None:
        """Pause reading after a request that exceeds a rate; longer each time if it had no valid key."""
        if self._is_closing or self._is_of_a_proxy():
            return
        # Pause again even if the timer runs, because Twisted resumes reading at the end of a request.
        self._networkProducer.pauseProducing()
        if self._pause_timer is not None:
            return
        doubled = 0 if request.account is not None else min(self._refusals, _MOST_DOUBLINGS)
        self._refusals += 1
        self._pause_timer = self.site.clock.callLater(
            _PAUSE_SECONDS * 2**doubled * random.uniform(0.5, 1.5), self._resume_reading
        )

    def _is_of_a_proxy(self) -> bool:
        """Whether requests of other clients may follow on this connection."""
        rate_gate = self.site.rate_gate
        return rate_gate is not None and rate_gate.is_proxy(
            getattr(self.transport.getPeer(), "host", "")
        )

    def set_owner(self, owner: object) -> None:
        """Note that a request has a valid key of `owner`."""
        if isinstance(self.transport, PacedInput):
            self.transport.set_owner(owner)

    def refuse(
        self, status: bytes, code: str, message: str, headers: Mapping[str, str] = {}
    ) -> None:
        """Send a refusal and close the connection. Later refusals are not sent."""
        if self._is_closing:
            return
        self.site.refused(int(status.split()[0]))
        self.transport.write(_refusal(status, code, message, headers))
        self.loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse input that is not HTTP. Twisted's own answer has no body."""
        self.refuse(b"400 Bad Request", "bad_request", "The request is not valid HTTP.")

    def loseConnection(self) -> None:
        """Close the connection. With TLS the client must close its end too, so there is a deadline."""
        if not self._is_closing:
            self._is_closing = True
            self._deadline.set(_HANG_UP_SECONDS, self._abort_timed_out)
        HTTPChannel.loseConnection(self)

    def readConnectionLost(self) -> None:
        """Handle that the client has closed its sending half. It may wait for an answer (RFC 9112 §6.3).

        A till's stream, poll or handshake is ended, because some proxies report a disconnected till only in
        this way.
        """
        request = self.requests[-1] if self.requests else None
        if self.idle or request is None:
            self.loseConnection()
        elif self._on_lost is not None or "upgrade" in request.fields:
            self.transport.abortConnection()
        else:
            self.persistent = False

    def writeConnectionLost(self) -> None:
        """Do nothing: posd never closes only its sending half."""

    def timeoutConnection(self) -> None:
        """Close an idle connection. Twisted's own method would log a line for each."""
        self.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._deadline.stop()
        if self._pause_timer is not None and self._pause_timer.active():
            self._pause_timer.cancel()
        self.site.leave(self)
        lost, self._on_lost = self._on_lost, None
        HTTPChannel.connectionLost(self, reason)
        self._forget_requests()
        if lost is not None:
            lost()

    def left(self) -> None:
        """Release the connection after its upgrade to a WebSocket."""
        self._deadline.stop()
        self.site.leave(self)
        self._forget_requests()

    def _forget_requests(self) -> None:
        """Break reference cycles.

        Otherwise a full garbage collection frees the closed connections. For a thousand of them it stopped
        all other connections for 41 ms when it was measured.
        """
        self.requests.clear()
        self._transferDecoder = self._send = None

    def detach_request(self, lost: Callable[[], None]) -> None:
        """Stop counting and timing this connection, because it answers a till's stream or long poll.

        `lost` is called when the connection is lost, unless `reattach_request` was called before.
        """
        self._deadline.stop()
        self.site.leave(self)
        self._on_lost = lost

    def reattach_request(self) -> None:
        """Count the connection again, because the answer of a long poll follows."""
        if self._on_lost is not None:
            self._on_lost = None
            self.site.restore(self)

    def _resume_reading(self) -> None:
        self._pause_timer = None
        if not self._waitingForTransport:
            self._networkProducer.resumeProducing()

    def _abort_timed_out(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()


def _refusal(status: bytes, code: str, message: str, headers: Mapping[str, str] = {}) -> bytes:
    """Return a complete error response that closes the connection."""
    error = {"success": False, "error": message, "code": code}
    body = jsontext.encode(error | {"requestId": secrets.token_hex(8)})
    head = (
        b"HTTP/1.1 %b\r\nServer: posd/%b\r\nContent-Type: application/json\r\n"
        b"Cache-Control: no-store\r\nConnection: close\r\nDate: %b\r\nContent-Length: %d\r\n%b\r\n"
    )
    extra_headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    values = (status, __version__.encode(), date(), len(body), extra_headers)
    return head % values + body
