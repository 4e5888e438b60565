"""What one till says: taken in its order, one message at a time, no faster than posd can bear.

A till that sends more is not read for a while. That slows it down, costs the others nothing and
loses nothing; what it sent before it left is still taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from posd.security.request_rates import FRAME

_MOST_WAITING: Final = 16
# One read may bring some two thousand acknowledgements; more frames than that are empty ones.
_FRAMES_TOO_MANY: Final = 3000

Charge = Callable[[float, int], float]
"""Told how many requests and bytes something costs; it gives the seconds for which no more is to be read."""

Hear = Callable[[bytes], Coroutine[Any, Any, None] | None]
"""Takes a message; what takes longer is returned, to be awaited before the next one."""


class Reading(Protocol):
    """The transport that is read from."""

    def pauseProducing(self) -> None:
        """Read no more for now."""

    def resumeProducing(self) -> None:
        """Read on."""


class Intake:
    """The messages of one connection that are still to be taken. `failed` is told of a bug."""

    def __init__(
        self,
        reactor: IReactorTime,
        reading: Reading,
        hear: Hear,
        failed: Callable[[], None],
        charge: Charge,
    ) -> None:
        self._reactor = reactor
        self._reading = reading
        self._hear = hear
        self._failed = failed
        self._charge = charge
        self._waiting: deque[bytes] | tuple[()] = ()
        self._busy = False
        self._overdrawn = 0
        self._rest: IDelayedCall | None = None
        self._stopped = False
        self.holding = False
        """Whether the transport is not read at the moment."""

    def frame(self, size: int) -> bool:
        """Charge a frame of so many bytes, whatever is in it. False: so many frames no till sends."""
        self._pay(FRAME, size)
        if self._rest is not None:
            self._overdrawn += 1
        return self._overdrawn <= _FRAMES_TOO_MANY

    def costly(self) -> None:
        """Charge what a message costs that has to be written down by itself, beside its frame."""
        self._pay(1 - FRAME, 0)

    def take(self, message: bytes) -> None:
        """Take a message, when those before it have been."""
        if not self._waiting:
            # A till that says nothing has none: an empty deque takes 760 bytes.
            self._waiting = deque()
        self._waiting.append(message)
        if not self._busy:
            self._work_off()
        self._regulate()

    def stop(self) -> None:
        """Nothing comes any more; there is nothing to be read."""
        self._stopped = True
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _work_off(self) -> None:
        # Busy from here on, so that what hears a message does not start a second loop within this one.
        self._busy = True
        work = self._next()
        if work is None:
            self._busy = False
        else:
            Deferred.fromCoroutine(self._go_on(work))

    def _next(self) -> Coroutine[Any, Any, None] | None:
        """Take messages until there is one that takes longer."""
        while self._waiting:
            try:
                work = self._hear(self._waiting.popleft())
            except Exception:
                self._failed()
                continue
            if work is not None:
                return work
        self._waiting = ()
        return None

    async def _go_on(self, work: Coroutine[Any, Any, None] | None) -> None:
        # One loop for all that wait: hundreds may fail at once when the database goes away.
        while work is not None:
            try:
                await work
            except Exception:
                self._failed()
            work = self._next()
            self._regulate()
        self._busy = False

    def _pay(self, requests: float, size: int) -> None:
        seconds = self._charge(requests, size)
        if seconds > 0 and not self._stopped:
            if self._rest is None:
                self._rest = self._reactor.callLater(seconds, self._rested)
            else:
                # What was read before the pause was felt makes the pause longer.
                self._rest.reset(seconds)
            self._regulate()

    def _rested(self) -> None:
        self._rest = None
        self._overdrawn = 0
        self._regulate()

    def _regulate(self) -> None:
        hold = len(self._waiting) >= _MOST_WAITING or self._rest is not None
        if hold == self.holding or self._stopped:
            return
        self.holding = hold
        if hold:
            self._reading.pauseProducing()
        else:
            self._reading.resumeProducing()
