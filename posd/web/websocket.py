"""WebSocket connections of tills: Autobahn's protocol on an admitted connection.

`posd.web.admission` checks the request before the upgrade. This module answers the handshake, translates
Autobahn's callbacks to calls of the session, and sends encoded frames. It also corrects these defects of
Autobahn with twisted.web:

- `HTTPChannel` stays the producer of the transport after the upgrade, so there would be no back-pressure.
  The send queue replaces it.
- After an exception in the opening the socket stays open, and an exception in `onMessage` closes it without a
  reason. Both are logged here, and close the connection with 1011.
- Autobahn does not set TCP_NODELAY with Twisted, which delays every second of consecutive messages by 40 ms.
- Autobahn's defaults have no limits; `AutobahnOptions` sets all of them. Autobahn does not count frames, and
  empty frames cost a client nearly nothing. So a frame is charged here after its header, before its payload.
- A client that does not read keeps a closed connection open. posd aborts a connection two seconds after its
  end begins. Autobahn's own timers run on the global reactor only.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha1
from typing import Any, Final

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure

from posd import __version__
from posd.delivery.hub import Admitted, Hub
from posd.delivery.receive_queue import ReceiveQueue
from posd.delivery.send_queue import SendQueue
from posd.delivery.session import Session
from posd.monitoring.counters import DROPPED, SILENT
from posd.protocol import frames
from posd.protocol.encodings import WEBSOCKET
from posd.security.request_rates import RequestRates, frames_account
from posd.values import FAILED, POLICY, TOO_BIG, UNSUPPORTED, CloseReason, SessionStart
from posd.web.http.bounded_request import BoundedRequest
from posd.web.http.direct_write import Write, direct_write
from posd.web.opened_protocol import AutobahnOptions, OpenedServerProtocol

_MOST_FRAGMENTS: Final = 512
_CLOSE_SECONDS: Final = 2.0
_CONTINUATION, _BINARY = 0x0, 0x2
_ACCEPT_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 §1.3."""
_HANDSHAKE_ANSWER: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nServer: posd/%b\r\nUpgrade: WebSocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Accept: %%b\r\n\r\n" % __version__.encode()
)


