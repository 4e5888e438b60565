"""Pauses after failures, so that the failures of one shop do not delay the others."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from twisted.internet.interfaces import IReactorTime

Key = TypeVar("Key", bound=Hashable)

_FIRST_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 60.0


class TenantQuarantine(Generic[Key]):
    """The keys (tenants, orders) that are excluded after a failure.

    The first exclusion lasts a second. Each later one lasts twice as long as the one before, up to `longest`
    seconds.
    """

    def __init__(self, clock: IReactorTime, longest: float = _LAST_SECONDS) -> None:
        self._clock = clock
        self._longest = longest
        self._until: dict[Key, tuple[float, float]] = {}

    def exclude(self, key: Key) -> float:
        """Exclude a key. Return for how many seconds."""
        _, before = self._until.get(key, (0.0, _FIRST_SECONDS / 2))
        seconds = min(before * 2, self._longest)
        self._until[key] = (self._clock.seconds() + seconds, seconds)
        return seconds

    def remove(self, key: Key) -> None:
        """End the exclusion of a key, and forget its failures."""
        self._until.pop(key, None)

    def __contains__(self, key: Key) -> bool:
        until, _ = self._until.get(key, (0.0, 0.0))
        return until > self._clock.seconds()

    def now(self) -> list[Key]:
        """Return the keys that are excluded now. Forget the keys whose exclusion ended two minutes ago."""
        time = self._clock.seconds()
        for key, (until, _) in list(self._until.items()):
            if until + 2 * _LAST_SECONDS < time:
                del self._until[key]
        return [key for key, (until, _) in self._until.items() if until > time]

    def known(self) -> list[Key]:
        """Return the keys that have failed, and have not been removed or forgotten since."""
        self.now()
        return [*self._until]
