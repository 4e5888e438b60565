"""What happens when a stream gets another name: who is told so, who stays, and who has to reload.

A terminal that uses positions is closed: it learns the new name when it comes back, and goes on there.
A deployed one uses none and stays. Which events of the old name devices were sent is written down: those
that were sent more than the present stream has of it are told to reload, whatever their cursors say.
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

from posd.delivery.channel import Channel
from posd.delivery.pending_writes import Device, Subscription, subscription
from posd.delivery.registry import Attendance, Roster
from posd.delivery.session import Session
from posd.errors import Unavailable
from posd.store.epochs import End
from posd.values import RENAMED, Closing, Seq, Terminal

_A_SECOND: Final = 200
"""How many terminals are closed in a second, on average: they all come back."""
_MOST_SECONDS: Final = 5.0
_MOST_REMEMBERED: Final = 20_000


class Books(Protocol):
    """Where it is written down how far devices were sent a stream (`posd.delivery.presence`)."""

    def sent(self, cursor: Subscription, seq: Seq, spoke: bool) -> None:
        """A device was sent a stream up to `seq`; `spoke`: it has said once how far it is."""

    async def flush(self) -> None:
        """Write everything that was noted."""


@define(eq=False)
class Departed:
    """How far devices were sent that are not here any more, the latest 20,000 of them."""

    _known: OrderedDict[Device, tuple[UUID, Seq, bool]] = field(init=False, factory=OrderedDict)

    def note(self, terminal: Terminal, seq: Seq, spoke: bool) -> None:
        if terminal.device_id is None:
            return
        device = terminal.tenant.id, terminal.device_id
        stream_id, before, spoken = self._known.pop(device, (terminal.stream_id, 0, False))
        if stream_id == terminal.stream_id:
            seq = max(seq, before)
        self._known[device] = terminal.stream_id, seq, spoke or spoken
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)

    def __iter__(self) -> Iterator[tuple[Subscription, Seq, bool]]:
        return (
            ((*device, name), seq, spoke) for device, (name, seq, spoke) in [*self._known.items()]
        )


class Renaming:
    """Follows the names of the streams. `close` sends a terminal home."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        books: Books,
        roster: Roster,
        close: Callable[[Attendance, Closing], None],
    ) -> None:
        self._reactor = reactor
        self._books = books
        self._roster = roster
        self._close = close
        self._departed = Departed()

    def left(self, session: Session) -> None:
        """A terminal is gone."""
        self._departed.note(session.terminal, session.reached, session.spoke)

    def answered(self, terminal: Terminal, seq: Seq) -> None:
        """A terminal was sent the events up to `seq`, after a position that it named."""
        self._departed.note(terminal, seq, spoke=True)

    def recall(self) -> None:
        """The database may be another one: write down what is known of all devices."""
        for attendance in self._roster:
            self._note(attendance.session)
        for each in self._departed:
            self._books.sent(*each)

    def renamed(self, old: Channel, new: Channel, end: End | None) -> None:
        """Tell everybody at a stream that has a new name; `end` is how the old one ended, if known."""
        self._log.warn(
            "the stream of {slug} has a new name: events up to {shared} are the same as before; terminals"
            " that use positions are closed with 1001 and come back; those that were sent later events"
            " reload",
            slug=new.tenant.slug,
            shared=0 if end is None else end.shared,
        )
        for cursor, seq, spoke in self._departed:
            if cursor[0] == old.tenant.id and cursor[2] == old.stream_id:
                self._books.sent(cursor, seq, spoke)
        parted = []
        for session in list(old.sessions):
            assert isinstance(session, Session)
            self._note(session)
            if session.plain:
                session.move(new, _resumed_after(session, new, end))
            else:
                session.part()
                parted.append(session)
        for watcher in old.watchers:
            watcher.end(RENAMED)
        if parted:
            Deferred.fromCoroutine(self._send_home(parted))

    async def _send_home(self, parted: list[Session]) -> None:
        """Close connections one after the other, once other nodes can see how far each was sent."""
        try:
            # Terminals are not kept waiting for a database that is away: it is written when that is back.
            with suppress(Unavailable):
                await self._books.flush()
        except Exception:
            self._log.failure("what terminals were sent of a stream could not be written")
        seconds = min(_MOST_SECONDS, len(self._roster) / _A_SECOND)
        for session in parted:
            attendance = self._roster.get(session.terminal.connection_id)
            if attendance is not None:
                pause = random.uniform(0, seconds)
                self._reactor.callLater(pause, self._close, attendance, RENAMED)

    def _note(self, session: Session) -> None:
        if session.terminal.device_id is not None:
            self._books.sent(subscription(session.terminal), session.reached, session.spoke)


def _resumed_after(session: Session, new: Channel, end: End | None) -> Seq:
    """After which event a terminal goes on that uses no positions: it misses nothing that is new."""
    if end is None:
        return new.tail
    if session.position <= end.shared:
        return session.position
    return min(session.position, end.resumed_after)
