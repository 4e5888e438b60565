"""Who is connected to this node: looked after in turn, and told apart by device.

One timer looks after every connection; there is none for each till. A till that is not heard of is
dropped, one that was quiet is pinged, and one that means to stay takes its device's place: a device
has one live connection, the newest, from when it has sent a frame or has been open for ten seconds,
so that a connection test displaces nobody. Where two machines contend for one device, only the ten seconds
count: otherwise each would send the other away as fast as both can connect.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from attrs import define
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from posd.delivery.contested import ContestedDevices
from posd.delivery.send_queue import Outbox, Sink
from posd.delivery.session import Peer, Session, State
from posd.errors import Unavailable
from posd.values import SUPERSEDED, Seq, TenantId, Terminal

_TURNS: Final = 5
"""In how many groups connections are looked after, one group each second."""
_TURN_SECONDS: Final = 1.0
_GRACE_SECONDS: Final = 5.0
_SETTLED_SECONDS: Final = 10.0


class Line(Peer, Sink, Protocol):
    """A till's connection, as far as it is looked after."""

    @property
    def heard_at(self) -> float:
        """When anything was last received, by the reactor's clock."""

    def attach(self, outbox: Outbox) -> None:
        """Let the outbox know when there is room, from the first byte on."""

    def ping(self) -> None:
        """Send what keeps the connection open and tells that the till is there."""

    def drop(self, *, abort: bool) -> None:
        """End it without a word; `abort` does not wait for what is on its way."""


Sighting = tuple[UUID, float, Seq]
"""What is new of a connection: which it is, how many seconds ago it was heard of, up to where it was
sent. The database makes a time of that by its own clock."""

Claim = Callable[[Terminal], Awaitable[bool]]
"""Makes a connection its device's one on all nodes; False if a newer one already is."""


@define(eq=False)
class Attendance:
    """One connection, and when something is to be done about it."""

    session: Session
    line: Line
    opened_at: float
    heartbeat: float
    """Seconds that it was told; it counts on them, whatever newer connections are told."""
    interval: float
    """Seconds from ping to ping."""
    next_ping: float
    claimed: bool = False
    reported: tuple[float, Seq] = (0.0, 0)

    @property
    def terminal(self) -> Terminal:
        return self.session.terminal


