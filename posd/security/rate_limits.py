"""Token buckets, and limits of failed authentications and of log lines about refused clients.

The clock is an argument: a function that returns seconds. It may be set back; no wait becomes longer then.
The limits are attributes that may be changed at any time.
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
"""Allows five lines at once."""
_ALL_LINES_PER_SECOND: Final = 1.0
_ALL_LINES_AT_ONCE: Final = 50
_MOST_ADDRESSES: Final = 10_000
_ROUNDING: Final = 1e-3
"""The part of a token that may be lost by rounding when a wait is added to the time of day."""


@define(eq=False)
class TokenBucket:
    """A token bucket: `rate` tokens a second, and up to `burst` at once.

    A request for more than `burst` tokens is granted when the bucket is full, and leaves a debt. Otherwise
    it would never be granted. The debt keeps the rate in the long run.
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
        """Take so many tokens and return True, or take none and return False."""
        if self.seconds_to_wait(count) > 0:
            return False
        self._tokens -= count
        return True

    def seconds_to_wait(self, count: float = 1) -> float:
        """Return the seconds until so many tokens can be taken. 0.0 means now."""
        lacking = (count if count < self.burst else self.burst) - self._refill()
        return lacking / self.rate if lacking > _ROUNDING else 0.0

    def _refill(self) -> float:
        """Add the tokens of the time since the last call, and return how many there are."""
        now, tokens = self._clock(), self._tokens
        if now > self._updated:
            tokens += self.rate * (now - self._updated)
        self._updated = now
        # A reload may have reduced `burst`.
        self._tokens = tokens = tokens if tokens < self.burst else self.burst
        return tokens


@define(eq=False)
class TokenBuckets:
    """The token bucket of each client. Above `capacity`, the least recently used one is removed."""

    _clock: Clock
    _capacity: int = 20_000
    _buckets: OrderedDict[object, TokenBucket] = field(init=False, factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._buckets)

    def get(self, client: object, rate: float, seconds: float) -> TokenBucket:
        """Return the bucket of a client. It holds the tokens of so many seconds at `rate` a second."""
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = TokenBucket(rate, rate * seconds, self._clock)
            if len(self._buckets) > self._capacity:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(client)
            if bucket.rate != rate or bucket.burst != rate * seconds:
                # A reload has changed the limits.
                bucket.rate, bucket.burst = rate, rate * seconds
        return bucket


@define(eq=False)
class FailedAttempts:
    """Counts the failed authentications of the last minute by address.

    IPv6 addresses are counted by /64, because a host can use every address of its /64. Above `capacity`,
    the address whose last failure is oldest is removed.
    """

    per_minute: int
    _clock: Clock
    _capacity: int = 10_000
    _times: OrderedDict[str, tuple[float, ...]] = field(init=False, factory=OrderedDict)

    def record_failure(self, address: str) -> None:
        """Count a failure of an address."""
        now = self._clock()
        bucket_key = address_bucket(address)
        # The oldest of the last `per_minute` failures decides, so older ones are dropped.
        self._times[bucket_key] = (*self._recent(bucket_key, now), now)[-self.per_minute :]
        self._times.move_to_end(bucket_key)
        while len(self._times) > self._capacity or not self._recent(next(iter(self._times)), now):
            self._times.popitem(last=False)

    def seconds_blocked(self, address: str) -> int | None:
        """Return for how many seconds an address is blocked, or None if it is not."""
        now = self._clock()
        recent = self._recent(address_bucket(address), now)
        if len(recent) < self.per_minute:
            return None
        return math.ceil(recent[-self.per_minute] + _MINUTE - now)

    @property
    def remembered_buckets(self) -> int:
        """The number of counted addresses."""
        return len(self._times)

    def _recent(self, address_bucket: str, now: float) -> tuple[float, ...]:
        times = self._times.get(address_bucket, ())
        return tuple(time for time in times if now - _MINUTE < time <= now)


@define(eq=False)
class RefusalLogLimit:
    """Limits the log lines about refused clients.

    Per address: 5 lines at once, then one a minute. In total: 50 lines at once, then one a second.
    """

    _clock: Clock
    _all: TokenBucket = field(init=False)
    _by_address: TokenBuckets = field(init=False)
    _unsaid: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._all = TokenBucket(_ALL_LINES_PER_SECOND, _ALL_LINES_AT_ONCE, self._clock)
        self._by_address = TokenBuckets(self._clock, _MOST_ADDRESSES)

    def take(self, address: str) -> int | None:
        """Return how many lines were left out since the last line. None: write no line."""
        own = self._by_address.get(address_bucket(address), 1 / _LINE_SECONDS, _LINE_BURST_SECONDS)
        if not (own.take() and self._all.take()):
            self._unsaid += 1
            return None
        unsaid, self._unsaid = self._unsaid, 0
        return unsaid
