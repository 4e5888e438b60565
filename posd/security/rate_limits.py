"""How much anybody may ask of posd: rates, failed attempts, connections, and who is counted.

All of it is arithmetic on a clock that is passed in, a function that returns seconds. That clock
may be the time of day, so it may be set back: nobody waits longer for that. The limits themselves
are attributes that may be changed at any time.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from attrs import define, field

from posd.errors import TooManyRequests, Unavailable
from posd.values import TenantId

Clock = Callable[[], float]
Network = IPv4Network | IPv6Network

MOST_DEVICES: Final = 1000
"""Terminals with a name that a tenant may have."""

_MINUTE: Final = 60.0
_CONNECTION_RETRY: Final = 60
"""Seconds until a place may be free: within about as many a peer that has gone silent is dropped."""
_OVERLOAD_RETRY: Final = 10
_MENTIONS_PER_SECOND: Final = 1 / 60
_MENTIONS_AT_ONCE: Final = 5
_ALL_MENTIONS_PER_SECOND: Final = 1.0
_ALL_MENTIONS_AT_ONCE: Final = 50
_MOST_MENTIONED: Final = 10_000
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

    def take(self, count: int = 1) -> bool:
        """Take so many tokens if they are there, and tell whether they were."""
        if self.wait(count) > 0:
            return False
        self._tokens -= count
        return True

    def wait(self, count: int = 1) -> float:
        """Tell the seconds until so many can be taken: 0.0 if they can be now."""
        now = self._clock()
        refill = self.rate * max(0.0, now - self._updated)
        self._tokens = min(self.burst, self._tokens + refill)
        self._updated = now
        lacking = min(count, self.burst) - self._tokens
        return lacking / self.rate if lacking > _ROUNDING else 0.0


@define(eq=False)
class Rates:
    """A bucket for each of those who are counted, by a number that stands for them."""

    _clock: Clock
    _buckets: dict[int, TokenBucket] = field(init=False, factory=dict)

    def spend(self, who: int, count: int, rate: float, burst: float) -> None:
        """Take tokens out of somebody's bucket. Raises `TooManyRequests` with the time to wait."""
        bucket = self._buckets.get(who)
        if bucket is None:
            bucket = self._buckets[who] = TokenBucket(rate, burst, self._clock)
        # A reload may have changed them.
        bucket.rate, bucket.burst = rate, burst
        if not bucket.take(count):
            raise TooManyRequests(
                "Too much is sent at once.", retry_after=max(1, math.ceil(bucket.wait(count)))
            )


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

    def failed(self, address: str) -> None:
        """Count one more failure of an address."""
        now = self._clock()
        where = place(address)
        # More than the limit need not be remembered: the oldest of these decides.
        self._times[where] = (*self._recent(where, now), now)[-self.per_minute :]
        self._times.move_to_end(where)
        while len(self._times) > self._capacity or not self._recent(next(iter(self._times)), now):
            self._times.popitem(last=False)

    def blocked(self, address: str) -> int | None:
        """Tell for how many seconds an address has no attempt left, or None if it has one."""
        now = self._clock()
        recent = self._recent(place(address), now)
        if len(recent) < self.per_minute:
            return None
        return math.ceil(recent[-self.per_minute] + _MINUTE - now)

    @property
    def places(self) -> int:
        """How many places are remembered."""
        return len(self._times)

    def _recent(self, place: str, now: float) -> tuple[float, ...]:
        times = self._times.get(place, ())
        return tuple(time for time in times if now - _MINUTE < time <= now)


@define(eq=False)
class Mentions:
    """Which of those who were not let in are told of in the log, as many as a journal bears.

    An address is a few times at once and then once a minute, all together a few dozen times and then
    once a second.
    """

    _clock: Clock
    _all: TokenBucket = field(init=False)
    _places: OrderedDict[str, TokenBucket] = field(factory=OrderedDict, init=False)
    _unsaid: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._all = TokenBucket(_ALL_MENTIONS_PER_SECOND, _ALL_MENTIONS_AT_ONCE, self._clock)

    def take(self, address: str) -> int | None:
        """How many were passed over since the last one, for the line; None if this one is too."""
        if not (self._bucket(place(address)).take() and self._all.take()):
            self._unsaid += 1
            return None
        unsaid, self._unsaid = self._unsaid, 0
        return unsaid

    def _bucket(self, where: str) -> TokenBucket:
        bucket = self._places.get(where)
        if bucket is None:
            bucket = TokenBucket(_MENTIONS_PER_SECOND, _MENTIONS_AT_ONCE, self._clock)
            self._places[where] = bucket
        self._places.move_to_end(where)
        if len(self._places) > _MOST_MENTIONED:
            self._places.popitem(last=False)
        return bucket


