"""Connections that read shops' own tables, and can do nothing else.

A shop may put a view, a policy or a type of its own in the place of what posd reads, so its code runs in the
session that reads. These sessions belong to `posd_reader`, which has no right but EXECUTE on the functions
that read. A read is one string, `BEGIN READ ONLY; SELECT …`: a session must be read-only before any of the
shop's code runs in it. The session is cleaned after each read, before another shop's tables are read in it.

`statement_timeout` ends a read. Code that catches the cancellation goes on; soon after, its connection is
given up, and the connection that takes its place terminates the session on the server.

A tenant that was quick the last time gets any free place. All others share two of the four, and those that
were slow or failed have one of these. Only a tenant that is known to be slow has a second; the others are
tried for 0.15 s. So a read waits neither behind slow tenants nor long behind tenants that
were quick and have become slow.

A tenant whose reads end the session has a limited number of them. It does not matter whether the session ends
in the read or while it is cleaned: a shop's code may set a timeout that ends the session a moment later.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Literal

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from posd.database.reconnect_pauses import ReconnectPauses
from posd.database.reconnecting import DatabaseReactor, Executor, ReconnectingConnection, Row
from posd.errors import Busy, Unavailable
from posd.values import TenantId

SLOTS: Final = 4
"""How many connections there are."""
_FOR_UNKNOWN: Final = 2
"""How many of them read tenants that were not quick the last time. The others are kept for quick ones."""
_FOR_SLOW: Final = 1
"""How many of these read tenants that were slow."""
STATEMENT_SECONDS: Final = 1.0
_TRIAL_SECONDS: Final = 0.15
_OVERTIME: Final = 0.4
"""How much longer than it may take, as a part of that, a read goes on until its connection is given up."""
_LATE_SECONDS: Final = 0.05
"""A connection is given up so much later. If the reactor was late itself, an answer that has come is read."""
_QUICK_SECONDS: Final = 0.1
_NONE: Final[Mapping[str, object]] = {}
_MAX_LOST: Final = 3
"""How many sessions in a row may end in reads of a tenant before its own tables are blamed.

Its code may end the session, or set a timeout that does.
"""
_MAX_NOTICE_CHARACTERS: Final = 64 * 1024
_TALKATIVE: Final = (
    "its own functions send more than 64 KiB of messages (RAISE) while its tables are read"
)

# What DISCARD ALL does, but for DISCARD PLANS: to plan posd's own functions anew takes half a millisecond a
# read. PostgreSQL plans a cached statement again by itself if the role, the row security, the search path or
# an object that it depends on has changed (https://www.postgresql.org/docs/current/sql-prepare.html). DISCARD
# ALL itself cannot run in a string with other statements. ROLLBACK comes first and undoes what was SET.
_CLEAN: Final = "; ".join(
    (
        "ROLLBACK",
        "RESET ALL",
        "SET SESSION AUTHORIZATION DEFAULT",
        "CLOSE ALL",
        "DEALLOCATE ALL",
        "UNLISTEN *",
        "SELECT pg_catalog.pg_advisory_unlock_all()",
        "DISCARD TEMP",
        "DISCARD SEQUENCES",
    )
)
_BACKEND: Final = """
    SELECT a.pid, a.backend_start::text FROM pg_stat_activity AS a WHERE a.pid = pg_backend_pid()
"""
# By its beginning too: another session may have the pid by now.
_TERMINATE: Final = """
    SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a
     WHERE a.pid = %s AND a.backend_start::text = %s
"""
Pace = Literal["quick", "unknown", "slow"]
_LOST: Final = f"the session ended {_MAX_LOST} times in a row in which its tables were read"


class ShopTablesUnreadable(Busy):
    """A shop's tables could not be read; the message says why."""


class ReadTimedOut(ShopTablesUnreadable):
    """They could not be read in time."""

    def __init__(self) -> None:
        super().__init__(f"its tables take longer than {STATEMENT_SECONDS:.0f} s to read")


@define(eq=False)
class _Waiter:
    tenant: TenantId
    turn: Deferred[_ReaderSlot] = field(factory=Deferred)


