"""The exchange: opens the sessions of this node, finds them by device or key, and ends them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from typing import Final, Protocol
from uuid import UUID

from attrs import evolve, frozen
from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from posd.database.pool import Database
from posd.delivery import revocations
from posd.delivery.channel import Channel, Watcher
from posd.delivery.channels import Channels
from posd.delivery.connection_log import ConnectionLog
from posd.delivery.openings import Openings
from posd.delivery.registry import Attendance, Line, Roster, Sighting
from posd.delivery.renaming import Books as SentBooks
from posd.delivery.renaming import Renaming
from posd.delivery.send_queue import Budget, Outbox
from posd.delivery.session import Register, Session
from posd.errors import TooManyRequests, Unavailable
from posd.monitoring.counters import Instruments
from posd.protocol.cursor import resume
from posd.security.connection_limits import MOST_DEVICES
from posd.store import replay
from posd.values import (
    DISCONNECTED,
    GOING_AWAY,
    Closing,
    Opening,
    Position,
    Seq,
    StreamName,
    Tenant,
    TenantId,
    Terminal,
)

_DRAIN_BATCHES: Final = 20
_PARTING_SECONDS: Final = 3.0
_LOOK_SECONDS: Final = 0.05


class Books(Register, SentBooks, Protocol):
    """The bookkeeping of who is connected and how far each device is (`posd.delivery.presence`)."""

    sightings: Callable[[], list[Sighting]]
    """Asked what has changed of the connections."""

    def connected(self, terminal: Terminal) -> None:
        """A connection was opened."""

    def disconnected(self, terminal: Terminal) -> None:
        """A connection is gone."""

    def delivered(self, stream: StreamName, seq: Seq) -> None:
        """A till of the tenant was sent everything up to `seq` of its stream."""

    def settle(self, tenant_id: TenantId, device_id: str) -> Awaitable[None]:
        """Write down what is still to be written of a device, before its cursor is asked for."""

    def claim(self, terminal: Terminal) -> Awaitable[bool]:
        """Make a connection its device's one on all nodes; False if a newer one already is."""


class Guest(Watcher, Protocol):
    """A poll that waits for events, with a valid key and without a session."""

    @property
    def terminal(self) -> Terminal:
        """Who that is."""


@frozen
class Admitted:
    """A connection that may be opened; `left` is called once when it has ended."""

    terminal: Terminal
    opening: Opening
    left: Callable[[], None]


