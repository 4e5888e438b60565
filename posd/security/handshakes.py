"""How many TLS handshakes an address may begin.

A handshake costs more than most requests, and anybody may begin one. An address may begin two thousand at
once, and in the long run fifty a second besides those on which a valid key has come. What is over that waits
(`posd.web.http.input_turns`).
"""

from __future__ import annotations

from typing import Final

from posd.security.rate_limits import Clock, TokenBucket, TokenBuckets

_PER_SECOND: Final = 50
_AT_ONCE_SECONDS: Final = 40
"""So two thousand at once: terminals of many shops, behind one address, after a restart of posd."""


class HandshakeRates:
    """Counts handshakes by `addresses.place()`: an IPv4 address, or a /64 of IPv6."""

    def __init__(self, clock: Clock) -> None:
        self._buckets = TokenBuckets(clock)

    def begin(self, bucket_key: str) -> float:
        """Charge a handshake and return 0; or charge nothing and return for how many seconds to wait."""
        bucket = self._bucket(bucket_key)
        return 0.0 if bucket.take() else bucket.seconds_to_wait()

    def refund_handshake(self, bucket_key: str) -> None:
        """A valid key has come on a connection from there: its handshake is not counted."""
        self._bucket(bucket_key).take(-1)

    def _bucket(self, bucket_key: str) -> TokenBucket:
        return self._buckets.get(bucket_key, _PER_SECOND, _AT_ONCE_SECONDS)
