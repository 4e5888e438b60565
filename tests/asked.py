"""A request without a connection, for tests of the code behind the connection."""

from __future__ import annotations

from twisted.web.test.requesthelper import DummyRequest

from posd.errors import TooManyRequests
from posd.security.request_rates import RateAccount
from posd.web.http.headers import Fields, keys_in, read_fields


class FakeRequest(DummyRequest):
    """Has the additional members of a `BoundedRequest`, and keeps the response."""

    account: RateAccount | None = None
    over_rate: TooManyRequests | None = None
    is_disconnected = False
    status = 0
    body = b""

    @property
    def fields(self) -> Fields:
        return read_fields(self.requestHeaders)

    @property
    def keys(self) -> list[str]:
        return keys_in(self.fields)

    def answer(self, status: bytes, fields: bytes, body: bytes = b"") -> None:
        self.status, self.body = int(status.split()[0]), body
