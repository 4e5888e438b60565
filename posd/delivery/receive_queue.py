"""The receive queue of one till: its messages are taken in their order, one at a time, and at a bounded rate.

A till that sends faster is not read for a while. That slows it down, delays no other till, and loses nothing.
What a till sent before it left is still taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from posd.security.request_rates import FRAME_COST

_MOST_WAITING: Final = 16
"""When so many messages wait, the till is not read."""
_MOST_FRAMES_WHILE_PAUSED: Final = 3000
"""In a pause, from what was read before it: up to two thousand acknowledgements. More are empty frames."""

Charge = Callable[[float, int], float]
"""Charges so many requests and bytes. Returns for how many seconds nothing more is to be read."""

ReceiveMessage = Callable[[bytes], Coroutine[Any, Any, None] | None]
"""Takes a message. What takes longer is returned, to be awaited before the next one."""


class ReadingTransport(Protocol):
    """The transport that is read from."""

    def pauseProducing(self) -> None:
        """Read no more for now."""

    def resumeProducing(self) -> None:
        """Read on."""


class ReceiveQueue:
    """The messages of one connection that are still to be taken. `failed` is called if `receive` raises."""

    def __init__(
        self,
        reactor: IReactorTime,
        transport: ReadingTransport,
        receive: ReceiveMessage,
        failed: Callable[[], None],
        charge: Charge,
    ) -> None:
        self._reactor = reactor
        self._transport = transport
        self._receive = receive
        self._failed = failed
        self._charge = charge
        self._waiting: deque[bytes] | tuple[()] = ()
        # Whether a message is being taken.
        self._busy = False
        # How many frames have come during the pause.
        self._frames_while_paused = 0
        # Ends the pause after a charge that was more than the till's credit.
        self._pause: IDelayedCall | None = None
        self._stopped = False
        self.is_paused = False
        """Whether the transport is not read at the moment."""

    def charge_frame(self, size: int) -> bool:
        """Charge a frame of so many bytes. Returns False if more have come than any till sends."""
        self._charge_and_pause(FRAME_COST, size)
        if self._pause is not None:
            self._frames_while_paused += 1
        return self._frames_while_paused <= _MOST_FRAMES_WHILE_PAUSED

    def charge_statement(self) -> None:
        """Charge a message that costs a statement as one request. Its frame was charged already."""
        self._charge_and_pause(1 - FRAME_COST, 0)

    def put(self, message: bytes) -> None:
        """Take a message, after those that wait."""
        if not self._waiting:
            # A till that says nothing has none: an empty deque takes 760 bytes.
            self._waiting = deque()
        self._waiting.append(message)
        if not self._busy:
            self._take_waiting()
        self._update_reading()

    def stop(self) -> None:
        """The connection is gone: do not pause or resume it any more."""
        self._stopped = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _take_waiting(self) -> None:
        # `receive` may call `put`, which must not begin a second loop within this one.
        self._busy = True
        work = self._take_quick()
        if work is None:
            self._busy = False
        else:
            Deferred.fromCoroutine(self._take_slow(work))

    def _take_quick(self) -> Coroutine[Any, Any, None] | None:
        """Take messages until there is one that takes longer. Returns its work, None without one."""
        while self._waiting:
            try:
                work = self._receive(self._waiting.popleft())
            except Exception:
                self._failed()
                continue
            if work is not None:
                return work
        self._waiting = ()
        return None

    async def _take_slow(self, work: Coroutine[Any, Any, None] | None) -> None:
        # A loop, and not a call for each message: the stack would grow with their number when they fail at
        # once.
        while work is not None:
            try:
                await work
            except Exception:
                self._failed()
            work = self._take_quick()
            self._update_reading()
        self._busy = False

    def _charge_and_pause(self, requests: float, size: int) -> None:
        seconds = self._charge(requests, size)
        if seconds > 0 and not self._stopped:
            if self._pause is None:
                self._pause = self._reactor.callLater(seconds, self._end_pause)
            else:
                # More frames have come, which were read before the pause began. They make it longer.
                self._pause.reset(seconds)
            self._update_reading()

    def _end_pause(self) -> None:
        self._pause = None
        self._frames_while_paused = 0
        self._update_reading()

    def _update_reading(self) -> None:
        """Pause or resume the transport, if that has changed."""
        is_pause_due = len(self._waiting) >= _MOST_WAITING or self._pause is not None
        if is_pause_due == self.is_paused or self._stopped:
            return
        self.is_paused = is_pause_due
        if is_pause_due:
            self._transport.pauseProducing()
        else:
            self._transport.resumeProducing()
