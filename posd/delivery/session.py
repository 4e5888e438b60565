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

from posd.delivery.channel import Channel, StreamBroken
from posd.delivery.encoded import Encoded, chunks
from posd.delivery.send_queue import Outbox
from posd.errors import InvalidMessage, Pruned, Refusal, Renamed
from posd.protocol import frames, messages
from posd.protocol.cursor import Cursor
from posd.protocol.encodings import WEBSOCKET, Dialect
from posd.values import (
    FAILED,
    POLICY,
    PRUNED,
    STREAM_CHANGED,
    TOO_SLOW,
    Closing,
    Opening,
    PrintStatus,
    Resync,
    Seq,
    Terminal,
)

_INVALID_A_MINUTE: Final = 10
_STALLED_SECONDS: Final = 60.0


class State(enum.Enum):
    """What a session does."""

    CATCHING_UP = "catching up"
    LIVE = "live"
    PARTING = "parting"
    """It is sent nothing more, and what its till says still counts."""
    CLOSED = "closed"


class Register(Protocol):
    """Where a session's progress and its terminal's words are kept (`posd.delivery.presence`)."""

    def acknowledged(self, terminal: Terminal, seq: Seq) -> None:
        """The terminal has stored everything up to `seq`."""

    def followed(self, terminal: Terminal, seq: Seq) -> None:
        """A legacy terminal was sent everything up to `seq`: its cursor in the books follows."""

    def refused(self, terminal: Terminal, seq: Seq, reason: str) -> None:
        """The terminal could not process event `seq`."""

    def said(self, terminal: Terminal, kind: str, body: bytes) -> None:
        """The terminal sent a message that is only logged."""

    def printed(
        self, terminal: Terminal, order_id: str, status: PrintStatus, reason: str
    ) -> Awaitable[bool]:
        """Note how printing went; False if there is no such order."""


class Peer(Protocol):
    """The connection, as far as a session needs it."""

    @property
    def dialect(self) -> Dialect:
        """How messages are written on it."""

    def close(self, closing: Closing) -> None:
        """Close it with a word why, and drop it if the till does not answer."""


