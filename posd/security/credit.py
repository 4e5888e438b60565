"""What a client may still send and ask for at once, in seconds of its rates.

A client that has sent nothing for some time has ten seconds, and gets one more each second. A request costs
the time in which its rate allows one, a byte the time in which its rate allows that. So a change of the rates
at a reload changes nothing here, and requests, bytes and answers are filled up together.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

BURST_SECONDS: Final = 10
_ROUNDING: Final = 1e-6
"""Seconds. So much can be lost when a wait is added to the time of day."""


class Credit:
    """The seconds that one client has for `requests`, `bytes` and `answers`; less than zero is a debt.

    A request that costs more than ten seconds is granted when there are ten, and leaves a debt. So the rate
    holds in the long run, and nothing is impossible for ever.
    """

    __slots__ = ("_filled", "answers", "bytes", "requests")

    def __init__(self, now: float) -> None:
        self.requests: float = BURST_SECONDS
        self.bytes: float = BURST_SECONDS
        self.answers: float = BURST_SECONDS
        self._filled = now

    def fill(self, now: float) -> None:
        """Add what the time since the last call has given. The clock may have been set back."""
        gained = now - self._filled
        self._filled = now
        if gained > 0:
            more = self.requests + gained
            self.requests = more if more < BURST_SECONDS else BURST_SECONDS
            more = self.bytes + gained
            self.bytes = more if more < BURST_SECONDS else BURST_SECONDS
            more = self.answers + gained
            self.answers = more if more < BURST_SECONDS else BURST_SECONDS


def wait(seconds: float, cost: float) -> float:
    """How long somebody who has these seconds has to wait for what costs so many; 0.0: not at all."""
    lacking = (cost if cost < BURST_SECONDS else BURST_SECONDS) - seconds
    return lacking if lacking > _ROUNDING else 0.0


class Credits:
    """The credit of each client: at most 20,000, and the longest unused is forgotten first."""

    def __init__(self, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._credits: OrderedDict[object, Credit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._credits)

    def of(self, who: object, now: float) -> Credit:
        """Somebody's credit as it is now."""
        credit = self._credits.get(who)
        if credit is None:
            credit = self._credits[who] = Credit(now)
            if len(self._credits) > self._capacity:
                self._credits.popitem(last=False)
        else:
            self._credits.move_to_end(who)
            credit.fill(now)
        return credit
