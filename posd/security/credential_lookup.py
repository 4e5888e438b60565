"""Looks up credentials in the database in batches, and caches them for some seconds.

Queries that arrive while statements run are collected, and the next statement looks all of them up. Two
thousand terminals that reconnect together need some dozens of statements.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from posd.database.coalescing import fail_all, or_busy
from posd.database.reconnecting import Executor
from posd.errors import Busy
from posd.store import credentials
from posd.store.credentials import Credential, CredentialQuery
from posd.values import TenantId

_CACHE_SECONDS: Final = 10.0
_MOST_CACHED: Final = 10_000
_LOOK_UP_SECONDS: Final = 3.5
"""A request may wait twice: for its key, and then for its terminal. A till waits longer than both."""
_MOST_STATEMENTS: Final = 4
"""The most statements that run at once, each on a connection of the pool."""
_BATCH_SIZE: Final = 200
_MOST_WAITING: Final = 5_000
_RELEASES_PER_TURN: Final = 50
"""Waiters that continue in one turn of the reactor."""


class CredentialLookup:
    """Finds credentials. `forget_key` and `forget_tenant` drop cached results at once."""

    def __init__(self, reactor: IReactorTime, executor: Executor) -> None:
        self._reactor = reactor
        self._executor = executor
        self._cache: OrderedDict[CredentialQuery, tuple[Credential, float, int]] = OrderedDict()
        """The credential, the time when it expires, and `_invalidations` when it was stored."""
        self._waiting: dict[CredentialQuery, list[Deferred[Credential | None]]] = {}
        """The waiters of each query, queued or running."""
        self._queue: deque[CredentialQuery] = deque()
        self._statements = 0
        self._waiters = 0
        self._released: deque[Callable[[], None]] = deque()
        self._releasing = False
        # The number of calls of `forget_*`. Results of statements that began before one may be stale.
        self._invalidations = 0
        self._invalidated_at: dict[tuple[str, int], int] = {}
        """The value of `_invalidations` at the last call for a key or a tenant."""

    async def find(self, query: CredentialQuery) -> Credential | None:
        """Return the credential, or None if the key is not valid at the tenant.

        Raises `Busy` and `Unavailable`.
        """
        cached = self._cached(query)
        if cached is not None:
            return cached
        if self._waiters >= _MOST_WAITING:
            raise Busy("Too many keys are being looked up. Try again.", retry_after=2)
        waiter: Deferred[Credential | None] = Deferred()
        or_busy(waiter, self._reactor, _LOOK_UP_SECONDS, "The database is busy. Try again.")
        if query in self._waiting:
            self._waiting[query].append(waiter)
        else:
            self._waiting[query] = [waiter]
            self._queue.append(query)
        self._waiters += 1
        self._start_statements()
        try:
            return await waiter
        finally:
            self._waiters -= 1

    def forget_all(self) -> None:
        """Clear the cache."""
        self._invalidations += 1
        self._cache.clear()
        self._invalidated_at.clear()

    def forget_key(self, key_id: int) -> None:
        """Drop the cached credentials of a key."""
        self._forget("key", key_id)

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """Drop the cached credentials of a tenant."""
        self._forget("tenant", tenant_id)

    def _forget(self, kind: str, number: int) -> None:
        # One statement may revoke thousands of keys, so this does not search the cache.
        self._invalidations += 1
        self._invalidated_at[kind, number] = self._invalidations
        if len(self._invalidated_at) > _MOST_CACHED:
            self.forget_all()

    def _start_statements(self) -> None:
        while self._queue and self._statements < _MOST_STATEMENTS:
            count = min(_BATCH_SIZE, len(self._queue))
            batch = [self._queue.popleft() for _ in range(count)]
            self._statements += 1
            Deferred.fromCoroutine(self._look_up(batch))

    async def _look_up(self, batch: list[CredentialQuery]) -> None:
        """Look up a batch and queue the release of its waiters."""
        invalidations = self._invalidations
        results: list[Credential | None] | Exception
        try:
            results = await credentials.find(self._executor, batch)
        except Exception as error:
            results = error
        self._statements -= 1
        for index, query in enumerate(batch):
            result = results if isinstance(results, Exception) else results[index]
            if isinstance(result, Credential) and invalidations == self._invalidations:
                self._add_to_cache(query, result)
            for waiter in self._waiting.pop(query):
                self._released.append(_completion(waiter, result))
        if not self._releasing:
            self._releasing = True
            if len(self._released) <= _RELEASES_PER_TURN:
                self._release()
            else:
                self._reactor.callLater(0, self._release)
        self._start_statements()

    def _release(self) -> None:
        """Release some waiters now and the others in later turns, since each has work to do.

        A released waiter may call `find`, and its statement may fail at once. That result is queued for
        release, so that no waiter runs inside another one.
        """
        for _ in range(min(_RELEASES_PER_TURN, len(self._released))):
            self._released.popleft()()
        self._releasing = bool(self._released)
        if self._releasing:
            self._reactor.callLater(0, self._release)

    def _cached(self, query: CredentialQuery) -> Credential | None:
        results = self._cache.get(query)
        if results is None:
            return None
        credential, until, at = results
        of_key = self._invalidated_at.get(("key", credential.principal.key_id), 0)
        of_tenant = self._invalidated_at.get(("tenant", credential.tenant.id), 0)
        is_current = max(of_key, of_tenant) <= at and self._reactor.seconds() < until
        return credential if is_current else None

    def _add_to_cache(self, query: CredentialQuery, credential: Credential) -> None:
        seconds = _CACHE_SECONDS
        if credential.seconds is not None:
            seconds = min(seconds, credential.seconds)
        self._cache[query] = credential, self._reactor.seconds() + seconds, self._invalidations
        self._cache.move_to_end(query)
        while len(self._cache) > _MOST_CACHED:
            self._cache.popitem(last=False)


def _completion(
    waiter: Deferred[Credential | None], result: Credential | Exception | None
) -> Callable[[], None]:
    if isinstance(result, Exception):
        return lambda: fail_all([waiter], result)
    return lambda: waiter.callback(result)
