"""Tells other components what has changed in the database: at once after a NOTIFY, else at the poll.

It rings the doorman's bell, has channels read new events, has sessions closed whose keys or tenants have
ended, and has the cache of keys look.

A NOTIFY may never arrive: behind a pooler, after a failover, or on a connection whose other end is gone. So
the poll always runs, and without NOTIFY everything is done up to a second later. Every few seconds posd sends
a notification to itself, which is called the canary here. If one does not arrive before the next one is due,
the listening connection is made anew.
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
"""After a look at the heads, before the next one for which a notification asks."""
_CONTROL_PAUSE: Final = 0.05
"""After a look at what nodes are told, before the next one for which a notification asks."""
_ROUND_TIMEOUT_SECONDS: Final = 30.0
"""Longer than a round should take. One that takes longer is cancelled, so that the next one can begin."""
_KEYS_SECONDS: Final = 0.8
"""With the random part of a pause, a key whose notification was lost is known within a second."""
_CANARY: Final = "SELECT pg_notify(%s, ''), clock_timestamp()"
"""Sends the canary. The time is compared with this machine's clock: see `posd.monitoring.database_clock`."""


class OutboxSignal(Protocol):
    """The bell of the doorman, as far as the feed rings it."""

    def ring(self) -> None:
        """Somebody says that the outbox has something."""

    def rows_found_by_poll(self) -> None:
        """The outbox has something."""


class ChannelWaker(Protocol):
    """The channels, as far as the feed wakes them."""

    @property
    def tenants(self) -> list[TenantId]:
        """Those with somebody on this node."""

    @property
    def positions(self) -> list[stream.StreamPosition]:
        """How far each of their streams was delivered here."""

    async def check(self, heads: list[StreamHead]) -> None:
        """These are the heads as the database has them."""

    def erased(self, tenant_id: TenantId) -> None:
        """Something was erased from a stream."""


class TerminalRevoker(Protocol):
    """The exchange, as far as the feed tells it who has to go."""

    async def recheck(self, keys: Collection[int] | None = None) -> None:
        """These credentials, or any, may have ended."""

    def superseded(self, connection_id: UUID) -> None:
        """A connection has lost its device to another one."""

    def disconnect(self, connection_id: UUID) -> None:
        """An operator has ended a connection."""


class CredentialCache(Protocol):
    """What is known of keys, as far as the feed tells it what to forget and when to look."""

    def invalidate(self) -> None:
        """The database may be another one than before."""

    async def refresh(self) -> None:
        """Keys or tenants may have changed."""

    def forget_key(self, key_id: int) -> None:
        """A key has changed."""

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """A tenant has changed."""


class Feed(Service):
    """Listens and polls, and tells the others.

    `canary_seconds` is how long the last canary took; None while none has arrived on this connection.
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
        """Whether the last canary that was sent did not come back."""
        self.outbox_seconds = 0.0
        """How long a row of the outbox had waited when the outbox was last looked at."""
        self._loops: list[Deferred[None]] = []
        self._pulses: list[AttemptPulse] = []
        self._pauses = RoundPauses(reactor)
        # Keys to be looked at after those that are looked at now; None stands for all keys.
        self._suspects: set[int | None] = set()
        # What nodes were told was read up to this snapshot.
        self._changes_read_until: KeySnapshot | None = None
        # Whether there was a notification since the last reading began.
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
        """Whether the listening connection stands."""
        return self._connection.up

    @property
    def stalled(self) -> bool:
        """Whether it has not polled, sent a canary or connected for a minute, though it runs."""
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
        """End the pauses. A round that is under way is finished."""
        Service.stopService(self)
        self._pauses.end()
        stopping = gatherResults([*self._loops, self._connection.stopService()])
        return stopping.addCallback(lambda _: None)

    async def _listen(self, executor: Executor) -> None:
        channels = ("posd_outbox", "posd_events", "posd_control", self._canary_channel)
        await executor.execute("; ".join(f"LISTEN {channel}" for channel in channels))

    def _connection_changed(self, connection: ReconnectingConnection) -> None:
        # A canary that was sent before is not received on the new connection.
        self._canary_sent = None
        if connection.up:
            # Notifications that were sent while nothing listened are lost. What they told is read here.
            self._begin(self._poll())
            self._cache.invalidate()
            self._request_changes()
            self._begin(self._send_canary())
        else:
            self.canary_seconds = None

    def _notified(self, channel: str, payload: str) -> None:
        """Look. The payload is not used, since every role that can connect can send a notification."""
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
        """Do one thing that nodes are told (`store.control.read_since`), such as `tenant 7`."""
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
        """Read which heads have moved: a notification says that another node has numbered something.

        Notifications that come during a look have one more look made, after a pause. So any number of them
        costs no more than 200 statements a second.
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
        """Read what nodes are told: at once, or after the look that is under way and a pause.

        One statement of an operator may change thousands of keys or tenants, with a notification for each,
        and every role that can connect can send any number. So at most 20 looks a second are made.
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
        """Do what nodes are told, have the cache look, and end connections that are not valid any more."""
        if self._changes_read_until is None:
            self._changes_read_until = await key_changes.current_snapshot(self._database)
        now, told = await control.read_since(self._database, self._changes_read_until)
        # A database that was restored has lower transaction ids, so it cannot say what was told since the
        # last look.
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
        """Send a canary. If the one before has not arrived, make the listening connection anew instead."""
        if not self._connection.up:
            return
        if self._canary_sent is not None:
            if self._reactor.seconds() - self._canary_sent < _CANARY_SECONDS / 2:
                # It was sent when the connection came up, which may have been a moment ago.
                return
            self.canaries_missed += 1
            self.canary_is_missing = True
            self._log.error("NOTIFY does not arrive; listening anew")
            self._connection.drop()
            return
        self._canary_sent = self._reactor.seconds()
        asked_at = self._clock.wall_clock()
        try:
            rows = await self._database.query(_CANARY, (self._canary_channel,))
        except Refusal:
            # It was not sent.
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
        """Begin something that nobody waits for."""
        Deferred.fromCoroutine(self._run_logged(work))

    async def _run_logged(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something for 30 s at most, and log what goes wrong, so that the loop that called goes on."""
        try:
            await with_timeout(self._reactor, _ROUND_TIMEOUT_SECONDS, work)
        except Refusal:
            # The database is away or busy. The next round tries again.
            return
        except TimeoutError:
            self._log.error(
                "a round of the feed did not end within {seconds:.0f} s and is given up;"
                " the next one goes on",
                seconds=_ROUND_TIMEOUT_SECONDS,
            )
        except StatementFailed as error:
            # Most likely the schema is not posd's. A traceback would say nothing more.
            self._log.error("the feed failed: {error}", error=error)
        except Exception:
            self._log.failure("the feed failed")
