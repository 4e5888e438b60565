"""HTTP as posd speaks it: bodies, headers and connections have bounds before anything is parsed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from posd import __version__
from posd.errors import TooManyRequests
from posd.protocol import jsontext
from posd.security.request_rates import Account

BODY_BYTES: Final = 1024 * 1024
_IDLE_SECONDS: Final = 30
_REQUEST_SECONDS: Final = 20.0
_HANG_UP_SECONDS: Final = 15.0
_BODY_READ_IN_VAIN: Final = 64 * 1024
"""A longer body of a request that is refused for its rate is not read, and its connection is closed."""
_PAUSE_SECONDS: Final = 1.0
"""After a 429 a connection is not read for so long: a client that asks again at once would keep posd busy."""


class RateGate(Protocol):
    """Charges requests (`posd.web.http.rate_gate`)."""

    def enter(self, request: Request, path: bytes, size: int) -> Account | None:
        """Charge a request. Raises `TooManyRequests`."""

    def go_on(self, who: Account | None, size: int) -> TooManyRequests | None:
        """Charge bytes of its body that were not announced."""


class BoundedRequest(Request):
    """A request whose body is refused as soon as it is too large, with Content-Length or without.

    `over_rate` is the answer to a request that is one too many for its credential or its address.
    """

    channel: BoundedChannel
    _received = 0
    refused = False
    over_rate: TooManyRequests | None = None
    account: Account | None = None
    """The credential that is charged for it, None where an address or nobody is."""
    _announced = True

    def gotLength(self, length: int | None) -> None:
        if length is not None and self.requestHeaders.hasHeader(b"Transfer-Encoding"):
            # RFC 9112 §6.1: only "chunked" says where the body ends, and that has no length.
            self._refuse(b"400 Bad Request", "bad_request", "Transfer-Encoding must be chunked.")
        elif len(self.requestHeaders.getRawHeaders(b"Host", ())) > 1:
            # RFC 9112 §3.2. A proxy may have judged by the other one.
            self._refuse(b"400 Bad Request", "bad_request", "A request is for one Host.")
        elif length is not None and length > BODY_BYTES:
            self._refuse_body()
        else:
            self._charge(length)
        Request.gotLength(self, 0 if self.refused else length)

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > BODY_BYTES:
            self._refuse_body()
        elif not self._announced and self.over_rate is None:
            self._charge_more(len(data))
        if not self.refused and self.over_rate is None:
            Request.handleContentChunk(self, data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if not self.refused:
            Request.requestReceived(self, command, path, version)

    def connectionLost(self, reason: Failure) -> None:
        """What has come whole is carried out, whoever left meanwhile, and needs its body for that.

        Twisted closes that. Here it is closed when the request is forgotten.
        """
        content, self.content = self.content, None
        Request.connectionLost(self, reason)
        self.content = content

    def _charge(self, length: int | None) -> None:
        """Charge the request, and its body as far as its size is known."""
        gate = self.channel.site.gate
        if gate is None:
            return
        self._announced = length is not None
        try:
            self.account = gate.enter(self, self.channel.path, length or 0)
            if self.account is not None:
                self.channel.known()
        except TooManyRequests as refusal:
            self._be_over(refusal, length)

    def _charge_more(self, size: int) -> None:
        gate = self.channel.site.gate
        refusal = None if gate is None else gate.go_on(self.account, size)
        if refusal is not None:
            self._be_over(refusal, None)

    def _be_over(self, refusal: TooManyRequests, length: int | None) -> None:
        """Answer with a refusal: when the request has come whole, or at once where its body is long."""
        self.over_rate = refusal
        if length is None or length > _BODY_READ_IN_VAIN:
            sentence, headers = refusal.message, {"Retry-After": str(refusal.retry_after)}
            self._refuse(b"429 Too Many Requests", refusal.code, sentence, headers)

    def _refuse_body(self) -> None:
        """Answer and hang up, instead of reading on what is thrown away."""
        sentence = f"The body has more than {BODY_BYTES} bytes."
        self._refuse(b"413 Content Too Large", "too_large", sentence)

    def _refuse(
        self, status: bytes, code: str, sentence: str, headers: Mapping[str, str] = {}
    ) -> None:
        if not self.refused and self.channel is not None:
            self.refused = True
            self.channel.refuse(status, code, sentence, headers)


class BoundedChannel(HTTPChannel):
    """A connection that has to bring each of its requests soon, and to go when it is told to.

    A handshake that is never finished, one byte every few seconds, or a peer that does not hang up
    hold nothing open.
    """

    site: BoundedSite
    transport: Any
    idle = True
    """Whether there is no request that is being answered."""
    _deadline: IDelayedCall | None = None
    _leaving = False
    _rest: IDelayedCall | None = None
    _known = False
    _lost: Callable[[], None] | None = None

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        self._expect(_REQUEST_SECONDS)
        self.site.enter(self)

    def dataReceived(self, data: bytes) -> None:
        if self._leaving:
            # Twisted would read on, and take a request that it has refused for a good one.
            return
        if self.idle and self._deadline is None:
            self._expect(_REQUEST_SECONDS)
        HTTPChannel.dataReceived(self, data)

    def allContentReceived(self) -> None:
        self.idle = False
        self._on_time()
        HTTPChannel.allContentReceived(self)

    def requestDone(self, request: Any) -> None:
        self.idle = True
        if self._buffer or any(self._dataBuffer):
            # One request at a time: thousands in one segment would be answered in one turn of the
            # reactor. RFC 9112 §9.3.2 lets a server close, and who pipelines has to ask again.
            self.persistent = False
        HTTPChannel.requestDone(self, request)
        if request.code == 429 and not self._leaving:
            self._networkProducer.pauseProducing()
            self._rest = self.site.clock.callLater(_PAUSE_SECONDS, self._rested)

    def known(self) -> None:
        """A request with a valid key has come."""
        if not self._known:
            self._known = True
            self.site.known(getattr(self.transport.getPeer(), "host", ""))

    @property
    def path(self) -> bytes:
        """The target of the request whose headers have come, as it was sent."""
        return self._path

    def refuse(
        self, status: bytes, code: str, sentence: str, headers: Mapping[str, str] = {}
    ) -> None:
        """Answer what cannot become a request, and hang up."""
        self.site.refused(int(status.split()[0]))
        said = {"success": False, "error": sentence, "code": code}
        body = jsontext.encode(said | {"requestId": secrets.token_hex(8)})
        head = (
            b"HTTP/1.1 %b\r\nServer: posd/%b\r\nContent-Type: application/json\r\n"
            b"Cache-Control: no-store\r\nConnection: close\r\nDate: %b\r\nContent-Length: %d\r\n%b\r\n"
        )
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
        values = (status, __version__.encode(), datetimeToString(), len(body), more)
        self.transport.write(head % values + body)
        self.loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Twisted's way to refuse what is not HTTP has no body."""
        self.refuse(b"400 Bad Request", "bad_request", "This is not HTTP as it should be.")

    def loseConnection(self) -> None:
        """Hang up. Over TLS that waits for the peer to do so too, which it may never do."""
        if not self._leaving:
            self._leaving = True
            self._expect(_HANG_UP_SECONDS)
        HTTPChannel.loseConnection(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._on_time()
        if self._rest is not None and self._rest.active():
            self._rest.cancel()
        self.site.leave(self)
        lost, self._lost = self._lost, None
        HTTPChannel.connectionLost(self, reason)
        if lost is not None:
            lost()

    def left(self) -> None:
        """The connection was upgraded: it is not HTTP's any more."""
        self._on_time()
        HTTPChannel.setTimeout(self, None)
        self.site.leave(self)

    def hold(self, lost: Callable[[], None]) -> None:
        """The request that is being answered is a till's, which is counted elsewhere, and takes long.

        `lost` is called when the connection is gone, unless `let_go` was called before.
        """
        self.site.leave(self)
        self._lost = lost

    def let_go(self) -> None:
        """The answer follows: then it is a connection like any other."""
        if self._lost is not None:
            self._lost = None
            self.site.come_back(self)

    def _rested(self) -> None:
        self._rest = None
        if not self._waitingForTransport:
            self._networkProducer.resumeProducing()

    def _expect(self, seconds: float) -> None:
        """What comes next has to come soon."""
        self._on_time()
        clock: IReactorTime = self.site.clock
        self._deadline = clock.callLater(seconds, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        if self.transport is not None:
            self.transport.abortConnection()

    def _on_time(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()


class BoundedSite(Site):
    """A site with bounds. There is no access log: what is worth a line is logged where it happens."""

    # Twisted's own would switch to HTTP/2, on which a WebSocket is refused with 426.
    protocol = BoundedChannel  # type: ignore[assignment]

    def __init__(
        self,
        resource: IResource,
        reactor: Any,
        most_channels: int,
        refused: Callable[[int], None] = lambda status: None,
        gate: RateGate | None = None,
        known: Callable[[str], None] = lambda address: None,
    ) -> None:
        Site.__init__(
            self,
            resource,
            requestFactory=BoundedRequest,
            timeout=_IDLE_SECONDS,
            reactor=reactor,
            parsePOSTFormSubmission=False,
        )
        self.clock = reactor
        self.most_channels = most_channels
        self.refused = refused
        self.gate = gate
        self.known = known
        # In the order in which they came.
        self._channels: dict[BoundedChannel, None] = {}

    @property
    def open_channels(self) -> int:
        """How many connections there are that are no till's."""
        return len(self._channels)

    def enter(self, channel: BoundedChannel) -> None:
        """Count one more. Where there are too many, the oldest that asks for nothing has to go.

        Who holds connections open to keep others out holds old ones; a till that connects needs
        its own for some milliseconds.
        """
        self._channels[channel] = None
        if len(self._channels) > self.most_channels:
            superfluous = next((each for each in self._channels if each.idle), channel)
            self.leave(superfluous)
            superfluous.transport.abortConnection()

    def come_back(self, channel: BoundedChannel) -> None:
        """Count it again. It goes like any other when it is idle and there are too many."""
        self._channels[channel] = None

    def leave(self, channel: BoundedChannel) -> None:
        """It is gone, or a till's."""
        self._channels.pop(channel, None)

    def acceptableProtocols(self) -> list[bytes]:
        """By ALPN, where an endpoint does TLS of its own: never HTTP/2, whatever is installed."""
        return [b"http/1.1"]

    def log(self, request: object) -> None:
        """Query strings and keys belong in no log."""
