"""The credit of a client for requests and bytes, measured in seconds.

A client gains one second of credit each second, and has ten at most. If its rate is 20 requests a second, a
request costs 1/20 s; if its rate is 1 MB a second, a byte costs a millionth. So a reload that changes the
rates changes no credit, and the credits for requests, bytes and answers are filled by the same addition.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

BURST_SECONDS: Final = 10
_ROUNDING: Final = 1e-6
"""A wait this short, in seconds, counts as none: it comes from rounding when times are added."""


class ClientCredit:
    """The seconds that one client has for `requests`, `bytes` and `answers`. Less than zero is a debt.

    A request that costs more than ten seconds is granted when the client has ten, and leaves a debt.
    Otherwise it would never be granted. The debt keeps the rate in the long run.
    """

    __slots__ = ("_refilled_at", "answers", "bytes", "requests")

    def __init__(self, now: float) -> None:
        self.requests: float = BURST_SECONDS
        self.bytes: float = BURST_SECONDS
        self.answers: float = BURST_SECONDS
        self._refilled_at = now

    def refill(self, now: float) -> None:
        """Add the seconds since the last call. If the clock was set back meanwhile, add nothing."""
        elapsed = now - self._refilled_at
        self._refilled_at = now
        if elapsed > 0:
            balance = self.requests + elapsed
            self.requests = balance if balance < BURST_SECONDS else BURST_SECONDS
            balance = self.bytes + elapsed
            self.bytes = balance if balance < BURST_SECONDS else BURST_SECONDS
            balance = self.answers + elapsed
            self.answers = balance if balance < BURST_SECONDS else BURST_SECONDS


def seconds_to_wait(seconds: float, cost: float) -> float:
    """Return how long a client that has `seconds` of credit waits until it can pay `cost`.

    A cost above ten seconds counts as ten. 0.0 means that the client can pay now.
    """
    lacking = (cost if cost < BURST_SECONDS else BURST_SECONDS) - seconds
    return lacking if lacking > _ROUNDING else 0.0


class ClientCredits:
    """The credits of all clients. Above `capacity` clients, the least recently used one is removed."""

    def __init__(self, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._credits: OrderedDict[object, ClientCredit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._credits)

    def get(self, client: object, now: float) -> ClientCredit:
        """Return the refilled credit of a client. An unknown client gets the full ten seconds."""
        credit = self._credits.get(client)
        if credit is None:
            credit = self._credits[client] = ClientCredit(now)
            if len(self._credits) > self._capacity:
                self._credits.popitem(last=False)
        else:
            self._credits.move_to_end(client)
            credit.refill(now)
        return credit
