"""HTTP as posd speaks it: bodies, headers and connections have bounds before anything is parsed."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from posd import __version__
from posd.protocol import jsontext

BODY_BYTES: Final = 1024 * 1024
"""The longest body of any request."""
MOST_UNFINISHED_BYTES: Final = 64 * 1024 * 1024
"""Of long bodies that are still coming, on one listener."""
_SHORT_BODY_BYTES: Final = 64 * 1024
_IDLE_SECONDS: Final = 30
_REQUEST_SECONDS: Final = 20.0
_HANG_UP_SECONDS: Final = 15.0
_MOST_PARAMETERS: Final = 100
_KERNEL_BYTES: Final = 256 * 1024
"""Of what was written to one connection; at 50 ms to the client and back it is 40 Mbit/s."""


class BoundedRequest(Request):
    """A request whose body is refused as soon as it is too large, with Content-Length or without."""

    channel: BoundedChannel
    _received = 0
    _most = BODY_BYTES
    refused = False

    def gotLength(self, length: int | None) -> None:
        if length is not None and self.requestHeaders.hasHeader(b"Transfer-Encoding"):
            # RFC 9112 §6.1: only "chunked" says where the body ends, and that has no length.
            self._refuse(b"400 Bad Request", "bad_request", "Transfer-Encoding must be chunked.")
        elif len(self.requestHeaders.getRawHeaders(b"Host", ())) > 1:
            # RFC 9112 §3.2. A proxy may have judged by the other one.
            self._refuse(b"400 Bad Request", "bad_request", "A request is for one Host.")
        else:
            self._most = self.channel.body_bytes()
            if length is not None and length > self._most:
                self._refuse_body()
        # Twisted would put a body of 100,000 bytes or of unknown length into a file.
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self._most:
            self._refuse_body()
        elif not self.refused:
            Request.handleContentChunk(self, data)
            if self._received > _SHORT_BODY_BYTES:
                self.channel.site.bodies.grown(self, self._received)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.channel.site.bodies.done(self)
        if path.count(b"&") >= _MOST_PARAMETERS:
            # Twisted takes 5 ms for the 8000 that a line has room for, before anybody is asked for a key.
            sentence = f"A query may have {_MOST_PARAMETERS} parameters."
            self._refuse(b"400 Bad Request", "bad_request", sentence)
        if not self.refused:
            Request.requestReceived(self, command, path, version)

    def connectionLost(self, reason: Failure) -> None:
        """What has come whole is carried out, whoever left meanwhile, and needs its body for that.

        Twisted closes that. Here it is closed when the request is forgotten.
        """
        content, self.content = self.content, None
        self.channel.site.bodies.done(self)
        Request.connectionLost(self, reason)
        self.content = content

    def give_way(self) -> None:
        """Answer that there is no room for the body, which has not come whole."""
        self._refuse(
            b"503 Service Unavailable", "overloaded", "Too many long bodies are being sent."
        )

    def _refuse_body(self) -> None:
        """Answer and hang up, instead of reading on what is thrown away."""
        sentence = f"The body has more than {self._most} bytes."
        self._refuse(b"413 Content Too Large", "too_large", sentence)

    def _refuse(self, status: bytes, code: str, sentence: str) -> None:
        if not self.refused and self.channel is not None:
            self.refused = True
            self.content = BytesIO()
            self.channel.site.bodies.done(self)
            self.channel.refuse(status, code, sentence)


@define(eq=False)
class LongBodies:
    """The bodies of more than 64 KiB that have not come whole, of which a stranger may send many.

    Where they are too many bytes together, the one that was begun first gives way: a body that a
    platform sends is here within moments.
    """

    _sizes: dict[BoundedRequest, int] = field(factory=dict, init=False)
    total: int = field(default=0, init=False)
    """The bytes of all of them."""

    def grown(self, request: BoundedRequest, size: int) -> None:
        """Count a request whose body has so many bytes by now."""
        self.total += size - self._sizes.get(request, 0)
        self._sizes[request] = size
        while self.total > MOST_UNFINISHED_BYTES:
            next(iter(self._sizes)).give_way()

    def done(self, request: BoundedRequest) -> None:
        """It has come whole, or never will."""
        self.total -= self._sizes.pop(request, 0)


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
    _lost: Callable[[], None] | None = None

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        _bound_kernel_buffer(self.transport)
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

    def body_bytes(self) -> int:
        """How long the body of the request may be whose headers have come."""
        return self.site.body_bytes(self._command, self._path)

    def requestDone(self, request: Any) -> None:
        self.idle = True
        if self._buffer or any(self._dataBuffer):
            # One request at a time: thousands in one segment would be answered in one turn of the
            # reactor. RFC 9112 §9.3.2 lets a server close, and who pipelines has to ask again.
            self.persistent = False
        HTTPChannel.requestDone(self, request)

    def refuse(self, status: bytes, code: str, sentence: str) -> None:
        """Answer what cannot become a request, and hang up."""
        self.site.refused(int(status.split()[0]))
        said = {"success": False, "error": sentence, "code": code}
        body = jsontext.encode(said | {"requestId": secrets.token_hex(8)})
        head = (
            b"HTTP/1.1 %b\r\nServer: posd/%b\r\nContent-Type: application/json\r\n"
            b"Cache-Control: no-store\r\nConnection: close\r\nDate: %b\r\n%bContent-Length: %d\r\n\r\n"
        )
        again = b"Retry-After: 1\r\n" if status.startswith(b"503") else b""
        values = (status, __version__.encode(), datetimeToString(), again, len(body))
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


def _bound_kernel_buffer(transport: Any) -> None:
    """Bound what the kernel takes of what posd writes, and with it what a client costs that does not read.

    Linux gives a connection up to 4 MiB for it (tcp(7), tcp_wmem), which count as posd's memory in its
    control group, and which no limit of posd's own would see. It doubles the value.
    """
    while (below := getattr(transport, "transport", None)) is not None:
        transport = below
    with suppress(AttributeError, OSError):
        transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES // 2)


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
        body_bytes: Callable[[bytes, bytes], int] = lambda method, uri: BODY_BYTES,
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
        self.body_bytes = body_bytes
        self.bodies = LongBodies()
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
