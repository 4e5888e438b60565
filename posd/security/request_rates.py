"""Rate limits of keys and addresses: requests and bytes a second, and ten seconds' worth at once.

A key is charged for all input that comes with it, by WebSocket, SSE and REST, before the input is parsed. An
address is charged only for requests without a known key, so that the terminals of a shop behind one address,
or two thousand terminals that reconnect at once, do not block each other.

Several terminals may use the key of a tenant. A named terminal has the rate of one key, and all terminals of
the key together have four times that rate. Handshakes and frames of such a key are charged separately from
its other requests. A key of all tenants, which a platform uses for all its shops, has twenty times the rate
of one key. Publishing is also limited per tenant.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from attrs import define, field, frozen

from posd.errors import TooManyRequests
from posd.security.addresses import address_bucket
from posd.security.client_credit import BURST_SECONDS, ClientCredit, ClientCredits, seconds_to_wait
from posd.security.rate_limits import Clock, TokenBuckets
from posd.values import KeyKind, Terminal

SHARED_KEY_FACTOR: Final = 4
"""The rate of all terminals that share a key, as a multiple of the rate of one key."""
PLATFORM_KEY_FACTOR: Final = 20
"""The rate of a key of all tenants, as a multiple of the rate of one key."""
FRAME_COST: Final = 0.25
"""The cost of a WebSocket frame, in requests. A message that needs a write of its own costs one request."""
_MOST_DEBT: Final = 30.0
"""The largest debt in seconds, and so the longest time for which a connection is not read."""

BY_CREDENTIAL, BY_ADDRESS, BY_TILL = "credential", "address", "till"
"""Values of `by` for `RequestRates.refused`: a request of a key or of an address was refused, or the
connection of a till is read more slowly."""


class RatePurpose(enum.Enum):
    """The purpose of a charge. Terminals that share a key have a common rate for each purpose."""

    REQUEST = "request"
    HANDSHAKE = "handshake"
    FRAMES = "frames"


@frozen
class RateAccount:
    """An account to charge. `scopes` are the counted scopes, each with its multiple of the rate.

    `owner` is the tenant to which the input belongs, or the key if there is no tenant.
    """

    scopes: tuple[tuple[object, int], ...]
    owner: object = None
    purpose: RatePurpose = RatePurpose.REQUEST

    @property
    def shared_scope(self) -> object:
        """The scope that all users of the same key have in common."""
        return self.scopes[-1][0]


@lru_cache(maxsize=4096)
def account(
    key_id: int,
    device_id: str | None,
    *,
    owner: object = None,
    shared: bool,
    all_tenants: bool = False,
    purpose: RatePurpose = RatePurpose.REQUEST,
) -> RateAccount:
    """Return the account of a key. `shared` is true for the key of a tenant, which several terminals may use.

    Terminals without a device id share the rate of one terminal for their requests. For handshakes and
    frames they have only the common rate of the key.
    """
    if not shared:
        return RateAccount(((key_id, PLATFORM_KEY_FACTOR if all_tenants else 1),), owner, purpose)
    shared_scope = ((key_id, purpose), SHARED_KEY_FACTOR)
    if device_id is None and purpose is not RatePurpose.REQUEST:
        return RateAccount((shared_scope,), owner, purpose)
    return RateAccount((((key_id, device_id), 1), shared_scope), owner, purpose)


def frames_account(terminal: Terminal) -> RateAccount:
    """Return the account of the frames of a terminal."""
    principal = terminal.principal
    shared = principal.kind is KeyKind.TENANT
    return account(
        principal.key_id,
        terminal.device_id,
        owner=terminal.tenant.id,
        shared=shared,
        purpose=RatePurpose.FRAMES,
    )


@define(eq=False)
class RequestRates:
    """Charges accounts and addresses.

    `refused` is called with `BY_CREDENTIAL`, `BY_ADDRESS` or `BY_TILL` when a rate is exceeded.
    """

    requests_per_credential: float
    bytes_per_credential: float
    requests_per_address: float
    _clock: Clock
    refused: Callable[[str], None] = lambda by: None
    _credits: ClientCredits = field(init=False, factory=ClientCredits)
    _addresses: TokenBuckets = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._addresses = TokenBuckets(self._clock)

    def charge_request(self, account: RateAccount, size: int) -> None:
        """Charge a request with a body of `size` bytes, or raise `TooManyRequests` and charge nothing.

        An account with a debt of bytes is refused even if the body is empty. A debt of answers does not
        refuse a handshake, because a terminal reads less by a WebSocket.
        """
        is_request = account.purpose is RatePurpose.REQUEST
        charges = []
        longest = 0.0
        for credit, factor in self._credits_of(account):
            request_cost = 1 / (factor * self.requests_per_credential)
            bytes_cost = size / (factor * self.bytes_per_credential)
            longest = max(
                longest,
                seconds_to_wait(credit.requests, request_cost),
                seconds_to_wait(credit.bytes, bytes_cost),
            )
            if is_request and credit.answers < 0:
                longest = max(longest, seconds_to_wait(credit.answers, 0.0))
            charges.append((credit, request_cost, bytes_cost))
        if longest > 0:
            raise self._over_rate(longest)
        for credit, request_cost, bytes_cost in charges:
            credit.requests -= request_cost
            credit.bytes -= bytes_cost

    def charge_body(self, account: RateAccount, size: int) -> None:
        """Charge bytes of a chunked body as they arrive. Raises `TooManyRequests`."""
        charges = [
            (credit, size / (factor * self.bytes_per_credential))
            for credit, factor in self._credits_of(account)
        ]
        longest = max(seconds_to_wait(credit.bytes, cost) for credit, cost in charges)
        if longest > 0:
            raise self._over_rate(longest)
        for credit, cost in charges:
            credit.bytes -= cost

    def charge_answer(self, account: RateAccount, size: int) -> None:
        """Charge an answer of `size` bytes, which may leave a debt.

        Until the debt is paid, `charge_request` refuses requests but not handshakes. The bytes of answers
        and of requests are counted separately.
        """
        for credit, factor in self._credits_of(account):
            cost = size / (factor * self.bytes_per_credential)
            credit.answers = max(credit.answers - cost, -_MOST_DEBT)

    def charge_address(self, address: str, purpose: str) -> None:
        """Charge a request without a known key. Raises `TooManyRequests`.

        Each purpose has a rate of its own.
        """
        scope = (address_bucket(address), purpose)
        bucket = self._addresses.get(scope, self.requests_per_address, BURST_SECONDS)
        if not bucket.take():
            message = "This address asks more than it may without a valid key."
            raise self._refusal(BY_ADDRESS, message, bucket.seconds_to_wait())

    def heard(self, account: RateAccount, requests: float, size: int) -> float:
        """Charge input of a WebSocket, which may leave a debt.

        Returns for how many seconds the connection must not be read.
        """
        least = 0.0
        for credit, factor in self._credits_of(account):
            left = credit.requests - requests / (factor * self.requests_per_credential)
            credit.requests = left if left > -_MOST_DEBT else -_MOST_DEBT
            bytes_left = credit.bytes - size / (factor * self.bytes_per_credential)
            credit.bytes = bytes_left if bytes_left > -_MOST_DEBT else -_MOST_DEBT
            least = min(least, credit.requests, credit.bytes)
        owed = seconds_to_wait(least, 0.0)
        if owed > 0:
            self.refused(BY_TILL)
        return owed

    def _credits_of(self, account: RateAccount) -> list[tuple[ClientCredit, int]]:
        """Return the credit of each scope of an account, with its multiple of the rate."""
        now, get = self._clock(), self._credits.get
        return [(get(scope, now), factor) for scope, factor in account.scopes]

    def _over_rate(self, seconds: float) -> TooManyRequests:
        return self._refusal(BY_CREDENTIAL, "This key sends more than it may.", seconds)

    def _refusal(self, by: str, message: str, seconds_to_wait: float) -> TooManyRequests:
        self.refused(by)
        return TooManyRequests(message, retry_after=max(1, math.ceil(seconds_to_wait)))
