"""What clients send is worked on for one millisecond in a turn of the reactor, each client in its turn.

A request takes several turns of the reactor, since each answer of the database is read in a turn of its own.
If a turn lasted until everything was worked on that a thousand clients have just sent, each of these turns
would. So what is over the time of a turn waits, and what the database has answered is read in between.

Connections wait in the queue of their owner, and owners take turns: the thousand terminals of one tenant wait
for each other, and the one terminal of another tenant does not wait for them. A connection on which no valid
key has come is its address's. Owners with a valid key come first, and one of the other connections in each
turn.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from posd.security.addresses import Network, address_bucket, is_proxy
from posd.security.handshakes import HandshakeRates
from posd.web.http.direct_read import DirectlyRead
from posd.web.http.sockets import socket_transport

_TURN_SECONDS: Final = 0.001
"""For how long input is worked on in one turn of the reactor; one piece of it at least."""
_PIECE_BYTES: Final = 2048
"""What is worked on without looking at the time: about a hundred small WebSocket frames."""
_MOST_HANDSHAKE_BYTES: Final = 64 * 1024
"""What a connection may send before its handshake is finished: more than any client has to say."""

_log = Logger()


class WaitingConnection(Protocol):
    """A connection on which something has come."""

    bucket_key: str
    """Its address, as `addresses.place()` has it."""
    owner: object | None
    """Whose valid key has come on it."""

    @property
    def begins_handshake(self) -> bool:
        """Whether a handshake is to begin that its address is charged for."""

    def process_next(self) -> bool:
        """Work on one piece; whether there is more."""

    def abortConnection(self) -> None:
        """Give the connection up."""


class InputTurns:
    """The queues. Connections of all listeners share them."""

    def __init__(self, reactor: IReactorTime, handshakes: HandshakeRates) -> None:
        self._reactor = reactor
        self._handshakes = handshakes
        self._authenticated: OrderedDict[object, deque[WaitingConnection]] = OrderedDict()
        self._unauthenticated: OrderedDict[object, deque[WaitingConnection]] = OrderedDict()
        """By address, and whether a handshake is to begin: what has begun does not rest with those."""
        self._delayed: dict[str, deque[WaitingConnection]] = {}
        """Strangers' connections of addresses that have begun too many handshakes."""
        self._seconds_left = _TURN_SECONDS
        """Of the time of this turn of the reactor."""
        self._is_timed = self._is_running = False

    def __len__(self) -> int:
        queues = (self._authenticated, self._unauthenticated, self._delayed)
        return sum(len(waiting) for each in queues for waiting in each.values())

    def submit(self, connection: WaitingConnection) -> None:
        """Let a connection go on: at once where nobody waits and there is time, and else in its turn."""
        has_more = True
        nobody_waits = not (self._authenticated or self._unauthenticated or self._is_running)
        if nobody_waits and self._seconds_left > 0 and self._may_process_now(connection):
            while has_more and self._seconds_left > 0:
                has_more = self._process(connection)
        if has_more:
            self._append(connection)
        self._need_turn()

    def refund_handshake(self, bucket_key: str) -> None:
        """A valid key has come from there: the handshake is not counted."""
        self._handshakes.refund_handshake(bucket_key)

    def _may_process_now(self, connection: WaitingConnection) -> bool:
        """Whether a connection need not wait for others of its address."""
        if connection.owner is not None or not connection.begins_handshake:
            return True
        return connection.bucket_key not in self._delayed and not self._handshakes.begin(
            connection.bucket_key
        )

    def _append(self, connection: WaitingConnection) -> None:
        if connection.owner is not None:
            self._authenticated.setdefault(connection.owner, deque()).append(connection)
        elif connection.begins_handshake and connection.bucket_key in self._delayed:
            self._delayed[connection.bucket_key].append(connection)
        else:
            owner_key = (connection.bucket_key, connection.begins_handshake)
            self._unauthenticated.setdefault(owner_key, deque()).append(connection)

    def _need_turn(self) -> None:
        if not self._is_timed:
            self._is_timed = True
            self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        """Begin the next turn of the reactor: nothing was worked on in it yet."""
        self._is_timed, self._seconds_left = False, _TURN_SECONDS
        while self._authenticated and self._seconds_left > 0:
            self._process_queue(self._authenticated)
        if self._unauthenticated:
            self._process_queue(self._unauthenticated)
        while self._unauthenticated and self._seconds_left > 0:
            self._process_queue(self._unauthenticated)
        if self._authenticated or self._unauthenticated or self._seconds_left < _TURN_SECONDS:
            self._need_turn()

    def _process_queue(self, queue: OrderedDict[object, deque[WaitingConnection]]) -> None:
        """One piece of whoever's turn it is; then it is another's."""
        owner_key, waiting = queue.popitem(last=False)
        connection = waiting[0]
        if connection.owner is None and connection.begins_handshake:
            seconds = self._handshakes.begin(connection.bucket_key)
            if seconds:
                self._delayed[connection.bucket_key] = waiting
                self._reactor.callLater(seconds, self._resume_delayed, connection.bucket_key)
                return
        waiting.popleft()
        if waiting:
            queue[owner_key] = waiting
        if self._process(connection):
            self._append(connection)

    def _resume_delayed(self, bucket_key: str) -> None:
        self._unauthenticated[bucket_key, True] = self._delayed.pop(bucket_key)
        self._need_turn()

    def _process(self, connection: WaitingConnection) -> bool:
        # A connection that goes on may wake another one. That one waits: it does not run inside this.
        began, self._is_running = self._reactor.seconds(), True
        try:
            return connection.process_next()
        except Exception:
            _log.failure("what a client sent could not be worked on; its connection is closed")
            connection.abortConnection()
            return False
        finally:
            self._is_running = False
            self._seconds_left -= self._reactor.seconds() - began


