"""Limits log lines that clients can cause: a few of each kind are written, the others are counted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from attrs import define, field

from posd.security.rate_limits import Clock, TokenBucket

_AT_ONCE: Final = 5
_PER_SECOND: Final = 1 / 60
_MOST_KEYS: Final = 10_000


@define(eq=False)
class _LineCount:
    bucket: TokenBucket
    unsaid: int = 0


@define(eq=False)
class LogSampler:
    """Decides which lines are written, by a key such as a terminal: five at once, then one a minute.

    At most 10,000 keys are kept. The least recently used key is removed first, with its count of lines
    that were not written.
    """

    clock: Clock
    _keys: OrderedDict[Hashable, _LineCount] = field(factory=OrderedDict, init=False)

    def take(self, key: Hashable) -> int | None:
        """Return how many lines of this key were left out since its last line. None: write no line."""
        lines = self._keys.get(key)
        if lines is None:
            lines = self._keys[key] = _LineCount(TokenBucket(_PER_SECOND, _AT_ONCE, self.clock))
        self._keys.move_to_end(key)
        if len(self._keys) > _MOST_KEYS:
            self._keys.popitem(last=False)
        if not lines.bucket.take():
            lines.unsaid += 1
            return None
        unsaid, lines.unsaid = lines.unsaid, 0
        return unsaid
