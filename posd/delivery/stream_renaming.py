"""Moves or closes the sessions of a stream that gets a new id.

A terminal that uses positions is closed. It learns the new stream id when it reconnects, and resumes there.
A basic till uses no positions and stays connected.

posd stores how far each device was sent the old stream. A device that was sent events that the present
stream does not have must reload, whatever its cursor is.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Protocol
from uuid import UUID

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.delivery.channel import TenantChannel
from posd.delivery.pending_writes import Device, Subscription, subscription
from posd.delivery.registry import ConnectionRegistry, TrackedConnection
from posd.delivery.session import Session
from posd.errors import Unavailable
from posd.store.epochs import StreamEnd
from posd.values import RENAMED, CloseReason, Seq, Terminal

_CLOSES_PER_SECOND: Final = 200
"""How many terminals are closed per second on average, since all of them reconnect."""
_LONGEST_PAUSE: Final = 5.0
_MOST_REMEMBERED: Final = 20_000


class PositionStore(Protocol):
    """Stores how far devices were sent a stream. `posd.delivery.presence` implements it."""

    def sent(self, cursor: Subscription, seq: Seq, uses_positions: bool) -> None:
        """A device was sent a stream up to `seq`. `uses_positions`: it has named or acknowledged one
        before.
        """

    async def flush(self) -> None:
        """Write everything that is pending."""


@define(eq=False)
class DepartedDevices:
    """The positions up to which disconnected devices were sent their streams, for the latest 20,000 of
    them.
    """

    _positions: OrderedDict[Device, tuple[UUID, Seq, bool]] = field(init=False, factory=OrderedDict)

    def note(self, terminal: Terminal, seq: Seq, uses_positions: bool) -> None:
        if terminal.device_id is None:
            return
        device = terminal.tenant.id, terminal.device_id
        stream_id, before, using_positions = self._positions.pop(
            device, (terminal.stream_id, 0, False)
        )
        if stream_id == terminal.stream_id:
            seq = max(seq, before)
        self._positions[device] = terminal.stream_id, seq, uses_positions or using_positions
        if len(self._positions) > _MOST_REMEMBERED:
            self._positions.popitem(last=False)

    def __iter__(self) -> Iterator[tuple[Subscription, Seq, bool]]:
        return (
            ((*device, name), seq, uses_positions)
            for device, (name, seq, uses_positions) in [*self._positions.items()]
        )


class StreamRenaming:
    """Reacts to new stream ids. `close` closes a connection so that its till reconnects."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        position_store: PositionStore,
        registry: ConnectionRegistry,
        close: Callable[[TrackedConnection, CloseReason], None],
    ) -> None:
        self._reactor = reactor
        self._position_store = position_store
        self._registry = registry
        self._close = close
        self._departed = DepartedDevices()

    def note_departed(self, session: Session) -> None:
        """A terminal has disconnected."""
        self._departed.note(session.terminal, session.furthest_sent, session.uses_positions)

    def sent_by_poll(self, terminal: Terminal, seq: Seq) -> None:
        """A poll has sent a terminal the events up to `seq`, after a position that the terminal named."""
        self._departed.note(terminal, seq, uses_positions=True)

    def record_all_positions(self) -> None:
        """Store the positions of all known devices, because the database may be another one now."""
        for connection in self._registry:
            self._note_position(connection.session)
        for each in self._departed:
            self._position_store.sent(*each)

    def renamed(self, old: TenantChannel, new: TenantChannel, end: StreamEnd | None) -> None:
        """Move or close the sessions of a stream that has a new id. `end` is the end of the old id, if
        known.
        """
        self._log.warn(
            "the stream of tenant {slug} has a new id: events up to {shared} are the same as before. posd"
            " closes the terminals that use positions with code 1001, and they reconnect; those that were"
            " sent later events reload",
            slug=new.tenant.slug,
            shared=0 if end is None else end.shared,
        )
        for cursor, seq, uses_positions in self._departed:
            if cursor[0] == old.tenant.id and cursor[2] == old.stream_id:
                self._position_store.sent(cursor, seq, uses_positions)
        leaving_sessions = []
        for session in list(old.sessions):
            assert isinstance(session, Session)
            self._note_position(session)
            if session.is_basic:
                session.move_to_channel(new, _resume_position(session, new, end))
            else:
                session.stop_delivery()
                leaving_sessions.append(session)
        for page_reader in old.page_readers:
            page_reader.end(RENAMED)
        if leaving_sessions:
            Deferred.fromCoroutine(self._close_to_reconnect(leaving_sessions))

    async def _close_to_reconnect(self, leaving_sessions: list[Session]) -> None:
        """Close connections at random times, after their positions were written for other nodes."""
        try:
            # If the database cannot be reached, close the terminals now. The positions are written when
            # it is back.
            with suppress(Unavailable):
                await self._position_store.flush()
        except Exception:
            self._log.failure(
                "the positions of terminals in an earlier stream could not be written; posd closes the"
                " terminals all the same"
            )
        seconds = min(_LONGEST_PAUSE, len(self._registry) / _CLOSES_PER_SECOND)
        for session in leaving_sessions:
            connection = self._registry.get(session.terminal.connection_id)
            if connection is not None:
                pause = random.uniform(0, seconds)
                self._reactor.callLater(pause, self._close, connection, RENAMED)

    def _note_position(self, session: Session) -> None:
        if session.terminal.device_id is not None:
            self._position_store.sent(
                subscription(session.terminal), session.furthest_sent, session.uses_positions
            )


def _resume_position(session: Session, new: TenantChannel, end: StreamEnd | None) -> Seq:
    """Return the event after which a basic till continues. The till misses no event that is new to it."""
    if end is None:
        return new.tail
    if session.position <= end.shared:
        return session.position
    return min(session.position, end.resumed_after)
