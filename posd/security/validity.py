"""From when until when a certificate is valid, and how soon its end is to be talked about.

Pure: the moment is an argument, in UTC as everything here.
"""

from __future__ import annotations

import enum
from datetime import datetime, timedelta
from typing import Final, Self

from attrs import frozen
from cryptography import x509

_WARNING_TIME: Final = timedelta(days=14)
"""What a person needs to notice and mend it. A certificate of a short life is renewed in its last third,
as ACME clients do (RFC 9773 has the server say when), so it is late only after that."""
_WARNING_FRACTION: Final = 3


class CertificateState(enum.Enum):
    """What a certificate is at some moment."""

    FUTURE = "not valid yet"
    GOOD = "good"
    ENDING = "ends soon"
    ENDED = "ended"


@frozen
class Validity:
    """A certificate's first and last moment."""

    begins: datetime
    ends: datetime

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """That which a certificate states."""
        return cls(certificate.not_valid_before_utc, certificate.not_valid_after_utc)

    def state(self, now: datetime) -> CertificateState:
        if now >= self.ends:
            return CertificateState.ENDED
        if now < self.begins:
            return CertificateState.FUTURE
        warning_time = min(_WARNING_TIME, (self.ends - self.begins) / _WARNING_FRACTION)
        return CertificateState.ENDING if self.ends - now < warning_time else CertificateState.GOOD

    def time_left(self, now: datetime) -> str:
        """How long it is still valid, in days, and at the end in hours."""
        hours = max(0, (self.ends - now) // timedelta(hours=1))
        if hours >= 48:
            return f"{hours // 24} days"
        return "1 hour" if hours == 1 else f"{hours} hours"
