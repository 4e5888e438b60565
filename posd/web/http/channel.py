"""A connection of HTTP: one request after the other, each within a time, and each within bounds."""

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
from posd.web.http.input_turns import PacedInput
from posd.web.http.request_head import RequestHead, read_head
from posd.web.http.sockets import limit_buffers
from posd.web.http.wrong_protocol import HINTS, LONGEST_OPENING, KnownProtocol, detect_protocol

IDLE_SECONDS: Final = 75
"""Longer than nginx and AWS ALB keep an idle connection to a server, which is 60 s.

A proxy that sends a request on a connection that posd has just closed answers its client with 502.
"""
_REQUEST_SECONDS: Final = 20.0
_HANG_UP_SECONDS: Final = 15.0
_LONGEST_LENGTH: Final = 20
"""Digits of a Content-Length that are worth reading. int() raises for some thousands of them."""
# RFC 9110 §5.5: no field value has control characters but HTAB. Twisted refuses NUL, CR and LF only.
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PAUSE_SECONDS: Final = 1.0
"""After a request that was over a rate its connection is not read for so long.

A client that asks again at once would keep posd busy. A proxy sends requests of other clients on the same
connection, and a platform those of other tenants after a tenant's own 429; these are read on. A random half
is added or taken away, so that a thousand such connections do not go on in one turn of the reactor.
"""
_MOST_DOUBLINGS: Final = 3
"""How often that is doubled for a stranger who goes on: so up to eight seconds."""


class ChannelSite(RequestSite, Protocol):
    """What a connection needs of its site, a `posd.web.http.site.BoundedSite`."""

    clock: Any
    """The reactor."""
    refused: Callable[[int], None]
    """Told the status of what was refused before it became a request."""
    on_wrong_protocol: Callable[[KnownProtocol, Any], None]
    """Told which other protocol was spoken, on which transport."""

    def enter(self, channel: BoundedChannel) -> None:
        """Count a connection."""

    def request_answered(self, channel: BoundedChannel) -> None:
        """A request on it was answered."""

    def leave(self, channel: BoundedChannel) -> None:
        """It is gone, or a till's."""

    def restore(self, channel: BoundedChannel) -> None:
        """It is not a till's any more."""


