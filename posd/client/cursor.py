"""The position of a till: stored, saved to a file, and acknowledged."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from posd.client.position import PositionFile
from posd.values import Position, Seq

INTERVAL = 0.1
"""Seconds between two acknowledgements, so that a burst is saved and acknowledged once."""

_SAVE_RETRY_SECONDS = 5.0


@define(eq=False)
class DurableCursor:
    """The position up to which all events are durable at the till.

    The position is saved before it is acknowledged. So the server never has a later position than a
    till after a power cut. `acknowledge` is None without a connection. It returns whether it has sent
    an acknowledgement: it does not if the server has another stream.
    """

    _clock: IReactorTime
    position: Position | None
    _file: PositionFile | None = None
    acknowledged: Seq | None = None
    _acknowledge: Callable[[Position], bool] | None = None
    _unsaved: bool = False
    _is_ack_due: bool = False
    _timer: IDelayedCall | None = None
    _saved_at: float = float("-inf")
    _log = Logger()

    def adopt(self, position: Position) -> None:
        """Start at a position from the server. There is nothing to acknowledge."""
        self._unsaved = self._unsaved or position != self.position
        self.position = position
        self._schedule()

    def advance(self, position: Position, *, stored: bool = True) -> None:
        """Move to a position. It will be saved, and acknowledged if the event was `stored`."""
        self.position = position
        self._unsaved = True
        self._is_ack_due = self._is_ack_due or stored
        self._schedule()

    def attach(self, acknowledge: Callable[[Position], bool]) -> None:
        """Acknowledge to a new connection, beginning with what has not been acknowledged yet."""
        self._acknowledge = acknowledge
        self._schedule()

    def detach(self) -> None:
        """Forget the connection. An unsaved position will still be saved."""
        self._acknowledge = None

    def save_now(self) -> None:
        """Save and acknowledge now."""
        if self._timer is not None:
            timer, self._timer = self._timer, None
            if timer.active():
                timer.cancel()
        self._saved_at = self._clock.seconds()
        if self.position is None:
            return
        if self._unsaved and self._file is not None:
            try:
                self._file.save(self.position)
            except OSError:
                self._log.failure(
                    "the position was not saved and not acknowledged; saving it is tried again in"
                    " {seconds:g} s",
                    seconds=_SAVE_RETRY_SECONDS,
                )
                self._timer = self._clock.callLater(_SAVE_RETRY_SECONDS, self.save_now)
                return
        self._unsaved = False
        if self._is_ack_due and self._acknowledge is not None and self._acknowledge(self.position):
            self._is_ack_due = False
            self.acknowledged = self.position.seq

    def close(self) -> None:
        """Cancel the timer. Events after the saved position will be sent again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        if self._timer is None and (self._unsaved or self._is_ack_due):
            wait = max(0.0, self._saved_at + INTERVAL - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self.save_now)
