"""TLS below a site. A client that begins with another protocol is told so, where OpenSSL would hang up."""

from __future__ import annotations

from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from zope.interface import implementer

from posd.security.server_tls import ServerTLS
from posd.web.http.site import BoundedChannel
from posd.web.http.wrong_protocol import Spoken, recognise


class SniffingTransport(BufferingTLSTransport):
    """TLS below a `BoundedChannel`. Looks at the first bytes before OpenSSL does."""

    transport: Any
    wrappedProtocol: BoundedChannel

    def makeConnection(self, transport: Any) -> None:
        # An attribute of the instance, so that all reads but the first cost nothing more.
        self.dataReceived = self._begin  # type: ignore[method-assign]
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def _begin(self, data: bytes) -> None:
        spoken = recognise(data)
        if spoken is None or spoken is Spoken.TLS:
            del self.dataReceived
            super().dataReceived(data)  # type: ignore[no-untyped-call]
            return
        self.dataReceived = _ignore  # type: ignore[method-assign]
        answer = self.wrappedProtocol.wrong_protocol(spoken)
        # To a proxy that goes on with TLS after a PROXY header, HTTP would be no answer.
        if spoken is Spoken.HTTP:
            self.transport.write(answer)
        self.transport.loseConnection()


class _Factory(TLSMemoryBIOFactory):
    protocol = SniffingTransport


@implementer(IStreamServerEndpoint)
@define(eq=False)
class TLSEndpoint:
    """An endpoint with TLS, for a `BoundedSite`."""

    tls: ServerTLS
    endpoint: IStreamServerEndpoint

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen, and speak TLS on each connection before the factory's protocol."""
        return self.endpoint.listen(_Factory(self.tls, False, factory))


def _ignore(data: bytes) -> None:
    """Take no notice of what comes until the connection is closed."""
