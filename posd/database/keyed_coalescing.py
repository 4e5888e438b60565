"""Collects what several callers ask about the same tenant, and asks it in one statement.

A statement about eight cards costs little more than a statement about one, since most of its cost is the
round trip. So while a statement of a tenant runs, further calls wait, and the next statement does all of
them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from posd.database.coalescing import Coalescer
from posd.errors import Busy

G = TypeVar("G", bound=Hashable)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_KEYS: Final = 100
"""How many keys a statement has. More would make the callers of the next one wait for longer."""
_SECONDS: Final = 10.0
"""For how long a caller waits: for the end of the statement that runs, and for its own."""
MAX_WAITING: Final = 500
"""How many keys of a group may wait. The same number of a tenant's statements may wait for a connection."""
_TURN: Final = 10
"""How many callers are answered in one turn of the reactor."""


class KeyedCoalescer(Generic[G, K, V]):
    """A `Coalescer` for each group of keys, a tenant's for example, while anybody waits for one.

    `work` gets a group and up to 100 keys of it, and returns a value for each. Groups do not wait for each
    other.
    """

    def __init__(
        self, clock: IReactorTime, work: Callable[[G, Sequence[K]], Awaitable[Mapping[K, V]]]
    ) -> None:
        self._clock = clock
        self._work = work
        self._groups: dict[G, Coalescer[K, V]] = {}

    def is_asked(self, group: G) -> bool:
        """Whether a key of this group waits, or is being worked on."""
        return group in self._groups

    def ask(self, group: G, key: K) -> Deferred[V]:
        """Get the value of a key from the group's next statement, which begins now if none runs.

        Raises `Busy` if too many keys wait already.
        """
        coalescer = self._groups.get(group)
        if coalescer is None:
            self._groups[group] = coalescer = Coalescer(
                self._clock,
                partial(self._work, group),
                most=MAX_KEYS,
                seconds=_SECONDS,
                turn=_TURN,
                done=lambda: self._groups.pop(group, None),
            )
        if coalescer.waiting >= MAX_WAITING:
            raise Busy("Too many calls of this shop wait for the database.", retry_after=1)
        return coalescer.ask(key)