@define(eq=False)
class Connections:
    """Counts the connections that are open: in all, of each tenant and of each of its devices.

    A device may have a few at once, since a till tests its connection beside the one it has, and
    since the network may have lost an old one without telling anybody.
    """

    total: int
    per_tenant: int
    per_device: int = 4
    _open: int = field(init=False, default=0)
    _of_tenant: Counter[TenantId] = field(init=False, factory=Counter)
    _of_device: Counter[tuple[TenantId, str]] = field(init=False, factory=Counter)

    def admit(self, tenant_id: TenantId, device_id: str | None) -> Lease:
        """Count one more connection, until its lease is released.

        Raises `TooManyRequests` if the device or the tenant has as many as it may have, and
        `Unavailable` if posd as a whole has. Without a device it counts for the tenant only.
        """
        device = None if device_id is None else (tenant_id, device_id)
        if device is not None and self._of_device[device] >= self.per_device:
            raise _too_many_connections("This terminal has too many connections.")
        if self._of_tenant[tenant_id] >= self.per_tenant:
            raise _too_many_connections("This tenant has too many connections.")
        if self._open >= self.total:
            message = "The server has as many connections as it can serve."
            raise Unavailable(message, code="overloaded", retry_after=_OVERLOAD_RETRY)
        self._count(tenant_id, device, 1)
        return Lease(self, tenant_id, device)

    @property
    def open(self) -> int:
        """How many connections there are."""
        return self._open

    def of_tenant(self, tenant_id: TenantId) -> int:
        """Tell how many connections a tenant has."""
        return self._of_tenant[tenant_id]

    def of_device(self, tenant_id: TenantId, device_id: str) -> int:
        """Tell how many connections one of its devices has."""
        return self._of_device[tenant_id, device_id]

    def _count(self, tenant_id: TenantId, device: tuple[TenantId, str] | None, change: int) -> None:
        self._open += change
        self._of_tenant[tenant_id] += change
        if not self._of_tenant[tenant_id]:
            del self._of_tenant[tenant_id]
        if device is not None:
            self._of_device[device] += change
            if not self._of_device[device]:
                del self._of_device[device]


@define(eq=False)
class Lease:
    """One connection's place in the counts."""

    _connections: Connections | None
    _tenant_id: TenantId
    _device: tuple[TenantId, str] | None

    def release(self) -> None:
        """Give the place back; a second time does nothing."""
        connections, self._connections = self._connections, None
        if connections is not None:
            connections._count(self._tenant_id, self._device, -1)


def client_address(peer: str, forwarded: Sequence[str], proxies: Sequence[Network]) -> str:
    """Tell the address of the client behind a connection, believing nobody but our proxies.

    `peer` is the address of the other end of the connection, `forwarded` the X-Forwarded-For
    headers as they came, in order. Each proxy adds the address it was called from at the end, and
    what a client writes there itself stands before. So the client is the last hop that is no proxy
    of ours. Where a proxy's word cannot be understood, that proxy is the client. The peer of a
    unix socket has no address, and counts as a proxy if there are any: who may connect there is a
    matter of the socket's mode.

    An IPv4 address that came in through IPv6 is told as IPv4.
    """
    address = _parse(peer)
    hops = [hop for header in forwarded for hop in header.split(",") if hop.strip()]
    while proxies and hops and (address is None or any(address in proxy for proxy in proxies)):
        hop = _parse(hops.pop())
        if hop is None:
            break
        address = hop
    return peer if address is None else str(address)


def _too_many_connections(message: str) -> TooManyRequests:
    return TooManyRequests(message, code="too_many_connections", retry_after=_CONNECTION_RETRY)


def place(address: str) -> str:
    """Name what an address counts as: itself or its /64."""
    parsed = _parse(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, 64), strict=False))
    return address if parsed is None else str(parsed)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address, with a port or in brackets too, as some proxies write it."""
    written = re.fullmatch(r"\[(.+)\](?::\d+)?|([\d.]+):\d+|(.+)", text.strip())
    if written is None:
        return None
    try:
        address = ip_address(next(filter(None, written.groups())))
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    # Without its zone, which only names the interface that this machine was reached through.
    return address.ipv4_mapped or IPv6Address(int(address))