class Session:
    """A terminal that was admitted. `begin` starts it; `closed` must be called at its end."""

    _log = Logger()

    def __init__(
        self,
        terminal: Terminal,
        channel: Channel,
        outbox: Outbox,
        peer: Peer,
        register: Register,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self.terminal = terminal
        self.dialect = peer.dialect
        self.outbox = outbox
        self.state = State.CATCHING_UP
        self.cursor: Cursor | None = None
        self.costly: Callable[[], None] = _free
        """Called for each message that costs a statement."""
        self._channel = channel
        self._peer = peer
        self._register = register
        self._clock = clock
        self._now = now
        # The position at which it began.
        self._start = outbox.position
        # When invalid messages came, within the last minute.
        self._invalid: list[float] = []
        # Whether a page is being read or offered.
        self._paging = False
        # Whether posd has closed it, so that nothing counts that the till says.
        self._dismissed = False

    @property
    def position(self) -> Seq:
        """The last event that the send queue has taken."""
        return self.outbox.position

    @property
    def sent(self) -> int:
        """How many events were written to the connection."""
        return self.outbox.written - self._start

    @property
    def backlog(self) -> int:
        """How many events of the stream were not written to the connection yet."""
        return max(0, self._channel.head - self.outbox.written)

    @property
    def reached(self) -> Seq:
        """The last event that the terminal may have: one written to it, or one it has acknowledged."""
        acked = self.cursor.acked if self.cursor is not None and self.spoke else 0
        return max(self.outbox.written, acked)

    @property
    def spoke(self) -> bool:
        """Whether the terminal has ever said how far it is."""
        return self.cursor is not None and not self.cursor.legacy

    @property
    def acked(self) -> Seq | None:
        """The terminal's cursor, None if it has none. A legacy terminal's is the last event written to it."""
        if self.cursor is None:
            return None
        return self.outbox.written if self.cursor.legacy else self.cursor.acked

    @property
    def plain(self) -> bool:
        """Whether the till may be one of those that were deployed before posd.

        Those use a WebSocket, name no position, acknowledge nothing, and do not name themselves. Their key
        may name them.
        """
        terminal = self.terminal
        names_itself = terminal.device_id != terminal.principal.device_id
        is_websocket = self.dialect is WEBSOCKET
        return not self.spoke and is_websocket and not names_itself and terminal.position is None

    def begin(self, opening: Opening, resync: Resync | None, heartbeat: float) -> None:
        """Greet the terminal and send what follows the position of its send queue.

        The greeting has the event after which the terminal goes on, if the terminal named a position or has a
        cursor of its own. `resync` is why it does not go on where it wanted to.
        """
        asked = self.terminal.position is not None
        # Whether the cursor says what the terminal has. A legacy terminal's says what it was sent. One that
        # is astray may have events that this stream does not have.
        durable = opening.acked is not None and not opening.legacy and not opening.astray
        self._say(
            "connected",
            messages.connected_text(
                greeting=self.dialect.greeting,
                slug=self.terminal.tenant.slug,
                connection_id=str(self.terminal.connection_id),
                device_id=self.terminal.device_id,
                stream_id=opening.head.stream_id,
                last_event_id=opening.head.last_seq,
                resumed_from=self._start if resync is None and (asked or durable) else None,
                resync=resync,
                heartbeat=min(heartbeat, self.dialect.silence),
                now=self._now(),
            ),
        )
        self._channel.enter(self)
        if opening.acked is not None:
            acked = opening.acked if durable else self._start
            self.cursor = Cursor(acked, opening.legacy, opening.refused)
            self.note_position()
            if asked or resync is not None:
                self._acknowledge(self._start)
        self.behind()

    def behind(self) -> None:
        """Stop being live, and read on from its position until it can be. Nothing if that is under way."""
        if self.state in (State.PARTING, State.CLOSED) or self._paging:
            return
        self.state = State.CATCHING_UP
        self._channel.slow_down(self)
        self._paging = True
        Deferred.fromCoroutine(self._catch_up())

    def room(self) -> None:
        """The send queue is empty again."""
        if self.state is State.CATCHING_UP:
            self.behind()

    def given_up(self) -> None:
        """What waited in the send queue was dropped to save memory. It is read again when there is room."""
        if self.state is State.LIVE:
            self.state = State.CATCHING_UP
            self._channel.slow_down(self)

    def heard(self, raw: bytes) -> Coroutine[Deferred[object], object, None] | None:
        """Take a text message. What takes longer is returned, to be awaited before the next message.

        What a till said before it left still counts. What it says after posd has closed the session does not.
        """
        if self._dismissed:
            return None
        try:
            message = messages.parse(raw)
        except InvalidMessage as error:
            self._complain("invalid_message", str(error))
            return None
        match message:
            case messages.Ping():
                self._say("pong", messages.pong_text(message, self._now()))
            case messages.Pong():
                pass
            case messages.Ack(seq):
                if self._positioned(seq):
                    self._acknowledge(seq)
            case messages.Nack(seq, reason):
                self.costly()
                if self._positioned(seq):
                    self._refuse(seq, reason)
            case messages.Print(order_id, status, reason):
                self.costly()
                return self._print(order_id, PrintStatus(status), reason)
            case messages.Other(kind, body):
                self.costly()
                self._register.said(self.terminal, kind, body)
        return None

    def note_position(self) -> None:
        """Move the cursor of a legacy terminal to the last event written to it.

        Called when the session moves or ends and every few seconds (`Roster.sightings`), and not for each
        event, which would make the hot path longer.
        """
        if self.cursor is not None and self.cursor.legacy:
            self._register.followed(self.terminal, self.outbox.written)

    def hear_of(self, seq: Seq) -> Seq:
        """The same terminal has acknowledged `seq`, not on this connection. Returns its cursor."""
        return seq if self.cursor is None else self.cursor.hear(seq)

    def pinged(self, payload: bytes) -> None:
        """Answer a protocol ping. The answer is left out if the send queue has no room for it."""
        self.outbox.offer(frames.pong_frame(payload))

    def check(self) -> None:
        """Close the session if its connection was full for a whole minute. Called every few seconds."""
        since = self.outbox.stalled_since
        if since is not None and self._clock() - since > _STALLED_SECONDS:
            self.end(TOO_SLOW)

    def move(self, channel: Channel, start: Seq) -> None:
        """Go on at the channel of the stream's new name, after event `start` or its own earlier position."""
        self.note_position()
        self._channel.leave(self)
        back = self.outbox.go_back(start) if start < self.position else 0
        if back:
            self._start -= back
            if self.cursor is not None:
                self.cursor = Cursor(start, self.cursor.legacy)
        self.terminal = evolve(self.terminal, stream_id=channel.stream_id)
        self._channel = channel
        channel.enter(self)
        if self.state is State.LIVE:
            self.state = State.CATCHING_UP
        self.behind()

    def part(self) -> None:
        """Send nothing more, since the connection is going to be closed. What the till says still counts."""
        if self.state is not State.CLOSED:
            self.state = State.PARTING
            self._channel.leave(self)
            self.outbox.shed()

    def end(self, closing: Closing) -> None:
        """Close the connection; nothing more is sent."""
        if self.state is not State.CLOSED:
            self._dismissed = True
            self.closed()
            self._peer.close(closing)

    def closed(self) -> None:
        """The connection is closed or about to be."""
        if self.state is not State.CLOSED:
            self.note_position()
        self.state = State.CLOSED
        self._channel.leave(self)
        self.outbox.close()
        # No cycle is left for the garbage collector.
        self.costly = _free

    async def _catch_up(self) -> None:
        try:
            while self.state is State.CATCHING_UP and self.outbox.has_room:
                if self._channel.go_live(self):
                    self.state = State.LIVE
                    return
                if self.position > self._channel.tail:
                    # It is ahead. The channel reads on, and calls `behind` when it has.
                    return
                channel = self._channel
                try:
                    page = await channel.page(self.position)
                except Renamed:
                    if channel is self._channel:
                        # The poll finds the new name, and hands the session over to its channel.
                        return
                    continue
                # It may have been handed over (`move`) while the page was read.
                if channel is self._channel:
                    self._offer(page)
        except Pruned:
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
            # The database is away. `Channel.check` calls `behind` when it is back.
            return
        except Exception:
            self._log.failure("catching up failed: {slug}", slug=self.terminal.tenant.slug)
            self.end(FAILED)
        finally:
            self._paging = False

    def _offer(self, page: Sequence[Encoded]) -> None:
        """Send a page, as far as there is room."""
        if self.state is not State.CATCHING_UP:
            # It has ended, or parts, since the page was asked for.
            return
        if not page or page[0].seq != self.position + 1:
            raise StreamBroken(f"nothing follows position {self.position}")
        before = self.position
        replayed = [(each.written(self.dialect, replay=True), each.seq) for each in page]
        for chunk in chunks(replayed):
            if not self.outbox.deliver(chunk):
                break
        self._channel.instruments.delivered("replay", self.position - before)
        self._channel.replayed(self.position)

    def _acknowledge(self, seq: Seq) -> None:
        assert self.cursor is not None
        self._channel.acknowledged(seq)
        self._register.acknowledged(self.terminal, self.cursor.acknowledge(seq))

    def _refuse(self, seq: Seq, reason: str) -> None:
        assert self.cursor is not None
        self._channel.instruments.nacked()
        self._register.refused(self.terminal, seq, reason)
        self._register.acknowledged(self.terminal, self.cursor.refuse(seq))

    def _positioned(self, seq: Seq) -> bool:
        """Whether this terminal may speak about the event `seq`; complains if not."""
        if self.cursor is None:
            self._say_error("no_device", "Only a named device has a position.")
            return False
        if seq > max(self.position, self._channel.head):
            self._complain("beyond_head", f"There is no event {seq} yet.")
            return False
        return True

    async def _print(self, order_id: str, status: PrintStatus, reason: str) -> None:
        try:
            known = await self._register.printed(self.terminal, order_id, status, reason)
        except Refusal as refusal:
            self._say_error(refusal.code, refusal.message)
            return
        if not known:
            self._say_error("unknown_order", "There is no order of this id.")

    def _complain(self, code: str, text: str) -> None:
        """Say what is wrong with a message; the tenth time within a minute, close."""
        self._say_error(code, text)
        now = self._clock()
        self._invalid = [when for when in self._invalid if now - when < 60] + [now]
        if len(self._invalid) >= _INVALID_A_MINUTE:
            self.end(POLICY)

    def _say_error(self, code: str, text: str) -> None:
        self._say("error", messages.error_text(code, text))

    def _say(self, kind: str, text: bytes) -> None:
        """Send a message that is not an event. It is left out if the send queue has no room for it."""
        self.outbox.offer(self.dialect.write(kind, text, None))


def _free() -> None:
    """Stands for `costly` where nobody charges for messages: by server-sent events, and after the end."""
