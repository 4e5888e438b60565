"""What keys open, asked of the database: many at once by one statement, and remembered for some seconds.

While statements are under way, what is asked meanwhile gathers, and the next statement asks all of it. Two
thousand terminals that come back together cost some dozens of statements.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from posd.database.coalescing import fail_all
from posd.database.link import Session
from posd.errors import Busy
from posd.store import credentials
from posd.store.credentials import Credential, Wanted
from posd.values import TenantId

T = TypeVar("T")

_REMEMBER_SECONDS: Final = 10.0
_MOST_REMEMBERED: Final = 10_000
_LOOK_UP_SECONDS: Final = 3.5
"""Twice that, for a key and then for the terminal that it names, is less than a till waits for an answer."""
_STATEMENTS: Final = 4
"""How many of the pool's connections are used for this at once."""
_IN_ONE: Final = 200
_MOST_WAITING: Final = 5_000
_IN_ONE_TURN: Final = 50
"""Waiters that go on in one turn of the reactor."""


class Lookup:
    """Finds credentials. What is found is forgotten at once when the database says that it has changed."""

    def __init__(self, reactor: IReactorTime, session: Session) -> None:
        self._reactor = reactor
        self._session = session
        self._valid: OrderedDict[Wanted, tuple[Credential, float]] = OrderedDict()
        self._waiting: dict[Wanted, list[Deferred[Credential | None]]] = {}
        """Who waits for what, asked already or not."""
        self._unasked: deque[Wanted] = deque()
        self._statements = 0
        self._waiters = 0
        self._released: deque[Callable[[], None]] = deque()
        # How often something was to be forgotten: what was asked before may be out of date.
        self._forgotten = 0

    async def find(self, wanted: Wanted) -> Credential | None:
        """The credential, or None for what does not fit. Raises `Busy` and `Unavailable`."""
        remembered = self._remembered(wanted)
        if remembered is not None:
            return remembered
        if self._waiters >= _MOST_WAITING:
            raise Busy("Too many keys are being looked up. Try again.", retry_after=2)
        waiter: Deferred[Credential | None] = Deferred()
        waiter.addTimeout(_LOOK_UP_SECONDS, self._reactor, onTimeoutCancel=_too_late)
        if wanted in self._waiting:
            self._waiting[wanted].append(waiter)
        else:
            self._waiting[wanted] = [waiter]
            self._unasked.append(wanted)
        self._waiters += 1
        self._ask()
        try:
            return await waiter
        finally:
            self._waiters -= 1

    def forget_all(self) -> None:
        """Look every key up again when it is used next."""
        self._forget(lambda credential: True)

    def forget_key(self, key_id: int) -> None:
        """Look it up again when it is used next."""
        self._forget(lambda credential: credential.principal.key_id == key_id)

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """Look its keys up again when they are used next."""
        self._forget(lambda credential: credential.tenant.id == tenant_id)

    def _forget(self, concerned: Callable[[Credential], bool]) -> None:
        self._forgotten += 1
        for wanted in [each for each, (found, _) in self._valid.items() if concerned(found)]:
            del self._valid[wanted]

    def _ask(self) -> None:
        while self._unasked and self._statements < _STATEMENTS:
            count = min(_IN_ONE, len(self._unasked))
            batch = [self._unasked.popleft() for _ in range(count)]
            self._statements += 1
            Deferred.fromCoroutine(self._look_up(batch))

    async def _look_up(self, batch: list[Wanted]) -> None:
        """Ask the database, and tell all who wait for it by then; whoever has given up asks anew."""
        forgotten = self._forgotten
        found: list[Credential | None] | Exception
        try:
            found = await credentials.find(self._session, batch)
        except Exception as error:
            found = error
        self._statements -= 1
        for index, wanted in enumerate(batch):
            result = found if isinstance(found, Exception) else found[index]
            if isinstance(result, Credential) and forgotten == self._forgotten:
                self._remember(wanted, result)
            for waiter in self._waiting.pop(wanted):
                self._released.append(_telling(waiter, result))
        if len(self._released) <= _IN_ONE_TURN:
            self._release()
        else:
            self._reactor.callLater(0, self._release)
        self._ask()

    def _release(self) -> None:
        """Let some go on, and the others in the turns that follow: each has work to do then."""
        for _ in range(min(_IN_ONE_TURN, len(self._released))):
            self._released.popleft()()
        if self._released:
            self._reactor.callLater(0, self._release)

    def _remembered(self, wanted: Wanted) -> Credential | None:
        credential, until = self._valid.get(wanted, (None, 0.0))
        return None if until <= self._reactor.seconds() else credential

    def _remember(self, wanted: Wanted, credential: Credential) -> None:
        seconds = _REMEMBER_SECONDS
        if credential.seconds is not None:
            seconds = min(seconds, credential.seconds)
        self._valid[wanted] = credential, self._reactor.seconds() + seconds
        self._valid.move_to_end(wanted)
        while len(self._valid) > _MOST_REMEMBERED:
            self._valid.popitem(last=False)


def _telling(
    waiter: Deferred[Credential | None], result: Credential | Exception | None
) -> Callable[[], None]:
    if isinstance(result, Exception):
        return lambda: fail_all([waiter], result)
    return lambda: waiter.callback(result)


def _too_late(result: T | Failure, seconds: float) -> T | Failure:
    if isinstance(result, Failure) and result.check(CancelledError):
        raise Busy("The database is busy. Try again.", retry_after=1)
    return result
