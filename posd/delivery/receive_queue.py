"""The receive queue of one till: it processes messages in order, one at a time, and at a bounded rate.

If a till sends faster, posd stops reading from its socket for a while. This slows the till down, delays no
other till, and loses nothing. Messages that the till sent before it disconnected are still processed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from posd.security.request_rates import FRAME_COST

_MOST_WAITING: Final = 16
"""When so many messages wait, the socket is not read."""
_MOST_FRAMES_WHILE_PAUSED: Final = 3000
"""Frames that may arrive in a pause, from data that was read before the pause began.

That data may contain up to two thousand acknowledgements. More frames can only be empty ones.
"""

Charge = Callable[[float, int], float]
"""Charges a number of requests and of bytes. Returns for how many seconds the socket is not read."""

ReceiveMessage = Callable[[bytes], Coroutine[Any, Any, None] | None]
"""Processes a message. Returns a coroutine that must be awaited before the next message, or None."""


class ReadingTransport(Protocol):
    """The part of a transport that pauses and resumes reading."""

    def pauseProducing(self) -> None:
        """Stop reading."""

    def resumeProducing(self) -> None:
        """Read again."""


class ReceiveQueue:
    """The unprocessed messages of one connection. `failed` is called if `receive` raises an exception."""

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
        # Whether a message is being processed.
        self._busy = False
        # The number of frames that have arrived during the pause.
        self._frames_while_paused = 0
        # Ends a pause, which begins when a charge exceeds the till's credit.
        self._pause: IDelayedCall | None = None
        self._stopped = False
        self.is_paused = False
        """Whether the socket is not read now."""

    def charge_frame(self, size: int) -> bool:
        """Charge a frame of `size` bytes. Returns False if more frames have arrived than a valid till
        sends.
        """
        self._charge_and_pause(FRAME_COST, size)
        if self._pause is not None:
            self._frames_while_paused += 1
        return self._frames_while_paused <= _MOST_FRAMES_WHILE_PAUSED

    def charge_statement(self) -> None:
        """Charge a message that costs a statement as one request. Its frame was charged before."""
        self._charge_and_pause(1 - FRAME_COST, 0)

    def put(self, message: bytes) -> None:
        """Process a message after those that wait."""
        if not self._waiting:
            # A silent till needs no deque. An empty deque takes 760 bytes.
            self._waiting = deque()
        self._waiting.append(message)
        if not self._busy:
            self._take_waiting()
        self._update_reading()

    def stop(self) -> None:
        """The connection has ended. Do not pause or resume its transport any more."""
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
        """Process messages until one returns a coroutine. Return this coroutine, None if no message is
        left.
        """
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
        # A loop, because recursive calls would deepen the stack with each message that fails at once.
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
                # Frames that were read before the pause began have arrived. They make the pause longer.
                self._pause.reset(seconds)
            self._update_reading()

    def _end_pause(self) -> None:
        self._pause = None
        self._frames_while_paused = 0
        self._update_reading()

    def _update_reading(self) -> None:
        """Pause or resume the transport if this has changed."""
        is_pause_due = len(self._waiting) >= _MOST_WAITING or self._pause is not None
        if is_pause_due == self.is_paused or self._stopped:
            return
        self.is_paused = is_pause_due
        if is_pause_due:
            self._transport.pauseProducing()
        else:
            self._transport.resumeProducing()
