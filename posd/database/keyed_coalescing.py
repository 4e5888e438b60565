"""Runs one statement for several callers that ask about the same tenant.

A statement about eight cards costs little more than a statement about one card, because most of the cost
is the round
trip. While a statement of a tenant runs, further calls wait, and the next statement handles all of them.
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
"""The most keys of a statement. With more keys, the callers of the next statement would wait longer."""
_SECONDS: Final = 10.0
"""The time that a caller waits for the end of the running statement and of its own one."""
MAX_WAITING: Final = 500
"""The most waiting keys of a group; as many statements of a tenant may wait for a connection."""
_TURN: Final = 10
"""The number of callers that are answered in one turn of the reactor."""


class KeyedCoalescer(Generic[G, K, V]):
    """A `Coalescer` for each group of keys, for example of a tenant, while callers wait for one.

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
        """Whether a key of this group waits, or is in the running statement."""
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
