"""The HTTP site of a listener. It limits connections, headers and bodies before they are parsed."""

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
    """A site with limits, and without an access log.

    `refused` is called with the status of each refusal that is sent before there is a complete request.
    `on_wrong_protocol` is called if a client speaks another protocol than the listener. `body_bytes` returns
    the most bytes of a body, from the method and the target of a request.
    """

    # Twisted's own protocol can switch to HTTP/2, where a WebSocket is refused with 426.
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
        # Among the idle connections, the one that has been idle for longest comes first.
        self._channels: OrderedDict[BoundedChannel, None] = OrderedDict()
        self.body_bytes = body_bytes
        self.rate_gate = rate_gate
        self.bodies = LargeBodies()

    @property
    def open_channels(self) -> int:
        """The number of connections that are not tills' sessions."""
        return len(self._channels)

    def enter(self, channel: BoundedChannel) -> None:
        """Count a connection. If there are too many, abort the one that has been idle for longest.

        An attacker that holds connections open leaves them idle. A till that connects needs its HTTP
        connection for some milliseconds, and a proxy uses its connections frequently.
        """
        self._channels[channel] = None
        if len(self._channels) > self.most_channels:
            oldest = next((each for each in self._channels if each.idle), channel)
            self.leave(oldest)
            oldest.transport.abortConnection()

    def request_answered(self, channel: BoundedChannel) -> None:
        """Note that a request was answered, so that the connection becomes idle now."""
        if channel in self._channels:
            self._channels.move_to_end(channel)

    def restore(self, channel: BoundedChannel) -> None:
        """Count a connection again that is no longer a till's. It may be aborted when it is idle."""
        self._channels[channel] = None

    def leave(self, channel: BoundedChannel) -> None:
        """Stop counting a connection that is lost or has become a till's."""
        self._channels.pop(channel, None)

    def acceptableProtocols(self) -> list[bytes]:
        """Return the protocols for ALPN: only HTTP/1.1, even if the library for HTTP/2 is installed."""
        return [b"http/1.1"]

    def log(self, request: object) -> None:
        """Do nothing, because URLs may contain keys."""
