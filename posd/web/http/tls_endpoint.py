"""What lies below a site, with TLS or without.

A client that begins with another protocol than TLS is told so, where OpenSSL would hang up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from posd.security.addresses import Network
from posd.security.server_tls import ServerTLS
from posd.web.http.channel import BoundedChannel
from posd.web.http.input_turns import InputTurns, PacedPlainFactory, PacedTLS, PacedTLSFactory
from posd.web.http.wrong_protocol import KnownProtocol, detect_protocol


class SniffingTransport(PacedTLS):
    """TLS below a `BoundedChannel`. Looks at the first bytes before OpenSSL does."""

    transport: Any
    wrappedProtocol: BoundedChannel

    def makeConnection(self, transport: Any) -> None:
        # An attribute of the instance, so that all reads but the first cost nothing more.
        self.dataReceived = self._sniff  # type: ignore[method-assign]
        super().makeConnection(transport)

    def _sniff(self, data: bytes) -> None:
        spoken = detect_protocol(data)
        if spoken is None or spoken is KnownProtocol.TLS:
            del self.dataReceived
            super().dataReceived(data)
            return
        self.dataReceived = _ignore  # type: ignore[method-assign]
        answer = self.wrappedProtocol.wrong_protocol(spoken)
        # To a proxy that goes on with TLS after a PROXY header, HTTP would be no answer.
        if spoken is KnownProtocol.HTTP:
            self.transport.write(answer)
        self.transport.loseConnection()

    def ended(self, reason: Failure) -> None:
        # Nothing more comes, and a method of its own would be a cycle.
        self.dataReceived = _ignore  # type: ignore[method-assign]
        # What OpenSSL raised, if it ended this. Twisted tells nobody but the wrapped protocol.
        error = getattr(self._reason, "value", None)
        if isinstance(self.factory, _Factory) and error is not None:
            self.factory.failed(error, getattr(self.transport.getPeer(), "host", "-"))
        super().ended(reason)


class _Factory(PacedTLSFactory):
    protocol = SniffingTransport

    def __init__(
        self,
        tls: ServerTLS,
        factory: IProtocolFactory,
        turns: InputTurns,
        proxies: Sequence[Network],
    ) -> None:
        super().__init__(tls, factory, turns, proxies)
        self.failed = tls.refusals.failed


@implementer(IStreamServerEndpoint)
@define(eq=False)
class TLSEndpoint:
    """An endpoint with TLS, for a `BoundedSite`. Input takes `turns` with that of other listeners.

    `proxies` of the listener may begin as many as they like.
    """

    tls: ServerTLS
    endpoint: IStreamServerEndpoint
    turns: InputTurns
    proxies: Sequence[Network] = ()

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen, and speak TLS on each connection before the factory's protocol."""
        return self.endpoint.listen(_Factory(self.tls, factory, self.turns, self.proxies))


@implementer(IStreamServerEndpoint)
@define(eq=False)
class PlainEndpoint:
    """An endpoint without TLS. Input takes `turns` with that of other listeners."""

    endpoint: IStreamServerEndpoint
    turns: InputTurns

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen, and let the input of each connection take turns."""
        return self.endpoint.listen(PacedPlainFactory(factory, self.turns))


def _ignore(data: bytes) -> None:
    """Take no notice of what comes until the connection is closed."""
