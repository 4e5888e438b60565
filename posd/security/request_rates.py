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
from posd.security.addresses import place
from posd.security.credit import BURST_SECONDS, Credit, Credits, wait
from posd.security.rate_limits import Buckets, Clock
from posd.values import KeyKind, Terminal

TOGETHER: Final = 4
"""How many times the rate of a credential all terminals have that share one key."""
OF_ALL_TENANTS: Final = 20
"""How many times the rate of a credential a key of all tenants has."""
FRAME: Final = 0.25
"""What a WebSocket frame costs, in requests. A message that has to be written down by itself costs one."""
_MOST_DEBT: Final = 30.0
"""Seconds for which a connection is not read at most, whatever came on it."""

BY_CREDENTIAL, BY_ADDRESS, BY_TILL = "credential", "address", "till"
"""Who was over a rate: a credential's or an address's request was refused, or a till is read more slowly."""


class Purpose(enum.Enum):
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
    purpose: Purpose = Purpose.REQUEST

    @property
    def together(self) -> object:
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
    purpose: Purpose = Purpose.REQUEST,
) -> RateAccount:
    """The account of a key. `shared`: it is the key of a tenant, which several terminals may use.

    `owner` is whose input the request is: the tenant's that it is about, or the key's.

    Terminals without a name share the rate of one terminal for their requests, and have only the rate
    of all together for handshakes and frames.
    """
    if not shared:
        return RateAccount(((key_id, OF_ALL_TENANTS if all_tenants else 1),), owner, purpose)
    together = ((key_id, purpose), TOGETHER)
    if device_id is None and purpose is not Purpose.REQUEST:
        return RateAccount((together,), owner, purpose)
    return RateAccount((((key_id, device_id), 1), together), owner, purpose)


def account_of(terminal: Terminal) -> RateAccount:
    """The account of a terminal's frames."""
    principal = terminal.principal
    shared = principal.kind is KeyKind.TENANT
    return account(
        principal.key_id,
        terminal.device_id,
        owner=terminal.tenant.id,
        shared=shared,
        purpose=Purpose.FRAMES,
    )


@define(eq=False)
class RequestRates:
    """Charges accounts and addresses. `refused` is told by which rate somebody was held up."""

    requests_per_credential: float
    bytes_per_credential: float
    requests_per_address: float
    _clock: Clock
    refused: Callable[[str], None] = lambda by: None
    _credits: Credits = field(init=False, factory=Credits)
    _addresses: Buckets = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._addresses = Buckets(self._clock)

    def request(self, who: RateAccount, size: int) -> None:
        """Charge a request with a body of so many bytes; or raise `TooManyRequests` and charge nothing.

        Whoever owes bytes waits, also with a request that has none. A terminal may connect whatever it owes
        for answers: it reads less by a WebSocket.
        """
        is_request = who.purpose is Purpose.REQUEST
        charges = []
        longest = 0.0
        for credit, times in self._of(who):
            for_request = 1 / (times * self.requests_per_credential)
            for_bytes = size / (times * self.bytes_per_credential)
            longest = max(
                longest, wait(credit.requests, for_request), wait(credit.bytes, for_bytes)
            )
            if is_request and credit.answers < 0:
                longest = max(longest, wait(credit.answers, 0.0))
            charges.append((credit, for_request, for_bytes))
        if longest > 0:
            raise self._over_rate(longest)
        for credit, for_request, for_bytes in charges:
            credit.requests -= for_request
            credit.bytes -= for_bytes

    def body(self, who: RateAccount, size: int) -> None:
        """Charge bytes of a body whose length was not known, as they come. Raises `TooManyRequests`."""
        charges = [
            (credit, size / (times * self.bytes_per_credential)) for credit, times in self._of(who)
        ]
        longest = max(wait(credit.bytes, cost) for credit, cost in charges)
        if longest > 0:
            raise self._over_rate(longest)
        for credit, cost in charges:
            credit.bytes -= cost

    def answered(self, who: RateAccount, size: int) -> None:
        """Charge an answer of so many bytes, even into debt; until that is paid requests are refused.

        What is sent is counted apart from it, and handshakes are not refused.
        """
        for credit, times in self._of(who):
            cost = size / (times * self.bytes_per_credential)
            credit.answers = max(credit.answers - cost, -_MOST_DEBT)

    def stranger(self, address: str, purpose: str) -> None:
        """Charge a request without a key that is known. Raises `TooManyRequests`.

        Requests of different purposes do not hold each other up.
        """
        scope = (place(address), purpose)
        bucket = self._addresses.get(scope, self.requests_per_address, BURST_SECONDS)
        if not bucket.take():
            what = "This address asks more than it may without a valid key."
            raise self._refusal(BY_ADDRESS, what, bucket.wait())

    def heard(self, who: RateAccount, requests: float, size: int) -> float:
        """Charge what has come on a WebSocket, even into debt; for how many seconds to read no more."""
        least = 0.0
        for credit, times in self._of(who):
            left = credit.requests - requests / (times * self.requests_per_credential)
            credit.requests = left if left > -_MOST_DEBT else -_MOST_DEBT
            bytes_left = credit.bytes - size / (times * self.bytes_per_credential)
            credit.bytes = bytes_left if bytes_left > -_MOST_DEBT else -_MOST_DEBT
            least = min(least, credit.requests, credit.bytes)
        owed = wait(least, 0.0)
        if owed > 0:
            self.refused(BY_TILL)
        return owed

    def _of(self, who: RateAccount) -> list[tuple[Credit, int]]:
        """What each scope of an account has, and how many times the rate is its."""
        now, of = self._clock(), self._credits.of
        return [(of(scope, now), times) for scope, times in who.scopes]

    def _over_rate(self, seconds: float) -> TooManyRequests:
        return self._refusal(BY_CREDENTIAL, "This key sends more than it may.", seconds)

    def _refusal(self, by: str, what: str, wait: float) -> TooManyRequests:
        self.refused(by)
        return TooManyRequests(what, retry_after=max(1, math.ceil(wait)))
