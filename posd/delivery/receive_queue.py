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

from posd.security.rate_limits import TokenBucket

_MOST_WAITING: Final = 16
_FRAMES_PER_SECOND: Final = 200.0
_FRAMES_AT_ONCE: Final = 1000
# One read may bring some two thousand acknowledgements; more frames than that are empty ones.
_FRAMES_TOO_MANY: Final = 3000

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
        self, reactor: IReactorTime, reading: Reading, hear: Hear, failed: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._reading = reading
        self._hear = hear
        self._failed = failed
        self._waiting: deque[bytes] = deque()
        self._busy = False
        self._frames = TokenBucket(_FRAMES_PER_SECOND, _FRAMES_AT_ONCE, reactor.seconds)
        self._overdrawn = 0
        self._rest: IDelayedCall | None = None
        self._stopped = False
        self.holding = False
        """Whether the transport is not read at the moment."""

    def count_frame(self) -> bool:
        """Count a frame, whatever is in it. False: so many are no till's any more."""
        if not self._frames.take():
            self._overdrawn += 1
            if self._rest is None and not self._stopped:
                self._rest = self._reactor.callLater(self._frames.wait(), self._rested)
            self._regulate()
        return self._overdrawn <= _FRAMES_TOO_MANY

    def take(self, message: bytes) -> None:
        """Take a message, when those before it have been."""
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
        """Take messages until one takes longer. The one loop: it is never run from inside itself."""
        self._busy = True
        while self._waiting:
            try:
                work = self._hear(self._waiting.popleft())
            except Exception:
                self._failed()
                continue
            if work is not None:
                done = Deferred.fromCoroutine(self._finish(work))
                if not done.called:
                    done.addCallback(self._go_on)
                    return
        self._busy = False

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            self._failed()

    def _go_on(self, _: None) -> None:
        self._work_off()
        self._regulate()

    def _rested(self) -> None:
        self._rest = None
        if self._frames.take(self._overdrawn):
            self._overdrawn = 0
            self._regulate()
        else:
            self._rest = self._reactor.callLater(self._frames.wait(self._overdrawn), self._rested)

    def _regulate(self) -> None:
        hold = len(self._waiting) >= _MOST_WAITING or self._overdrawn > 0
        if hold == self.holding or self._stopped:
            return
        self.holding = hold
        if hold:
            self._reading.pauseProducing()
        else:
            self._reading.resumeProducing()