@implementer(IHalfCloseableProtocol)
class BoundedChannel(HTTPChannel):
    """A connection that has to bring each of its requests soon, and to go when it is told to.

    A handshake that is never finished, one byte every few seconds, or a peer that does not hang up
    hold nothing open.
    """

    site: ChannelSite
    transport: Any
    idle = True
    """Whether there is no request that is being answered."""
    _is_expecting = False
    """Whether a request has begun and has not come whole. A connection begins with one."""
    _opening: bytes | None = b""
    """The first bytes of the connection, until they are enough to tell its protocol."""
    _deadline: DeadlineTimer
    """When the next request must have come, or the connection must have gone. None while posd answers."""
    _peer: IAddress | None = None
    _host: IAddress | None = None
    _is_closing = False
    _pause_timer: IDelayedCall | None = None
    _refusals = 0
    """Requests in a row that were over a rate."""
    _on_lost: Callable[[], None] | None = None
    _send: Write | None = None
    """Writes directly, from the first answer on."""

    def connectionMade(self) -> None:
        self._deadline = DeadlineTimer(self.site.clock)
        HTTPChannel.connectionMade(self)
        limit_buffers(self.transport)
        self._deadline.set(_REQUEST_SECONDS, self._abort_timed_out)
        self._is_expecting = True
        self.site.enter(self)

    def setTimeout(self, period: int | None) -> int | None:
        """Note Twisted's idle time, for which no delayed call is made: see `_deadline`."""
        previous, self.timeOut = self.timeOut, period
        return previous

    def resetTimeout(self) -> None:
        """A byte that arrives does not give a request more time."""

    def getPeer(self) -> IAddress:
        """The other end, looked up once. Behind `haproxy:` it is known before the first request."""
        if self._peer is None:
            self._peer = HTTPChannel.getPeer(self)
        return self._peer

    def getHost(self) -> IAddress:
        """This end, looked up once."""
        if self._host is None:
            self._host = HTTPChannel.getHost(self)
        return self._host

    @property
    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """Method, target and version of the request whose head was read last."""
        return self._command, self._path, self._version

    def dataReceived(self, data: bytes) -> None:
        if self._is_closing:
            # Twisted would read on, and take a request that it has refused for a good one.
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

    def _begin(self, head: RequestHead, pause_reading: bytes) -> None:
        """Begin a request whose head was read, as `lineReceived` does at the end of a head."""
        request = BoundedRequest(self)
        self.requests.append(request)
        self._command, self._path, self._version = head.method, head.target, b"HTTP/1.1"
        request.fields = head.fields
        self.length = head.length or 0
        self.allHeadersReceived()
        if self._is_closing:
            return
        length = self.length
        if len(pause_reading) >= length:
            if length:
                request.handleContentChunk(pause_reading[:length])
            self._finishRequestBody(pause_reading[length:])  # type: ignore[no-untyped-call]
        else:
            self._expect_request()
            self._maybeChooseTransferDecoder(b"Content-Length", b"%d" % length)  # type: ignore[no-untyped-call]
            self.setRawMode()  # type: ignore[no-untyped-call]
            if pause_reading:
                self.rawDataReceived(pause_reading)

    def send(self, data: bytes) -> None:
        """Send an answer, or its beginning, in this turn of the reactor. Nothing is sent after hanging up."""
        if self._send is None:
            self._send = direct_write(self.transport)
        (self.transport.write if self._is_closing else self._send)(data)

    def _expect_request(self) -> None:
        """The rest of the request that has begun must come soon."""
        if self.idle and not self._is_expecting:
            self._is_expecting = True
            self._deadline.set(_REQUEST_SECONDS, self._abort_timed_out)

    def _begins_with_wrong_protocol(self, data: bytes) -> bool:
        """Refuse a connection whose first bytes are not HTTP's, and tell whether they are not."""
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
        """Note that this came where TLS is spoken. Returns an answer that is to be sent without TLS."""
        self.site.on_wrong_protocol(spoken, self.transport)
        self.site.refused(400)
        return _refusal(b"400 Bad Request", "bad_request", HINTS[spoken])

    def lineReceived(self, line: bytes) -> None:
        """Take a line of a head, unless no valid head has it.

        RFC 9112 §5.2: a folded header is refused, since programs read it differently.
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
        """Tell whether another request may follow (RFC 9112 §9.3).

        Connection is a list, of which Twisted reads the first line only and splits that at blanks.
        """
        lines = request.fields.get("connection", ())
        if version == b"HTTP/1.1" and not (lines and "close" in members(lines)):
            return True
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    def _send100Continue(self) -> None:
        """Ask for the body, unless its head was refused."""
        if not self._is_closing:
            HTTPChannel._send100Continue(self)

    def allContentReceived(self) -> None:
        if self._is_closing:
            # The request was refused by its head; the time to hang up runs on.
            return
        self.idle = self._is_expecting = False
        self._deadline.clear()
        HTTPChannel.allContentReceived(self)

    def requestDone(self, request: Any) -> None:
        self.idle = True
        self._deadline.set(IDLE_SECONDS, self.timeoutConnection)
        self.site.request_answered(self)
        if self._buffer or any(self._dataBuffer):
            # One request at a time: thousands in one segment would be answered in one turn of the
            # reactor. RFC 9112 §9.3.2 lets a server close, and who pipelines has to ask again.
            self.persistent = False
        HTTPChannel.requestDone(self, request)
        if isinstance(request, BoundedRequest):
            if request.over_rate is not None:
                self.pause_reading(request)
            else:
                self._refusals = 0

    def pause_reading(self, request: BoundedRequest) -> None:
        """Read nothing for a moment, since a request was over a rate. A stranger's rests get longer."""
        if self._is_closing or self._is_of_a_proxy():
            return
        # Also where it rests already: Twisted reads on when a request is done.
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
        """A request with a valid key of `owner` has come."""
        if isinstance(self.transport, PacedInput):
            self.transport.set_owner(owner)

    def refuse(
        self, status: bytes, code: str, message: str, headers: Mapping[str, str] = {}
    ) -> None:
        """Answer what cannot become a request, and hang up. Only the first refusal is sent."""
        if self._is_closing:
            return
        self.site.refused(int(status.split()[0]))
        self.transport.write(_refusal(status, code, message, headers))
        self.loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Twisted's way to refuse what is not HTTP has no body."""
        self.refuse(b"400 Bad Request", "bad_request", "The request is not valid HTTP.")

    def loseConnection(self) -> None:
        """Hang up. Over TLS that waits for the peer to do so too, which it may never do."""
        if not self._is_closing:
            self._is_closing = True
            self._deadline.set(_HANG_UP_SECONDS, self._abort_timed_out)
        HTTPChannel.loseConnection(self)

    def readConnectionLost(self) -> None:
        """The client sends nothing more. It may still wait for its answer (RFC 9112 §6.3, at the end).

        A till's stream, poll or handshake ends: a proxy says no otherwise that the till has gone.
        """
        request = self.requests[-1] if self.requests else None
        if self.idle or request is None:
            self.loseConnection()
        elif self._on_lost is not None or "upgrade" in request.fields:
            self.transport.abortConnection()
        else:
            self.persistent = False

    def writeConnectionLost(self) -> None:
        """posd never closes its own half alone."""

    def timeoutConnection(self) -> None:
        """Hang up after an idle time. Twisted would log a line for each connection."""
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
        """The connection was upgraded: it is not HTTP's any more."""
        self._deadline.stop()
        self.site.leave(self)
        self._forget_requests()

    def _forget_requests(self) -> None:
        """Leave no cycle behind.

        A thousand connections that ended would be found by one full collection, which stopped all others
        for 41 ms, measured.
        """
        self.requests.clear()
        self._transferDecoder = self._send = None

    def detach_request(self, lost: Callable[[], None]) -> None:
        """The request that is being answered is a till's, which is counted elsewhere, and takes long.

        `lost` is called when the connection is gone, unless `reattach_request` was called before.
        """
        self._deadline.stop()
        self.site.leave(self)
        self._on_lost = lost

    def reattach_request(self) -> None:
        """The answer follows: then it is a connection like any other."""
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
    """A whole answer to what cannot become a request; like all others, and the last on its connection."""
    error = {"success": False, "error": message, "code": code}
    body = jsontext.encode(error | {"requestId": secrets.token_hex(8)})
    head = (
        b"HTTP/1.1 %b\r\nServer: posd/%b\r\nContent-Type: application/json\r\n"
        b"Cache-Control: no-store\r\nConnection: close\r\nDate: %b\r\nContent-Length: %d\r\n%b\r\n"
    )
    extra_headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    values = (status, __version__.encode(), date(), len(body), extra_headers)
    return head % values + body
