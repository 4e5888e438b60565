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

from posd.security.addresses import Network, is_proxy, place
from posd.security.handshakes import HandshakeRates
from posd.web.http.direct_read import DirectlyRead
from posd.web.http.sockets import socket_below

_TURN_SECONDS: Final = 0.001
"""For how long input is worked on in one turn of the reactor; one piece of it at least."""
_PIECE_BYTES: Final = 2048
"""What is worked on without looking at the time: about a hundred small WebSocket frames."""
_MOST_BYTES: Final = 64 * 1024
"""What a connection may send before its handshake is finished: more than any client has to say."""

_log = Logger()


class Waiting(Protocol):
    """A connection on which something has come."""

    where: str
    """Its address, as `addresses.place()` has it."""
    owner: object | None
    """Whose valid key has come on it."""

    @property
    def counts(self) -> bool:
        """Whether a handshake is to begin that its address is charged for."""

    def go_on(self) -> bool:
        """Work on one piece; whether there is more."""

    def abortConnection(self) -> None:
        """Give the connection up."""


class InputTurns:
    """The queues. Connections of all listeners share them."""

    def __init__(self, reactor: IReactorTime, handshakes: HandshakeRates) -> None:
        self._reactor = reactor
        self._handshakes = handshakes
        self._known: OrderedDict[object, deque[Waiting]] = OrderedDict()
        self._strangers: OrderedDict[object, deque[Waiting]] = OrderedDict()
        """By address, and whether a handshake is to begin: what has begun does not rest with those."""
        self._resting: dict[str, deque[Waiting]] = {}
        """Strangers' connections of addresses that have begun too many handshakes."""
        self._left = _TURN_SECONDS
        """Of the time of this turn of the reactor."""
        self._is_timed = self._is_running = False

    def __len__(self) -> int:
        queues = (self._known, self._strangers, self._resting)
        return sum(len(waiting) for each in queues for waiting in each.values())

    def work(self, connection: Waiting) -> None:
        """Let a connection go on: at once where nobody waits and there is time, and else in its turn."""
        more = True
        nobody_waits = not (self._known or self._strangers or self._is_running)
        if nobody_waits and self._left > 0 and self._may_begin(connection):
            while more and self._left > 0:
                more = self._go_on(connection)
        if more:
            self._append(connection)
        self._need_turn()

    def known(self, where: str) -> None:
        """A valid key has come from there: the handshake is not counted."""
        self._handshakes.known(where)

    def _may_begin(self, connection: Waiting) -> bool:
        """Whether a connection need not wait for others of its address."""
        if connection.owner is not None or not connection.counts:
            return True
        return connection.where not in self._resting and not self._handshakes.begin(
            connection.where
        )

    def _append(self, connection: Waiting) -> None:
        if connection.owner is not None:
            self._known.setdefault(connection.owner, deque()).append(connection)
        elif connection.counts and connection.where in self._resting:
            self._resting[connection.where].append(connection)
        else:
            who = (connection.where, connection.counts)
            self._strangers.setdefault(who, deque()).append(connection)

    def _need_turn(self) -> None:
        if not self._is_timed:
            self._is_timed = True
            self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        """Begin the next turn of the reactor: nothing was worked on in it yet."""
        self._is_timed, self._left = False, _TURN_SECONDS
        while self._known and self._left > 0:
            self._next(self._known)
        if self._strangers:
            self._next(self._strangers)
        while self._strangers and self._left > 0:
            self._next(self._strangers)
        if self._known or self._strangers or self._left < _TURN_SECONDS:
            self._need_turn()

    def _next(self, queue: OrderedDict[object, deque[Waiting]]) -> None:
        """One piece of whoever's turn it is; then it is another's."""
        who, waiting = queue.popitem(last=False)
        connection = waiting[0]
        if connection.owner is None and connection.counts:
            seconds = self._handshakes.begin(connection.where)
            if seconds:
                self._resting[connection.where] = waiting
                self._reactor.callLater(seconds, self._rested, connection.where)
                return
        waiting.popleft()
        if waiting:
            queue[who] = waiting
        if self._go_on(connection):
            self._append(connection)

    def _rested(self, where: str) -> None:
        self._strangers[where, True] = self._resting.pop(where)
        self._need_turn()

    def _go_on(self, connection: Waiting) -> bool:
        # A connection that goes on may wake another one. That one waits: it does not run inside this.
        began, self._is_running = self._reactor.seconds(), True
        try:
            return connection.go_on()
        except Exception:
            _log.failure("what a client sent could not be worked on; its connection is closed")
            connection.abortConnection()
            return False
        finally:
            self._is_running = False
            self._left -= self._reactor.seconds() - began