class Roster(Service):
    """The connections of this node. `heartbeat` is the seconds from ping to ping of those to come."""

    _log = Logger()

    def __init__(self, reactor: IReactorTime, heartbeat: float, claim: Claim) -> None:
        self._reactor = reactor
        self.heartbeat = heartbeat
        self._claim_everywhere = claim
        self._everyone: dict[UUID, Attendance] = {}
        self._of_device: dict[tuple[TenantId, str], set[Attendance]] = {}
        self._groups: list[set[Attendance]] = [set() for _ in range(_TURNS)]
        self._contested = ContestedDevices(reactor.seconds)
        self._turn = 0
        self._rounds = LoopingCall(self._look_after_some)
        self._rounds.clock = reactor

    def __len__(self) -> int:
        return len(self._everyone)

    def __iter__(self) -> Iterator[Attendance]:
        """Everyone as of now; whoever is asked about may leave meanwhile."""
        return iter(list(self._everyone.values()))

    def startService(self) -> None:
        Service.startService(self)
        self._rounds.start(_TURN_SECONDS, now=False)

    def stopService(self) -> None:
        Service.stopService(self)
        if self._rounds.running:
            self._rounds.stop()

    def get(self, connection_id: UUID) -> Attendance | None:
        return self._everyone.get(connection_id)

    def of_device(self, terminal: Terminal) -> list[Session]:
        """The sessions of a terminal's device; none if it has no name."""
        device = _device(terminal)
        return [] if device is None else [each.session for each in self._of_device.get(device, ())]

    def enter(self, session: Session, line: Line) -> None:
        """Look after a connection from now on."""
        now = self._reactor.seconds()
        # Who must not be silent for longer is pinged a round before that.
        interval = min(self.heartbeat, session.dialect.silence - _TURNS * _TURN_SECONDS)
        # Those that came together, after a restart, are pinged one after the other.
        first_ping = now + interval * random.uniform(0.5, 1.0)
        attendance = Attendance(session, line, now, self.heartbeat, interval, first_ping)
        self._everyone[attendance.terminal.connection_id] = attendance
        self._group(attendance).add(attendance)
        device = _device(attendance.terminal)
        if device is not None:
            self._of_device.setdefault(device, set()).add(attendance)

    def leave(self, session: Session) -> bool:
        """A connection is gone. Whether it was there."""
        attendance = self._everyone.pop(session.terminal.connection_id, None)
        if attendance is None:
            return False
        self._group(attendance).discard(attendance)
        device = _device(attendance.terminal)
        if device is not None:
            self._of_device[device].discard(attendance)
            if not self._of_device[device]:
                del self._of_device[device]
        return True

    def heard(self, session: Session) -> None:
        """A till sent a frame: it means to stay, so it takes its device's place."""
        attendance = self._everyone.get(session.terminal.connection_id)
        if attendance is None or attendance.claimed:
            return
        if _device(attendance.terminal) not in self._contested:
            self._claim(attendance)

    def supersede(self, attendance: Attendance) -> None:
        """End a connection whose device's place a newer one has taken, on this node or another."""
        device = _device(attendance.terminal)
        if device is not None and attendance.session.state is not State.CLOSED:
            self._contested.displaced(device, attendance.terminal)
        attendance.session.end(SUPERSEDED)

    def sightings(self) -> list[Sighting]:
        """What has changed since the last time. The positions of legacy terminals are noted, too."""
        now = self._reactor.seconds()
        sightings = []
        for connection_id, attendance in self._everyone.items():
            state = (attendance.line.heard_at, attendance.session.position)
            if state != attendance.reported:
                attendance.reported = state
                attendance.session.note_position()
                ago = now - attendance.line.heard_at
                sightings.append((connection_id, ago, attendance.session.position))
        return sightings

    def _group(self, attendance: Attendance) -> set[Attendance]:
        return self._groups[attendance.terminal.connection_id.int % _TURNS]

    def _look_after_some(self) -> None:
        self._turn = (self._turn + 1) % _TURNS
        now = self._reactor.seconds()
        self._contested.forget()
        for attendance in list(self._groups[self._turn]):
            try:
                self._look_after(attendance, now)
            except Exception:
                self._log.failure("a session could not be looked after")

    def _look_after(self, attendance: Attendance, now: float) -> None:
        if now - attendance.line.heard_at > 2 * attendance.heartbeat + _GRACE_SECONDS:
            attendance.line.drop(abort=True)
            return
        if now >= attendance.next_ping:
            attendance.next_ping = now + attendance.interval
            attendance.line.ping()
        if not attendance.claimed and now - attendance.opened_at >= _SETTLED_SECONDS:
            self._claim(attendance)
        attendance.session.check()

    def _claim(self, attendance: Attendance) -> None:
        attendance.claimed = True
        device = _device(attendance.terminal)
        if device is None:
            return
        for other in list(self._of_device.get(device, ())):
            if _since(other.terminal) < _since(attendance.terminal):
                self.supersede(other)
        claimed = Deferred.fromCoroutine(self._claim_on_all_nodes(attendance))
        claimed.addErrback(lambda failure: self._log.failure("a claim failed", failure))

    async def _claim_on_all_nodes(self, attendance: Attendance) -> None:
        try:
            won = await self._claim_everywhere(attendance.terminal)
        except Unavailable:
            # Said again at the next turn: the database is away.
            attendance.claimed = False
            return
        if not won:
            self.supersede(attendance)


def _device(terminal: Terminal) -> tuple[TenantId, str] | None:
    return None if terminal.device_id is None else (terminal.tenant.id, terminal.device_id)


def _since(terminal: Terminal) -> tuple[datetime, UUID]:
    return terminal.connected_at, terminal.connection_id
