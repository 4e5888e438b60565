"""How much credentials and addresses may ask: requests and bytes a second, and ten seconds' worth at once.

A credential is charged for all that comes with it, on every face, before any of it is parsed. An address is
charged only for requests without a key that is known, so that a shop behind one address, or two thousand
terminals that come back at once, are not held up by each other.

The key of one tenant may be used by several terminals. Each terminal that is named has the rate of a
credential, and all of them together four times that rate. Handshakes and frames of such a key are charged
apart from its other requests. A key of all tenants, with which a platform publishes for all of its shops, has
twenty times the rate of a credential: what it publishes is limited for each tenant besides.
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
"""How many times the rate of a credential all terminals have that share one key."""
PLATFORM_KEY_FACTOR: Final = 20
"""How many times the rate of a credential a key of all tenants has."""
FRAME_COST: Final = 0.25
"""What a WebSocket frame costs, in requests. A message that has to be written down by itself costs one."""
_MOST_DEBT: Final = 30.0
"""Seconds for which a connection is not read at most, whatever came on it."""

BY_CREDENTIAL, BY_ADDRESS, BY_TILL = "credential", "address", "till"
"""Who was over a rate: a credential's or an address's request was refused, or a till is read more slowly."""


class RatePurpose(enum.Enum):
    """What is charged. All terminals that share a key have the rate together for each of these."""

    REQUEST = "request"
    HANDSHAKE = "handshake"
    FRAMES = "frames"


@frozen
class RateAccount:
    """Who is charged: `scopes` are what is counted, with how many times the rate each may have.

    `owner` is whose input a request is: the tenant's that it is about, or the key's. `purpose` is what is
    charged.
    """

    scopes: tuple[tuple[object, int], ...]
    owner: object = None
    purpose: RatePurpose = RatePurpose.REQUEST

    @property
    def shared_scope(self) -> object:
        """What all who use the same key have in common."""
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
    """The account of a key. `shared`: it is the key of a tenant, which several terminals may use.

    `owner` is whose input the request is: the tenant's that it is about, or the key's.

    Terminals without a name share the rate of one terminal for their requests, and have only the rate
    of all together for handshakes and frames.
    """
    if not shared:
        return RateAccount(((key_id, PLATFORM_KEY_FACTOR if all_tenants else 1),), owner, purpose)
    shared_scope = ((key_id, purpose), SHARED_KEY_FACTOR)
    if device_id is None and purpose is not RatePurpose.REQUEST:
        return RateAccount((shared_scope,), owner, purpose)
    return RateAccount((((key_id, device_id), 1), shared_scope), owner, purpose)


def frames_account(terminal: Terminal) -> RateAccount:
    """The account of a terminal's frames."""
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
    """Charges accounts and addresses. `refused` is told by which rate somebody was held up."""

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
        """Charge a request with a body of so many bytes; or raise `TooManyRequests` and charge nothing.

        Whoever owes bytes waits, also with a request that has none. A terminal may connect whatever it owes
        for answers: it reads less by a WebSocket.
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
        """Charge bytes of a body whose length was not known, as they come. Raises `TooManyRequests`."""
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
        """Charge an answer of so many bytes, even into debt; until that is paid requests are refused.

        What is sent is counted apart from it, and handshakes are not refused.
        """
        for credit, factor in self._credits_of(account):
            cost = size / (factor * self.bytes_per_credential)
            credit.answers = max(credit.answers - cost, -_MOST_DEBT)

    def charge_address(self, address: str, purpose: str) -> None:
        """Charge a request without a key that is known. Raises `TooManyRequests`.

        Requests of different purposes do not hold each other up.
        """
        scope = (address_bucket(address), purpose)
        bucket = self._addresses.get(scope, self.requests_per_address, BURST_SECONDS)
        if not bucket.take():
            message = "This address asks more than it may without a valid key."
            raise self._refusal(BY_ADDRESS, message, bucket.seconds_to_wait())

    def heard(self, account: RateAccount, requests: float, size: int) -> float:
        """Charge what has come on a WebSocket, even into debt; for how many seconds to read no more."""
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
        """What each scope of an account has, and how many times the rate is its."""
        now, get = self._clock(), self._credits.get
        return [(get(scope, now), factor) for scope, factor in account.scopes]

    def _over_rate(self, seconds: float) -> TooManyRequests:
        return self._refusal(BY_CREDENTIAL, "This key sends more than it may.", seconds)

    def _refusal(self, by: str, message: str, seconds_to_wait: float) -> TooManyRequests:
        self.refused(by)
        return TooManyRequests(message, retry_after=max(1, math.ceil(seconds_to_wait)))
