"""The queue of received events. It handles them one by one, and acknowledges each after it is stored."""

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
    """Raised by `handle` for an event that it can never process. The text is the reason.

    The till sends a `nack`. The server shows it to the operators and does not send the event again.
    After any other exception the event is sent again.
    """


class FlowControl(Protocol):
    """The part of a connection that the queue uses."""

    def send(self, text: bytes) -> None:
        """Send one text message."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Go on reading."""

    def hang_up(self, outcome: Outcome, code: int = 1000) -> None:
        """Close the connection, with `outcome` as the reason."""


@frozen
class _ReloadMarker:
    """An entry of the queue at which the till must reload its orders."""

    reason: Resync
    id: Seq


@define
class EventCounts:
    """The numbers of events that were received, stored, and refused by `CannotProcess`."""

    received: int = 0
    stored: int = 0
    refused: int = 0


@define(eq=False)
class EventQueue:
    """The queue between a connection and `handle`, which processes one event at a time.

    The queue is emptied when its connection ends. The next connection resumes after the last stored
    event, so the server sends the others again. While `backlog` events wait, the connection is paused.
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
    """Fired when the worker ends."""
    _log = Logger()

    def greeted(self, connection: FlowControl, greeting: Connected, requested: Seq | None) -> None:
        """Start with a new connection. `requested` is the position that the till asked to resume from.

        Raises InvalidMessage if the server neither resumes there nor sends a `resync`, because events
        would then be missing without notice.
        """
        if self._greeting is not None:
            raise InvalidMessage("a second `connected` message on one connection")
        if greeting.resync is None and requested is not None and requested != greeting.resumed_from:
            raise InvalidMessage(f"the stream does not resume after {requested}, as requested")
        self._connection, self._greeting = connection, greeting
        if self._acknowledging and greeting.device_id is not None:
            self._cursor.attach(self._acknowledge)
        self._last = greeting.begins_after
        if greeting.resync is not None:
            self._enqueue(_ReloadMarker(greeting.resync, self._last))
        else:
            self._cursor.adopt(Position(self._last, greeting.stream_id))

    def take(self, event: ReceivedEvent) -> None:
        """Queue an event. Raises InvalidMessage if it is not the next event of the stream."""
        if self._greeting is None:
            raise InvalidMessage("an event before the `connected` message")
        if event.id != self._last + 1:
            raise InvalidMessage(f"event {event.id} after event {self._last}")
        self._last = event.id
        self.counts.received += 1
        self._enqueue(event)

    def stop(self) -> None:
        """Drop all events that wait."""
        self._queue.clear()

    def lost(self) -> None:
        """Drop the connection and all events that wait."""
        self._connection = self._greeting = None
        self._queue.clear()
        self._cursor.detach()

    async def idle(self) -> None:
        """Wait until the event that is being processed, if any, is stored or has failed."""
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
                lambda failure: self._log.failure("the worker of the event queue failed", failure)
            )

    async def _work(self) -> None:
        """Process the queue until it is empty. Only one worker runs at a time.

        The callbacks of `idle()` are fired by a loop here, so they do not nest.
        """
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
            self._log.failure(
                "event {id} was not stored; the till reconnects to receive it again", id=item.id
            )
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
            self._log.warn(
                "events up to {id} are not replayed: {why}; the till must reload its orders",
                id=item.id,
                why=item.reason,
            )
            return
        if outcome is not None:
            await outcome

    def _acknowledge(self, position: Position) -> bool:
        """Send an acknowledgement and return True. Return False if the server has another stream."""
        if self._connection is None or self._greeting is None:
            return False
        if position.stream_id not in (None, self._greeting.stream_id):
            return False
        self._connection.send(encode({"type": "ack", "id": position.seq}))
        return True

    def _refuse(self, position: Position, reason: str) -> None:
        """Acknowledge the events before a refused one, send a `nack` for it, and skip it."""
        self._log.warn(
            "event {id} cannot be processed and is skipped: {why}", id=position.seq, why=reason
        )
        self._cursor.save_now()
        if self._connection is not None and self._greeting is not None and self._greeting.device_id:
            nack = {"type": "nack", "id": position.seq, "reason": reason}
            self._connection.send(encode(nack))
        self._cursor.advance(position, stored=False)
