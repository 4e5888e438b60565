"""The stream by server-sent events: one response that does not end, with a session behind it.

To the exchange it is a till's connection like a WebSocket, with the same outbox and the same rules.
What is different is that the till says nothing on it:

- That it is there is known from what it takes. A comment is written whenever there was nothing else
  for a while, and the kernel ends the connection when nobody has confirmed it for some time.
- It cannot be asked to hang up: the response is ended with a last message that says why, and the
  connection with it. What connects again by itself is told to do so later where that would be in vain.
"""

from __future__ import annotations

import random
from typing import Final, cast

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.server import Request

from posd import __version__
from posd.delivery.hub import Admitted, Hub
from posd.delivery.send_queue import SendQueue
from posd.delivery.session import Session
from posd.monitoring.counters import DROPPED, SILENT
from posd.protocol import messages
from posd.protocol.encodings import SERVER_SENT
from posd.values import FAILED, GOING_AWAY, RENAMED, REVOKED, SUPERSEDED, CloseReason
from posd.web.http.channel import BoundedChannel
from posd.web.http.sockets import set_low_latency

_COMMENT: Final = b":\n\n"
_RETRY_MILLISECONDS: Final = 2000
_RETRY_AFTER_CLOSE: Final = {GOING_AWAY: 500, RENAMED: 500, REVOKED: 60_000, SUPERSEDED: 60_000}
"""Milliseconds until a till that knows no better should come back, on average."""
_UNCONFIRMED_MILLISECONDS: Final = 65_000
"""As long as a WebSocket may be silent. A slow reader may take nothing for a minute, which the kernel
counts too."""


class EventStream:
    """One till's response. Implements `delivery.registry.TillTransport`."""

    _log = Logger()
    wire_format = SERVER_SENT

    def __init__(self, admitted: Admitted, hub: Hub, reactor: IReactorTime) -> None:
        self._admitted = admitted
        self._hub = hub
        self._reactor = reactor
        self._request: Request | None = None
        self._channel: BoundedChannel | None = None
        self._session: Session | None = None
        self._end_reason: tuple[str, int | None, str] = ("till", None, "")
        self._opened_at = self._heard_at = reactor.seconds()

    def begin(self, request: Request) -> None:
        """Answer the request with the stream, from now on."""
        self._request, self._channel = request, cast(BoundedChannel, request.channel)
        self._channel.detach_request(self._lost)
        for name, value in (
            ("Server", f"posd/{__version__}"),
            ("Content-Type", "text/event-stream"),
            # A proxy that compresses keeps events back until it has a block full of them, unless it is
            # told to leave the stream alone (RFC 9111 §5.2.2.6); nginx until it has a buffer full.
            ("Cache-Control", "no-store, no-transform"),
            ("X-Accel-Buffering", "no"),
        ):
            request.setHeader(name, value)
        if request.method == b"HEAD":
            self._finish()
            return
        set_low_latency(self._channel.transport, _UNCONFIRMED_MILLISECONDS)
        # It belongs to the event that follows, the greeting.
        request.write(b"retry: %d\n" % _RETRY_MILLISECONDS)
        try:
            self._session = self._hub.open(
                self._admitted.terminal, self._admitted.session_start, self
            )
        except Exception:
            self._log.failure(
                "a till's stream failed: tenant={tenant} connection={connection}",
                tenant=self._admitted.terminal.tenant.slug,
                connection=str(self._admitted.terminal.connection_id),
            )
            self.close(FAILED)

    # -- from the exchange and the session ---------------------------------------------------

    @property
    def heard_at(self) -> float:
        """When it last took what was written; until it has enough, that is."""
        stalled = None if self._session is None else self._session.send_queue.stalled_since
        return max(self._heard_at, stalled or 0.0)

    def attach(self, send_queue: SendQueue) -> None:
        if self._request is not None:
            self._request.registerProducer(send_queue, True)

    def write(self, data: bytes) -> None:
        if self._request is not None:
            self._request.write(data)

    def ping(self) -> None:
        """Write a comment, if everything that was written before has left."""
        if self._session is not None and self._session.send_queue.has_room:
            self._heard_at = self._reactor.seconds()
            self._session.send_queue.offer(_COMMENT)

    def close(self, closing: CloseReason) -> None:
        if self._request is not None:
            self._end_reason = ("posd", closing.code, closing.reason)
            retry = _RETRY_AFTER_CLOSE.get(closing, _RETRY_MILLISECONDS) * random.uniform(0.5, 1.5)
            last = self.wire_format.write("pos_closing", messages.closing_text(closing), None)
            self._request.write(b"retry: %d\n%b" % (retry, last))
            self._finish()

    def drop(self, *, abort: bool) -> None:
        if self._request is not None:
            self._end_reason = ("posd", None, SILENT if abort else DROPPED)
            self._finish()
        if abort and self._channel is not None:
            self._channel.transport.abortConnection()

    # -- in between --------------------------------------------------------------------------

    def _finish(self) -> None:
        """End the response, and the connection when that is written."""
        request, self._request = self._request, None
        if request is not None and self._channel is not None:
            request.unregisterProducer()
            self._channel.persistent = False
            request.finish()

    def _lost(self) -> None:
        """The connection is gone."""
        self._request = None
        self._admitted.left()
        if self._session is not None:
            by, code, why = self._end_reason
            seconds = self._reactor.seconds() - self._opened_at
            self._hub.closed(self._session)
            self._hub.connection_log.ended(
                self._session, by=by, code=code, why=why, seconds=seconds
            )
