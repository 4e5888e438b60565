"""Limits the TLS handshakes of an address.

A handshake costs more than most requests and needs no key. An address may begin 2,000 handshakes at once, and
50 per second in the long run. Handshakes of connections that have sent a valid key do not count. Handshakes
above the limit wait (`posd.web.http.input_turns`).
"""

from __future__ import annotations

from typing import Final

from posd.security.rate_limits import Clock, TokenBucket, TokenBuckets

_PER_SECOND: Final = 50
_AT_ONCE_SECONDS: Final = 40
"""Allows 2,000 at once: terminals of many shops behind one address, after a restart of posd."""


class HandshakeRates:
    """Counts handshakes by `addresses.address_bucket()`: an IPv4 address, or a /64 of IPv6."""

    def __init__(self, clock: Clock) -> None:
        self._buckets = TokenBuckets(clock)

    def begin(self, bucket_key: str) -> float:
        """Charge a handshake and return 0. Above the limit, charge nothing and return the seconds to wait."""
        bucket = self._bucket(bucket_key)
        return 0.0 if bucket.take() else bucket.seconds_to_wait()

    def refund_handshake(self, bucket_key: str) -> None:
        """Return the charge of a handshake whose connection has sent a valid key."""
        self._bucket(bucket_key).take(-1)

    def _bucket(self, bucket_key: str) -> TokenBucket:
        return self._buckets.get(bucket_key, _PER_SECOND, _AT_ONCE_SECONDS)
