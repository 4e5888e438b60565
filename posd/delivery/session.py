"""One terminal's session: what the till is sent, in which order, and what follows from what it says.

A session catches up page by page from its own position, as fast as its send queue empties. When it has
everything that its channel has, it is live. A till whose send queue has no room for a live event catches up
again. A session reads no socket and has no SQL: `posd.web.websocket` and `posd.web.sse` have the connection.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime
from typing import Final, Protocol

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from posd.delivery.channel import StreamBroken, TenantChannel
from posd.delivery.encoded import EncodedEvent, chunks
from posd.delivery.send_queue import SendQueue
from posd.errors import EventsPruned, InvalidMessage, Refusal, StreamRenamed
from posd.protocol import frames, messages
from posd.protocol.cursor import SubscriptionCursor
from posd.protocol.encodings import WEBSOCKET, WireFormat
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
_STALLED_SECONDS: Final = 60.0


class SessionState(enum.Enum):
    """What a session does."""

    CATCHING_UP = "catching up"
    LIVE = "live"
    PARTING = "parting"
    """It is sent nothing more, and what its till says still counts."""
    CLOSED = "closed"


class ProgressSink(Protocol):
    """Where a session's progress and its terminal's words are kept (`posd.delivery.presence`)."""

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        """The terminal has stored everything up to `seq`."""

    def sent_to_legacy(self, terminal: Terminal, seq: Seq) -> None:
        """A legacy terminal was sent everything up to `seq`: its cursor in the books follows."""

    def refused(self, terminal: Terminal, seq: Seq, reason: str) -> None:
        """The terminal could not process event `seq`."""

    def said(self, terminal: Terminal, kind: str, body: bytes) -> None:
        """The terminal sent a message that is only logged."""

    def printed(
        self, terminal: Terminal, order_id: str, status: PrintStatus, reason: str
    ) -> Awaitable[bool]:
        """Note how printing went; False if there is no such order."""


class SessionTransport(Protocol):
    """The connection, as far as a session needs it."""

    @property
    def wire_format(self) -> WireFormat:
        """How messages are written on it."""

    def close(self, closing: CloseReason) -> None:
        """Close it with a word why, and drop it if the till does not answer."""


class Session:
    """A terminal that was admitted. `begin` starts it; `closed` must be called at its end."""

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
        # The position at which it began.
        self._start = send_queue.position
        # When invalid messages came, within the last minute.
        self._invalid_message_times: list[float] = []
        # Whether a page is being read or offered.
        self._is_reading_page = False
        # Whether posd has closed it, so that nothing counts that the till says.
        self._is_ended = False

    @property
    def position(self) -> Seq:
        """The last event that the send queue has taken."""
        return self.send_queue.position

    @property
    def sent(self) -> int:
        """How many events were written to the connection."""
        return self.send_queue.written - self._start

    @property
    def backlog(self) -> int:
        """How many events of the stream were not written to the connection yet."""
        return max(0, self._channel.head - self.send_queue.written)

    @property
    def furthest_sent(self) -> Seq:
        """The last event that the terminal may have: one written to it, or one it has acknowledged."""
        acked = self.cursor.acked if self.cursor is not None and self.uses_positions else 0
        return max(self.send_queue.written, acked)

    @property
    def uses_positions(self) -> bool:
        """Whether the terminal has ever said how far it is."""
        return self.cursor is not None and not self.cursor.legacy

    @property
    def acked(self) -> Seq | None:
        """The terminal's cursor, None if it has none. A legacy terminal's is the last event written to it."""
        if self.cursor is None:
            return None
        return self.send_queue.written if self.cursor.legacy else self.cursor.acked

    @property
    def is_basic(self) -> bool:
        """Whether the till may be one of those that were deployed before posd.

        Those use a WebSocket, name no position, acknowledge nothing, and do not name themselves. Their key
        may name them.
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
        """Greet the terminal and send what follows the position of its send queue.

        The greeting has the event after which the terminal goes on, if the terminal named a position or has a
        cursor of its own. `resync` is why it does not go on where it wanted to.
        """
        has_position = self.terminal.position is not None
        # Whether the cursor says what the terminal has. A legacy terminal's says what it was sent. One that
        # is astray may have events that this stream does not have.
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
        """Stop being live, and read on from its position until it can be. Nothing if that is under way."""
        if self.state in (SessionState.PARTING, SessionState.CLOSED) or self._is_reading_page:
            return
        self.state = SessionState.CATCHING_UP
        self._channel.leave_live(self)
        self._is_reading_page = True
        Deferred.fromCoroutine(self._catch_up())

    def on_room(self) -> None:
        """The send queue is empty again."""
        if self.state is SessionState.CATCHING_UP:
            self.catch_up()

    def on_shed(self) -> None:
        """What waited in the send queue was dropped to save memory. It is read again when there is room."""
        if self.state is SessionState.LIVE:
            self.state = SessionState.CATCHING_UP
            self._channel.leave_live(self)

    def heard(self, raw: bytes) -> Coroutine[Deferred[object], object, None] | None:
        """Take a text message. What takes longer is returned, to be awaited before the next message.

        What a till said before it left still counts. What it says after posd has closed the session does not.
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

        Called when the session moves or ends and every few seconds (`ConnectionRegistry.sightings`), and
        not for each event, which would make the hot path longer.
        """
        if self.cursor is not None and self.cursor.legacy:
            self._progress_sink.sent_to_legacy(self.terminal, self.send_queue.written)

    def acknowledge_elsewhere(self, seq: Seq) -> Seq:
        """The same terminal has acknowledged `seq`, not on this connection. Returns its cursor."""
        return seq if self.cursor is None else self.cursor.acknowledge_elsewhere(seq)

    def answer_ping(self, payload: bytes) -> None:
        """Answer a protocol ping. The answer is left out if the send queue has no room for it."""
        self.send_queue.offer(frames.pong_frame(payload))

    def check(self) -> None:
        """Close the session if its connection was full for a whole minute. Called every few seconds."""
        since = self.send_queue.stalled_since
        if since is not None and self._clock() - since > _STALLED_SECONDS:
            self.end(TOO_SLOW)

    def move_to_channel(self, channel: TenantChannel, start: Seq) -> None:
        """Go on at the channel of the stream's new name, after event `start` or its own earlier position."""
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
        """Send nothing more, since the connection is going to be closed. What the till says still counts."""
        if self.state is not SessionState.CLOSED:
            self.state = SessionState.PARTING
            self._channel.leave(self)
            self.send_queue.shed()

    def end(self, closing: CloseReason) -> None:
        """Close the connection; nothing more is sent."""
        if self.state is not SessionState.CLOSED:
            self._is_ended = True
            self.closed()
            self._transport.close(closing)

    def closed(self) -> None:
        """The connection is closed or about to be."""
        if self.state is not SessionState.CLOSED:
            self.note_legacy_position()
        self.state = SessionState.CLOSED
        self._channel.leave(self)
        self.send_queue.close()
        # No cycle is left for the garbage collector.
        self.charge_statement = _charge_nothing

    async def _catch_up(self) -> None:
        try:
            while self.state is SessionState.CATCHING_UP and self.send_queue.has_room:
                if self._channel.go_live(self):
                    self.state = SessionState.LIVE
                    return
                if self.position > self._channel.tail:
                    # It is ahead. The channel reads on, and calls `catch_up` when it has.
                    return
                channel = self._channel
                try:
                    page = await channel.page(self.position)
                except StreamRenamed:
                    if channel is self._channel:
                        # The poll finds the new name, and hands the session over to its channel.
                        return
                    continue
                # It may have been handed over (`move_to_channel`) while the page was read.
                if channel is self._channel:
                    self._offer(page)
        except EventsPruned:
            # The till connects again and is told that it has to reload (`protocol.cursor.resume`).
            self.end(PRUNED)
        except StreamBroken as error:
            self._log.error(
                "{device_id} of {slug} cannot go on: {error}",
                device_id=self.terminal.device_id,
                slug=self.terminal.tenant.slug,
                error=error,
            )
            self.end(STREAM_CHANGED)
        except Refusal:
            # The database is away. `TenantChannel.check` calls `catch_up` when it is back.
            return
        except Exception:
            self._log.failure("catching up failed: {slug}", slug=self.terminal.tenant.slug)
            self.end(FAILED)
        finally:
            self._is_reading_page = False

    def _offer(self, page: Sequence[EncodedEvent]) -> None:
        """Send a page, as far as there is room."""
        if self.state is not SessionState.CATCHING_UP:
            # It has ended, or parts, since the page was asked for.
            return
        if not page or page[0].seq != self.position + 1:
            raise StreamBroken(f"nothing follows position {self.position}")
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
        """Whether this terminal may speak about the event `seq`; complains if not."""
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
        """Say what is wrong with a message; the tenth time within a minute, close."""
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
        """Send a message that is not an event. It is left out if the send queue has no room for it."""
        self.send_queue.offer(self.wire_format.write(kind, text, None))


def _charge_nothing() -> None:
    """Stands for `charge_statement` where nobody charges for messages: by server-sent events, and after
    the end.
    """
