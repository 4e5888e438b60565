"""The hub opens the sessions of this node, finds them by device or key, and ends them."""

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

from posd.database.pool import Pool
from posd.delivery import revocations
from posd.delivery.channel import PageReader, TenantChannel
from posd.delivery.channels import ChannelRegistry
from posd.delivery.connection_log import ConnectionLog
from posd.delivery.registry import ConnectionRegistry, Heartbeat, TillTransport, TrackedConnection
from posd.delivery.send_queue import SendBudget, SendQueue
from posd.delivery.session import Session
from posd.delivery.session_interfaces import ProgressSink
from posd.delivery.session_openings import SessionOpenings
from posd.delivery.stream_renaming import PositionStore, StreamRenaming
from posd.errors import TooManyRequests, Unavailable
from posd.monitoring.counters import Counters
from posd.protocol.cursor import resume
from posd.security.connection_limits import MOST_DEVICES
from posd.store import replay
from posd.values import (
    DISCONNECTED,
    GOING_AWAY,
    CloseReason,
    Position,
    Seq,
    SessionStart,
    StreamName,
    Tenant,
    TenantId,
    Terminal,
)

_DRAIN_BATCHES: Final = 20
_HANG_UP_SECONDS: Final = 3.0
"""After the last batch of a drain, the time in which tills may answer the Close frame."""
_POLL_SECONDS: Final = 0.05
"""The interval in which a drain counts the connections that are left."""


class ProgressStore(ProgressSink, PositionStore, Protocol):
    """Stores connections and the progress of devices. `posd.delivery.presence` implements it."""

    heartbeats: Callable[[], list[Heartbeat]]
    """Called for the connections that have changed since the last call."""

    def connected(self, terminal: Terminal) -> None:
        """A connection was opened."""

    def disconnected(self, terminal: Terminal) -> None:
        """A connection has ended."""

    def delivered(self, stream: StreamName, seq: Seq) -> None:
        """At least one till of the tenant was sent all events up to `seq` of this stream."""

    def write_pending(self, tenant_id: TenantId, device_id: str) -> Awaitable[None]:
        """Write the pending acknowledgements of a device, before its cursor is read."""

    def claim(self, terminal: Terminal) -> Awaitable[bool]:
        """Make a connection the only one of its device on all nodes. False if a newer connection has the
        device.
        """


class PollParticipant(PageReader, Protocol):
    """A waiting poll. It has a valid key and no session."""

    @property
    def terminal(self) -> Terminal:
        """The terminal that polls."""


@frozen
class Admitted:
    """A connection that may be opened. `left` is called once when it has ended."""

    terminal: Terminal
    session_start: SessionStart
    left: Callable[[], None]


