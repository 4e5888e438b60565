"""Events in their order, each stored before the next is begun and before it is acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import Factory, define, field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from posd.client.cursor import DurableCursor
from posd.client.outcome import NextStep, Outcome
from posd.client.received import Connected, ReceivedEvent
from posd.errors import InvalidMessage, PosdError
from posd.protocol.jsontext import encode
from posd.values import Position, Resync, Seq

Handle = Callable[[ReceivedEvent], Awaitable[object] | None]
OnResync = Callable[[Resync, Seq], Awaitable[object] | None]


class CannotProcess(PosdError):
    """Raised by a `handle` for an event that it will never be able to use; the text says why.

    The server is told (`nack`), shows it to the operators and does not send the event again. Any
    other exception means "not now": the event comes again.
    """


class FlowControl(Protocol):
    """What an intake needs of a connection."""

    def send(self, text: bytes) -> None:
        """Send one text message."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Go on reading."""

    def hang_up(self, outcome: Outcome, code: int = 1000) -> None:
        """Close the connection for this reason."""


@frozen
class _ReloadMarker:
    """A place in the queue where the till has to reload instead of handling an event."""

    reason: Resync
    id: Seq


@define
class EventCounts:
    """How many events have come, were stored, and could not be processed."""

    received: int = 0
    stored: int = 0
    refused: int = 0


@define(eq=False)
class EventQueue:
    """The queue between a connection and `handle`, which works on one event at a time.

    The queue lives no longer than its connection: what was not begun comes again on the next one,
    which is asked to go on after the last event that was stored. While `backlog` events wait,
    nothing more is read.
    """

    _handle: Handle
    _on_resync: OnResync | None
    _cursor: DurableCursor
    _backlog: int
    _acknowledging: bool
    counts: EventCounts = Factory(EventCounts)
    _connection: FlowControl | None = field(default=None, init=False)
    _greeting: Connected | None = field(default=None, init=False)
    _last: Seq = field(default=0, init=False)
    _queue: deque[ReceivedEvent | _ReloadMarker] = field(factory=deque, init=False)
    _working: bool = field(default=False, init=False)
    _idle: list[Deferred[None]] = field(factory=list, init=False)
    """Who waits for the worker to end."""
    _log = Logger()

    def greeted(self, connection: FlowControl, greeting: Connected, requested: Seq | None) -> None:
        """A connection is ready; `requested` is the position that it was to go on after.

        Raises InvalidMessage if the server neither goes on there nor says why it cannot: the
        difference would be a hole that nobody sees.
        """
        if self._greeting is not None:
            raise InvalidMessage("a second greeting on one connection")
        if greeting.resync is None and requested is not None and requested != greeting.resumed_from:
            raise InvalidMessage(f"the stream was to go on after {requested} and does not")
        self._connection, self._greeting = connection, greeting
        if self._acknowledging and greeting.device_id is not None:
            self._cursor.attach(self._acknowledge)
        self._last = greeting.begins_after
        if greeting.resync is not None:
            self._enqueue(_ReloadMarker(greeting.resync, self._last))
        else:
            self._cursor.adopt(Position(self._last, greeting.stream_id))

    def take(self, event: ReceivedEvent) -> None:
        """Queue an event. Raises InvalidMessage unless it is the very next one of the stream."""
        if self._greeting is None:
            raise InvalidMessage("an event before the greeting")
        if event.id != self._last + 1:
            raise InvalidMessage(f"event {event.id} after event {self._last}")
        self._last = event.id
        self.counts.received += 1
        self._enqueue(event)

    def stop(self) -> None:
        """Begin no other event."""
        self._queue.clear()

    def lost(self) -> None:
        """The connection is gone, and with it what was not begun."""
        self._connection = self._greeting = None
        self._queue.clear()
        self._cursor.detach()

    async def idle(self) -> None:
        """Wait for the event in hand, if there is one, to be stored or not."""
        if self._working:
            waiter: Deferred[None] = Deferred()
            self._idle.append(waiter)
            await waiter

    def _enqueue(self, item: ReceivedEvent | _ReloadMarker) -> None:
        self._queue.append(item)
        if len(self._queue) >= self._backlog and self._connection is not None:
            self._connection.pause()
        if not self._working:
            Deferred.fromCoroutine(self._work()).addErrback(
                lambda failure: self._log.failure("the till's queue is broken", failure)
            )

    async def _work(self) -> None:
        """Empty the queue; one worker at a time. Those who wait for its end are told by one loop."""
        self._working = True
        try:
            while self._queue:
                await self._process(self._queue.popleft())
                if len(self._queue) <= self._backlog // 4 and self._connection is not None:
                    self._connection.resume()
        finally:
            self._working = False
            waiting, self._idle = self._idle, []
            for waiter in waiting:
                waiter.callback(None)

    async def _process(self, item: ReceivedEvent | _ReloadMarker) -> None:
        assert self._greeting is not None  # the queue is emptied when a connection is lost
        connection, position = self._connection, Position(item.id, self._greeting.stream_id)
        try:
            await self._process_event(item)
        except CannotProcess as refusal:
            self.counts.refused += 1
            self._refuse(position, str(refusal))
        except Exception:
            self._log.failure("event {id} was not stored and will come again", id=item.id)
            self._queue.clear()
            if connection is not None and connection is self._connection:
                self._cursor.save_now()
                connection.hang_up(Outcome(f"event {item.id} could not be stored", NextStep.RETRY))
        else:
            self.counts.stored += isinstance(item, ReceivedEvent)
            self._cursor.advance(position)

    async def _process_event(self, item: ReceivedEvent | _ReloadMarker) -> None:
        if isinstance(item, ReceivedEvent):
            outcome = self._handle(item)
        elif self._on_resync is not None:
            outcome = self._on_resync(item.reason, item.id)
        else:
            self._log.warn("nothing before {id} is replayed: {why}", id=item.id, why=item.reason)
            return
        if outcome is not None:
            await outcome

    def _acknowledge(self, position: Position) -> bool:
        """Tell the server, unless its stream is another one: then the till has to reload first."""
        if self._connection is None or self._greeting is None:
            return False
        if position.stream_id not in (None, self._greeting.stream_id):
            return False
        self._connection.send(encode({"type": "ack", "id": position.seq}))
        return True

    def _refuse(self, position: Position, reason: str) -> None:
        """Pass over an event that is of no use, after acknowledging those before it."""
        self._log.warn("event {id} cannot be processed: {why}", id=position.seq, why=reason)
        self._cursor.save_now()
        if self._connection is not None and self._greeting is not None and self._greeting.device_id:
            nack = {"type": "nack", "id": position.seq, "reason": reason}
            self._connection.send(encode(nack))
        self._cursor.advance(position, stored=False)
