"""HTTP as posd speaks it: bodies, headers and connections have bounds before anything is parsed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from twisted.web.resource import IResource
from twisted.web.server import Site

from posd.web.http.bounded_request import BODY_BYTES, BoundedRequest, LargeBodies, RequestCharges
from posd.web.http.channel import IDLE_SECONDS, BoundedChannel
from posd.web.http.wrong_protocol import KnownProtocol


class BoundedSite(Site):
    """A site with bounds. There is no access log: what is worth a line is logged where it happens.

    `refused` is told the status of what was refused before it became a request, `on_wrong_protocol` which
    other protocol was spoken on a connection.
    """

    # Twisted's own would switch to HTTP/2, on which a WebSocket is refused with 426.
    protocol = BoundedChannel  # type: ignore[assignment]

    def __init__(
        self,
        resource: IResource,
        reactor: Any,
        most_channels: int,
        refused: Callable[[int], None] = lambda status: None,
        on_wrong_protocol: Callable[[KnownProtocol, Any], None] = lambda spoken, transport: None,
        body_bytes: Callable[[bytes, bytes], int] = lambda method, uri: BODY_BYTES,
        rate_gate: RequestCharges | None = None,
    ) -> None:
        Site.__init__(
            self,
            resource,
            requestFactory=BoundedRequest,
            timeout=IDLE_SECONDS,
            reactor=reactor,
            parsePOSTFormSubmission=False,
        )
        self.clock = reactor
        self.most_channels = most_channels
        self.refused = refused
        self.on_wrong_protocol = on_wrong_protocol
        # The one that has been idle for longest comes first, among those that are idle.
        self._channels: OrderedDict[BoundedChannel, None] = OrderedDict()
        self.body_bytes = body_bytes
        self.rate_gate = rate_gate
        self.bodies = LargeBodies()

    @property
    def open_channels(self) -> int:
        """How many connections there are that are not a till's."""
        return len(self._channels)

    def enter(self, channel: BoundedChannel) -> None:
        """Count one more. Where there are too many, abort the one that has been idle for longest.

        A client that holds connections open to keep others out leaves them idle. A till that connects
        needs its connection for some milliseconds, and a proxy uses its connections again and again.
        """
        self._channels[channel] = None
        if len(self._channels) > self.most_channels:
            oldest = next((each for each in self._channels if each.idle), channel)
            self.leave(oldest)
            oldest.transport.abortConnection()

    def request_answered(self, channel: BoundedChannel) -> None:
        """Note that a request on this connection was answered: it becomes idle only now."""
        if channel in self._channels:
            self._channels.move_to_end(channel)

    def restore(self, channel: BoundedChannel) -> None:
        """Count a connection again that was a till's. It may be aborted when it is idle."""
        self._channels[channel] = None

    def leave(self, channel: BoundedChannel) -> None:
        """It is gone, or a till's."""
        self._channels.pop(channel, None)

    def acceptableProtocols(self) -> list[bytes]:
        """By ALPN, where an endpoint does TLS of its own: never HTTP/2, whatever is installed."""
        return [b"http/1.1"]

    def log(self, request: object) -> None:
        """Query strings and keys belong in no log."""