class PacedInput(ProtocolWrapper):
    """A connection whose input takes turns. The next class in the order of classes works on it."""

    factory: Any
    transport: Any
    wrappedProtocol: Any
    bucket_key = ""
    owner: object | None = None
    _in_queue = False
    _is_held = False
    """Whether the protocol above wants nothing at the moment."""
    _is_paused = False
    """Whether the socket is not read because of that, or because this waits for its turn."""
    _has_begun = False
    _lost: Failure | None = None
    _pending: deque[bytes] | tuple[()] = ()
    """What has come and was not worked on. Nothing while nothing has: an empty deque takes 760 bytes."""

    def makeConnection(self, transport: Any) -> None:
        _keep_declarations(type(self), transport)
        self.bucket_key = address_bucket(getattr(transport.getPeer(), "host", ""))
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    @property
    def begins_handshake(self) -> bool:
        """Whether a handshake is to begin that its address is charged for."""
        return False

    def getHost(self) -> Any:
        """This end; None if the connection is lost: Twisted asks the socket, which it has closed by then."""
        is_open = getattr(socket_transport(self), "connected", True)
        return super().getHost() if is_open else None  # type: ignore[no-untyped-call]

    def set_owner(self, owner: object) -> None:
        """A valid key of `owner` has come on the connection. On a proxy's, those of others may follow."""
        if self.owner is None:
            self.factory.turns.refund_handshake(self.bucket_key)
        self.owner = owner

    def dataReceived(self, data: bytes) -> None:
        if not self._has_begun and isinstance(self.transport, ProtocolWrapper):
            # Behind `haproxy:` the address of the client is known only now.
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
        """Deliver what has come and what comes."""
        self._is_held = False
        if self._pending:
            self._submit()
        elif not self._in_queue:
            self._resume()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the protocol above in its turn, after what has come before. Nothing else waits for that."""
        if not self._has_begun:
            self._pending = ()
            self.ended(reason)
            return
        self._lost = reason
        self._submit()

    def process_next(self) -> bool:
        """Work on one piece of what has come; whether there is more."""
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
            # The connection is given up, and the protocol above is told so in a turn of its own.
            self._pending = ()
            self._in_queue = False
            if self._lost is not None:
                self._submit()
            raise

    def ended(self, reason: Failure) -> None:
        """The connection is gone, and what had come on it was worked on."""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        # Leave no cycle behind, for which the garbage collector would stop all other connections.
        self.wrappedProtocol = self._producer = None

    def _submit(self) -> None:
        if not self._in_queue:
            self._in_queue = True
            self.factory.turns.submit(self)
        if self._in_queue and not self.begins_handshake and self._has_backlog():
            # Before a handshake `PacedTLS` bounds what may come, and who leaves is forgotten at once.
            self._pause()

    def _has_backlog(self) -> bool:
        """Whether to read no more until it is this connection's turn.

        A client sends a request and waits for its answer: to pause and resume would be two system calls for
        nothing. So one short piece may wait while the connection is read.
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

    It is no `BufferingTLSTransport`, which encrypts what is written in the next turn of the reactor.
    """

    _handshakeDone: bool
    _handshake_bytes = 0
    """What has come before the handshake was finished."""
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
        # The traceback has the frame in which Twisted keeps the failure: a cycle.
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
"""What has the declarations of `_keep_declarations`, by the classes of both transports."""


def _keep_declarations(wrapper: type, transport: object) -> None:
    """Keep what zope.interface makes when Twisted declares that a wrapper provides what its transport does.

    Twisted declares it for each connection, one interface after the other. zope.interface keeps such a
    declaration for as long as an object has it, so each connection would make all of them anew: 5 % of the
    time that it takes to let a till in, and forty objects for the garbage collector.
    """
    provided = providedBy(transport)
    if (wrapper, provided) not in _kept_declarations:
        kept = _kept_declarations[wrapper, provided] = []
        for each in (*provided, provided):
            kept.append(object.__new__(wrapper))
            directlyProvides(kept[-1], each)


class PacedTLSFactory(TLSMemoryBIOFactory):
    """Makes connections with TLS whose input takes turns. `proxies` may begin any number of handshakes."""

    protocol = PacedTLS

    def __init__(
        self, creator: Any, wrapped: Any, turns: InputTurns, proxies: Sequence[Network] = ()
    ) -> None:
        TLSMemoryBIOFactory.__init__(self, creator, False, wrapped)
        self.turns = turns
        self.proxies = proxies


@implementer(IHalfCloseableProtocol)
class PacedPlain(PacedInput):
    """A connection without TLS. A client may close its half and wait for an answer."""

    _read_lost = False

    def readConnectionLost(self) -> None:
        """The client sends nothing more: said in its turn, after what it has sent."""
        if IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            self._read_lost = True
            self._submit()
        else:
            self._end_both_halves()

    def _end_both_halves(self) -> None:
        """What Twisted does with a protocol that does not know of halves."""
        self.transport.connectionLost(Failure(ConnectionDone()))

    def writeConnectionLost(self) -> None:
        """posd never closes its own half alone."""

    def process_next(self) -> bool:
        has_more = super().process_next()
        if (
            self._read_lost
            and not has_more
            and not self._pending
            and self.wrappedProtocol is not None
        ):
            self._read_lost = False
            # It may have become a WebSocket meanwhile.
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
    """Makes connections without TLS whose input takes turns."""

    protocol = PacedPlain
    noisy = False

    def __init__(self, wrapped: Any, turns: InputTurns) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.turns = turns
