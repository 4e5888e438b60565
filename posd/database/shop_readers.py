"""Connections that read shops' own tables, and can do nothing else.

A shop can replace a table that posd reads by a view, or add a policy or a type of its own, so its code can
run in the
session that reads. These sessions belong to the role `posd_reader`, which has EXECUTE on the reading
functions and no
other privilege. A read is one string, `BEGIN READ ONLY; SELECT …`, because the session must be read-only
before code
of the shop runs in it. posd cleans the session after each read, before it reads tables of another shop.

`statement_timeout` ends a read. If the shop's code catches the cancellation and continues, posd soon drops
the connection, and the next connection terminates the session on the server.

A tenant whose last read was quick gets any free connection. All others share two of the four; tenants
whose last read
was slow or failed have one of these two. A tenant that is known to be slow may take a second; other reads
are first
tried for 0.15 s. So a read does not wait behind slow tenants, and not long behind tenants that have become
slow.

A tenant whose reads end the session may do so a limited number of times. The end of a session counts in
the read and
also while the session is cleaned, because a shop's code can set a timeout that ends the session a moment
later.
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
"""The number of connections."""
_FOR_UNKNOWN: Final = 2
"""The connections for tenants whose last read was not quick. The others are reserved for quick tenants."""
_FOR_SLOW: Final = 1
"""The connections, among these, for tenants whose last read was slow."""
STATEMENT_SECONDS: Final = 1.0
_TRIAL_SECONDS: Final = 0.15
_OVERTIME: Final = 0.4
"""The part of its time limit by which a read may exceed the limit before its connection is dropped."""
_LATE_SECONDS: Final = 0.05
"""An additional time before a connection is dropped, so that an answer is read that arrived while the
reactor was busy.
"""
_QUICK_SECONDS: Final = 0.1
_NONE: Final[Mapping[str, object]] = {}
_MAX_LOST: Final = 3
"""The number of sessions in a row that may end in reads of a tenant before posd blames its tables.

The shop's code can end the session, or set a timeout that does.
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
# The start time is compared too, because another session may have the same pid by now.
_TERMINATE: Final = """
    SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a
     WHERE a.pid = %s AND a.backend_start::text = %s
"""
Pace = Literal["quick", "unknown", "slow"]
_LOST: Final = f"the session ended {_MAX_LOST} times in a row in which its tables were read"


class ShopTablesUnreadable(Busy):
    """A shop's tables could not be read. The message has the reason."""


class ReadTimedOut(ShopTablesUnreadable):
    """A shop's tables could not be read within the time limit."""

    def __init__(self) -> None:
        super().__init__(f"its tables take longer than {STATEMENT_SECONDS:.0f} s to read")


@define(eq=False)
class _Waiter:
    tenant: TenantId
    turn: Deferred[_ReaderSlot] = field(factory=Deferred)


@define(eq=False)
class _ReaderSlot:
    """A place for one connection at a time."""

    connection: ReconnectingConnection = field(init=False)
    tenant: TenantId | None = None
    """The tenant whose tables are being read, or were read if the session is not clean yet."""
    pace: Pace = "quick"
    """The speed of the last read of this tenant."""
    backend: tuple[int, str] | None = None
    abandoned: tuple[int, str] | None = None
    """The session on the server in which an abandoned read may still run."""
    is_lost: bool = False
    """Whether a read of `tenant` ended the connection. The slot is used again after it has reconnected."""

    async def prepare(self, executor: Executor) -> None:
        """Terminate the session of the previous connection, if a read still runs in it."""
        if self.abandoned is not None:
            await executor.query(_TERMINATE, self.abandoned)
            self.abandoned = None
        ((pid, began),) = await executor.query(_BACKEND)
        self.backend = (pid, began)

    def give_up(self) -> None:
        """Drop the connection. The next one terminates its session."""
        self.abandoned = self.backend
        self.connection.drop()


class ReadTimeout:
    """Drops the connection of a slot after this many seconds, unless the read ends before."""

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
    """The four connections. Each reads the tables of one tenant at a time, after it has been cleaned."""

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
        """Whether at least one connection is up."""
        return any(slot.connection.up for slot in self._slots)

    @property
    def trouble(self) -> str | None:
        """Why no connection is up; empty before the first attempt has failed."""
        return (
            None
            if self.up
            else next((p.connection.trouble for p in self._slots if p.connection.trouble), "")
        )

    def is_quick(self, tenant: TenantId) -> bool:
        """Whether the last read of a tenant's tables took less than a tenth of a second."""
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

        If the tenant is not known to be slow and the read takes more than 0.15 s, it is cancelled and run
        again
        with the full time limit. Waits for a slot. Raises `ShopTablesUnreadable` and `StatementFailed` for
        errors of the tenant's tables, and `Unavailable` if no connection is up or the used one is lost.
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
        # The time that the first attempt has left.
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
            # The caller no longer waits.
            Deferred.fromCoroutine(self._clean(slot, tenant))
        if slot.connection.take_notice_count() > _MAX_NOTICE_CHARACTERS:
            # libpq reads a long message as a whole while all shops wait: 0.1 s for 20 MB.
            raise ShopTablesUnreadable(_TALKATIVE)
        if self._reactor.seconds() - began <= _QUICK_SECONDS:
            self._last_paces[tenant] = "quick"
        return rows

    async def _clean(self, slot: _ReaderSlot, tenant: TenantId) -> None:
        """Reset the settings, locks and plans of a session after a read, and make its slot available
        again.
        """
        overdue = ReadTimeout(self._reactor, STATEMENT_SECONDS, slot)
        was_up = slot.connection.up
        try:
            await slot.connection.execute(f"{_CLEAN}; {slot.connection.settings}")
            del self._lost[tenant]
        except Exception as error:
            # The session may not be clean, so it is not used again. Another connection replaces it.
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
        """Give slots to waiting callers, one after the other, so that none runs in the stack of another."""
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
        """Return the next waiting caller and its slot."""
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
