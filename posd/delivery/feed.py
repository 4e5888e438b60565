"""The feed tells the other components of a node what has changed in the database.

It rings the doorman's bell, lets channels read new events, ends sessions whose keys or tenants are no
longer valid, and refreshes the cache of keys. A change is found at once after a NOTIFY, otherwise by a
poll.

A NOTIFY may not arrive: behind a pooler, after a failover, or on a connection whose peer is gone. So the
poll always runs, and without NOTIFY a change is found up to a second later. Every few seconds the feed
sends a notification to itself, the canary. If a canary has not arrived when the next one is due, the feed
replaces its listening connection.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final, Protocol
from uuid import UUID

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database.pool import Pool
from posd.database.reconnecting import DatabaseReactor, Executor, ReconnectingConnection
from posd.errors import Refusal, StatementFailed
from posd.monitoring.database_clock import DatabaseClock
from posd.store import control, key_changes, stream
from posd.store.key_changes import KeySnapshot
from posd.values import StreamHead, TenantId
from posd.waiting import AttemptPulse, RoundPauses, with_timeout

_POLL_SECONDS: Final = 0.5
_CANARY_SECONDS: Final = 5.0
_RECHECK_SECONDS: Final = 5.0
_HEADS_PAUSE: Final = 0.005
"""The pause after a read of the heads, before a notification may cause the next one."""
_CONTROL_PAUSE: Final = 0.05
"""The pause after a read of the changes, before a notification may cause the next one."""
_ROUND_TIMEOUT_SECONDS: Final = 30.0
"""Longer than a round should take. A round that takes longer is cancelled, so that the next one can begin."""
_KEYS_SECONDS: Final = 0.8
"""With the random part of the pause, a key whose notification was lost is found within a second."""
_CANARY: Final = "SELECT pg_notify(%s, ''), clock_timestamp()"
"""Sends the canary. `posd.monitoring.database_clock` compares the time with the clock of this machine."""


class OutboxSignal(Protocol):
    """The part of the doorman's bell that the feed uses."""

    def ring(self) -> None:
        """A notification says that the outbox may have rows."""

    def rows_found_by_poll(self) -> None:
        """The poll has found rows in the outbox."""


class ChannelWaker(Protocol):
    """The part of the channel registry that the feed uses."""

    @property
    def tenants(self) -> list[TenantId]:
        """The tenants that have a channel on this node."""

    @property
    def positions(self) -> list[stream.StreamPosition]:
        """The position up to which each of their streams was delivered on this node."""

    async def check(self, heads: list[StreamHead]) -> None:
        """Compare the channels with these heads of the database."""

    def erased(self, tenant_id: TenantId) -> None:
        """Some data was erased from the stream of this tenant."""


class TerminalRevoker(Protocol):
    """The part of the hub that ends sessions."""

    async def recheck(self, keys: Collection[int] | None = None) -> None:
        """End the sessions whose keys are no longer valid. Check only these keys, or all of them."""

    def superseded(self, connection_id: UUID) -> None:
        """Another connection has taken the device of this connection."""

    def disconnect(self, connection_id: UUID) -> None:
        """An operator has requested that this connection ends."""


class CredentialCache(Protocol):
    """The part of the cache of keys that the feed uses."""

    def invalidate(self) -> None:
        """Distrust all entries, since the database may be another one than before."""

    async def refresh(self) -> None:
        """Read the changes of keys and tenants."""

    def forget_key(self, key_id: int) -> None:
        """A key has changed."""

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """A tenant has changed."""


