"""What several callers ask of the same tenant at once, in one statement.

A statement about eight cards costs little more than about one: most of it is the way to PostgreSQL and back.
So while one statement of a tenant runs, what others ask waits for the next one.
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

MOST: Final = 100
"""How many keys a statement has. Who waits for the next one waits for all of them."""
_SECONDS: Final = 10.0
"""Longer than the statement before and the caller's own may take together."""
MOST_WAITING: Final = 500
"""Keys of one group that wait: as many as statements of one tenant wait for a connection."""
_TURN: Final = 10
"""So many are answered in one turn of the reactor."""


class Gathering(Generic[G, K, V]):
    """A `Coalescer` for each group of callers, for as long as anybody waits in it.

    `work` gets the group and up to 100 keys, and returns a value for each. Groups do not wait for each other.
    """

    def __init__(
        self, clock: IReactorTime, work: Callable[[G, Sequence[K]], Awaitable[Mapping[K, V]]]
    ) -> None:
        self._clock = clock
        self._work = work
        self._groups: dict[G, Coalescer[K, V]] = {}

    def is_asked(self, group: G) -> bool:
        """Whether something of this group waits, or is being worked on."""
        return group in self._groups

    def ask(self, group: G, key: K) -> Deferred[V]:
        """Get the value of a key from the group's next run, which begins now if none is under way.

        Raises `Busy` if too many keys wait already.
        """
        coalescer = self._groups.get(group)
        if coalescer is None:
            self._groups[group] = coalescer = Coalescer(
                self._clock,
                partial(self._work, group),
                most=MOST,
                seconds=_SECONDS,
                turn=_TURN,
                done=lambda: self._groups.pop(group, None),
            )
        if coalescer.waiting >= MOST_WAITING:
            raise Busy("Too many calls of this shop wait for the database.", retry_after=1)
        return coalescer.ask(key)
