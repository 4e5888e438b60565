"""HTTP as posd speaks it: bodies, headers and connections have bounds before anything is parsed."""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from posd import jsontext

BODY_BYTES: Final = 1024 * 1024
_IDLE_SECONDS: Final = 30
_FIRST_REQUEST_SECONDS: Final = 20.0
_TOO_LARGE: Final = jsontext.encode(
    {
        "success": False,
        "error": f"The body has more than {BODY_BYTES} bytes.",
        "code": "too_large",
    }
)


class BoundedRequest(Request):
    """A request whose body is refused as soon as it is too large, with Content-Length or without."""

    _received = 0
    refused = False

    def gotLength(self, length: int | None) -> None:
        if length is not None and length > BODY_BYTES:
            self._refuse()
            length = 0
        Request.gotLength(self, length)

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > BODY_BYTES:
            self._refuse()
        elif not self.refused:
            Request.handleContentChunk(self, data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if not self.refused:
            Request.requestReceived(self, command, path, version)

    def _refuse(self) -> None:
        """Answer 413 and hang up, instead of reading on what is thrown away."""
        if self.refused or self.channel is None:
            return
        self.refused = True
        head = (
            b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nDate: %b\r\nContent-Length: %d\r\n\r\n"
        )
        self.channel.write(head % (datetimeToString(), len(_TOO_LARGE)) + _TOO_LARGE)
        self.channel.loseConnection()


class BoundedChannel(HTTPChannel):
    """A connection that must bring a request soon: a handshake that is never finished, or one byte
    every few seconds, do not hold it open."""

    site: BoundedSite
    transport: Any
    _deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        self.site.open_channels += 1
        if self.site.open_channels > self.site.most_channels:
            self.transport.abortConnection()
            return
        clock: IReactorTime = self.site.clock
        self._deadline = clock.callLater(_FIRST_REQUEST_SECONDS, self._too_late)

    def allContentReceived(self) -> None:
        self._on_time()
        HTTPChannel.allContentReceived(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._on_time()
        HTTPChannel.connectionLost(self, reason)
        self.site.open_channels -= 1

    def left(self) -> None:
        """The connection was upgraded: it is not HTTP's any more."""
        self._on_time()
        HTTPChannel.setTimeout(self, None)
        self.site.open_channels -= 1

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

    def __init__(self, resource: IResource, reactor: Any, most_channels: int) -> None:
        Site.__init__(
            self,
            resource,
            requestFactory=BoundedRequest,
            timeout=_IDLE_SECONDS,
            reactor=reactor,
            parsePOSTFormSubmission=False,
        )
        self.clock = reactor
        self.open_channels = 0
        self.most_channels = most_channels

    def log(self, request: object) -> None:
        """Query strings and keys belong in no log."""
