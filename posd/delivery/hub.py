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
_POLL_SECONDS: Final = 0.05


class ProgressStore(ProgressSink, PositionStore, Protocol):
    """The bookkeeping of who is connected and how far each device is (`posd.delivery.presence`)."""

    heartbeats: Callable[[], list[Heartbeat]]
    """Asked what has changed of the connections."""

    def connected(self, terminal: Terminal) -> None:
        """A connection was opened."""

    def disconnected(self, terminal: Terminal) -> None:
        """A connection is gone."""

    def delivered(self, stream: StreamName, seq: Seq) -> None:
        """A till of the tenant was sent everything up to `seq` of its stream."""

    def write_pending(self, tenant_id: TenantId, device_id: str) -> Awaitable[None]:
        """Write down what is still to be written of a device, before its cursor is asked for."""

    def claim(self, terminal: Terminal) -> Awaitable[bool]:
        """Make a connection its device's one on all nodes; False if a newer one already is."""


class PollParticipant(PageReader, Protocol):
    """A poll that waits for events, with a valid key and without a session."""

    @property
    def terminal(self) -> Terminal:
        """Who that is."""


@frozen
class Admitted:
    """A connection that may be opened; `left` is called once when it has ended."""

    terminal: Terminal
    session_start: SessionStart
    left: Callable[[], None]


class Hub(Service):
    """Opens sessions at their channels, and ends them when their time has come."""

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
        """How many sessions this node has of a tenant."""
        channel = self.channels.of(tenant_id)
        return 0 if channel is None else len(channel.sessions)

    def counts(self) -> dict[str, int]:
        """How many tills each tenant has here that has any, by slug."""
        return Counter(each.terminal.tenant.slug for each in self._registry)

    @property
    def held(self) -> int:
        """How many bytes wait for tills that do not take them."""
        return self._send_budget.held

    def reconfigure(
        self, *, heartbeat: float, send_queue_bytes: int, send_queue_total: int
    ) -> None:
        """Change what it was made with: the bounds for all, the heartbeat for those to come."""
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
        """Where a terminal stands. `requested` is the position that it names, if it names one.

        Called before the upgrade, when a refusal can still be an answer. With `resuming`, the terminal comes
        for events. If somebody has asked that it be sent some again, its cursor is set back first. Raises
        `Unavailable`, or `TooManyRequests` if the tenant has too many devices.
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
        # Checked again, since the drain may have begun meanwhile. It would not close this session.
        self._refuse_while_draining()
        if session_start is None:
            raise TooManyRequests(
                "This tenant has too many devices.", code="too_many_devices", retry_after=60
            )
        return session_start

    def open(
        self, terminal: Terminal, session_start: SessionStart, transport: TillTransport
    ) -> Session:
        """Begin a session on a connection that is open."""
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
        """A session's connection is gone."""
        session.closed()
        if not self._registry.leave(session):
            return
        self._presence.disconnected(session.terminal)
        self._renaming.note_departed(session)
        self.channels.remove_empty(session.terminal.tenant.id)

    def watch(self, poll: PollParticipant, session_start: SessionStart) -> TenantChannel:
        """Let a poll wait at the tenant's channel, until `unwatch`."""
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
        """A named terminal has said, not on a connection, that it has everything up to `seq`."""
        channel = self.channels.of(terminal.tenant.id)
        if channel is not None and channel.stream_id == terminal.stream_id:
            channel.acknowledged(seq)
        for session in self._registry.sessions_of_device(terminal):
            if session.terminal.stream_id == terminal.stream_id:
                seq = max(seq, session.acknowledge_elsewhere(seq))
        self._presence.acknowledged(terminal, seq)

    def sent_by_poll(self, terminal: Terminal, seq: Seq) -> None:
        """A terminal was sent everything up to `seq`, not on a connection."""
        self._renaming.sent_by_poll(terminal, seq)

    def record_all_positions(self) -> None:
        """The database may be another one: the next flush compares with it how far devices were sent."""
        self._renaming.record_all_positions()

    def heard(self, session: Session) -> None:
        """A till sent a frame."""
        self._registry.heard(session)

    async def recheck(self, keys: Collection[int] | None = None) -> None:
        """End the sessions and polls whose key or tenant is not valid any more.

        Only those with one of `keys` are looked at. Without `keys` all are, and devices that were disabled
        too.
        """
        using = {each.terminal.principal.key_id for each in (*self._registry, *self._polls)}
        requested = using if keys is None else using.intersection(keys)
        everywhere = self.channels.tenants if keys is None else []
        found = await revocations.find_revocations(self._database, requested, everywhere)
        # Nearly always nothing is found, and then the thousands who are connected need not be looked at.
        for terminal, end in self._everyone() if found else ():
            closing = found.of(terminal)
            if closing is not None:
                end(closing)

    def superseded(self, connection_id: UUID) -> None:
        """Another connection has taken this one's device."""
        connection = self._registry.get(connection_id)
        if connection is not None:
            self._registry.supersede(connection)

    def disconnect(self, connection_id: UUID) -> None:
        """An operator sends a till away, to come back at once."""
        connection = self._registry.get(connection_id)
        if connection is not None:
            self._close_to_reconnect(connection, DISCONNECTED)
        for poll in list(self._polls):
            if poll.terminal.connection_id == connection_id:
                poll.end(DISCONNECTED)

    async def drain(self, seconds: float) -> None:
        """Close all connections within about `seconds`, in batches and in random order.

        Tills that name no position (`Session.is_basic`) come last and get no Close frame. These deployed
        tills
        connect again at once after a lost connection, but not after a Close frame. Returns when all have hung
        up, or a few seconds after the last batch.
        """
        self.draining = True
        for poll in list(self._polls):
            poll.end(GOING_AWAY)
        everyone = list(self._registry)
        random.shuffle(everyone)
        # Sorting is stable: those that are to be dropped come last, and otherwise by chance.
        everyone.sort(key=lambda each: each.session.is_basic)
        batch = max(1, -(-len(everyone) // _DRAIN_BATCHES))
        for start in range(0, len(everyone), batch):
            if start:
                pause = random.uniform(0.5, 1.5) * seconds / _DRAIN_BATCHES
                await deferLater(self._reactor, pause)
            for connection in everyone[start : start + batch]:
                self._close_to_reconnect(connection, GOING_AWAY)
        deadline = self._reactor.seconds() + _HANG_UP_SECONDS
        while self._registry and self._reactor.seconds() < deadline:
            await deferLater(self._reactor, _POLL_SECONDS)

    def _everyone(self) -> list[tuple[Terminal, Callable[[CloseReason], None]]]:
        """The terminal of each session and each poll, and what ends it."""
        return [
            *((each.terminal, each.session.end) for each in self._registry),
            *((poll.terminal, poll.end) for poll in self._polls),
        ]

    def _close_to_reconnect(self, connection: TrackedConnection, closing: CloseReason) -> None:
        """Close a connection so that its till comes back: a deployed one only does without a Close frame."""
        try:
            if connection.session.is_basic:
                connection.session.closed()
                connection.transport.drop(abort=False)
            else:
                connection.session.end(closing)
        except Exception:
            self._log.failure("a session could not be sent home")

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise Unavailable("posd is restarting.", retry_after=1)


def _now() -> datetime:
    return datetime.now(UTC)
