"""The queue for the connections of the pool. It is fair among tenants, and no waiter runs inside another one.

`DeferredSemaphore` cannot be used: its `release` runs the next waiter in the stack of the caller. When
connections are lost, every waiter fails at once and releases, so some hundred waiters would end in
`RecursionError`, and their resources would never be returned.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from posd.database.coalescing import or_busy
from posd.errors import Busy

R = TypeVar("R", bound=Hashable)

MAX_WAITING_OF_TENANT: Final = 500
"""The most waiting statements of a tenant. Two run at a time; more could not run within five seconds."""
MAX_WAITING: Final = 4000
"""The most waiting statements of posd itself, and of all tenants together."""
_ALL_IN_USE: Final = "All connections to the database are in use."


class ResourceQueue(Generic[R]):
    """Lends resources to callers. Callers wait while no resource is idle.

    There is one queue for statements of posd itself (`tenant` is None) and one for each tenant. An idle
    resource
    goes to these two groups in turn, and among the tenants in turn to those that have fewer than `share`
    resources. A long queue of one tenant therefore delays that tenant only. `urgent` callers, each of
    which runs a statement that many others wait for, come first.

    One loop grants resources. A resource that a waiter releases while the loop runs is granted by the same
    loop, so the stack does not grow with the number of waiters.
    """

    def __init__(self, clock: IReactorTime, share: int) -> None:
        self._clock = clock
        self._share = share
        self._idle: list[R] = []
        self._lent: set[R] = set()
        self._lent_by_tenant: Counter[int] = Counter()
        self._urgent: OrderedDict[Deferred[R], None] = OrderedDict()
        self._without_tenant: OrderedDict[Deferred[R], None] = OrderedDict()
        self._queues: dict[int, OrderedDict[Deferred[R], None]] = {}
        # Tenants that have a waiter and fewer resources than their share, in the order of their turns.
        self._turns: OrderedDict[int, None] = OrderedDict()
        self._waiting_of_tenants = 0
        self._without_tenant_is_next = True
        self._granting = False

    @property
    def idle(self) -> int:
        """The number of resources that are not lent."""
        return len(self._idle)

    @property
    def lent(self) -> int:
        """The number of lent resources."""
        return len(self._lent)

    @property
    def waiting(self) -> int:
        """The number of waiting callers."""
        return len(self._urgent) + len(self._without_tenant) + self._waiting_of_tenants

    @property
    def held_back(self) -> int:
        """The number of callers that wait because their tenant has its share, even if a resource is idle."""
        return sum(
            len(queue) for tenant, queue in self._queues.items() if tenant not in self._turns
        )

    def acquire(self, tenant: int | None, deadline: float, *, urgent: bool = False) -> Deferred[R]:
        """Borrow a resource, now or when it is this caller's turn. The caller must `release` it.

        An `urgent` call has no tenant. The Deferred fails with `Busy` at the `deadline`, a time of the clock.
        Raises `Busy` at once if too many callers wait.
        """
        if self._idle and not self._must_wait(tenant, urgent):
            return succeed(self._lend(self._idle.pop(), tenant))
        queue = self._urgent if urgent else self._queue(tenant)
        waiter: Deferred[R] = Deferred(lambda waiter: self._forget(waiter, tenant))
        queue[waiter] = None
        if tenant is not None:
            self._waiting_of_tenants += 1
            if self._lent_by_tenant[tenant] < self._share:
                self._turns.setdefault(tenant)
        seconds = max(0.0, deadline - self._clock.seconds())
        return or_busy(waiter, self._clock, seconds, _ALL_IN_USE)

    def release(self, resource: R, tenant: int | None, *, usable: bool) -> None:
        """Return a resource. If it is not `usable`, it is withdrawn until `add` is called for it."""
        self._lent.remove(resource)
        if usable:
            self._idle.append(resource)
        if tenant is not None:
            self._lent_by_tenant[tenant] -= 1
            if tenant in self._queues:
                self._turns.setdefault(tenant)
            elif not self._lent_by_tenant[tenant]:
                del self._lent_by_tenant[tenant]
        self._grant()

    def add(self, resource: R) -> None:
        """Make a resource available. No change if it is lent or idle."""
        if resource not in self._lent and resource not in self._idle:
            self._idle.append(resource)
            self._grant()

    def withdraw(self, resource: R) -> None:
        """Stop lending a resource. If it is lent, it stays lent until it is released."""
        if resource in self._idle:
            self._idle.remove(resource)

    def fail(self, reason: Callable[[], Exception]) -> None:
        """Fail all waiters, each with an exception of its own."""
        waiters = [
            *self._urgent,
            *self._without_tenant,
            *(each for queue in self._queues.values() for each in queue),
        ]
        self._urgent.clear()
        self._without_tenant.clear()
        self._queues.clear()
        self._turns.clear()
        self._waiting_of_tenants = 0
        self._lent_by_tenant = +self._lent_by_tenant
        for waiter in waiters:
            if not waiter.called:
                waiter.errback(reason())

    def _queue(self, tenant: int | None) -> OrderedDict[Deferred[R], None]:
        """Return the queue of a caller. Raises `Busy` if it is full."""
        if tenant is None:
            if len(self._without_tenant) >= MAX_WAITING:
                raise _busy()
            return self._without_tenant
        queue = self._queues.get(tenant, OrderedDict())
        if len(queue) >= MAX_WAITING_OF_TENANT or self._waiting_of_tenants >= MAX_WAITING:
            raise _busy()
        return self._queues.setdefault(tenant, queue)

    def _must_wait(self, tenant: int | None, urgent: bool) -> bool:
        """Whether a new caller has to wait although a resource is idle."""
        if urgent:
            return bool(self._urgent)
        if tenant is not None and self._lent_by_tenant[tenant] >= self._share:
            return True
        # A resource that callers wait for is idle only while the loop runs.
        return bool(self._urgent or self._without_tenant or self._turns)

    def _lend(self, resource: R, tenant: int | None) -> R:
        self._lent.add(resource)
        if tenant is not None:
            self._lent_by_tenant[tenant] += 1
        return resource

    def _grant(self) -> None:
        """Lend idle resources to waiting callers. This is the only loop that runs waiters."""
        if self._granting:
            return
        self._granting = True
        try:
            while self._idle and (self._urgent or self._without_tenant or self._turns):
                if self._urgent:
                    tenant, (waiter, _) = None, self._urgent.popitem(last=False)
                elif self._without_tenant and (self._without_tenant_is_next or not self._turns):
                    self._without_tenant_is_next = False
                    tenant, (waiter, _) = None, self._without_tenant.popitem(last=False)
                else:
                    self._without_tenant_is_next = True
                    tenant, waiter = self._next_of_tenants()
                waiter.callback(self._lend(self._idle.pop(), tenant))
        finally:
            self._granting = False

    def _next_of_tenants(self) -> tuple[int, Deferred[R]]:
        tenant, _ = self._turns.popitem(last=False)
        queue = self._queues[tenant]
        waiter, _ = queue.popitem(last=False)
        self._waiting_of_tenants -= 1
        if not queue:
            del self._queues[tenant]
        elif self._lent_by_tenant[tenant] + 1 < self._share:
            self._turns[tenant] = None
        return tenant, waiter

    def _forget(self, waiter: Deferred[R], tenant: int | None) -> None:
        """Remove a caller that no longer waits."""
        if tenant is None:
            self._urgent.pop(waiter, None)
            self._without_tenant.pop(waiter, None)
            return
        queue = self._queues.get(tenant)
        if queue is None or waiter not in queue:
            return
        del queue[waiter]
        self._waiting_of_tenants -= 1
        if not queue:
            del self._queues[tenant]
            self._turns.pop(tenant, None)
            if not self._lent_by_tenant[tenant]:
                del self._lent_by_tenant[tenant]


def _busy() -> Busy:
    return Busy(_ALL_IN_USE, retry_after=1)
