"""How far a till has come: what it has stored, what it has saved, what it has acknowledged."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from posd.client.position import PositionFile
from posd.values import Position, Seq

INTERVAL = 0.1
"""Seconds between two acknowledgements: a burst is saved once and acknowledged once."""

_SAVE_RETRY_SECONDS = 5.0


@define(eq=False)
class DurableCursor:
    """A position that only moves when everything up to it is durable at the till.

    It is saved before it is acknowledged, so that the server is never told more than a till that
    loses its power would still know. `acknowledge` is None while there is no connection; it returns
    whether the server was told: a position means nothing to one whose stream is another.
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
        """Begin here: the server said so, and there is nothing to acknowledge."""
        self._unsaved = self._unsaved or position != self.position
        self.position = position
        self._schedule()

    def advance(self, position: Position, *, stored: bool = True) -> None:
        """Everything up to here is dealt with, and to be acknowledged if it was stored."""
        self.position = position
        self._unsaved = True
        self._is_ack_due = self._is_ack_due or stored
        self._schedule()

    def attach(self, acknowledge: Callable[[Position], bool]) -> None:
        """From now on there is a server to tell, first of all what it has not heard yet."""
        self._acknowledge = acknowledge
        self._schedule()

    def detach(self) -> None:
        """The server is gone. What is not saved yet still will be."""
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
                self._log.failure("the position cannot be saved and is not acknowledged")
                self._timer = self._clock.callLater(_SAVE_RETRY_SECONDS, self.save_now)
                return
        self._unsaved = False
        if self._is_ack_due and self._acknowledge is not None and self._acknowledge(self.position):
            self._is_ack_due = False
            self.acknowledged = self.position.seq

    def close(self) -> None:
        """Leave no timer behind. What could not be saved by now comes again, as it should."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        if self._timer is None and (self._unsaved or self._is_ack_due):
            wait = max(0.0, self._saved_at + INTERVAL - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self.save_now)