class PacedInput(ProtocolWrapper):
    """A connection whose input takes turns. The next class in the order of classes works on it."""

    factory: Any
    transport: Any
    wrappedProtocol: Any
    where = ""
    owner: object | None = None
    _in_queue = False
    _is_held = False
    """Whether the protocol above wants nothing at the moment."""
    _is_paused = False
    """Whether the socket is not read because of that, or because this waits for its turn."""
    _has_begun = False
    _lost: Failure | None = None
    _came: deque[bytes] | tuple[()] = ()
    """What has come and was not worked on. Nothing while nothing has: an empty deque takes 760 bytes."""

    def makeConnection(self, transport: Any) -> None:
        _keep_declarations(type(self), transport)
        self.where = place(getattr(transport.getPeer(), "host", ""))
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    @property
    def counts(self) -> bool:
        """Whether a handshake is to begin that its address is charged for."""
        return False

    def getHost(self) -> Any:
        """This end; None if the connection is lost: Twisted asks the socket, which it has closed by then."""
        is_open = getattr(socket_below(self), "connected", True)
        return super().getHost() if is_open else None  # type: ignore[no-untyped-call]

    def belongs_to(self, owner: object) -> None:
        """A valid key of `owner` has come on the connection. On a proxy's, those of others may follow."""
        if self.owner is None:
            self.factory.turns.known(self.where)
        self.owner = owner

    def dataReceived(self, data: bytes) -> None:
        if not self._has_begun and isinstance(self.transport, ProtocolWrapper):
            # Behind `haproxy:` the address of the client is known only now.
            self.where = place(getattr(self.transport.getPeer(), "host", ""))
        if not self._came:
            self._came = deque()
        self._came.append(data)
        self._work()

    def pauseProducing(self) -> None:
        """Deliver nothing until `resumeProducing` is called."""
        self._is_held = True
        self._pause()

    def resumeProducing(self) -> None:
        """Deliver what has come and what comes."""
        self._is_held = False
        if self._came:
            self._work()
        elif not self._in_queue:
            self._resume()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the protocol above in its turn, after what has come before. Nothing else waits for that."""
        if not self._has_begun:
            self._came = ()
            self.ended(reason)
            return
        self._lost = reason
        self._work()

    def go_on(self) -> bool:
        """Work on one piece of what has come; whether there is more."""
        came = self._came
        if came and not self._is_held:
            piece = came.popleft()
            if len(piece) > _PIECE_BYTES:
                came.appendleft(piece[_PIECE_BYTES:])
                piece = piece[:_PIECE_BYTES]
            if not came:
                self._came = ()
            self._has_begun = True
            self._deliver(piece)
        if self._came and not self._is_held:
            return True
        self._in_queue = False
        if self._lost is not None:
            reason, self._lost = self._lost, None
            self._came = ()
            self.ended(reason)
        elif not self._is_held:
            self._resume()
        return False

    def _deliver(self, piece: bytes) -> None:
        try:
            super().dataReceived(piece)  # type: ignore[no-untyped-call]
        except Exception:
            # The connection is given up, and the protocol above is told so in a turn of its own.
            self._came = ()
            self._in_queue = False
            if self._lost is not None:
                self._work()
            raise

    def ended(self, reason: Failure) -> None:
        """The connection is gone, and what had come on it was worked on."""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        # Leave no cycle behind, for which the garbage collector would stop all other connections.
        self.wrappedProtocol = self._producer = None

    def _work(self) -> None:
        if not self._in_queue:
            self._in_queue = True
            self.factory.turns.work(self)
        if self._in_queue and not self.counts and self._is_much():
            # Before a handshake `PacedTLS` bounds what may come, and who leaves is forgotten at once.
            self._pause()

    def _is_much(self) -> bool:
        """Whether to read no more until it is this connection's turn.

        A client sends a request and waits for its answer: to pause and resume would be two system calls for
        nothing. So one short piece may wait while the connection is read.
        """
        came = self._came
        return len(came) > 1 or bool(came and len(came[0]) > _PIECE_BYTES)

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
    _size = 0
    """What has come before the handshake was finished."""
    _is_of_a_proxy = False

    def makeConnection(self, transport: Any) -> None:
        peer = getattr(transport.getPeer(), "host", "")
        self._is_of_a_proxy = is_proxy(peer, self.factory.proxies)
        super().makeConnection(transport)

    @property
    def counts(self) -> bool:
        return not (self._has_begun or self._is_of_a_proxy) and bool(self.connected)

    def abortConnection(self) -> None:
        """Give the connection up, and work on nothing more that has come on it."""
        self._came = ()
        super().abortConnection()  # type: ignore[no-untyped-call]

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        # The traceback has the frame in which Twisted keeps the failure: a cycle.
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        if not self._handshakeDone:
            self._size += len(data)
            if self._size > _MOST_BYTES:
                self.abortConnection()
                return
        super().dataReceived(data)


_declared: Final[dict[tuple[type, object], list[object]]] = {}
"""What has the declarations of `_keep_declarations`, by the classes of both transports."""


def _keep_declarations(wrapper: type, transport: object) -> None:
    """Keep what zope.interface makes when Twisted declares that a wrapper provides what its transport does.

    Twisted declares it for each connection, one interface after the other. zope.interface keeps such a
    declaration for as long as an object has it, so each connection would make all of them anew: 5 % of the
    time that it takes to let a till in, and forty objects for the garbage collector.
    """
    provided = providedBy(transport)
    if (wrapper, provided) not in _declared:
        declared = _declared[wrapper, provided] = []
        for each in (*provided, provided):
            declared.append(object.__new__(wrapper))
            directlyProvides(declared[-1], each)


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
            self._work()
        else:
            self._end_both_halves()

    def _end_both_halves(self) -> None:
        """What Twisted does with a protocol that does not know of halves."""
        self.transport.connectionLost(Failure(ConnectionDone()))

    def writeConnectionLost(self) -> None:
        """posd never closes its own half alone."""

    def go_on(self) -> bool:
        more = super().go_on()
        if self._read_lost and not more and not self._came and self.wrappedProtocol is not None:
            self._read_lost = False
            # It may have become a WebSocket meanwhile.
            if IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
                self.wrappedProtocol.readConnectionLost()
            else:
                self._end_both_halves()
        return more

    def abortConnection(self) -> None:
        """Give the connection up, and work on nothing more that has come on it."""
        self._came = ()
        self.transport.abortConnection()


class PacedPlainFactory(WrappingFactory[PacedPlain]):
    """Makes connections without TLS whose input takes turns."""

    protocol = PacedPlain
    noisy = False

    def __init__(self, wrapped: Any, turns: InputTurns) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.turns = turns
