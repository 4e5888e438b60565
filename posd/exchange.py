"""All of this node's sessions: opened, looked after, found again, and sent home at the end.

One timer looks after every session in turn; there is none for each till. A device has one live
connection: the newest, from when it has sent a frame or has been open for ten seconds, so that a
connection test displaces nobody.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, Protocol
from uuid import UUID

from attrs import define
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from posd.channel import Channel
from posd.database import Database
from posd.errors import TooManyRequests, Unavailable
from posd.outbox import Budget, Outbox, Sink
from posd.presence import Presence
from posd.session import Peer, Session
from posd.store import credentials, stream
from posd.store import presence as books
from posd.values import (
    GOING_AWAY,
    REVOKED,
    STREAM_CHANGED,
    SUPERSEDED,
    Event,
    Head,
    Opening,
    Position,
    Resync,
    Seq,
    Tenant,
    TenantId,
    Terminal,
)

_TURNS: Final = 5
_TURN_SECONDS: Final = 1.0
_SETTLED_SECONDS: Final = 10.0
_MOST_DEVICES: Final = 1000
_DRAIN_BATCHES: Final = 20


class Line(Peer, Sink, Protocol):
    """A till's connection, as far as the exchange looks after it."""

    heard_at: float
    """When anything was last received, by the reactor's clock."""

    def attach(self, outbox: Outbox) -> None:
        """Let the outbox know when there is room, from the first byte on."""

    def ping(self) -> None:
        """Send a protocol ping."""

    def drop(self, *, abort: bool) -> None:
        """End it without a Close frame; `abort` does not wait for what is on its way."""


@define(eq=False)
class _Attendance:
    """What the exchange keeps of a session."""

    session: Session
    line: Line
    opened_at: float
    next_ping: float
    claimed: bool = False
    reported: tuple[float, Seq] = (0.0, 0)