class Exchange(Service):
    """Opens sessions at their channels, and ends them when their time has come."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        database: Database,
        presence: Books,
        *,
        heartbeat: float,
        send_queue_bytes: int,
        send_queue_total: int,
        instruments: Instruments | None = None,
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._presence = presence
        self._heartbeat = heartbeat
        self._send_queue_bytes = send_queue_bytes
        self.instruments = instruments or Instruments()
        self.connection_log = ConnectionLog(reactor.seconds, self.instruments)
        self._budget = Budget(send_queue_total)
        self._openings = Openings(reactor, database, MOST_DEVICES)
        self.channels = Channels(reactor, database, presence.delivered, self.instruments)
        self._guests: set[Guest] = set()
        self._roster = Roster(reactor, heartbeat, presence.claim)
        self._renaming = Renaming(reactor, presence, self._roster, self._send_home)
        self.channels.renamed = self._renaming.renamed
        presence.sightings = self._roster.sightings
        self.draining = False

    def __len__(self) -> int:
        return len(self._roster)

    def startService(self) -> None:
        Service.startService(self)
        self._roster.startService()

    def stopService(self) -> None:
        Service.stopService(self)
        self._roster.stopService()

    def connections(self, tenant_id: TenantId) -> int:
        """How many sessions this node has of a tenant."""
        channel = self.channels.of(tenant_id)
        return 0 if channel is None else len(channel.sessions)

    def counts(self) -> dict[str, int]:
        """How many tills each tenant has here that has any, by slug."""
        return Counter(each.terminal.tenant.slug for each in self._roster)

    @property
    def held(self) -> int:
        """How many bytes wait for tills that do not take them."""
        return self._budget.held

    def adjust(self, *, heartbeat: float, send_queue_bytes: int, send_queue_total: int) -> None:
        """Change what it was made with: the bounds for all, the heartbeat for those to come."""
        self._heartbeat = self._roster.heartbeat = heartbeat
        self._send_queue_bytes = send_queue_bytes
        for attendance in self._roster:
            attendance.session.outbox.limit = send_queue_bytes
        self._budget.limit = send_queue_total
        self._budget.relieve()

    async def look_up(
        self,
        tenant: Tenant,
        device_id: str | None,
        asked: Position | None = None,
        *,
        resuming: bool = True,
    ) -> Opening:
        """Where a terminal stands. `asked` is the position that it names, if it names one.

        Called before the upgrade, when a refusal can still be an answer. With `resuming`, the terminal comes
        for events. If somebody has asked that it be sent some again, its cursor is set back first. Raises
        `Unavailable`, or `TooManyRequests` if the tenant has too many devices.
        """
        self._refuse_while_draining()
        if device_id is not None:
            await self._presence.settle(tenant.id, device_id)
        names_stream = asked is not None and asked.stream_id is not None
        opening = await self._openings.find(tenant, device_id, names_stream=names_stream)
        if resuming and opening is not None and opening.recalled and device_id is not None:
            await replay.fulfil(self._database, tenant.id, device_id)
            opening = await self._openings.find(tenant, device_id)
        if (
            opening is not None
            and asked is not None
            and asked.stream_id not in (None, opening.head.stream_id)
        ):
            shared = await self._openings.shared(tenant.id, asked.stream_id)
            opening = evolve(opening, shared=shared)
        # Checked again, since the drain may have begun meanwhile. It would not close this session.
        self._refuse_while_draining()
        if opening is None:
            raise TooManyRequests(
                "This tenant has too many devices.", code="too_many_devices", retry_after=60
            )
        return opening

    def open(self, terminal: Terminal, opening: Opening, line: Line) -> Session:
        """Begin a session on a connection that is open."""
        start, resync = resume(opening, terminal.position)
        outbox = Outbox(
            line,
            self._send_queue_bytes,
            self._budget,
            terminal.tenant.id,
            clock=self._reactor.seconds,
            position=start,
            traffic=self.instruments.traffic,
        )
        channel, is_new = self.channels.join(terminal.tenant, opening.head)
        session = Session(
            terminal, channel, outbox, line, self._presence, self._reactor.seconds, _now
        )
        outbox.listener = session
        self._roster.enter(session, line)
        self._presence.connected(terminal)
        try:
            line.attach(outbox)
            session.begin(opening, resync, self._heartbeat)
        except BaseException:
            self.closed(session)
            raise
        if is_new:
            self.channels.look_again(channel)
        return session

    def closed(self, session: Session) -> None:
        """A session's connection is gone."""
        session.closed()
        if not self._roster.leave(session):
            return
        self._presence.disconnected(session.terminal)
        self._renaming.left(session)
        self.channels.tidy(session.terminal.tenant.id)

    def watch(self, guest: Guest, opening: Opening) -> Channel:
        """Let a poll wait at the tenant's channel, until `unwatch`."""
        channel, is_new = self.channels.join(guest.terminal.tenant, opening.head)
        self._guests.add(guest)
        channel.watch(guest)
        if is_new:
            self.channels.look_again(channel)
        return channel

    def unwatch(self, guest: Guest, channel: Channel) -> None:
        self._guests.discard(guest)
        channel.unwatch(guest)
        self.channels.left(channel)

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        """A named terminal has said, not on a connection, that it has everything up to `seq`."""
        channel = self.channels.of(terminal.tenant.id)
        if channel is not None and channel.stream_id == terminal.stream_id:
            channel.acknowledged(seq)
        for session in self._roster.of_device(terminal):
            if session.terminal.stream_id == terminal.stream_id:
                seq = max(seq, session.hear_of(seq))
        self._presence.acknowledged(terminal, seq)

    def answered(self, terminal: Terminal, seq: Seq) -> None:
        """A terminal was sent everything up to `seq`, not on a connection."""
        self._renaming.answered(terminal, seq)

    def recall(self) -> None:
        """The database may be another one: the next flush compares with it how far devices were sent."""
        self._renaming.recall()

    def heard(self, session: Session) -> None:
        """A till sent a frame."""
        self._roster.heard(session)

    async def recheck(self, keys: Collection[int] | None = None) -> None:
        """End the sessions and polls whose key or tenant is not valid any more.

        Only those with one of `keys` are looked at. Without `keys` all are, and devices that were disabled
        too.
        """
        using = {each.terminal.principal.key_id for each in (*self._roster, *self._guests)}
        asked = using if keys is None else using.intersection(keys)
        everywhere = self.channels.tenants if keys is None else []
        found = await revocations.find(self._database, asked, everywhere)
        # Nearly always nothing is found, and then the thousands who are connected need not be looked at.
        for terminal, end in self._present() if found else ():
            closing = found.of(terminal)
            if closing is not None:
                end(closing)

    def superseded(self, connection_id: UUID) -> None:
        """Another connection has taken this one's device."""
        attendance = self._roster.get(connection_id)
        if attendance is not None:
            self._roster.supersede(attendance)

    def disconnect(self, connection_id: UUID) -> None:
        """An operator sends a till away, to come back at once."""
        attendance = self._roster.get(connection_id)
        if attendance is not None:
            self._send_home(attendance, DISCONNECTED)
        for guest in list(self._guests):
            if guest.terminal.connection_id == connection_id:
                guest.end(DISCONNECTED)

    async def drain(self, seconds: float) -> None:
        """Close all connections within about `seconds`, in batches and in random order.

        Tills that name no position (`Session.plain`) come last and get no Close frame. These deployed tills
        connect again at once after a lost connection, but not after a Close frame. Returns when all have hung
        up, or a few seconds after the last batch.
        """
        self.draining = True
        for guest in list(self._guests):
            guest.end(GOING_AWAY)
        everyone = list(self._roster)
        random.shuffle(everyone)
        # Sorting is stable: those that are to be dropped come last, and otherwise by chance.
        everyone.sort(key=lambda each: each.session.plain)
        batch = max(1, -(-len(everyone) // _DRAIN_BATCHES))
        for start in range(0, len(everyone), batch):
            if start:
                pause = random.uniform(0.5, 1.5) * seconds / _DRAIN_BATCHES
                await deferLater(self._reactor, pause)
            for attendance in everyone[start : start + batch]:
                self._send_home(attendance, GOING_AWAY)
        deadline = self._reactor.seconds() + _PARTING_SECONDS
        while self._roster and self._reactor.seconds() < deadline:
            await deferLater(self._reactor, _LOOK_SECONDS)

    def _present(self) -> list[tuple[Terminal, Callable[[Closing], None]]]:
        """The terminal of each session and each poll, and what ends it."""
        return [
            *((each.terminal, each.session.end) for each in self._roster),
            *((guest.terminal, guest.end) for guest in self._guests),
        ]

    def _send_home(self, attendance: Attendance, closing: Closing) -> None:
        """Close a connection so that its till comes back: a deployed one only does without a Close frame."""
        try:
            if attendance.session.plain:
                attendance.session.closed()
                attendance.line.drop(abort=False)
            else:
                attendance.session.end(closing)
        except Exception:
            self._log.failure("a session could not be sent home")

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise Unavailable("posd is restarting.", retry_after=1)


def _now() -> datetime:
    return datetime.now(UTC)