@define(eq=False)
class _ReaderSlot:
    """One connection after the other."""

    connection: ReconnectingConnection = field(init=False)
    tenant: TenantId | None = None
    """Whose tables are being read, or were and the session is not clean yet."""
    pace: Pace = "quick"
    """How that tenant was the last time."""
    backend: tuple[int, str] | None = None
    abandoned: tuple[int, str] | None = None
    """The session on the server that a read was given up in."""
    is_lost: bool = False
    """Whether it is `tenant` that it has no connection now. It is given out again when it has another one."""

    async def prepare(self, executor: Executor) -> None:
        """Terminate the session of the connection before, if a read went on in it."""
        if self.abandoned is not None:
            await executor.query(_TERMINATE, self.abandoned)
            self.abandoned = None
        ((pid, began),) = await executor.query(_BACKEND)
        self.backend = (pid, began)

    def give_up(self) -> None:
        """Have another connection, which terminates this one's session."""
        self.abandoned = self.backend
        self.connection.drop()


class ReadTimeout:
    """Gives the connection of a place up after so many seconds, unless it is ended before."""

    def __init__(self, reactor: DatabaseReactor, seconds: float, slot: _ReaderSlot) -> None:
        self._reactor = reactor
        self._acquire_slot = slot
        self.is_over = False
        self._timer = reactor.callLater(seconds, self._late)

    def _late(self) -> None:
        self._timer = self._reactor.callLater(_LATE_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self.is_over = True
        self._acquire_slot.give_up()

    def end(self) -> None:
        if self._timer.active():
            self._timer.cancel()


class ShopReaders(Service):
    """Four connections. One tenant's tables are read on one of them at a time, and after it was cleaned."""

    _log = Logger()

    def __init__(
        self, reactor: DatabaseReactor, dsn: str, retries: ReconnectPauses | None = None
    ) -> None:
        self._reactor = reactor
        retries = retries or ReconnectPauses(reactor)
        self._slots = [_ReaderSlot() for _ in range(SLOTS)]
        for number, slot in enumerate(self._slots):
            slot.connection = ReconnectingConnection(
                reactor,
                dsn,
                name="posd reader",
                statement_timeout=STATEMENT_SECONDS,
                role=None,
                prepare=slot.prepare,
                changed=partial(self._connection_changed, slot),
                quiet=number > 0,
                read_only=True,
                retries=retries,
            )
        self._waiting: deque[_Waiter] = deque()
        self._last_paces: dict[TenantId, Pace] = {}
        self._lost: Counter[TenantId] = Counter()
        self._is_assigning = False

    @property
    def up(self) -> bool:
        """Whether any connection stands."""
        return any(slot.connection.up for slot in self._slots)

    @property
    def trouble(self) -> str | None:
        """Why none does; empty while nothing is known yet."""
        return (
            None
            if self.up
            else next((p.connection.trouble for p in self._slots if p.connection.trouble), "")
        )

    def is_quick(self, tenant: TenantId) -> bool:
        """Whether the last read of a tenant's tables was over in a tenth of a second."""
        return self._last_paces.get(tenant) == "quick"

    def startService(self) -> None:
        Service.startService(self)
        for slot in self._slots:
            slot.connection.startService()

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        stopping = gatherResults([slot.connection.stopService() for slot in self._slots])
        return stopping.addCallback(lambda _: None)

    async def read(
        self, tenant: TenantId, sql: str, parameters: Mapping[str, object] = _NONE
    ) -> list[Row]:
        """Run a SELECT that calls a tenant's read function, in a read-only transaction, and roll it back.

        If the tenant is not known to be slow and it is not over in 0.15 s, it is run again.
        Waits for a place. Raises `ShopTablesUnreadable` and `StatementFailed` about the tenant's tables, and
        `Unavailable` where no connection stands or the one that was used is lost.
        """
        if self._last_paces.get(tenant) != "slow":
            with suppress(ReadTimedOut):
                return await self._read(tenant, sql, parameters, _TRIAL_SECONDS)
        return await self._read(tenant, sql, parameters, STATEMENT_SECONDS)

    async def _read(
        self, tenant: TenantId, sql: str, parameters: Mapping[str, object], seconds: float
    ) -> list[Row]:
        if self._lost[tenant] >= _MAX_LOST and self.up:
            self._lost[tenant] = 0
            raise ShopTablesUnreadable(_LOST)
        slot = await self._acquire_slot(tenant)
        # What is left from the read before.
        slot.connection.take_notice_count()
        began = self._reactor.seconds()
        overdue = ReadTimeout(self._reactor, seconds * (1 + _OVERTIME), slot)
        self._last_paces[tenant] = "slow"
        try:
            rows = await slot.connection.query(
                f"BEGIN READ ONLY; SET LOCAL statement_timeout = %(most)s; {sql}",
                {"most": int(seconds * 1000), **parameters},
            )
        except Busy as error:
            raise ReadTimedOut from error
        except Unavailable as error:
            if overdue.is_over:
                raise ReadTimedOut from error
            del self._last_paces[tenant]
            self._lost[tenant] += 1
            raise
        finally:
            overdue.end()
            # Nobody waits for it.
            Deferred.fromCoroutine(self._clean(slot, tenant))
        if slot.connection.take_notice_count() > _MAX_NOTICE_CHARACTERS:
            # libpq reads a long message in one piece, and every shop waits for that: 0.1 s for 20 MB.
            raise ShopTablesUnreadable(_TALKATIVE)
        if self._reactor.seconds() - began <= _QUICK_SECONDS:
            self._last_paces[tenant] = "quick"
        return rows

    async def _clean(self, slot: _ReaderSlot, tenant: TenantId) -> None:
        """Undo what a read may have left in its session: settings, locks, plans. Then give it out again."""
        overdue = ReadTimeout(self._reactor, STATEMENT_SECONDS, slot)
        was_up = slot.connection.up
        try:
            await slot.connection.execute(f"{_CLEAN}; {slot.connection.settings}")
            del self._lost[tenant]
        except Exception as error:
            # Nothing is read in a session that may not be clean. Another connection takes its place.
            if not isinstance(error, Unavailable):
                self._log.failure("a reading session could not be cleaned; posd makes another one")
            slot.give_up()
            slot.is_lost, slot.pace = True, "slow"
            if was_up:
                self._last_paces[tenant] = "slow"
                self._lost[tenant] += 1
        else:
            slot.tenant = None
        finally:
            overdue.end()
            self._assign_slots()

    def _connection_changed(self, slot: _ReaderSlot, connection: ReconnectingConnection) -> None:
        if connection.up and slot.is_lost:
            slot.tenant, slot.is_lost = None, False
        self._assign_slots()

    async def _acquire_slot(self, tenant: TenantId) -> _ReaderSlot:
        if not self.up:
            raise _unreachable()
        waiter = _Waiter(tenant)
        self._waiting.append(waiter)
        self._assign_slots()
        return await waiter.turn

    def _assign_slots(self) -> None:
        """Let those who wait have places, one after the other and not one inside the other."""
        if self._is_assigning:
            return
        self._is_assigning = True
        try:
            if not self.up:
                while self._waiting:
                    self._waiting.popleft().turn.errback(_unreachable())
            for waiter, slot in iter(self._next, None):
                self._waiting.remove(waiter)
                slot.tenant, slot.pace = waiter.tenant, self._pace(waiter)
                waiter.turn.callback(slot)
        finally:
            self._is_assigning = False

    def _pace(self, waiter: _Waiter) -> Pace:
        return self._last_paces.get(waiter.tenant, "unknown")

    def _next(self) -> tuple[_Waiter, _ReaderSlot] | None:
        """Who is next, and where."""
        slot = next(
            (each for each in self._slots if each.tenant is None and each.connection.up), None
        )
        if slot is None:
            return None
        paces = Counter(each.pace for each in self._slots if each.tenant is not None)
        slow, others = paces["slow"], paces["slow"] + paces["unknown"]
        waiter = next(
            (
                each
                for each in self._waiting
                if all(held.tenant != each.tenant for held in self._slots)
                and (
                    (pace := self._pace(each)) == "quick"
                    or (others < _FOR_UNKNOWN and (pace == "unknown" or slow < _FOR_SLOW))
                )
            ),
            None,
        )
        return None if waiter is None else (waiter, slot)


def _unreachable() -> Unavailable:
    return Unavailable("The database cannot be reached by posd_reader.", retry_after=2)
