"""The event stream by server-sent events: one HTTP response without an end, with a session.

The hub handles such a connection like a WebSocket, with the same send queue and the same rules. The
difference is that the till sends nothing:

- posd recognises a lost till by its unread bytes. It writes a comment after a time without events, and the
  kernel closes the connection if the till does not acknowledge the bytes in time.
- posd cannot ask the till to close the connection. It writes a last message with the reason, and closes the
  connection. The message tells a client that reconnects automatically how long to wait.
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
"""Milliseconds until a client should reconnect after this reason, on average."""
_UNCONFIRMED_MILLISECONDS: Final = 65_000
"""The same time as for a silent WebSocket. It exceeds a minute, because a slow till may read nothing for a
minute, and the kernel counts that time too."""


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
        """Begin the response and open the session."""
        self._request, self._channel = request, cast(BoundedChannel, request.channel)
        self._channel.detach_request(self._lost)
        for name, value in (
            ("Server", f"posd/{__version__}"),
            ("Content-Type", "text/event-stream"),
            # Without no-transform (RFC 9111 §5.2.2.6) a proxy may compress the stream, and delay events until
            # it has a full block. Without the next header nginx delays them until it has a full buffer.
            ("Cache-Control", "no-store, no-transform"),
            ("X-Accel-Buffering", "no"),
        ):
            request.setHeader(name, value)
        if request.method == b"HEAD":
            self._finish()
            return
        set_low_latency(self._channel.transport, _UNCONFIRMED_MILLISECONDS)
        # This line is a part of the event that follows, `connected`.
        request.write(b"retry: %d\n" % _RETRY_MILLISECONDS)
        try:
            self._session = self._hub.open(
                self._admitted.terminal, self._admitted.session_start, self
            )
        except Exception:
            self._log.failure(
                "a till's stream failed; posd closes the connection:"
                " tenant={tenant} connection={connection}",
                tenant=self._admitted.terminal.tenant.slug,
                connection=str(self._admitted.terminal.connection_id),
            )
            self.close(FAILED)

    # -- called by the hub and the session ---------------------------------------------------

    @property
    def heard_at(self) -> float:
        """When the till was last known to read: at the last comment, or when its send queue became full."""
        stalled = None if self._session is None else self._session.send_queue.stalled_since
        return max(self._heard_at, stalled or 0.0)

    def attach(self, send_queue: SendQueue) -> None:
        if self._request is not None:
            self._request.registerProducer(send_queue, True)

    def write(self, data: bytes) -> None:
        if self._request is not None:
            self._request.write(data)

    def ping(self) -> None:
        """Write a comment, unless the till has unread bytes."""
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

    # -- internal ----------------------------------------------------------------------------

    def _finish(self) -> None:
        """End the response. The connection is closed after its last byte."""
        request, self._request = self._request, None
        if request is not None and self._channel is not None:
            request.unregisterProducer()
            self._channel.persistent = False
            request.finish()

    def _lost(self) -> None:
        """End the session, because the connection is lost."""
        self._request = None
        self._admitted.left()
        if self._session is not None:
            by, code, why = self._end_reason
            seconds = self._reactor.seconds() - self._opened_at
            self._hub.closed(self._session)
            self._hub.connection_log.ended(
                self._session, by=by, code=code, why=why, seconds=seconds
            )
