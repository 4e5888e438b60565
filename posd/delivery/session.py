"""The session of one terminal: which events it is sent, in which order, and how its messages are handled.

A session first catches up: it reads pages of the stream that follow its position, as fast as its send queue
empties. When it has all events that its channel has, it is live. If the send queue of a live session has no
room for an event, the session catches up again.

A session reads no socket and runs no SQL. `posd.web.websocket` and `posd.web.sse` own the connection.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Final

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from posd.delivery.channel import StreamBroken, TenantChannel
from posd.delivery.encoded import EncodedEvent, chunks
from posd.delivery.send_queue import SendQueue
from posd.delivery.session_interfaces import ProgressSink, SessionTransport
from posd.errors import EventsPruned, InvalidMessage, Refusal, StreamRenamed
from posd.protocol import frames, messages
from posd.protocol.cursor import SubscriptionCursor
from posd.protocol.encodings import WEBSOCKET
from posd.values import (
    FAILED,
    POLICY,
    PRUNED,
    STREAM_CHANGED,
    TOO_SLOW,
    CloseReason,
    PrintStatus,
    Resync,
    Seq,
    SessionStart,
    Terminal,
)

_MOST_INVALID_PER_MINUTE: Final = 10
"""After so many invalid messages posd closes the connection."""
_STALLED_SECONDS: Final = 60.0
"""For so long a till may read nothing before posd closes its connection."""


class SessionState(enum.Enum):
    """The states of a session."""

    CATCHING_UP = "catching up"
    LIVE = "live"
    PARTING = "parting"
    """Nothing more is sent. Messages of the till are still processed."""
    CLOSED = "closed"


class Session:
    """The session of an admitted terminal. `begin` starts it; `closed` must be called at the end."""

    _log = Logger()

    def __init__(
        self,
        terminal: Terminal,
        channel: TenantChannel,
        send_queue: SendQueue,
        transport: SessionTransport,
        progress_sink: ProgressSink,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self.terminal = terminal
        self.wire_format = transport.wire_format
        self.send_queue = send_queue
        self.state = SessionState.CATCHING_UP
        self.cursor: SubscriptionCursor | None = None
        self.charge_statement: Callable[[], None] = _charge_nothing
        """Called for each message that costs a statement."""
        self._channel = channel
        self._transport = transport
        self._progress_sink = progress_sink
        self._clock = clock
        self._now = now
        # The position at which the session began.
        self._start = send_queue.position
        # The times of invalid messages within the last minute.
        self._invalid_message_times: list[float] = []
        # Whether `_catch_up` is running.
        self._is_reading_page = False
        # Whether posd has closed the session. Messages that arrive later are ignored.
        self._is_ended = False

    @property
    def position(self) -> Seq:
        """The last event that the send queue has accepted."""
        return self.send_queue.position

    @property
    def sent(self) -> int:
        """The number of events that were written to the connection."""
        return self.send_queue.written - self._start

    @property
    def backlog(self) -> int:
        """The number of events in the stream that were not written to the connection yet."""
        return max(0, self._channel.head - self.send_queue.written)

    @property
    def furthest_sent(self) -> Seq:
        """The last event that the terminal may have: written to this connection, or acknowledged before."""
        acked = self.cursor.acked if self.cursor is not None and self.uses_positions else 0
        return max(self.send_queue.written, acked)

    @property
    def uses_positions(self) -> bool:
        """Whether the terminal has ever acknowledged an event or named a position."""
        return self.cursor is not None and not self.cursor.legacy

    @property
    def acked(self) -> Seq | None:
        """The cursor of the terminal, None if it has none. For a legacy terminal: the last event written."""
        if self.cursor is None:
            return None
        return self.send_queue.written if self.cursor.legacy else self.cursor.acked

    @property
    def is_basic(self) -> bool:
        """Whether the till may be a model that was deployed before posd.

        Such a till uses a WebSocket, names no position, acknowledges nothing and sends no device id. Its
        key may contain the device id.
        """
        terminal = self.terminal
        names_itself = terminal.device_id != terminal.principal.device_id
        is_websocket = self.wire_format is WEBSOCKET
        return (
            not self.uses_positions
            and is_websocket
            and not names_itself
            and terminal.position is None
        )

    def begin(self, session_start: SessionStart, resync: Resync | None, heartbeat: float) -> None:
        """Send the greeting, and then the events after the position of the send queue.

        The greeting contains the resume position if the terminal named a position or has a cursor. `resync`
        is the reason why the session does not start at the requested position. `heartbeat` is in seconds.
        """
        has_position = self.terminal.position is not None
        # Whether the terminal has all events up to its cursor. The cursor of a legacy terminal shows only
        # what was sent. A terminal that is astray may have events that this stream does not have.
        durable = (
            session_start.acked is not None
            and not session_start.legacy
            and not session_start.astray
        )
        self._send_message(
            "connected",
            messages.connected_text(
                greeting=self.wire_format.greeting,
                slug=self.terminal.tenant.slug,
                connection_id=str(self.terminal.connection_id),
                device_id=self.terminal.device_id,
                stream_id=session_start.head.stream_id,
                last_event_id=session_start.head.last_seq,
                resumed_from=self._start if resync is None and (has_position or durable) else None,
                resync=resync,
                heartbeat=min(heartbeat, self.wire_format.keepalive_seconds),
                now=self._now(),
            ),
        )
        self._channel.enter(self)
        if session_start.acked is not None:
            acked = session_start.acked if durable else self._start
            self.cursor = SubscriptionCursor(acked, session_start.legacy, session_start.refused)
            self.note_legacy_position()
            if has_position or resync is not None:
                self._acknowledge(self._start)
        self.catch_up()

    def catch_up(self) -> None:
        """Read on from the session's position until it is live again. Does nothing if it reads already."""
        if self.state in (SessionState.PARTING, SessionState.CLOSED) or self._is_reading_page:
            return
        self.state = SessionState.CATCHING_UP
        self._channel.leave_live(self)
        self._is_reading_page = True
        Deferred.fromCoroutine(self._catch_up())

    def on_room(self) -> None:
        """The send queue is empty. Read the next page if the session is catching up."""
        if self.state is SessionState.CATCHING_UP:
            self.catch_up()

    def on_shed(self) -> None:
        """The send queue has dropped its waiting data. The session reads the events again after `on_room`."""
        if self.state is SessionState.LIVE:
            self.state = SessionState.CATCHING_UP
            self._channel.leave_live(self)

    def heard(self, raw: bytes) -> Coroutine[Deferred[object], object, None] | None:
        """Process a text message of the till.

        Returns a coroutine if the message needs a statement. The caller awaits the coroutine before it
        passes the next message. Messages that the till sent before it disconnected are processed. Messages
        that arrive after posd has closed the session are ignored.
        """
        if self._is_ended:
            return None
        try:
            message = messages.parse(raw)
        except InvalidMessage as error:
            self._reject_message("invalid_message", str(error))
            return None
        match message:
            case messages.PingMessage():
                self._send_message("pong", messages.pong_text(message, self._now()))
            case messages.PongMessage():
                pass
            case messages.AckMessage(seq):
                if self._may_report_on(seq):
                    self._acknowledge(seq)
            case messages.NackMessage(seq, reason):
                self.charge_statement()
                if self._may_report_on(seq):
                    self._reject_event(seq, reason)
            case messages.PrintMessage(order_id, status, reason):
                self.charge_statement()
                return self._print(order_id, PrintStatus(status), reason)
            case messages.OtherMessage(kind, body):
                self.charge_statement()
                self._progress_sink.said(self.terminal, kind, body)
        return None

    def note_legacy_position(self) -> None:
        """Move the cursor of a legacy terminal to the last event written to it.

        Called when the session moves to another channel, when it ends, and every few seconds
        (`ConnectionRegistry.heartbeats`). A call for each event would make the hot path longer.
        """
        if self.cursor is not None and self.cursor.legacy:
            self._progress_sink.sent_to_legacy(self.terminal, self.send_queue.written)

    def acknowledge_elsewhere(self, seq: Seq) -> Seq:
        """The terminal has acknowledged `seq` outside this connection. Return its cursor."""
        return seq if self.cursor is None else self.cursor.acknowledge_elsewhere(seq)

    def answer_ping(self, payload: bytes) -> None:
        """Answer a WebSocket ping. Sends no pong if the send queue has no room."""
        self.send_queue.offer(frames.pong_frame(payload))

    def check(self) -> None:
        """Close the session if its transport has been full for a minute. Called every few seconds."""
        since = self.send_queue.stalled_since
        if since is not None and self._clock() - since > _STALLED_SECONDS:
            self.end(TOO_SLOW)

    def move_to_channel(self, channel: TenantChannel, start: Seq) -> None:
        """Continue at the channel of the new stream id, after event `start` or its own position if lower."""
        self.note_legacy_position()
        self._channel.leave(self)
        rewound = self.send_queue.rewind(start) if start < self.position else 0
        if rewound:
            self._start -= rewound
            if self.cursor is not None:
                self.cursor = SubscriptionCursor(start, self.cursor.legacy)
        self.terminal = evolve(self.terminal, stream_id=channel.stream_id)
        self._channel = channel
        channel.enter(self)
        if self.state is SessionState.LIVE:
            self.state = SessionState.CATCHING_UP
        self.catch_up()

    def stop_delivery(self) -> None:
        """Send nothing more, since the connection will be closed. Messages are still processed."""
        if self.state is not SessionState.CLOSED:
            self.state = SessionState.PARTING
            self._channel.leave(self)
            self.send_queue.shed()

    def end(self, closing: CloseReason) -> None:
        """Close the session and its connection. Nothing more is sent."""
        if self.state is not SessionState.CLOSED:
            self._is_ended = True
            self.closed()
            self._transport.close(closing)

    def closed(self) -> None:
        """Close the session. The connection has ended or is about to end."""
        if self.state is not SessionState.CLOSED:
            self.note_legacy_position()
        self.state = SessionState.CLOSED
        self._channel.leave(self)
        self.send_queue.close()
        # Break the reference cycle with the connection, so that the garbage collector has nothing to do.
        self.charge_statement = _charge_nothing

    async def _catch_up(self) -> None:
        try:
            while self.state is SessionState.CATCHING_UP and self.send_queue.has_room:
                if self._channel.go_live(self):
                    self.state = SessionState.LIVE
                    return
                if self.position > self._channel.tail:
                    # The session is ahead of the channel. The channel reads on and then calls `catch_up`.
                    return
                channel = self._channel
                try:
                    page = await channel.page(self.position)
                except StreamRenamed:
                    if channel is self._channel:
                        # The feed's poll finds the new stream id and moves the session to its channel.
                        return
                    continue
                # `move_to_channel` may have run while the page was read.
                if channel is self._channel:
                    self._offer(page)
        except EventsPruned:
            # When the till reconnects, it gets a resync and reloads (`protocol.cursor.resume`).
            self.end(PRUNED)
        except StreamBroken as error:
            self._log.error(
                "the stream of tenant {slug} is broken: {error}; posd closes the session of {device_id}."
                " Check the tables with posctl audit",
                device_id=self.terminal.device_id,
                slug=self.terminal.tenant.slug,
                error=error,
            )
            self.end(STREAM_CHANGED)
        except Refusal:
            # The database cannot be reached. `TenantChannel.check` calls `catch_up` when it is back.
            return
        except Exception:
            self._log.failure(
                "a page of events for a terminal of tenant {slug} was not sent; posd closes its session",
                slug=self.terminal.tenant.slug,
            )
            self.end(FAILED)
        finally:
            self._is_reading_page = False

    def _offer(self, page: Sequence[EncodedEvent]) -> None:
        """Send the events of a page, as far as the send queue has room."""
        if self.state is not SessionState.CATCHING_UP:
            # The session has ended or is parting since it requested the page.
            return
        if not page or page[0].seq != self.position + 1:
            raise StreamBroken(f"event {self.position + 1} is missing")
        before = self.position
        replayed = [(each.written(self.wire_format, replay=True), each.seq) for each in page]
        for chunk in chunks(replayed):
            if not self.send_queue.deliver(chunk):
                break
        self._channel.counters.delivered("replay", self.position - before)
        self._channel.replayed(self.position)

    def _acknowledge(self, seq: Seq) -> None:
        assert self.cursor is not None
        self._channel.acknowledged(seq)
        self._progress_sink.acknowledged(self.terminal, self.cursor.acknowledge(seq))

    def _reject_event(self, seq: Seq, reason: str) -> None:
        assert self.cursor is not None
        self._channel.counters.nacked()
        self._progress_sink.refused(self.terminal, seq, reason)
        self._progress_sink.acknowledged(self.terminal, self.cursor.refuse(seq))

    def _may_report_on(self, seq: Seq) -> bool:
        """Return whether the terminal may acknowledge or refuse event `seq`. If not, send an error."""
        if self.cursor is None:
            self._send_error("no_device", "Only a named device has a position.")
            return False
        if seq > max(self.position, self._channel.head):
            self._reject_message("beyond_head", f"There is no event {seq} yet.")
            return False
        return True

    async def _print(self, order_id: str, status: PrintStatus, reason: str) -> None:
        try:
            known = await self._progress_sink.printed(self.terminal, order_id, status, reason)
        except Refusal as refusal:
            self._send_error(refusal.code, refusal.message)
            return
        if not known:
            self._send_error("unknown_order", "There is no order of this id.")

    def _reject_message(self, code: str, text: str) -> None:
        """Send an error for an invalid message. Close the session after the tenth within a minute."""
        self._send_error(code, text)
        now = self._clock()
        self._invalid_message_times = [
            when for when in self._invalid_message_times if now - when < 60
        ] + [now]
        if len(self._invalid_message_times) >= _MOST_INVALID_PER_MINUTE:
            self.end(POLICY)

    def _send_error(self, code: str, text: str) -> None:
        self._send_message("error", messages.error_text(code, text))

    def _send_message(self, kind: str, text: bytes) -> None:
        """Send a message that is not an event. It is dropped if the send queue has no room."""
        self.send_queue.offer(self.wire_format.write(kind, text, None))


def _charge_nothing() -> None:
    """The default of `charge_statement`: SSE connections are not charged, nor are closed sessions."""
