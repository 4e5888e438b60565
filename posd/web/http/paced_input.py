"""Connections whose input takes turns (`posd.web.http.input_turns`), with TLS or without."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from posd.security.addresses import Network, address_bucket, is_proxy
from posd.web.http.direct_read import DirectlyRead
from posd.web.http.input_turns import InputTurns
from posd.web.http.sockets import socket_transport

_PIECE_BYTES: Final = 2048
"""The longest piece that is processed without looking at the time: about a hundred small WebSocket frames."""
_MOST_HANDSHAKE_BYTES: Final = 64 * 1024
"""The most bytes that a connection may send before its TLS handshake is finished. No client needs more."""


class PacedInput(ProtocolWrapper):
    """A connection whose input takes turns. The next class in the method resolution order processes it."""

    factory: Any
    transport: Any
    wrappedProtocol: Any
    bucket_key = ""
    owner: object | None = None
    _in_queue = False
    _is_held = False
    """Whether the wrapped protocol has paused its input."""
    _is_paused = False
    """Whether reading from the socket is paused: by the wrapped protocol, or until the turn comes."""
    _has_begun = False
    _lost: Failure | None = None
    _pending: deque[bytes] | tuple[()] = ()
    """Unprocessed input. If there is none it is a tuple, because an empty deque takes 760 bytes."""

    def makeConnection(self, transport: Any) -> None:
        _keep_declarations(type(self), transport)
        self.bucket_key = address_bucket(getattr(transport.getPeer(), "host", ""))
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    @property
    def begins_handshake(self) -> bool:
        """Whether the next piece begins a TLS handshake that is charged to the address."""
        return False

    def getHost(self) -> Any:
        """Return the local address, or None if the connection is lost: a closed socket raises an error."""
        is_open = getattr(socket_transport(self), "connected", True)
        return super().getHost() if is_open else None  # type: ignore[no-untyped-call]

    def set_owner(self, owner: object) -> None:
        """Note that the connection has sent a valid key of `owner`.

        A proxy's connection may send keys of other owners later.
        """
        if self.owner is None:
            self.factory.turns.refund_handshake(self.bucket_key)
        self.owner = owner

    def dataReceived(self, data: bytes) -> None:
        if not self._has_begun and isinstance(self.transport, ProtocolWrapper):
            # With a `haproxy:` endpoint the client's address is known when the first bytes have arrived.
            self.bucket_key = address_bucket(getattr(self.transport.getPeer(), "host", ""))
        if not self._pending:
            self._pending = deque()
        self._pending.append(data)
        self._submit()

    def pauseProducing(self) -> None:
        """Deliver nothing until `resumeProducing` is called."""
        self._is_held = True
        self._pause()

    def resumeProducing(self) -> None:
        """Deliver waiting and future input."""
        self._is_held = False
        if self._pending:
            self._submit()
        elif not self._in_queue:
            self._resume()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report the loss in the connection's turn, after its input. Report it now if there was no input."""
        if not self._has_begun:
            self._pending = ()
            self.ended(reason)
            return
        self._lost = reason
        self._submit()

    def process_next(self) -> bool:
        """Process one piece of input. Return whether there is more."""
        pending = self._pending
        if pending and not self._is_held:
            piece = pending.popleft()
            if len(piece) > _PIECE_BYTES:
                pending.appendleft(piece[_PIECE_BYTES:])
                piece = piece[:_PIECE_BYTES]
            if not pending:
                self._pending = ()
            self._has_begun = True
            self._deliver(piece)
        if self._pending and not self._is_held:
            return True
        self._in_queue = False
        if self._lost is not None:
            reason, self._lost = self._lost, None
            self._pending = ()
            self.ended(reason)
        elif not self._is_held:
            self._resume()
        return False

    def _deliver(self, piece: bytes) -> None:
        try:
            super().dataReceived(piece)  # type: ignore[no-untyped-call]
        except Exception:
            # `InputTurns` aborts the connection. The wrapped protocol learns of the loss in another turn.
            self._pending = ()
            self._in_queue = False
            if self._lost is not None:
                self._submit()
            raise

    def ended(self, reason: Failure) -> None:
        """Report the loss of the connection to the wrapped protocol, after all input was processed."""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        # Break reference cycles: a run of the garbage collector would stop all other connections.
        self.wrappedProtocol = self._producer = None

    def _submit(self) -> None:
        if not self._in_queue:
            self._in_queue = True
            self.factory.turns.submit(self)
        if self._in_queue and not self.begins_handshake and self._has_backlog():
            # Before a handshake the socket is read on, so that a closed connection is noticed and freed at
            # once. `PacedTLS` bounds that input.
            self._pause()

    def _has_backlog(self) -> bool:
        """Whether to pause reading until the connection's turn comes.

        Most clients send one request and wait for the answer. To pause and resume would cost two system calls
        without a benefit, so reading goes on while one short piece waits.
        """
        pending = self._pending
        return len(pending) > 1 or bool(pending and len(pending[0]) > _PIECE_BYTES)

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.transport.pauseProducing()

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.transport.resumeProducing()


