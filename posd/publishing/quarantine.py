"""What is left alone for a while after it failed, so that the trouble of one shop stays its own."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from twisted.internet.interfaces import IReactorTime

Key = TypeVar("Key", bound=Hashable)

_FIRST_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 60.0


class TenantQuarantine(Generic[Key]):
    """What is left alone, and until when: a second, twice as long each time, up to `longest` seconds."""

    def __init__(self, clock: IReactorTime, longest: float = _LAST_SECONDS) -> None:
        self._clock = clock
        self._longest = longest
        self._until: dict[Key, tuple[float, float]] = {}

    def exclude(self, key: Key) -> float:
        """Leave it alone; for how many seconds."""
        _, before = self._until.get(key, (0.0, _FIRST_SECONDS / 2))
        seconds = min(before * 2, self._longest)
        self._until[key] = (self._clock.seconds() + seconds, seconds)
        return seconds

    def remove(self, key: Key) -> None:
        """Forget that it failed."""
        self._until.pop(key, None)

    def __contains__(self, key: Key) -> bool:
        until, _ = self._until.get(key, (0.0, 0.0))
        return until > self._clock.seconds()

    def now(self) -> list[Key]:
        """What is left alone now. Forgets what was not left alone for the last two minutes."""
        time = self._clock.seconds()
        for key, (until, _) in list(self._until.items()):
            if until + 2 * _LAST_SECONDS < time:
                del self._until[key]
        return [key for key, (until, _) in self._until.items() if until > time]

    def known(self) -> list[Key]:
        """What failed and was not removed or forgotten since."""
        self.now()
        return [*self._until]
