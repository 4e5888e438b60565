"""A pool of links to PostgreSQL: what `store` runs its statements on.

Why not txpostgres' own pool: it cannot start without a server, hands out dead connections while
others live, has no limit on the wait and none for one tenant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.python.failure import Failure

from posd.errors import Busy, Unavailable
from posd.link import DatabaseReactor, Link, Parameters, Row, Session
from posd.values import TenantId

T = TypeVar("T")

_CHECKOUT_SECONDS: Final = 5.0
_TENANT_SHARE: Final = 2


class Database(Service):
    """A pool of links. Statements wait their turn for up to five seconds, then it is 503.

    While no link is up every call fails at once. A tenant that is named gets two links at the most,
    so that one shop's slow queries leave the others theirs.
    """

    def __init__(
        self,
        reactor: DatabaseReactor,
        dsn: str,
        *,
        size: int,
        statement_timeout: float,
        name: str = "posd",
    ) -> None:
        self._reactor = reactor
        self._links = [
            Link(
                reactor,
                dsn,
                name=name,
                statement_timeout=statement_timeout,
                changed=self._link_changed,
            )
            for _ in range(size)
        ]
        self._idle: list[Link] = []
        self._waiting: deque[Deferred[Link]] = deque()
        self._shares: dict[TenantId, DeferredSemaphore] = {}
        self._up: list[Deferred[None]] = []

    @property
    def up(self) -> bool:
        """Whether any connection stands."""
        return any(link.up for link in self._links)

    @property
    def trouble(self) -> str | None:
        """Why not, if none does."""
        return None if self.up else next((link.trouble for link in self._links if link.trouble), "")

    def when_up(self) -> Deferred[None]:
        """Fire when a connection stands: now, or as soon as the server can be reached."""
        waiter: Deferred[None] = Deferred(self._up.remove)
        self._up.append(waiter)
        if self.up:
            self._tell_up()
        return waiter

    def startService(self) -> None:
        Service.startService(self)
        for link in self._links:
            link.startService()

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def query(
        self, sql: str, parameters: Parameters = (), *, tenant: TenantId | None = None
    ) -> list[Row]:
        return await self._with_link(lambda link: link.query(sql, parameters), tenant)

    async def execute(
        self, sql: str, parameters: Parameters = (), *, tenant: TenantId | None = None
    ) -> None:
        await self._with_link(lambda link: link.execute(sql, parameters), tenant)

    async def transaction(
        self, work: Callable[[Session], Awaitable[T]], *, tenant: TenantId | None = None
    ) -> T:
        """Run `work` in one transaction on one link; see `Link.transaction`."""
        return await self._with_link(lambda link: link.transaction(work), tenant)

    async def _with_link(self, work: Callable[[Link], Awaitable[T]], tenant: TenantId | None) -> T:
        if tenant is None:
            return await self._checked_out(work)
        share = self._shares.setdefault(tenant, DeferredSemaphore(_TENANT_SHARE))
        await share.acquire()
        try:
            return await self._checked_out(work)
        finally:
            share.release()
            if share.tokens == share.limit and not share.waiting:
                self._shares.pop(tenant, None)

    async def _checked_out(self, work: Callable[[Link], Awaitable[T]]) -> T:
        link = self._idle.pop() if self._idle else await self._next_link()
        try:
            return await work(link)
        finally:
            self._give_back(link)

    def _next_link(self) -> Deferred[Link]:
        if not self.up:
            raise Unavailable("The database cannot be reached.", retry_after=2)
        waiter: Deferred[Link] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter.addTimeout(_CHECKOUT_SECONDS, self._reactor, onTimeoutCancel=_too_late)

    def _give_back(self, link: Link) -> None:
        if not link.up or link in self._idle:
            return
        if self._waiting:
            self._waiting.popleft().callback(link)
        else:
            self._idle.append(link)

    def _link_changed(self, link: Link) -> None:
        if link.up:
            self._give_back(link)
            self._tell_up()
            return
        if link in self._idle:
            self._idle.remove(link)
        if not self.up:
            waiting, self._waiting = self._waiting, deque()
            for waiter in waiting:
                waiter.errback(Unavailable("The database cannot be reached.", retry_after=2))

    def _tell_up(self) -> None:
        waiters, self._up = self._up, []
        for waiter in waiters:
            waiter.callback(None)

    async def _stop(self) -> None:
        for link in self._links:
            await link.stopService()


def _too_late(result: Link | Failure, seconds: float) -> Link:
    if isinstance(result, Link):
        return result
    result.trap(CancelledError)
    raise Busy("All connections to the database are in use.", retry_after=1)
