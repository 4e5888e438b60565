"""A pool of connections to PostgreSQL, which `posd.store` runs its statements on.

txpostgres' own pool cannot be used: it cannot start without a server, lends dead connections while others are
alive, and limits neither the time to wait nor the share of a tenant.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime

from posd.database.checkout import ResourceQueue
from posd.database.reconnect_pauses import ReconnectPauses
from posd.database.reconnecting import (
    DatabaseReactor,
    Executor,
    Parameters,
    Querier,
    ReconnectingConnection,
    Row,
)
from posd.errors import StatementFailed, Unavailable
from posd.values import TenantId

T = TypeVar("T")

_CHECKOUT_SECONDS: Final = 5.0
_TENANT_SHARE: Final = 2


@frozen
class PoolUsage:
    """The numbers of idle, lent and down connections of a pool, and of statements that wait for one.

    `held_back` counts statements that wait because their tenant already uses its share of connections.
    """

    idle: int
    lent: int
    down: int
    waiting: int
    held_back: int


class Pool(Service):
    """A pool of connections. A statement waits up to five seconds for one, and then fails with `Busy`.

    While no connection is up, every call fails at once. A tenant gets at most two connections, and the queues
    of several tenants are served in turn (`posd.database.checkout`), so that slow queries of one shop do not
    delay the others.
    """

    def __init__(
        self,
        reactor: DatabaseReactor,
        dsn: str,
        *,
        size: int,
        statement_timeout: float,
        role: str | None = "posd",
        name: str = "posd",
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._reactor = reactor
        self._waited = waited
        self.retries = ReconnectPauses(reactor)
        """Shared with other connections to the same server."""
        self._connections = [
            ReconnectingConnection(
                reactor,
                dsn,
                name=name,
                statement_timeout=statement_timeout,
                role=role,
                changed=self._connection_changed,
                quiet=number > 0,
                retries=self.retries,
            )
            for number in range(size)
        ]
        # A connection that is up is idle or lent. If it goes down and comes up again while
        # it is lent stays so: until it is given back, whoever has it may still use it.
        self._checkout: ResourceQueue[ReconnectingConnection] = ResourceQueue(
            reactor, _TENANT_SHARE
        )
        self._up_waiters: list[Deferred[None]] = []

    @property
    def up(self) -> bool:
        """Whether at least one connection is up."""
        return any(connection.up for connection in self._connections)

    @property
    def stalled(self) -> bool:
        """Whether a connection is down and no longer tries to connect."""
        return any(connection.stalled for connection in self._connections)

    @property
    def usage(self) -> PoolUsage:
        """How much of the pool is in use now."""
        standing = sum(connection.up for connection in self._connections)
        checkout = self._checkout
        return PoolUsage(
            idle=checkout.idle,
            lent=checkout.lent,
            down=len(self._connections) - standing,
            waiting=checkout.waiting - checkout.held_back,
            held_back=checkout.held_back,
        )

    @property
    def trouble(self) -> str | None:
        """Why no connection is up; empty before the first attempt has failed."""
        return (
            None
            if self.up
            else next(
                (connection.trouble for connection in self._connections if connection.trouble), ""
            )
        )

    def when_up(self) -> Deferred[None]:
        """Return a Deferred that fires when a connection is up.

        It fails with `StatementFailed` if the server can be reached but refuses the login.
        """
        waiter: Deferred[None] = Deferred()
        self._up_waiters.append(waiter)
        if self.up:
            self._notify_up(None)
        return waiter

    def startService(self) -> None:
        Service.startService(self)
        for connection in self._connections:
            connection.startService()

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        stopping = gatherResults([connection.stopService() for connection in self._connections])
        return stopping.addCallback(lambda _: None)

    async def query(
        self, sql: str, parameters: Parameters = (), *, tenant: TenantId | None = None
    ) -> list[Row]:
        return await self._with_connection(
            lambda connection: connection.query(sql, parameters), tenant
        )

    async def execute(
        self, sql: str, parameters: Parameters = (), *, tenant: TenantId | None = None
    ) -> None:
        await self._with_connection(lambda connection: connection.execute(sql, parameters), tenant)

    async def transaction(
        self,
        work: Callable[[Executor], Awaitable[T]],
        *,
        tenant: TenantId | None = None,
        deadline: float | None = None,
        work_seconds: float | None = None,
    ) -> T:
        """Run `work` in one transaction on one connection; see `ReconnectingConnection.transaction`.

        The time to wait for the connection counts against the `deadline`.
        """
        return await self._with_connection(
            lambda connection: connection.transaction(
                work, deadline=deadline, work_seconds=work_seconds
            ),
            tenant,
            deadline,
        )

    @property
    def for_all(self) -> Executor:
        """The pool for statements that many callers wait for. They precede the statements of single
        callers.
        """
        return _PriorityExecutor(self)

    def of(self, tenant: TenantId) -> Executor:
        """The pool for statements on behalf of a tenant, limited to its share."""
        return _TenantExecutor(self, tenant)

    def by(self, tenant: TenantId, deadline: float, work_seconds: float | None = None) -> Querier:
        """As `of`, where each statement is a transaction with a deadline; see
        `ReconnectingConnection.query`.
        """
        return _DeadlineExecutor(self, tenant, deadline, work_seconds)

    @property
    def clock(self) -> IReactorTime:
        """The clock of all deadlines."""
        return self._reactor

    async def _with_connection(
        self,
        work: Callable[[ReconnectingConnection], Awaitable[T]],
        tenant: TenantId | None,
        until: float | None = None,
        *,
        urgent: bool = False,
    ) -> T:
        began = self._reactor.seconds()
        deadline = began + _CHECKOUT_SECONDS
        if until is not None:
            deadline = min(deadline, until)
        try:
            if not self.up:
                raise _unreachable()
            connection = await self._checkout.acquire(tenant, deadline, urgent=urgent)
        finally:
            self._waited(self._reactor.seconds() - began)
        try:
            return await work(connection)
        finally:
            self._checkout.release(connection, tenant, usable=connection.up)

    def _connection_changed(self, connection: ReconnectingConnection) -> None:
        if connection.up:
            self._checkout.add(connection)
            self._notify_up(None)
            return
        self._checkout.withdraw(connection)
        if not self.up:
            self._checkout.fail(_unreachable)
            if connection.refusal is not None:
                self._notify_up(connection.refusal)

    def _notify_up(self, refusal: StatementFailed | None) -> None:
        waiters, self._up_waiters = self._up_waiters, []
        for waiter in waiters:
            waiter.callback(None) if refusal is None else waiter.errback(refusal)


def _unreachable() -> Unavailable:
    return Unavailable("The database cannot be reached.", retry_after=2)


@frozen
class _TenantExecutor:
    """The pool on behalf of a tenant. Implements `Executor`."""

    _database: Pool
    _tenant: TenantId

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return await self._database.query(sql, parameters, tenant=self._tenant)

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        await self._database.execute(sql, parameters, tenant=self._tenant)


@frozen
class _DeadlineExecutor:
    """The pool on behalf of a tenant, for transactions of one statement. Implements `Querier`."""

    _database: Pool
    _tenant: TenantId
    _deadline: float
    _work_seconds: float | None

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return await self._database._with_connection(
            lambda connection: connection.query(
                sql, parameters, deadline=self._deadline, work_seconds=self._work_seconds
            ),
            self._tenant,
            self._deadline,
        )


@frozen
class _PriorityExecutor:
    """The pool for urgent statements. Implements `Executor`."""

    _database: Pool

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return await self._database._with_connection(
            lambda connection: connection.query(sql, parameters), None, urgent=True
        )

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        await self._database._with_connection(
            lambda connection: connection.execute(sql, parameters), None, urgent=True
        )
