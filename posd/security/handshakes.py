"""TLS handshakes take turns: a few milliseconds of them in one turn of the reactor, each address in its turn.

A handshake costs more than most requests, and anybody may begin one. Handshakes that come by the hundred are
put into a queue, so that connections that stand are served in between. An address that begins many waits
behind itself, and not others behind it. It may begin two thousand at once, and in the long run fifty a second
besides those on which a valid key has come. A proxy of the listener may begin any number: it connects for
strangers and for tills.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure

from posd.security.addresses import Network, is_proxy, place
from posd.security.rate_limits import Buckets, TokenBucket

_TURN_SECONDS: Final = 0.002
"""For how long handshakes are worked on in one turn of the reactor; one of them at least."""
_PER_SECOND: Final = 50
_AT_ONCE_SECONDS: Final = 40
"""So two thousand at once: terminals of many shops, behind one address, after a restart of posd."""
_MOST_BYTES: Final = 64 * 1024
"""What a connection may send before its handshake is finished: more than any client has to say."""


class HandshakeQueue:
    """The queue of what has come for handshakes."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._places: OrderedDict[str, deque[PacedTLS]] = OrderedDict()
        self._resting: dict[str, deque[PacedTLS]] = {}
        """Those of addresses that have begun too many."""
        self._buckets = Buckets(reactor.seconds)
        self._running = False

    def __len__(self) -> int:
        places = (*self._places.values(), *self._resting.values())
        return sum(len(waiting) for waiting in places)

    def wait(self, connection: PacedTLS, where: str) -> None:
        """Call `connection.go_on()` in its turn."""
        if where in self._resting:
            self._resting[where].append(connection)
            return
        self._places.setdefault(where, deque()).append(connection)
        self._begin()

    def known(self, address: str) -> None:
        """A valid key has come on a connection from there: its handshake is not counted."""
        self._bucket(place(address)).take(-1)

    def _bucket(self, where: str) -> TokenBucket:
        return self._buckets.get(where, _PER_SECOND, _AT_ONCE_SECONDS)

    def _begin(self) -> None:
        if not self._running:
            self._running = True
            self._reactor.callLater(0, self._run)

    def _rested(self, where: str) -> None:
        self._places[where] = self._resting.pop(where)
        self._begin()

    def _run(self) -> None:
        end = self._reactor.seconds() + _TURN_SECONDS
        while self._places:
            where, waiting = self._places.popitem(last=False)
            # The second part of a handshake, and the end of a connection, are not counted.
            bucket = self._bucket(where)
            if waiting[0].counts and not bucket.take():
                self._resting[where] = waiting
                self._reactor.callLater(bucket.wait(), self._rested, where)
                continue
            connection = waiting.popleft()
            if waiting:
                # The other addresses come before its next one.
                self._places[where] = waiting
            connection.go_on()
            if self._reactor.seconds() >= end:
                break
        self._running = bool(self._places)
        if self._running:
            self._reactor.callLater(0, self._run)


class PacedTLS(BufferingTLSTransport):
    """The server's side of a connection whose handshake waits for its turn."""

    factory: PacedTLSFactory
    _handshakeDone: bool
    _came: deque[bytes] | None = None
    """What has come and was not worked on; None: nothing has to wait any more."""
    _size = 0
    _begun = False
    _is_of_a_proxy = False

    @property
    def counts(self) -> bool:
        """Whether a handshake is to begin that its address is charged for."""
        return bool(self.connected and not self._begun and not self._is_of_a_proxy)

    def makeConnection(self, transport: Any) -> None:
        self._came = deque()
        peer = getattr(transport.getPeer(), "host", "")
        self._is_of_a_proxy = is_proxy(peer, self.factory.proxies)
        BufferingTLSTransport.makeConnection(self, transport)

    def dataReceived(self, data: bytes) -> None:
        if self._came is None:
            BufferingTLSTransport.dataReceived(self, data)
            return
        self._size += len(data)
        if self._size > _MOST_BYTES:
            self._came.clear()
            self.abortConnection()  # type: ignore[no-untyped-call]
            return
        if not self._came:
            peer = self.getPeer()  # type: ignore[no-untyped-call]
            where = place(getattr(peer, "host", ""))
            self.factory.turns.wait(self, where)
        self._came.append(data)

    def go_on(self) -> None:
        """Work on all that has come."""
        came = self._came
        if not came:
            return
        data = b"".join(came)
        came.clear()
        self._size = 0
        if self.connected:
            self._begun = True
            BufferingTLSTransport.dataReceived(self, data)
            if self._handshakeDone:
                self._came = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # A request may have come with the end of the handshake. It is carried out, whoever has left.
        if self._begun:
            self.go_on()
        BufferingTLSTransport.connectionLost(self, reason)


class PacedTLSFactory(TLSMemoryBIOFactory):
    """Makes such connections, which share their turns. `proxies` may begin as many as they like."""

    protocol = PacedTLS

    def __init__(
        self, creator: Any, wrapped: Any, turns: HandshakeQueue, proxies: Sequence[Network] = ()
    ) -> None:
        TLSMemoryBIOFactory.__init__(self, creator, False, wrapped)
        self.turns = turns
        self.proxies = proxies
