"""The registry of a node's connections, with one timer that pings and checks all of them.

The timer drops connections from which nothing is received any more, and pings quiet ones.

A device has one live connection, the newest. A connection claims its device when the till has sent a frame
or when the connection has been open for ten seconds. So a short connection test displaces no till. If two
machines contend for one device, a frame does not claim it, only the ten seconds do. Otherwise both machines
would displace each other as fast as they can connect.
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
"""The connections are divided into this number of groups. The timer checks one group each second."""
_GROUP_SECONDS: Final = 1.0
_GRACE_SECONDS: Final = 5.0
_SETTLED_SECONDS: Final = 10.0


class TillTransport(SessionTransport, ByteSink, Protocol):
    """The part of a till's connection that the registry uses."""

    @property
    def heard_at(self) -> float:
        """The reactor's time at which data was last received."""

    def attach(self, send_queue: SendQueue) -> None:
        """Register the send queue as the producer of this transport, before the first byte is sent."""

    def ping(self) -> None:
        """Send data that keeps the connection open and that makes the till answer."""

    def drop(self, *, abort: bool) -> None:
        """Close the connection without a Close frame. With `abort`, do not send buffered data first."""


Heartbeat = tuple[UUID, float, Seq]
"""A connection's id, the seconds since data was last received, and the position that it was sent.

The database computes the time from the seconds and its own clock.
"""

Claim = Callable[[Terminal], Awaitable[bool]]
"""Gives a connection its device on all nodes. Returns False if a newer connection has the device."""


@define(eq=False)
class TrackedConnection:
    """A connection, and the times at which it is pinged and checked."""

    session: Session
    transport: TillTransport
    opened_at: float
    heartbeat: float
    """The heartbeat interval that the till was told, in seconds. `reconfigure` does not change it."""
    interval: float
    """Seconds between pings."""
    next_ping: float
    claimed: bool = False
    reported: tuple[float, Seq] = (0.0, 0)

    @property
    def terminal(self) -> Terminal:
        return self.session.terminal


class ConnectionRegistry(Service):
    """The connections of this node. `heartbeat` is the seconds between pings of future connections."""

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
        """Iterate over a copy, since connections may leave during the iteration."""
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
        """Return the sessions of a terminal's device, none if the terminal has no device name."""
        device = _device(terminal)
        return [] if device is None else [each.session for each in self._by_device.get(device, ())]

    def enter(self, session: Session, transport: TillTransport) -> None:
        """Add a connection."""
        now = self._reactor.seconds()
        # A connection of a wire format with a longest silence is pinged one round of the timer earlier.
        interval = min(
            self.heartbeat, session.wire_format.keepalive_seconds - _GROUPS * _GROUP_SECONDS
        )
        # Tills that reconnect together after a restart are pinged at different times.
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
        """Remove a connection that has ended. Return whether it was registered."""
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
        """A till has sent a frame, so it claims its device."""
        connection = self._connections.get(session.terminal.connection_id)
        if connection is None or connection.claimed:
            return
        if _device(connection.terminal) not in self._contested:
            self._claim(connection)

    def supersede(self, connection: TrackedConnection) -> None:
        """End a connection whose device a newer connection has taken, on this node or another one."""
        device = _device(connection.terminal)
        if device is not None and connection.session.state is not SessionState.CLOSED:
            self._contested.displaced(device, connection.terminal)
        connection.session.end(SUPERSEDED)

    def heartbeats(self) -> list[Heartbeat]:
        """Return the connections that have changed since the last call. Store positions of legacy tills."""
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
                self._log.failure(
                    "the connection of a till of tenant {slug} could not be checked; posd tries again in"
                    " {seconds:.0f} s",
                    slug=connection.terminal.tenant.slug,
                    seconds=_GROUPS * _GROUP_SECONDS,
                )

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
        claimed.addErrback(
            lambda failure: self._log.failure(
                "device {device} of tenant {slug} could not be claimed for a connection; an older"
                " connection of another node may stay open",
                failure,
                device=connection.terminal.device_id,
                slug=connection.terminal.tenant.slug,
            )
        )

    async def _claim_on_all_nodes(self, connection: TrackedConnection) -> None:
        try:
            won = await self._claim_in_database(connection.terminal)
        except Unavailable:
            # The database cannot be reached. The timer claims the device again.
            connection.claimed = False
            return
        if not won:
            self.supersede(connection)


def _device(terminal: Terminal) -> tuple[TenantId, str] | None:
    return None if terminal.device_id is None else (terminal.tenant.id, terminal.device_id)


def _connection_order(terminal: Terminal) -> tuple[datetime, UUID]:
    return terminal.connected_at, terminal.connection_id