class TillProtocol(OpenedServerProtocol):
    """One till's connection. Implements `delivery.registry.TillTransport`."""

    _log = Logger()
    wire_format = WEBSOCKET
    write: Write
    """Sends bytes to the till, or buffers them."""
    _session: Session | None = None
    _receive_queue: ReceiveQueue | None = None
    _fragments = 0
    _is_ignoring_input = False
    _is_closed = False
    _dropped = ""
    _abort_timer: IDelayedCall | None = None

    def __init__(
        self, admitted: Admitted, hub: Hub, rates: RequestRates, reactor: IReactorTime
    ) -> None:
        super().__init__()
        self._terminal, self._leave = admitted.terminal, admitted.left
        self._rates = rates
        self._hub = hub
        self._traffic = hub.counters.traffic
        self._reactor = reactor
        self._opened_at = self._heard_at = reactor.seconds()

    # -- called by the transport and by Autobahn ---------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if not self._is_ignoring_input:
            self._heard_at = self._reactor.seconds()
            self._traffic.received_bytes += len(data)
            super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        # Break reference cycles: a run of the garbage collector would stop all other connections.
        self._session = self._receive_queue = None

    def onFrameBegin(self) -> None:
        self._traffic.received_frames += 1
        opcode = self.current_frame.opcode
        if opcode <= _BINARY:
            self._fragments = self._fragments + 1 if opcode == _CONTINUATION else 0
        if self._fragments > _MOST_FRAGMENTS:
            self._stop_reading(TOO_BIG)
        elif self._receive_queue is not None and not self._receive_queue.charge_frame(
            self.current_frame.length
        ):
            self._stop_reading(POLICY)
        super().onFrameBegin()

    def open(self, answer: bytes, session_start: SessionStart) -> None:
        """Answer the handshake, and open the session."""
        # A unix socket, which a local proxy may use, does not have this option.
        with suppress(AttributeError, OSError):
            self.transport.setTcpNoDelay(True)
        self.write = direct_write(self.transport)
        self.transport.write(answer)
        with self._fail_on_exception():
            terminal = self._terminal
            session = self._hub.open(terminal, session_start, self)
            charge = partial(self._rates.heard, frames_account(terminal))
            self._receive_queue = ReceiveQueue(
                self._reactor, self.transport, session.heard, self._fail, charge
            )
            session.charge_statement = self._receive_queue.charge_statement
            self._session = session

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._session is None or self._receive_queue is None:
            return
        if isBinary:
            self._session.end(UNSUPPORTED)
            return
        with self._fail_on_exception():
            self._hub.heard(self._session)
            self._receive_queue.put(payload)

    def onPing(self, payload: bytes) -> None:
        if self._session is not None:
            with self._fail_on_exception():
                self._hub.heard(self._session)
                self._session.answer_ping(payload)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._abort_timer is not None and self._abort_timer.active():
            self._abort_timer.cancel()
        if self._receive_queue is not None:
            self._receive_queue.stop()
        self._leave()
        if self._session is not None:
            self._hub.closed(self._session)
            self._log_end(self._session, code)

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False
    ) -> None:
        """Send a close frame, for posd or for Autobahn. Nothing may follow it (RFC 6455 §5.5.1)."""
        super().sendCloseFrame(code, reasonUtf8, isReply)
        self._finish()

    def dropConnection(self, abort: bool = False) -> None:
        """Close the connection; without an abort if both sides have sent a close frame (RFC 6455 §7.1.1)."""
        self._finish()
        super().dropConnection(abort and not self.wasClean)

    # -- called by the hub and the session ---------------------------------------------------

    @property
    def heard_at(self) -> float:
        """The time of the last input, on the reactor's clock; the present time while reading is paused."""
        if self._receive_queue is not None and self._receive_queue.is_paused:
            self._heard_at = self._reactor.seconds()
        return self._heard_at

    def attach(self, send_queue: SendQueue) -> None:
        # HTTPChannel has registered itself as the producer, and does not unregister at the upgrade.
        self.transport.unregisterProducer()
        self.transport.registerProducer(send_queue, True)

    def ping(self) -> None:
        if self._session is not None:
            self._session.send_queue.offer(frames.ping_frame())

    def close(self, closing: CloseReason) -> None:
        # Autobahn's sendClose() accepts only the codes 1000 and 3000 to 4999.
        self.sendCloseFrame(closing.code, closing.reason.encode(), isReply=False)

    def drop(self, *, abort: bool) -> None:
        if not self._dropped:
            self._dropped = SILENT if abort else DROPPED
            self.dropConnection(abort=abort)

    # -- internal ----------------------------------------------------------------------------

    def _stop_reading(self, closing: CloseReason) -> None:
        """End the session, and ignore all further input."""
        self._is_ignoring_input = True
        self.data = b""
        if self._session is not None:
            self._session.end(closing)

    def _finish(self) -> None:
        """Stop sending events, and abort the connection after `_CLOSE_SECONDS`."""
        if self._session is not None:
            self._session.closed()
        if self._abort_timer is None and not self._is_closed:
            self._abort_timer = self._reactor.callLater(_CLOSE_SECONDS, self._abort)

    def _abort(self) -> None:
        self.transport.abortConnection()

    @contextmanager
    def _fail_on_exception(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._fail()

    def _fail(self) -> None:
        terminal = self._terminal
        self._log.failure(
            "a till's connection failed; posd closes it: tenant={tenant} connection={connection}",
            tenant=terminal.tenant.slug,
            connection=str(terminal.connection_id),
        )
        if self._session is not None:
            self._session.end(FAILED)
        else:
            self.close(FAILED)

    def _log_end(self, session: Session, code: int | None) -> None:
        by, why = "till", ""
        if self.closedByMe:
            by, code, why = "posd", self.localCloseCode, (self.localCloseReason or b"").decode()
        elif self._dropped:
            by, why = "posd", self._dropped
        seconds = self._reactor.seconds() - self._opened_at
        self._hub.connection_log.ended(session, by=by, code=code, why=why, seconds=seconds)


class TillFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Creates protocols for admitted connections."""

    log = AutobahnOptions.log

    def __init__(self, hub: Hub, rates: RequestRates, reactor: IReactorTime) -> None:
        super().__init__(server=f"posd/{__version__}", reactor=reactor)
        self._hub = hub
        self._rates = rates
        self._clock = reactor

    def upgrade(self, request: BoundedRequest, admitted: Admitted) -> None:
        """Upgrade the connection of an admitted request to a WebSocket."""
        (key,) = request.fields["sec-websocket-key"]
        accept = b64encode(sha1(key.encode() + _ACCEPT_GUID, usedforsecurity=False).digest())
        protocol = self.protocol_for(admitted)
        channel: Any = request.channel
        transport, channel.transport = channel.transport, None
        if isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = protocol
        else:
            transport.protocol = protocol
        protocol.makeConnection(transport)
        protocol.open(_HANDSHAKE_ANSWER % accept, admitted.session_start)
        # HTTPChannel has paused reading while the request was answered.
        transport.resumeProducing()

    def protocol_for(self, admitted: Admitted) -> TillProtocol:
        """Return the protocol for one connection."""
        protocol = TillProtocol(admitted, self._hub, self._rates, self._clock)
        protocol.factory = self
        return protocol
