"""The validity of a certificate, and when to warn of its expiry. All times are in UTC."""

from __future__ import annotations

import enum
from datetime import datetime, timedelta
from typing import Final, Self

from attrs import frozen
from cryptography import x509

_WARNING_TIME: Final = timedelta(days=14)
"""The time that a person needs to renew a certificate. A short-lived certificate is renewed in its last
third, as ACME clients do (in RFC 9773 the server says when), so the warning comes later."""
_WARNING_FRACTION: Final = 3


class CertificateState(enum.Enum):
    """The state of a certificate at a given time."""

    FUTURE = "not valid yet"
    GOOD = "good"
    ENDING = "ends soon"
    ENDED = "ended"


@frozen
class Validity:
    """The validity period of a certificate."""

    begins: datetime
    ends: datetime

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """Return the validity period of a certificate."""
        return cls(certificate.not_valid_before_utc, certificate.not_valid_after_utc)

    def state(self, now: datetime) -> CertificateState:
        if now >= self.ends:
            return CertificateState.ENDED
        if now < self.begins:
            return CertificateState.FUTURE
        warning_time = min(_WARNING_TIME, (self.ends - self.begins) / _WARNING_FRACTION)
        return CertificateState.ENDING if self.ends - now < warning_time else CertificateState.GOOD

    def time_left(self, now: datetime) -> str:
        """Return the time until expiry in words: days, or hours below 48 hours."""
        hours = max(0, (self.ends - now) // timedelta(hours=1))
        if hours >= 48:
            return f"{hours // 24} days"
        return "1 hour" if hours == 1 else f"{hours} hours"