class Exchange(Service):
    """Opens sessions, wakes their channels, and ends them when their time has come."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        database: Database,
        presence: Presence,
        *,
        heartbeat: float,
        outbox_bytes: int,
        outbox_total: int,
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._presence = presence
        self._heartbeat = heartbeat
        self._outbox_bytes = outbox_bytes
        self._budget = Budget(outbox_total)
        self._channels: dict[TenantId, Channel] = {}
        self._attended: dict[UUID, _Attendance] = {}
        self._turns: list[dict[UUID, _Attendance]] = [{} for _ in range(_TURNS)]
        self._turn = 0
        self._opening: dict[TenantId, tuple[int, Seq]] = {}
        self._rounds = LoopingCall(self._look_after_some)
        self._rounds.clock = reactor
        presence.sightings = self._sightings
        self.draining = False

    def __len__(self) -> int:
        return len(self._attended)

    def startService(self) -> None:
        Service.startService(self)
        self._rounds.start(_TURN_SECONDS, now=False)

    def stopService(self) -> None:
        Service.stopService(self)
        if self._rounds.running:
            self._rounds.stop()

    def connections(self, tenant_id: TenantId) -> int:
        """How many sessions this node has of a tenant."""
        channel = self._channels.get(tenant_id)
        return 0 if channel is None else len(channel.sessions)

    @property
    def tenants(self) -> list[TenantId]:
        """Those with sessions here."""
        return list(self._channels)

    async def look_up(self, terminal: Terminal) -> Opening:
        """Where a terminal stands; before the upgrade, so that a refusal can still be an answer.

        Raises `Unavailable`, or `TooManyRequests` when the tenant has too many devices.
        """
        if self.draining:
            raise Unavailable("posd is restarting.", retry_after=1)
        opening = await books.opening(
            self._database, terminal.tenant.id, terminal.device_id, _MOST_DEVICES
        )
        if opening is None:
            raise TooManyRequests(
                "This tenant has too many devices.", code="too_many_devices", retry_after=60
            )
        return opening

    def open(self, terminal: Terminal, opening: Opening, line: Line) -> Session:
        """Begin a session on a connection that stands."""
        start, resync = resume(opening, terminal.position)
        channel = self._channel(terminal, opening.head)
        now = self._reactor.seconds()
        outbox = Outbox(line, self._outbox_bytes, self._budget, clock=self._reactor.seconds)
        session = Session(
            terminal, channel, outbox, line, self._presence, self._reactor.seconds, _now
        )
        outbox.listener = session
        line.attach(outbox)
        attendance = _Attendance(
            session, line, now, now + self._heartbeat * random.uniform(0.5, 1.0)
        )
        self._attended[terminal.connection_id] = attendance
        self._turns[hash(terminal.connection_id) % _TURNS][terminal.connection_id] = attendance
        self._presence.connected(terminal)
        session.begin(
            opening.head,
            start,
            acked=opening.acked,
            legacy=opening.legacy,
            resync=resync,
            heartbeat=self._heartbeat,
        )
        return session

    def closed(self, session: Session) -> None:
        """A session's connection is gone."""
        session.closed()
        connection_id = session.terminal.connection_id
        if self._attended.pop(connection_id, None) is None:
            return
        self._turns[hash(connection_id) % _TURNS].pop(connection_id, None)
        self._presence.disconnected(session.terminal)
        channel = self._channels.get(session.terminal.tenant.id)
        if channel is not None and not channel.sessions:
            self._forget(channel)

    def heard(self, session: Session) -> None:
        """A till sent a frame: it means to stay, so it takes its device's place."""
        attendance = self._attended.get(session.terminal.connection_id)
        if attendance is not None and not attendance.claimed:
            self._claim(attendance)

    def wake(self, tenant_id: TenantId, seq: Seq) -> None:
        """A tenant's stream has events up to `seq`."""
        channel = self._channels.get(tenant_id)
        if channel is not None:
            channel.wake(seq)

    async def check(self, heads: Iterable[Head]) -> None:
        """Compare the channels with the tenants' heads as they are in the database.

        A head behind what was already delivered means that a backup was restored under the same
        name; the stream is renamed, so that no till takes an old position for a valid one.
        """
        for head in heads:
            channel = self._channels.get(head.tenant_id)
            if channel is None:
                continue
            if head.stream_id == channel.stream_id and head.last_seq < channel.tail:
                await stream.reset(self._database, [head.tenant_id])
            channel.check(head)

    async def recheck(self, key_id: int | None = None) -> None:
        """Close the sessions whose credential, or whose tenant, is valid no more."""
        using = {each.session.terminal.principal.key_id for each in self._attended.values()}
        asked = using if key_id is None else using & {key_id}
        ended = await credentials.ended(self._database, asked) if asked else set()
        for attendance in list(self._attended.values()):
            if attendance.session.terminal.principal.key_id in ended:
                attendance.session.end(REVOKED)

    def superseded(self, connection_id: UUID) -> None:
        """Another connection has taken this one's device."""
        attendance = self._attended.get(connection_id)
        if attendance is not None:
            attendance.session.end(SUPERSEDED)

    async def drain(self, seconds: float) -> None:
        """Send everybody home within about `seconds`: in batches, in no order a till could rely on.

        Those that know no position come last and get no Close frame: deployed tills reconnect at
        once after a lost connection, but not after a Close frame.
        """
        self.draining = True
        attended = list(self._attended.values())
        random.shuffle(attended)
        modern = [each for each in attended if not each.session.plain]
        plain = [each for each in attended if each.session.plain]
        batch = max(1, -(-len(attended) // _DRAIN_BATCHES))
        for group, leave in ((modern, _go_away), (plain, _drop)):
            for start in range(0, len(group), batch):
                for attendance in group[start : start + batch]:
                    leave(attendance)
                if len(attended) > 1:
                    pause = random.uniform(0.5, 1.0) * seconds / _DRAIN_BATCHES
                    await deferLater(self._reactor, pause)

    def _channel(self, terminal: Terminal, head: Head) -> Channel:
        tenant = terminal.tenant
        channel = self._channels.get(tenant.id)
        if channel is not None and channel.stream_id != head.stream_id:
            channel.end(STREAM_CHANGED)
            channel = None
        if channel is None:
            channel = self._channels[tenant.id] = Channel(
                tenant, head, self._read, self._presence.delivered, self._forget
            )
            # A wake may have come while the head was on its way here.
            looked = Deferred.fromCoroutine(self._look_again(tenant.id))
            looked.addErrback(lambda failure: self._log.failure("a head was not read", failure))
        return channel

    async def _look_again(self, tenant_id: TenantId) -> None:
        try:
            heads = await stream.heads(self._database, [tenant_id])
        except Unavailable:
            return
        await self.check(heads.values())

    def _forget(self, channel: Channel) -> None:
        if self._channels.get(channel.tenant.id) is channel:
            del self._channels[channel.tenant.id]

    def _look_after_some(self) -> None:
        self._turn = (self._turn + 1) % _TURNS
        now = self._reactor.seconds()
        for attendance in list(self._turns[self._turn].values()):
            try:
                self._look_after(attendance, now)
            except Exception:
                self._log.failure("a session could not be looked after")

    def _look_after(self, attendance: _Attendance, now: float) -> None:
        if now - attendance.line.heard_at > 2 * self._heartbeat + _TURNS:
            attendance.line.drop(abort=True)
            return
        if now >= attendance.next_ping:
            attendance.next_ping = now + self._heartbeat
            attendance.line.ping()
        if not attendance.claimed and now - attendance.opened_at >= _SETTLED_SECONDS:
            self._claim(attendance)
        attendance.session.check()

    def _claim(self, attendance: _Attendance) -> None:
        attendance.claimed = True
        mine = attendance.session.terminal
        if mine.device_id is None:
            return
        channel = self._channels.get(mine.tenant.id)
        for other in list(channel.sessions) if channel is not None else []:
            if isinstance(other, Session) and _displaces(mine, other.terminal):
                other.end(SUPERSEDED)
        claimed = Deferred.fromCoroutine(self._claim_everywhere(attendance))
        claimed.addErrback(lambda failure: self._log.failure("a claim failed", failure))

    async def _claim_everywhere(self, attendance: _Attendance) -> None:
        try:
            won = await self._presence.claim(attendance.session.terminal)
        except Unavailable:
            # Said again at the next turn: the database is away.
            attendance.claimed = False
            return
        if not won:
            attendance.session.end(SUPERSEDED)

    def _sightings(self) -> list[tuple[UUID, datetime, Seq]]:
        now, wall = self._reactor.seconds(), datetime.now(UTC).timestamp()
        sightings = []
        for connection_id, attendance in self._attended.items():
            state = (attendance.line.heard_at, attendance.session.position)
            if state != attendance.reported:
                attendance.reported = state
                heard = datetime.fromtimestamp(wall - (now - attendance.line.heard_at), UTC)
                sightings.append((connection_id, heard, attendance.session.position))
        return sightings

    async def _read(self, tenant: Tenant, position: Seq, limit: int) -> list[Event]:
        return await stream.after(self._database, tenant, position, limit)


def resume(opening: Opening, asked: Position | None) -> tuple[Seq, Resync | None]:
    """Where to go on from, and why not from where the till wanted.

    Without a position of its own a terminal that acknowledges goes on from its cursor, every other
    one from the head.
    """
    head = opening.head
    if asked is not None:
        if asked.stream_id is not None and asked.stream_id != head.stream_id:
            return head.last_seq, Resync.RESET
        wanted = asked.seq
    elif opening.acked is not None and not opening.legacy:
        wanted = opening.acked
    else:
        return head.last_seq, None
    if wanted > head.last_seq:
        return head.last_seq, Resync.AHEAD
    if wanted < head.pruned_seq:
        return head.last_seq, Resync.RETENTION
    return wanted, None


def _displaces(mine: Terminal, other: Terminal) -> bool:
    return (
        other.device_id == mine.device_id
        and other.connection_id != mine.connection_id
        and other.connected_at <= mine.connected_at
    )


def _go_away(attendance: _Attendance) -> None:
    attendance.session.end(GOING_AWAY)


def _drop(attendance: _Attendance) -> None:
    attendance.session.closed()
    attendance.line.drop(abort=False)


def _now() -> datetime:
    return datetime.now(UTC)
