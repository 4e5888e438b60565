"""What keys open, asked of the database: many at once by one statement, and remembered for some seconds.

While statements are under way, what is asked meanwhile gathers, and the next statement asks all of it. Two
thousand terminals that come back together cost some dozens of statements.
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
"""Twice that, for a key and then for the terminal that it names, is less than a till waits for an answer."""
_MOST_STATEMENTS: Final = 4
"""How many of the pool's connections are used for this at once."""
_BATCH_SIZE: Final = 200
_MOST_WAITING: Final = 5_000
_RELEASES_PER_TURN: Final = 50
"""Waiters that go on in one turn of the reactor."""


class CredentialLookup:
    """Finds credentials. What is found is forgotten at once when the database says that it has changed."""

    def __init__(self, reactor: IReactorTime, executor: Executor) -> None:
        self._reactor = reactor
        self._executor = executor
        self._cache: OrderedDict[CredentialQuery, tuple[Credential, float, int]] = OrderedDict()
        """What was found, until when it may be used, and how many changes there had been by then."""
        self._waiting: dict[CredentialQuery, list[Deferred[Credential | None]]] = {}
        """Who waits for what, asked already or not."""
        self._queue: deque[CredentialQuery] = deque()
        self._statements = 0
        self._waiters = 0
        self._released: deque[Callable[[], None]] = deque()
        self._releasing = False
        # How often something was to be forgotten: what was asked before may be out of date.
        self._invalidations = 0
        self._invalidated_at: dict[tuple[str, int], int] = {}
        """Which of these times was the last for a key, and for a tenant."""

    async def find(self, query: CredentialQuery) -> Credential | None:
        """The credential, or None for what does not fit. Raises `Busy` and `Unavailable`."""
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
        """Look every key up again when it is used next."""
        self._invalidations += 1
        self._cache.clear()
        self._invalidated_at.clear()

    def forget_key(self, key_id: int) -> None:
        """Look it up again when it is used next."""
        self._forget("key", key_id)

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """Look its keys up again when they are used next."""
        self._forget("tenant", tenant_id)

    def _forget(self, kind: str, number: int) -> None:
        # Thousands of keys may be revoked by one statement, so what is remembered is not searched here.
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
        """Ask the database, and tell all who wait for it by then; whoever has given up asks anew."""
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
        """Let some go on, and the others in the turns that follow: each has work to do then.

        One that goes on may ask something that fails at once. Its answer waits for the next turn, since
        the next waiter would run inside this one otherwise.
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