class Feed(Service):
    """Listens and polls, and tells the other components.

    `canary_seconds` is the travel time of the last canary, or None if none has arrived on this connection.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: DatabaseReactor,
        database: Pool,
        dsn: str,
        node_id: UUID,
        *,
        statement_timeout: float,
        bell: OutboxSignal,
        delivery: ChannelWaker,
        revoker: TerminalRevoker,
        cache: CredentialCache,
        clock: DatabaseClock | None = None,
    ) -> None:
        self._reactor: IReactorTime = reactor
        self._database = database
        self._bell = bell
        self._delivery = delivery
        self._revoker = revoker
        self._cache = cache
        self._clock = clock or DatabaseClock()
        self._canary_channel = f"posd_canary_{node_id.hex}"
        self._canary_sent: float | None = None
        self.canary_seconds: float | None = None
        self.canaries_missed = 0
        self.canary_is_missing = False
        """Whether the last canary did not arrive."""
        self.outbox_seconds = 0.0
        """The age of the oldest row of the outbox at the last poll, in seconds."""
        self._loops: list[Deferred[None]] = []
        self._pulses: list[AttemptPulse] = []
        self._pauses = RoundPauses(reactor)
        # The keys to check after the current check. None stands for all keys.
        self._suspects: set[int | None] = set()
        # The snapshot up to which the changes were read.
        self._changes_read_until: KeySnapshot | None = None
        # Whether a notification of a change has come since the last read of the changes began.
        self._changes_notified = False
        self._is_reading_changes = False
        self._heads_notified = self._is_reading_heads = False
        self._connection = ReconnectingConnection(
            reactor,
            dsn,
            name="posd feed",
            statement_timeout=statement_timeout,
            prepare=self._listen,
            changed=self._connection_changed,
            notified=self._notified,
            retries=database.retries,
        )

    @property
    def up(self) -> bool:
        """Whether the listening connection is up."""
        return self._connection.up

    @property
    def stalled(self) -> bool:
        """Whether the feed runs, but has not polled, sent a canary or tried to connect for a minute."""
        silent = self._connection.stalled or any(pulse.stalled for pulse in self._pulses)
        return bool(self.running) and silent

    def startService(self) -> None:
        Service.startService(self)
        self._connection.startService()
        rounds: tuple[tuple[float, Callable[[], Coroutine[Any, Any, None]]], ...] = (
            (_POLL_SECONDS, self._poll),
            (_CANARY_SECONDS, self._send_canary),
            (_RECHECK_SECONDS, self._revoker.recheck),
            (_KEYS_SECONDS, self._poll_changes),
        )
        self._pulses = [AttemptPulse() for _ in rounds]
        self._loops = [
            Deferred.fromCoroutine(self._run_every(seconds, work, pulse))
            for (seconds, work), pulse in zip(rounds, self._pulses, strict=True)
        ]

    def stopService(self) -> Deferred[None]:
        """End the pauses. A round that is running is finished."""
        Service.stopService(self)
        self._pauses.end()
        stopping = gatherResults([*self._loops, self._connection.stopService()])
        return stopping.addCallback(lambda _: None)

    async def _listen(self, executor: Executor) -> None:
        channels = ("posd_outbox", "posd_events", "posd_control", self._canary_channel)
        await executor.execute("; ".join(f"LISTEN {channel}" for channel in channels))

    def _connection_changed(self, connection: ReconnectingConnection) -> None:
        # A canary that was sent before does not arrive on the new connection.
        self._canary_sent = None
        if connection.up:
            # Notifications that were sent while the connection was down are lost. Poll for their changes
            # now.
            self._begin(self._poll())
            self._cache.invalidate()
            self._request_changes()
            self._begin(self._send_canary())
        else:
            self.canary_seconds = None

    def _notified(self, channel: str, payload: str) -> None:
        """Read what a notification announces. Ignore the payload, since every role can send one."""
        match channel:
            case "posd_outbox":
                self._bell.ring()
            case "posd_events":
                self._request_heads()
            case "posd_control":
                self._request_changes()
            case self._canary_channel:
                self._canary_arrived()

    def _handle_change(self, what: str) -> None:
        """Process one change that `store.control.read_since` has returned, such as `tenant 7`."""
        kind, _, subject = what.partition(" ")
        match kind:
            case "key":
                self._cache.forget_key(int(subject))
                self._suspects.add(int(subject))
            case "tenant":
                self._cache.forget_tenant(int(subject))
                self._suspects.add(None)
            case "superseded":
                self._revoker.superseded(UUID(subject))
            case "disconnect":
                self._revoker.disconnect(UUID(subject))
            case "erased":
                self._delivery.erased(int(subject))

    def _request_heads(self) -> None:
        """Read the heads that have moved. A notification says that another node has numbered events.

        Notifications that come during a read cause one more read, after a pause. So any number of
        notifications costs at most 200 statements a second.
        """
        self._heads_notified = True
        if not self._is_reading_heads:
            self._is_reading_heads = True
            self._begin(self._read_heads())

    async def _read_heads(self) -> None:
        self._heads_notified = False
        try:
            heads = await stream.moved_heads(self._database, self._delivery.positions)
            await self._delivery.check(heads)
            if self.running:
                await self._pauses.take(_HEADS_PAUSE)
        finally:
            self._is_reading_heads = False
            if self._heads_notified and self.running:
                self._request_heads()

    def _request_changes(self) -> None:
        """Read the changes of keys and tenants now, or after the current read and a pause.

        One statement of an operator may change thousands of keys or tenants and send a notification for
        each. Every role that can connect may also send notifications. The pause limits the reads to 20 a
        second.
        """
        self._changes_notified = True
        if not self._is_reading_changes:
            self._is_reading_changes = True
            self._begin(self._read_notified())

    async def _poll_changes(self) -> None:
        self._request_changes()

    async def _read_notified(self) -> None:
        self._changes_notified = False
        try:
            await self._read_changes()
            if self.running:
                await self._pauses.take(_CONTROL_PAUSE)
        finally:
            self._is_reading_changes = False
            if self._changes_notified and self.running:
                self._request_changes()

    async def _read_changes(self) -> None:
        """Process the changes, refresh the cache, and end connections that are no longer valid."""
        if self._changes_read_until is None:
            self._changes_read_until = await key_changes.current_snapshot(self._database)
        now, told = await control.read_since(self._database, self._changes_read_until)
        # A restored database has lower transaction ids. It cannot return the changes since the last read.
        if now.is_after(self._changes_read_until):
            for what in told:
                self._handle_change(what)
        self._changes_read_until = now
        await self._cache.refresh()
        suspects, self._suspects = self._suspects, set()
        if suspects:
            keys = {each for each in suspects if each is not None}
            await self._revoker.recheck(None if None in suspects else keys)

    async def _poll(self) -> None:
        waited, heads = await stream.poll_heads(self._database, self._delivery.tenants)
        self.outbox_seconds = waited or 0.0
        if waited is not None:
            self._bell.rows_found_by_poll()
        await self._delivery.check(heads)

    async def _send_canary(self) -> None:
        """Send a canary. If the previous one has not arrived, replace the listening connection instead."""
        if not self._connection.up:
            return
        if self._canary_sent is not None:
            if self._reactor.seconds() - self._canary_sent < _CANARY_SECONDS / 2:
                # The canary was sent when the connection came up, perhaps a moment ago.
                return
            self.canaries_missed += 1
            self.canary_is_missing = True
            self._log.error(
                "NOTIFY does not arrive on the listening connection; posd replaces the connection and"
                " polls meanwhile. Check for a pooler between posd and PostgreSQL if this repeats"
            )
            self._connection.drop()
            return
        self._canary_sent = self._reactor.seconds()
        asked_at = self._clock.wall_clock()
        try:
            rows = await self._database.query(_CANARY, (self._canary_channel,))
        except Refusal:
            # The canary was not sent.
            self._canary_sent = None
            raise
        self._clock.compare(asked_at, rows[0][1], self._clock.wall_clock())

    def _canary_arrived(self) -> None:
        if self._canary_sent is not None:
            self.canary_seconds = self._reactor.seconds() - self._canary_sent
            self._canary_sent = None
            self.canary_is_missing = False

    async def _run_every(
        self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]], pulse: AttemptPulse
    ) -> None:
        while self.running:
            if not await self._pauses.take(seconds * random.uniform(0.75, 1.25)):
                return
            pulse.beat()
            await self._run_logged(work())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work in the background."""
        Deferred.fromCoroutine(self._run_logged(work))

    async def _run_logged(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work for at most 30 s and log its errors, so that the calling loop goes on."""
        try:
            await with_timeout(self._reactor, _ROUND_TIMEOUT_SECONDS, work)
        except Refusal:
            # The database cannot be reached or is busy. The next round tries again.
            return
        except TimeoutError:
            self._log.error(
                "a round of the feed did not end within {seconds:.0f} s; posd cancels it and starts the"
                " next one",
                seconds=_ROUND_TIMEOUT_SECONDS,
            )
        except StatementFailed as error:
            # Probably the schema does not match this version of posd. A traceback would not help.
            self._log.error(
                "a statement of the feed failed; posd tries again in the next round: {error}",
                error=error,
            )
        except Exception:
            self._log.failure("a round of the feed failed; posd tries again in the next round")
