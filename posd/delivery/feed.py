"""What wakes the others: NOTIFY as a hint, a poll as the truth, and a canary that tells them apart.

PostgreSQL drops nothing that is committed, but a NOTIFY may never arrive: behind a pooler, after a
failover, from a listener that is half dead. So a poll runs always; with NOTIFY dead everything works, up to
a second later. The canary is a NOTIFY to ourselves; when it stays away the listening connection is made anew.
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

from posd.database.link import DatabaseReactor, Link, Session
from posd.database.pool import Database
from posd.errors import Refusal, StatementFailed
from posd.monitoring.database_clock import DatabaseClock
from posd.store import control, key_changes, stream
from posd.store.key_changes import Snapshot
from posd.values import Head, TenantId
from posd.waiting import Pauses, Pulse, within

_POLL_SECONDS: Final = 0.5
_CANARY_SECONDS: Final = 5.0
_RECHECK_SECONDS: Final = 5.0
_HEADS_PAUSE: Final = 0.005
"""Between two looks at heads that are asked for by notifications."""
_CONTROL_PAUSE: Final = 0.05
"""Between two looks at keys that are asked for by notifications."""
_ROUND_SECONDS: Final = 30.0
"""More than a round takes. It is given up then, so that the next one can be tried."""
_KEYS_SECONDS: Final = 0.8
"""With the random part of a pause, a key whose notification was lost is known within a second."""
_SONG: Final = "SELECT pg_notify(%s, ''), clock_timestamp()"
"""The canary asks what time it is, too: see `posd.monitoring.database_clock`."""


class Bell(Protocol):
    """The bell of the doorman, as far as the feed rings it."""

    def ring(self) -> None:
        """Somebody says that the outbox has something."""

    def polled(self) -> None:
        """The outbox has something."""


class Delivery(Protocol):
    """The channels, as far as the feed wakes them."""

    @property
    def tenants(self) -> list[TenantId]:
        """Those with somebody on this node."""

    @property
    def positions(self) -> list[stream.StreamPosition]:
        """How far each of their streams was delivered here."""

    async def check(self, heads: list[Head]) -> None:
        """These are the heads as the database has them."""

    def erased(self, tenant_id: TenantId) -> None:
        """Something was erased from a stream."""


class Doorkeeper(Protocol):
    """The exchange, as far as the feed tells it who has to go."""

    async def recheck(self, keys: Collection[int] | None = None) -> None:
        """These credentials, or any, may have ended."""

    def superseded(self, connection_id: UUID) -> None:
        """A connection has lost its device to another one."""

    def disconnect(self, connection_id: UUID) -> None:
        """An operator has ended a connection."""


class Cache(Protocol):
    """What is known of keys, as far as the feed tells it what to forget and when to look."""

    def distrust(self) -> None:
        """The database may be another one than before."""

    async def look(self) -> None:
        """Keys or tenants may have changed."""

    def forget_key(self, key_id: int) -> None:
        """A key has changed."""

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """A tenant has changed."""


class Feed(Service):
    """Listens, polls, and wakes. `canary_seconds` is how long the last canary took, None if lost."""

    _log = Logger()

    def __init__(
        self,
        reactor: DatabaseReactor,
        database: Database,
        dsn: str,
        node_id: UUID,
        *,
        statement_timeout: float,
        bell: Bell,
        delivery: Delivery,
        doorkeeper: Doorkeeper,
        cache: Cache,
        clock: DatabaseClock | None = None,
    ) -> None:
        self._reactor: IReactorTime = reactor
        self._database = database
        self._bell = bell
        self._delivery = delivery
        self._doorkeeper = doorkeeper
        self._cache = cache
        self._clock = clock or DatabaseClock()
        self._canary_channel = f"posd_canary_{node_id.hex}"
        self._canary_sent: float | None = None
        self.canary_seconds: float | None = None
        self.canaries_missed = 0
        self.deaf = False
        """Whether the last canary that was sent did not come back."""
        self.outbox_seconds = 0.0
        """How long a row of the outbox had waited when the outbox was last looked at."""
        self._loops: list[Deferred[None]] = []
        self._pulses: list[Pulse] = []
        self._pauses = Pauses(reactor)
        # Keys to be looked at after those that are looked at now; None stands for all keys.
        self._suspects: set[int | None] = set()
        # What nodes were told was read up to this snapshot.
        self._told_until: Snapshot | None = None
        # Whether there was a notification since the last reading began.
        self._changed = False
        self._looking_at_changes = False
        self._heads_notified = self._looking_at_heads = False
        self._link = Link(
            reactor,
            dsn,
            name="posd feed",
            statement_timeout=statement_timeout,
            prepare=self._listen,
            changed=self._link_changed,
            notified=self._notified,
            retries=database.retries,
        )

    @property
    def up(self) -> bool:
        """Whether the listening connection stands."""
        return self._link.up

    @property
    def stalled(self) -> bool:
        """Whether it has not looked, sung or connected for a minute, though it runs."""
        silent = self._link.stalled or any(pulse.stalled for pulse in self._pulses)
        return bool(self.running) and silent

    def startService(self) -> None:
        Service.startService(self)
        self._link.startService()
        rounds: tuple[tuple[float, Callable[[], Coroutine[Any, Any, None]]], ...] = (
            (_POLL_SECONDS, self._poll),
            (_CANARY_SECONDS, self._sing),
            (_RECHECK_SECONDS, self._doorkeeper.recheck),
            (_KEYS_SECONDS, self._poll_changes),
        )
        self._pulses = [Pulse() for _ in rounds]
        self._loops = [
            Deferred.fromCoroutine(self._every(seconds, work, pulse))
            for (seconds, work), pulse in zip(rounds, self._pulses, strict=True)
        ]

    def stopService(self) -> Deferred[None]:
        """What is being looked at is still looked at; nothing is cancelled but waiting."""
        Service.stopService(self)
        self._pauses.end()
        stopping = gatherResults([*self._loops, self._link.stopService()])
        return stopping.addCallback(lambda _: None)

    async def _listen(self, session: Session) -> None:
        channels = ("posd_outbox", "posd_events", "posd_control", self._canary_channel)
        await session.execute("; ".join(f"LISTEN {channel}" for channel in channels))

    def _link_changed(self, link: Link) -> None:
        # A canary that was on its way will not come.
        self._canary_sent = None
        if link.up:
            # What was notified before we listened is found by looking.
            self._later(self._poll())
            self._cache.distrust()
            self._look_at_changes()
            # And it is known from the beginning whether we hear, and what time it is there.
            self._later(self._sing())
        else:
            self.canary_seconds = None

    def _notified(self, channel: str, payload: str) -> None:
        """A payload would be anybody's: whoever can connect to the database may notify."""
        match channel:
            case "posd_outbox":
                self._bell.ring()
            case "posd_events":
                self._look_at_heads()
            case "posd_control":
                self._look_at_changes()
            case self._canary_channel:
                self._heard_canary()

    def _control(self, what: str) -> None:
        kind, _, subject = what.partition(" ")
        match kind:
            case "key":
                self._cache.forget_key(int(subject))
                self._suspects.add(int(subject))
            case "tenant":
                self._cache.forget_tenant(int(subject))
                self._suspects.add(None)
            case "superseded":
                self._doorkeeper.superseded(UUID(subject))
            case "disconnect":
                self._doorkeeper.disconnect(UUID(subject))
            case "erased":
                self._delivery.erased(int(subject))

    def _look_at_heads(self) -> None:
        """Another node has numbered something. A notification says nothing else, since anybody may send one.

        What is notified during one look is looked for by the next one, after a pause, so that a flood of
        notifications costs no more than 200 statements a second.
        """
        self._heads_notified = True
        if not self._looking_at_heads:
            self._looking_at_heads = True
            self._later(self._read_heads())

    async def _read_heads(self) -> None:
        self._heads_notified = False
        try:
            heads = await stream.moved(self._database, self._delivery.positions)
            await self._delivery.check(heads)
            if self.running:
                await self._pauses.take(_HEADS_PAUSE)
        finally:
            self._looking_at_heads = False
            if self._heads_notified and self.running:
                self._look_at_heads()

    def _look_at_changes(self) -> None:
        """Read what nodes are told, after what is being read now and a pause.

        One statement of an operator may change thousands of keys or tenants, with a notification for each,
        and anybody who can connect may send any number: 20 looks a second are made at the most.
        """
        self._changed = True
        if not self._looking_at_changes:
            self._looking_at_changes = True
            self._later(self._read_notified())

    async def _poll_changes(self) -> None:
        self._look_at_changes()

    async def _read_notified(self) -> None:
        self._changed = False
        try:
            await self._read_changes()
            if self.running:
                await self._pauses.take(_CONTROL_PAUSE)
        finally:
            self._looking_at_changes = False
            if self._changed and self.running:
                self._look_at_changes()

    async def _read_changes(self) -> None:
        """Do what nodes are told, read which keys and tenants have changed, and look whose have ended."""
        if self._told_until is None:
            self._told_until = await key_changes.snapshot(self._database)
        now, told = await control.told(self._database, self._told_until)
        # A database that was set back counts its transactions anew.
        if now.is_after(self._told_until):
            for what in told:
                self._control(what)
        self._told_until = now
        await self._cache.look()
        suspects, self._suspects = self._suspects, set()
        if suspects:
            keys = {each for each in suspects if each is not None}
            await self._doorkeeper.recheck(None if None in suspects else keys)

    async def _poll(self) -> None:
        waited, heads = await stream.poll(self._database, self._delivery.tenants)
        self.outbox_seconds = waited or 0.0
        if waited is not None:
            self._bell.polled()
        await self._delivery.check(heads)

    async def _sing(self) -> None:
        if not self._link.up:
            return
        if self._canary_sent is not None:
            if self._reactor.seconds() - self._canary_sent < _CANARY_SECONDS / 2:
                # It was sent when the connection came up, and may still be on its way.
                return
            self.canaries_missed += 1
            self.deaf = True
            self._log.error("NOTIFY does not arrive; listening anew")
            self._link.drop()
            return
        self._canary_sent = self._reactor.seconds()
        asked = self._clock.wall()
        try:
            rows = await self._database.query(_SONG, (self._canary_channel,))
        except Refusal:
            self._canary_sent = None
            raise
        self._clock.compare(asked, rows[0][1], self._clock.wall())

    def _heard_canary(self) -> None:
        if self._canary_sent is not None:
            self.canary_seconds = self._reactor.seconds() - self._canary_sent
            self._canary_sent = None
            self.deaf = False

    async def _every(
        self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]], pulse: Pulse
    ) -> None:
        while self.running:
            if not await self._pauses.take(seconds * random.uniform(0.75, 1.25)):
                return
            pulse.beat()
            await self._shielded(work())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        Deferred.fromCoroutine(self._shielded(work))

    async def _shielded(self, work: Coroutine[Any, Any, None]) -> None:
        """Nothing that goes wrong once, or never ends, may end what has to go on for ever."""
        try:
            await within(self._reactor, _ROUND_SECONDS, work)
        except Refusal:
            # The database is away or busy; the next round sees.
            return
        except TimeoutError:
            self._log.error(
                "a round of the feed did not end within {seconds:.0f} s and is given up;"
                " the next one goes on",
                seconds=_ROUND_SECONDS,
            )
        except StatementFailed as error:
            # A schema that is not posd's, most likely; where the statement stands says nothing more.
            self._log.error("the feed failed: {error}", error=error)
        except Exception:
            self._log.failure("the feed failed")