class PacedTLS(PacedInput, DirectlyRead):
    """The server's side of a connection with TLS.

    It does not inherit from Twisted's `BufferingTLSTransport`, which delays encryption to the next turn of
    the reactor.
    """

    _handshakeDone: bool
    _handshake_bytes = 0
    """Bytes received before the handshake was finished."""
    _is_of_a_proxy = False

    def makeConnection(self, transport: Any) -> None:
        peer = getattr(transport.getPeer(), "host", "")
        self._is_of_a_proxy = is_proxy(peer, self.factory.proxies)
        super().makeConnection(transport)

    @property
    def begins_handshake(self) -> bool:
        return not (self._has_begun or self._is_of_a_proxy) and bool(self.connected)

    def abortConnection(self) -> None:
        """Give the connection up, and work on nothing more that has come on it."""
        self._pending = ()
        super().abortConnection()  # type: ignore[no-untyped-call]

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        # The traceback refers to the frame in which Twisted keeps the failure: a reference cycle.
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        if not self._handshakeDone:
            self._handshake_bytes += len(data)
            if self._handshake_bytes > _MOST_HANDSHAKE_BYTES:
                self.abortConnection()
                return
        super().dataReceived(data)


_kept_declarations: Final[dict[tuple[type, object], list[object]]] = {}
"""Objects that keep declarations alive, by the wrapper's class and the interfaces of the transport."""


def _keep_declarations(wrapper: type, transport: object) -> None:
    """Keep the declarations of zope.interface that say which interfaces a wrapper takes from its transport.

    Twisted declares the interfaces one by one for each connection. zope.interface frees a declaration when no
    object has it, so each connection would create all of them again. That would be 5 % of the time of a
    handshake, and forty objects for the garbage collector.
    """
    provided = providedBy(transport)
    if (wrapper, provided) not in _kept_declarations:
        kept = _kept_declarations[wrapper, provided] = []
        for each in (*provided, provided):
            kept.append(object.__new__(wrapper))
            directlyProvides(kept[-1], each)


class PacedTLSFactory(TLSMemoryBIOFactory):
    """Creates connections with TLS whose input takes turns.

    Addresses in `proxies` may begin any number of handshakes.
    """

    protocol = PacedTLS

    def __init__(
        self, creator: Any, wrapped: Any, turns: InputTurns, proxies: Sequence[Network] = ()
    ) -> None:
        TLSMemoryBIOFactory.__init__(self, creator, False, wrapped)
        self.turns = turns
        self.proxies = proxies


@implementer(IHalfCloseableProtocol)
class PacedPlain(PacedInput):
    """A connection without TLS. A client may close its sending half and wait for an answer."""

    _read_lost = False

    def readConnectionLost(self) -> None:
        """Report in the connection's turn, after its input, that the client has closed its sending half."""
        if IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            self._read_lost = True
            self._submit()
        else:
            self._end_both_halves()

    def _end_both_halves(self) -> None:
        """Close the connection, as Twisted does if a protocol does not provide `IHalfCloseableProtocol`."""
        self.transport.connectionLost(Failure(ConnectionDone()))

    def writeConnectionLost(self) -> None:
        """Do nothing: posd never closes only its sending half."""

    def process_next(self) -> bool:
        has_more = super().process_next()
        if (
            self._read_lost
            and not has_more
            and not self._pending
            and self.wrappedProtocol is not None
        ):
            self._read_lost = False
            # The wrapped protocol may be a WebSocket by now.
            if IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
                self.wrappedProtocol.readConnectionLost()
            else:
                self._end_both_halves()
        return has_more

    def abortConnection(self) -> None:
        """Give the connection up, and work on nothing more that has come on it."""
        self._pending = ()
        self.transport.abortConnection()


class PacedPlainFactory(WrappingFactory[PacedPlain]):
    """Creates connections without TLS whose input takes turns."""

    protocol = PacedPlain
    noisy = False

    def __init__(self, wrapped: Any, turns: InputTurns) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.turns = turns
