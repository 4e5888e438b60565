"""Charges a request to a credential or an address as soon as its head has arrived.

The body has not been read at that time. The account is looked up in memory, without the database.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from attrs import frozen

from posd.errors import TooManyRequests
from posd.memo import memoize
from posd.security.addresses import is_proxy
from posd.security.auth import key_hash
from posd.security.key_index import KeyIndex
from posd.security.request_rates import RateAccount, RatePurpose, RequestRates, account
from posd.values import RESERVED
from posd.web.http.bounded_request import BoundedRequest
from posd.web.http.headers import as_text
from posd.web.http.http_request import ListenerContext, address_of

_HEALTH_PATHS: Final = (b"/health/live", b"/health/ready")
"""The paths of health checks. A load balancer may send them from the same address as unknown clients."""
_LONGEST_DEVICE: Final = 512
_NO_DEVICE: Final = ("",)


@frozen
class RateGate:
    """Charges the requests of one listener."""

    index: KeyIndex
    rates: RequestRates
    listener_context: ListenerContext

    def account(self, request: BoundedRequest, path: bytes) -> RateAccount | None:
        """Return the account of the request's key; None if the key is unknown or the index is not loaded."""
        key = _presented_key(request)
        if key is None or not self.index.is_loaded:
            return None
        return self._account(request, path.partition(b"?")[0], key)

    def charge(
        self, request: BoundedRequest, account: RateAccount | None, path: bytes, size: int
    ) -> None:
        """Charge a request with a body of `size` bytes. Raises `TooManyRequests`."""
        if account is not None:
            self.rates.charge_request(account, size)
            return
        key = _presented_key(request)
        if key is not None and not self.index.is_loaded:
            # The owner of the key is not known yet.
            return
        if key is not None or not self.listener_context.trusted:
            purpose = "health" if path.partition(b"?")[0] in _HEALTH_PATHS else "all"
            self.rates.charge_address(address_of(request, self.listener_context), purpose)

    def charge_more(self, account: RateAccount | None, size: int) -> TooManyRequests | None:
        """Charge bytes of a body without Content-Length. Return the refusal if the rate is exceeded."""
        if account is not None:
            try:
                self.rates.charge_body(account, size)
            except TooManyRequests as refusal:
                return refusal
        return None

    def is_proxy(self, peer: str) -> bool:
        """Return whether the other end of a connection is one of the listener's `proxies`."""
        return is_proxy(peer, self.listener_context.proxies)

    def _account(self, request: BoundedRequest, path: bytes, key: str) -> RateAccount | None:
        sha256 = key_hash(key)
        slug, purpose = _tenant_and_purpose(path)
        known = None if sha256 is None else self.index.find(sha256, slug)
        tenant_id = None if slug is None else self.index.tenant(slug)
        if known is None:
            return None
        named = as_text(request.fields.get("x-device-id", _NO_DEVICE)[0]).strip()
        device = named if len(named) <= _LONGEST_DEVICE else ""
        return account(
            known.id,
            device or None,
            owner=("key", known.id) if tenant_id is None else tenant_id,
            shared=known.shared,
            all_tenants=known.tenant_id is None,
            purpose=purpose,
        )


def _presented_key(request: BoundedRequest) -> str | None:
    """Return the key of a request. Of different keys the first is charged; the request is refused later."""
    return next(iter(request.keys), None)


@memoize
def _tenant_and_purpose(path: bytes) -> tuple[str | None, RatePurpose]:
    """Return the tenant in a path, or None, and the purpose that the request is charged for."""
    parts = [unquote_to_bytes(part).decode(errors="replace") for part in path.split(b"/")[1:4]]
    match parts:
        case ["ws", "pos", slug]:
            return slug, RatePurpose.HANDSHAKE
        case ["api", slug, *_] if slug not in RESERVED:
            return slug, RatePurpose.REQUEST
    return None, RatePurpose.REQUEST