class Hub(Service):
    """Opens the sessions of this node and ends them.

    `heartbeat` is the seconds between pings. `send_queue_bytes` limits the send queue of one till, and
    `send_queue_total` limits all send queues together.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        database: Pool,
        presence: ProgressStore,
        *,
        heartbeat: float,
        send_queue_bytes: int,
        send_queue_total: int,
        counters: Counters | None = None,
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._presence = presence
        self._heartbeat = heartbeat
        self._send_queue_bytes = send_queue_bytes
        self.counters = counters or Counters()
        self.connection_log = ConnectionLog(reactor.seconds, self.counters)
        self._send_budget = SendBudget(send_queue_total)
        self._session_openings = SessionOpenings(reactor, database, MOST_DEVICES)
        self.channels = ChannelRegistry(reactor, database, presence.delivered, self.counters)
        self._polls: set[PollParticipant] = set()
        self._registry = ConnectionRegistry(reactor, heartbeat, presence.claim)
        self._renaming = StreamRenaming(reactor, presence, self._registry, self._close_to_reconnect)
        self.channels.renamed = self._renaming.renamed
        presence.heartbeats = self._registry.heartbeats
        self.draining = False

    def __len__(self) -> int:
        return len(self._registry)

    def startService(self) -> None:
        Service.startService(self)
        self._registry.startService()

    def stopService(self) -> None:
        Service.stopService(self)
        self._registry.stopService()

    def connections(self, tenant_id: TenantId) -> int:
        """Return the number of sessions that a tenant has on this node."""
        channel = self.channels.of(tenant_id)
        return 0 if channel is None else len(channel.sessions)

    def counts(self) -> dict[str, int]:
        """Return the number of sessions on this node by tenant slug. Tenants without a session are left
        out.
        """
        return Counter(each.terminal.tenant.slug for each in self._registry)

    @property
    def held(self) -> int:
        """The number of bytes that wait in all send queues."""
        return self._send_budget.held

    def reconfigure(
        self, *, heartbeat: float, send_queue_bytes: int, send_queue_total: int
    ) -> None:
        """Change the limits of all send queues, and the heartbeat of future sessions."""
        self._heartbeat = self._registry.heartbeat = heartbeat
        self._send_queue_bytes = send_queue_bytes
        for connection in self._registry:
            connection.session.send_queue.limit = send_queue_bytes
        self._send_budget.limit = send_queue_total
        self._send_budget.enforce_limit()

    async def look_up(
        self,
        tenant: Tenant,
        device_id: str | None,
        requested: Position | None = None,
        *,
        resuming: bool = True,
    ) -> SessionStart:
        """Return where a terminal starts. `requested` is the position that the terminal named, if any.

        Called before the upgrade, when the request can still be refused. `resuming` is true if the terminal
        wants events. If an operator has requested a replay for the device, its cursor is then moved back
        first. Raises `Unavailable`, or `TooManyRequests` if the tenant has too many devices.
        """
        self._refuse_while_draining()
        if device_id is not None:
            await self._presence.write_pending(tenant.id, device_id)
        names_stream = requested is not None and requested.stream_id is not None
        session_start = await self._session_openings.find(
            tenant, device_id, names_stream=names_stream
        )
        if (
            resuming
            and session_start is not None
            and session_start.recalled
            and device_id is not None
        ):
            await replay.rewind_cursor(self._database, tenant.id, device_id)
            session_start = await self._session_openings.find(tenant, device_id)
        if (
            session_start is not None
            and requested is not None
            and requested.stream_id not in (None, session_start.head.stream_id)
        ):
            shared = await self._session_openings.shared(tenant.id, requested.stream_id)
            session_start = evolve(session_start, shared=shared)
        # A drain may have begun during the reads. It would not close this session.
        self._refuse_while_draining()
        if session_start is None:
            raise TooManyRequests(
                "This tenant has too many devices.", code="too_many_devices", retry_after=60
            )
        return session_start

    def open(
        self, terminal: Terminal, session_start: SessionStart, transport: TillTransport
    ) -> Session:
        """Begin a session on an open connection."""
        start, resync = resume(session_start, terminal.position)
        send_queue = SendQueue(
            transport,
            self._send_queue_bytes,
            self._send_budget,
            terminal.tenant.id,
            clock=self._reactor.seconds,
            position=start,
            traffic=self.counters.traffic,
        )
        channel, is_new = self.channels.join(terminal.tenant, session_start.head)
        session = Session(
            terminal, channel, send_queue, transport, self._presence, self._reactor.seconds, _now
        )
        send_queue.listener = session
        self._registry.enter(session, transport)
        self._presence.connected(terminal)
        try:
            transport.attach(send_queue)
            session.begin(session_start, resync, self._heartbeat)
        except BaseException:
            self.closed(session)
            raise
        if is_new:
            self.channels.recheck_head(channel)
        return session

    def closed(self, session: Session) -> None:
        """The connection of a session has ended."""
        session.closed()
        if not self._registry.leave(session):
            return
        self._presence.disconnected(session.terminal)
        self._renaming.note_departed(session)
        self.channels.remove_empty(session.terminal.tenant.id)

    def watch(self, poll: PollParticipant, session_start: SessionStart) -> TenantChannel:
        """Add a poll to the tenant's channel, until `unwatch`."""
        channel, is_new = self.channels.join(poll.terminal.tenant, session_start.head)
        self._polls.add(poll)
        channel.watch(poll)
        if is_new:
            self.channels.recheck_head(channel)
        return channel

    def unwatch(self, poll: PollParticipant, channel: TenantChannel) -> None:
        self._polls.discard(poll)
        channel.unwatch(poll)
        self.channels.left(channel)

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        """A named terminal has acknowledged all events up to `seq` by a poll or a request."""
        channel = self.channels.of(terminal.tenant.id)
        if channel is not None and channel.stream_id == terminal.stream_id:
            channel.acknowledged(seq)
        for session in self._registry.sessions_of_device(terminal):
            if session.terminal.stream_id == terminal.stream_id:
                seq = max(seq, session.acknowledge_elsewhere(seq))
        self._presence.acknowledged(terminal, seq)

    def sent_by_poll(self, terminal: Terminal, seq: Seq) -> None:
        """A poll has sent a terminal all events up to `seq`."""
        self._renaming.sent_by_poll(terminal, seq)

    def record_all_positions(self) -> None:
        """Store how far each device was sent its stream, because the database may be another one now.

        The next flush writes these positions, so that devices with events that the database lacks have to
        reload.
        """
        self._renaming.record_all_positions()

    def heard(self, session: Session) -> None:
        """A till has sent a frame."""
        self._registry.heard(session)

    async def recheck(self, keys: Collection[int] | None = None) -> None:
        """End the sessions and polls whose key or tenant is no longer valid.

        Checks those that use one of `keys`. Without `keys`, checks all of them, and also ends the sessions
        of disabled devices and of devices for which an operator has requested a replay.
        """
        using = {each.terminal.principal.key_id for each in (*self._registry, *self._polls)}
        requested = using if keys is None else using.intersection(keys)
        everywhere = self.channels.tenants if keys is None else []
        found = await revocations.find_revocations(self._database, requested, everywhere)
        # Nearly always nothing is found. Then the thousands of connected terminals need no check.
        for terminal, end in self._terminals_and_ends() if found else ():
            closing = found.of(terminal)
            if closing is not None:
                end(closing)

    def superseded(self, connection_id: UUID) -> None:
        """Another connection has taken the device of this one."""
        connection = self._registry.get(connection_id)
        if connection is not None:
            self._registry.supersede(connection)

    def disconnect(self, connection_id: UUID) -> None:
        """Close a connection at an operator's request. Its till reconnects at once."""
        connection = self._registry.get(connection_id)
        if connection is not None:
            self._close_to_reconnect(connection, DISCONNECTED)
        for poll in list(self._polls):
            if poll.terminal.connection_id == connection_id:
                poll.end(DISCONNECTED)

    async def drain(self, seconds: float) -> None:
        """Close all connections within about `seconds`, in batches and in random order.

        Tills for which `Session.is_basic` is true come last and get no Close frame: they reconnect at once
        after a lost connection, but not after a Close frame. Returns when all connections have ended, or a
        few seconds after the last batch.
        """
        self.draining = True
        for poll in list(self._polls):
            poll.end(GOING_AWAY)
        connections = list(self._registry)
        random.shuffle(connections)
        # The sort is stable: basic tills come last, and the order stays random otherwise.
        connections.sort(key=lambda each: each.session.is_basic)
        batch = max(1, -(-len(connections) // _DRAIN_BATCHES))
        for start in range(0, len(connections), batch):
            if start:
                pause = random.uniform(0.5, 1.5) * seconds / _DRAIN_BATCHES
                await deferLater(self._reactor, pause)
            for connection in connections[start : start + batch]:
                self._close_to_reconnect(connection, GOING_AWAY)
        deadline = self._reactor.seconds() + _HANG_UP_SECONDS
        while self._registry and self._reactor.seconds() < deadline:
            await deferLater(self._reactor, _POLL_SECONDS)

    def _terminals_and_ends(self) -> list[tuple[Terminal, Callable[[CloseReason], None]]]:
        """Return the terminal of each session and each poll, with the function that ends it."""
        return [
            *((each.terminal, each.session.end) for each in self._registry),
            *((poll.terminal, poll.end) for poll in self._polls),
        ]

    def _close_to_reconnect(self, connection: TrackedConnection, closing: CloseReason) -> None:
        """Close a connection so that its till reconnects. A basic till only does so without a Close frame."""
        try:
            if connection.session.is_basic:
                connection.session.closed()
                connection.transport.drop(abort=False)
            else:
                connection.session.end(closing)
        except Exception:
            self._log.failure(
                "the connection of a till of tenant {slug} could not be closed",
                slug=connection.terminal.tenant.slug,
            )

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise Unavailable("posd is restarting.", retry_after=1)


def _now() -> datetime:
    return datetime.now(UTC)
