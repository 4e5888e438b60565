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

from posd.delivery.contested_devices import ContestedDevices
from posd.delivery.send_queue import ByteSink, SendQueue
from posd.delivery.session import Session, SessionState
from posd.delivery.session_interfaces import SessionTransport
from posd.errors import Unavailable
from posd.values import SUPERSEDED, Seq, TenantId, Terminal

_GROUPS: Final = 5
"""In how many groups connections are looked after, one group each second."""
_GROUP_SECONDS: Final = 1.0
_GRACE_SECONDS: Final = 5.0
_SETTLED_SECONDS: Final = 10.0


class TillTransport(SessionTransport, ByteSink, Protocol):
    """A till's connection, as far as it is looked after."""

    @property
    def heard_at(self) -> float:
        """When anything was last received, by the reactor's clock."""

    def attach(self, send_queue: SendQueue) -> None:
        """Let the outbox know when there is room, from the first byte on."""

    def ping(self) -> None:
        """Send what keeps the connection open and tells that the till is there."""

    def drop(self, *, abort: bool) -> None:
        """End it without a word; `abort` does not wait for what is on its way."""


Heartbeat = tuple[UUID, float, Seq]
"""What is new of a connection: which it is, how many seconds ago it was heard of, up to where it was
sent. The database makes a time of that by its own clock."""

Claim = Callable[[Terminal], Awaitable[bool]]
"""Makes a connection its device's one on all nodes; False if a newer one already is."""


@define(eq=False)
class TrackedConnection:
    """One connection, and when something is to be done about it."""

    session: Session
    transport: TillTransport
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


class ConnectionRegistry(Service):
    """The connections of this node. `heartbeat` is the seconds from ping to ping of those to come."""

    _log = Logger()

    def __init__(self, reactor: IReactorTime, heartbeat: float, claim: Claim) -> None:
        self._reactor = reactor
        self.heartbeat = heartbeat
        self._claim_in_database = claim
        self._connections: dict[UUID, TrackedConnection] = {}
        self._by_device: dict[tuple[TenantId, str], set[TrackedConnection]] = {}
        self._groups: list[set[TrackedConnection]] = [set() for _ in range(_GROUPS)]
        self._contested = ContestedDevices(reactor.seconds)
        self._current_group = 0
        self._timer = LoopingCall(self._check_next_group)
        self._timer.clock = reactor

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[TrackedConnection]:
        """Everyone as of now; whoever is asked about may leave meanwhile."""
        return iter(list(self._connections.values()))

    def startService(self) -> None:
        Service.startService(self)
        self._timer.start(_GROUP_SECONDS, now=False)

    def stopService(self) -> None:
        Service.stopService(self)
        if self._timer.running:
            self._timer.stop()

    def get(self, connection_id: UUID) -> TrackedConnection | None:
        return self._connections.get(connection_id)

    def sessions_of_device(self, terminal: Terminal) -> list[Session]:
        """The sessions of a terminal's device; none if it has no name."""
        device = _device(terminal)
        return [] if device is None else [each.session for each in self._by_device.get(device, ())]

    def enter(self, session: Session, transport: TillTransport) -> None:
        """Look after a connection from now on."""
        now = self._reactor.seconds()
        # Who must not be silent for longer is pinged a round before that.
        interval = min(
            self.heartbeat, session.wire_format.keepalive_seconds - _GROUPS * _GROUP_SECONDS
        )
        # Those that came together, after a restart, are pinged one after the other.
        first_ping = now + interval * random.uniform(0.5, 1.0)
        connection = TrackedConnection(
            session, transport, now, self.heartbeat, interval, first_ping
        )
        self._connections[connection.terminal.connection_id] = connection
        self._group(connection).add(connection)
        device = _device(connection.terminal)
        if device is not None:
            self._by_device.setdefault(device, set()).add(connection)

    def leave(self, session: Session) -> bool:
        """A connection is gone. Whether it was there."""
        connection = self._connections.pop(session.terminal.connection_id, None)
        if connection is None:
            return False
        self._group(connection).discard(connection)
        device = _device(connection.terminal)
        if device is not None:
            self._by_device[device].discard(connection)
            if not self._by_device[device]:
                del self._by_device[device]
        return True

    def heard(self, session: Session) -> None:
        """A till sent a frame: it means to stay, so it takes its device's place."""
        connection = self._connections.get(session.terminal.connection_id)
        if connection is None or connection.claimed:
            return
        if _device(connection.terminal) not in self._contested:
            self._claim(connection)

    def supersede(self, connection: TrackedConnection) -> None:
        """End a connection whose device's place a newer one has taken, on this node or another."""
        device = _device(connection.terminal)
        if device is not None and connection.session.state is not SessionState.CLOSED:
            self._contested.displaced(device, connection.terminal)
        connection.session.end(SUPERSEDED)

    def heartbeats(self) -> list[Heartbeat]:
        """What has changed since the last time. The positions of legacy terminals are noted, too."""
        now = self._reactor.seconds()
        heartbeats = []
        for connection_id, connection in self._connections.items():
            state = (connection.transport.heard_at, connection.session.position)
            if state != connection.reported:
                connection.reported = state
                connection.session.note_legacy_position()
                seconds_ago = now - connection.transport.heard_at
                heartbeats.append((connection_id, seconds_ago, connection.session.position))
        return heartbeats

    def _group(self, connection: TrackedConnection) -> set[TrackedConnection]:
        return self._groups[connection.terminal.connection_id.int % _GROUPS]

    def _check_next_group(self) -> None:
        self._current_group = (self._current_group + 1) % _GROUPS
        now = self._reactor.seconds()
        self._contested.forget()
        for connection in list(self._groups[self._current_group]):
            try:
                self._check_connection(connection, now)
            except Exception:
                self._log.failure("a session could not be looked after")

    def _check_connection(self, connection: TrackedConnection, now: float) -> None:
        if now - connection.transport.heard_at > 2 * connection.heartbeat + _GRACE_SECONDS:
            connection.transport.drop(abort=True)
            return
        if now >= connection.next_ping:
            connection.next_ping = now + connection.interval
            connection.transport.ping()
        if not connection.claimed and now - connection.opened_at >= _SETTLED_SECONDS:
            self._claim(connection)
        connection.session.check()

    def _claim(self, connection: TrackedConnection) -> None:
        connection.claimed = True
        device = _device(connection.terminal)
        if device is None:
            return
        for other in list(self._by_device.get(device, ())):
            if _connection_order(other.terminal) < _connection_order(connection.terminal):
                self.supersede(other)
        claimed = Deferred.fromCoroutine(self._claim_on_all_nodes(connection))
        claimed.addErrback(lambda failure: self._log.failure("a claim failed", failure))

    async def _claim_on_all_nodes(self, connection: TrackedConnection) -> None:
        try:
            won = await self._claim_in_database(connection.terminal)
        except Unavailable:
            # Said again at the next turn: the database is away.
            connection.claimed = False
            return
        if not won:
            self.supersede(connection)


def _device(terminal: Terminal) -> tuple[TenantId, str] | None:
    return None if terminal.device_id is None else (terminal.tenant.id, terminal.device_id)


def _connection_order(terminal: Terminal) -> tuple[datetime, UUID]:
    return terminal.connected_at, terminal.connection_id
