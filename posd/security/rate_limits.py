"""Token buckets, failed attempts to authenticate, and log lines about refused clients.

All of it is arithmetic on a clock that is passed in, a function that returns seconds. That clock
may be the time of day, so it may be set back: nobody waits longer for that. The limits themselves
are attributes that may be changed at any time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from attrs import define, field

from posd.security.addresses import address_bucket

Clock = Callable[[], float]
_MINUTE: Final = 60.0
_LINE_SECONDS: Final = 60
_LINE_BURST_SECONDS: Final = 5 * _LINE_SECONDS
"""So five at once."""
_ALL_LINES_PER_SECOND: Final = 1.0
_ALL_LINES_AT_ONCE: Final = 50
_MOST_ADDRESSES: Final = 10_000
_ROUNDING: Final = 1e-3
"""Of a token: so much can be lost when a wait is added to the time of day."""


@define(eq=False)
class TokenBucket:
    """A steady `rate` a second, and after a pause up to `burst` at once.

    A request for more than `burst` is granted when the bucket is full and leaves a debt, so that
    the rate holds in the long run and nothing is impossible for ever.
    """

    rate: float
    burst: float
    _clock: Clock
    _tokens: float = field(init=False)
    _updated: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tokens = self.burst
        self._updated = self._clock()

    def take(self, count: float = 1) -> bool:
        """Take so many tokens if they are there, and tell whether they were."""
        if self.seconds_to_wait(count) > 0:
            return False
        self._tokens -= count
        return True

    def seconds_to_wait(self, count: float = 1) -> float:
        """Tell the seconds until so many can be taken: 0.0 if they can be now."""
        lacking = (count if count < self.burst else self.burst) - self._refill()
        return lacking / self.rate if lacking > _ROUNDING else 0.0

    def _refill(self) -> float:
        """Add what the time since the last look has given; how many tokens there are now."""
        now, tokens = self._clock(), self._tokens
        if now > self._updated:
            tokens += self.rate * (now - self._updated)
        self._updated = now
        # A reload may have made `burst` less.
        self._tokens = tokens = tokens if tokens < self.burst else self.burst
        return tokens


@define(eq=False)
class TokenBuckets:
    """Token buckets by who is counted: at most `capacity`, and the longest unused is forgotten first."""

    _clock: Clock
    _capacity: int = 20_000
    _buckets: OrderedDict[object, TokenBucket] = field(init=False, factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._buckets)

    def get(self, client: object, rate: float, seconds: float) -> TokenBucket:
        """Somebody's bucket, which holds what `rate` gives in so many seconds."""
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = TokenBucket(rate, rate * seconds, self._clock)
            if len(self._buckets) > self._capacity:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(client)
            if bucket.rate != rate or bucket.burst != rate * seconds:
                # A reload has changed them.
                bucket.rate, bucket.burst = rate, rate * seconds
        return bucket


@define(eq=False)
class FailedAttempts:
    """Counts failed attempts to authenticate in the last minute, by where they came from.

    An IPv4 address counts by itself, IPv6 by its /64, since whoever has one address of that has
    all of them. At most `capacity` places are remembered; the one that was quiet for longest is
    forgotten first.
    """

    per_minute: int
    _clock: Clock
    _capacity: int = 10_000
    _times: OrderedDict[str, tuple[float, ...]] = field(init=False, factory=OrderedDict)

    def record_failure(self, address: str) -> None:
        """Count one more failure of an address."""
        now = self._clock()
        bucket_key = address_bucket(address)
        # More than the limit need not be remembered: the oldest of these decides.
        self._times[bucket_key] = (*self._recent(bucket_key, now), now)[-self.per_minute :]
        self._times.move_to_end(bucket_key)
        while len(self._times) > self._capacity or not self._recent(next(iter(self._times)), now):
            self._times.popitem(last=False)

    def seconds_blocked(self, address: str) -> int | None:
        """Tell for how many seconds an address has no attempt left, or None if it has one."""
        now = self._clock()
        recent = self._recent(address_bucket(address), now)
        if len(recent) < self.per_minute:
            return None
        return math.ceil(recent[-self.per_minute] + _MINUTE - now)

    @property
    def remembered_buckets(self) -> int:
        """How many places are remembered."""
        return len(self._times)

    def _recent(self, address_bucket: str, now: float) -> tuple[float, ...]:
        times = self._times.get(address_bucket, ())
        return tuple(time for time in times if now - _MINUTE < time <= now)


@define(eq=False)
class RefusalLogLimit:
    """Which of those who were not let in are told of in the log, as many as a journal bears.

    An address is a few times at once and then once a minute, all together a few dozen times and then
    once a second.
    """

    _clock: Clock
    _all: TokenBucket = field(init=False)
    _by_address: TokenBuckets = field(init=False)
    _unsaid: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._all = TokenBucket(_ALL_LINES_PER_SECOND, _ALL_LINES_AT_ONCE, self._clock)
        self._by_address = TokenBuckets(self._clock, _MOST_ADDRESSES)

    def take(self, address: str) -> int | None:
        """How many were passed over since the last one, for the line; None if this one is too."""
        own = self._by_address.get(address_bucket(address), 1 / _LINE_SECONDS, _LINE_BURST_SECONDS)
        if not (own.take() and self._all.take()):
            self._unsaid += 1
            return None
        unsaid, self._unsaid = self._unsaid, 0
        return unsaid
