"""Endpoints for a `BoundedSite`, with TLS or without.

A client that does not begin with TLS gets an answer, if it speaks HTTP. OpenSSL alone would only close the
connection.
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
from posd.web.http.input_turns import InputTurns
from posd.web.http.paced_input import PacedPlainFactory, PacedTLS, PacedTLSFactory
from posd.web.http.wrong_protocol import KnownProtocol, detect_protocol


class SniffingTransport(PacedTLS):
    """TLS below a `BoundedChannel`. It checks the first bytes before it passes them to OpenSSL."""

    transport: Any
    wrappedProtocol: BoundedChannel

    def makeConnection(self, transport: Any) -> None:
        # An instance attribute, which `_sniff` deletes: later reads call the method of the class directly.
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
        # A proxy that sends a PROXY header speaks TLS after it, so it would not understand HTTP.
        if spoken is KnownProtocol.HTTP:
            self.transport.write(answer)
        self.transport.loseConnection()

    def ended(self, reason: Failure) -> None:
        # A bound method as an instance attribute would be a reference cycle.
        self.dataReceived = _ignore  # type: ignore[method-assign]
        # The error of OpenSSL, if one ended the connection. Twisted passes it to the wrapped protocol only.
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
    """An endpoint with TLS, for a `BoundedSite`. All listeners share `turns`.

    The listener's `proxies` may begin any number of handshakes.
    """

    tls: ServerTLS
    endpoint: IStreamServerEndpoint
    turns: InputTurns
    proxies: Sequence[Network] = ()

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen, and run the factory's protocol over TLS."""
        return self.endpoint.listen(_Factory(self.tls, factory, self.turns, self.proxies))


@implementer(IStreamServerEndpoint)
@define(eq=False)
class PlainEndpoint:
    """An endpoint without TLS. All listeners share `turns`."""

    endpoint: IStreamServerEndpoint
    turns: InputTurns

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen, and process the input of connections in turns."""
        return self.endpoint.listen(PacedPlainFactory(factory, self.turns))


def _ignore(data: bytes) -> None:
    """Ignore input until the connection is closed."""
