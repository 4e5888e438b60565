"""The interfaces that a session uses: the store of its progress, and its connection."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from posd.protocol.encodings import WireFormat
from posd.values import CloseReason, PrintStatus, Seq, Terminal


class ProgressSink(Protocol):
    """Stores the progress of sessions and the messages of tills. `posd.delivery.presence` implements it."""

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        """The terminal has stored all events up to `seq`."""

    def sent_to_legacy(self, terminal: Terminal, seq: Seq) -> None:
        """A legacy terminal was sent all events up to `seq`. Its stored cursor moves there."""

    def refused(self, terminal: Terminal, seq: Seq, reason: str) -> None:
        """The terminal cannot process event `seq`."""

    def said(self, terminal: Terminal, kind: str, body: bytes) -> None:
        """The terminal sent a message that is only logged."""

    def printed(
        self, terminal: Terminal, order_id: str, status: PrintStatus, reason: str
    ) -> Awaitable[bool]:
        """Store the print status of an order. Returns False if the order does not exist."""


class SessionTransport(Protocol):
    """The part of a connection that a session uses."""

    @property
    def wire_format(self) -> WireFormat:
        """How messages are encoded on this connection."""

    def close(self, closing: CloseReason) -> None:
        """Close the connection with this code and reason. Drop it if the till does not answer."""
