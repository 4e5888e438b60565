"""Limits the time for client input to one millisecond in a turn of the reactor, and shares it fairly.

A request takes several turns of the reactor, because each result of the database is read in a turn of its
own. If the reactor processed all input of a thousand clients in one turn, every turn of a request would take
that long. So input beyond the time of a turn waits, and the reactor reads the results of the database in
between.

Connections wait in the queue of their owner, and owners take turns: the thousand terminals of one tenant wait
for each other, and the one terminal of another tenant does not wait for them. A connection that has not yet
sent a valid key belongs to its address. Owners with a valid key come first. Each turn also processes at least
one piece of a connection without one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.security.handshakes import HandshakeRates

_TURN_SECONDS: Final = 0.001
"""Seconds for input in one turn of the reactor. At least one piece is processed, however long it takes."""

_log = Logger()


class WaitingConnection(Protocol):
    """A connection that has received input, or has been lost."""

    bucket_key: str
    """The address of the client, as `posd.security.addresses.address_bucket` returns it."""
    owner: object | None
    """The owner of the last valid key that the connection has sent; None before the first."""

    @property
    def begins_handshake(self) -> bool:
        """Whether the next piece begins a TLS handshake that is charged to the address."""

    def process_next(self) -> bool:
        """Process one piece of input. Return whether there is more."""

    def abortConnection(self) -> None:
        """Close the connection at once."""


class InputTurns:
    """The queues of connections with unprocessed input. All listeners of a node share them."""

    def __init__(self, reactor: IReactorTime, handshakes: HandshakeRates) -> None:
        self._reactor = reactor
        self._handshakes = handshakes
        self._authenticated: OrderedDict[object, deque[WaitingConnection]] = OrderedDict()
        self._unauthenticated: OrderedDict[object, deque[WaitingConnection]] = OrderedDict()
        """By address and `begins_handshake`. A delay of new handshakes must not delay begun ones."""
        self._delayed: dict[str, deque[WaitingConnection]] = {}
        """By address: connections whose handshake waits, because the address has begun too many."""
        self._seconds_left = _TURN_SECONDS
        """The rest of `_TURN_SECONDS` in this turn of the reactor."""
        self._is_timed = self._is_running = False

    def __len__(self) -> int:
        queues = (self._authenticated, self._unauthenticated, self._delayed)
        return sum(len(waiting) for each in queues for waiting in each.values())

    def submit(self, connection: WaitingConnection) -> None:
        """Process a connection's input now if the queues are empty and time is left, else in its turn."""
        has_more = True
        is_free = not (self._authenticated or self._unauthenticated or self._is_running)
        if is_free and self._seconds_left > 0 and self._may_process_now(connection):
            while has_more and self._seconds_left > 0:
                has_more = self._process(connection)
        if has_more:
            self._append(connection)
        self._need_turn()

    def refund_handshake(self, bucket_key: str) -> None:
        """Take back the charge of a handshake, because the connection has sent a valid key."""
        self._handshakes.refund_handshake(bucket_key)

    def _may_process_now(self, connection: WaitingConnection) -> bool:
        """Whether the rate of handshakes of the address permits a connection; charges a handshake."""
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
        """Process queued input in a new turn of the reactor."""
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
        """Process one piece of the first owner's first connection, and put the owner at the end."""
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
        # Processing may submit another connection. It must not run inside this call, so it waits.
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
