"""The WebSocket face: Autobahn's protocol on an admitted connection, and nothing of the domain.

The only importer of Autobahn in the daemon. Admission (`web.admission`) has checked everything
before the upgrade; here callbacks become calls of the session, frames go out as they were made, and
the traps of Autobahn under twisted.web are defused:

- `HTTPChannel` stays the transport's producer after the upgrade, so there would be no
  back-pressure: the outbox takes its place.
- An exception in `onOpen` would leave the socket open, one in `onMessage` end it without a word:
  both are logged and close with 1011.
- `onOpen` may come after `onClose`, when the peer left during the handshake.
- Autobahn never sets TCP_NODELAY on Twisted: 40 ms for every second message in a row.
- Its defaults limit nothing: every limit is set. Frames it does not count at all, and empty ones
  cost their sender next to nothing: they are counted here.
- It reads the request a second time, refuses what it does not like without a body, and logs what
  that was: it gets a handshake of ours, with the key of the handshake and nothing else of the till's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from attrs import define, frozen
from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.web.http_headers import Headers
from twisted.web.server import Request

from posd import __version__, frames
from posd.exchange import Exchange
from posd.limits import TokenBucket
from posd.outbox import Outbox
from posd.session import Session
from posd.values import POLICY, TOO_BIG, UNSUPPORTED, Closing, Opening, Terminal

_MESSAGE_BYTES: Final = 64 * 1024
_MOST_FRAGMENTS: Final = 512
_FRAMES_PER_SECOND: Final = 200.0
_FRAMES_AT_ONCE: Final = 1000
_MOST_QUEUED: Final = 16
_CONTINUATION, _BINARY = 0x0, 0x2
_HANDSHAKE_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 2.0
_FAILED: Final = Closing(1011, "internal error")
_HANDSHAKE: Final[dict[bytes, list[bytes]]] = {
    b"Host": [b"posd"],
    b"Upgrade": [b"websocket"],
    b"Connection": [b"Upgrade"],
    b"Sec-WebSocket-Version": [b"13"],
}


@frozen
class Admitted:
    """A connection that may be upgraded; `left` is called once when it has ended."""

    terminal: Terminal
    opening: Opening
    left: Callable[[], None]


@define
class _Ending:
    """Why a connection ended, for the log: ours if we closed it, else the peer's."""

    ours: Closing | None = None


class TillProtocol(WebSocketServerProtocol):  # type: ignore[misc]
    """One till's connection. Implements `exchange.Line`."""

    _log = Logger()

    def __init__(self, admitted: Admitted, exchange: Exchange, reactor: IReactorTime) -> None:
        super().__init__()
        self._admitted = admitted
        self._exchange = exchange
        self._reactor = reactor
        self._session: Session | None = None
        self._queue: deque[bytes] = deque()
        self._busy = False
        self._holding = False
        self._frames = TokenBucket(_FRAMES_PER_SECOND, _FRAMES_AT_ONCE, reactor.seconds)
        self._fragments = 0
        self._deaf = False
        self._over = False
        self._ending = _Ending()
        self._farewell: IDelayedCall | None = None
        self._opened_at = reactor.seconds()
        self.heard_at = self._opened_at

    # -- from the network --------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if not self._deaf:
            self.heard_at = self._reactor.seconds()
            super().dataReceived(data)

    def onFrameBegin(self) -> None:
        opcode = self.current_frame.opcode
        if opcode <= _BINARY:
            self._fragments = self._fragments + 1 if opcode == _CONTINUATION else 0
        if self._fragments > _MOST_FRAGMENTS:
            self._shut_ears(TOO_BIG)
        elif not self._frames.take():
            self._shut_ears(POLICY)
        super().onFrameBegin()

    def onOpen(self) -> None:
        if self._over:
            return
        # A unix socket, behind a proxy on this machine, has no such option.
        with suppress(AttributeError, OSError):
            self.transport.setTcpNoDelay(True)
        self._guarded(self._begin)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._session is None:
            return
        if isBinary:
            self._session.end(UNSUPPORTED)
            return
        self._exchange.heard(self._session)
        self._queue.append(payload)
        if not self._busy:
            self._guarded(self._work_off)
        elif len(self._queue) >= _MOST_QUEUED and not self._holding:
            self._holding = True
            self.transport.pauseProducing()

    def onPing(self, payload: bytes) -> None:
        if self._session is not None:
            self._exchange.heard(self._session)
            self._session.pinged(payload)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self._over:
            return
        self._over = True
        if self._farewell is not None and self._farewell.active():
            self._farewell.cancel()
        self._admitted.left()
        session, self._session = self._session, None
        if session is None:
            return
        self._exchange.closed(session)
        ours = self._ending.ours
        self._log.info(
            "till gone: tenant={tenant} device={device} connection={connection} by={by} code={code}"
            " seconds={seconds} sent={sent} position={position} acked={acked}",
            tenant=session.terminal.tenant.slug,
            device=session.terminal.device_id,
            connection=str(session.terminal.connection_id),
            by="till" if ours is None else "posd",
            code=code if ours is None else ours.code,
            seconds=round(self._reactor.seconds() - self._opened_at, 3),
            sent=session.sent,
            position=session.position,
            acked=session.acked,
        )

    def dropConnection(self, abort: bool = False) -> None:
        """Hang up. A peer that does not do so too keeps the connection and its place for no longer."""
        super().dropConnection(abort)
        if not abort and not self._over and self._farewell is None:
            self._farewell = self._reactor.callLater(_CLOSE_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        self.transport.abortConnection()

    # -- from the exchange and the session ---------------------------------------------------

    def attach(self, outbox: Outbox) -> None:
        # HTTPChannel registered itself for the request and never lets go.
        self.transport.unregisterProducer()
        self.transport.registerProducer(outbox, True)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def ping(self) -> None:
        if self._session is not None:
            self._session.outbox.offer(frames.ping_frame())

    def close(self, closing: Closing) -> None:
        # sendClose() takes only 1000 and 3000 to 4999.
        self.sendCloseFrame(closing.code, closing.reason.encode(), isReply=False)

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False
    ) -> None:
        """Nothing may be sent after it (RFC 6455 §5.5.1), whether posd or Autobahn closes."""
        if not isReply and code is not None and self._ending.ours is None:
            self._ending.ours = Closing(code, (reasonUtf8 or b"").decode(errors="replace"))
        super().sendCloseFrame(code, reasonUtf8, isReply)
        if self._session is not None:
            self._session.closed()

    def drop(self, *, abort: bool) -> None:
        self._ending.ours = self._ending.ours or Closing(1006, "dropped")
        self.dropConnection(abort=abort)

    # -- in between --------------------------------------------------------------------------

    def _begin(self) -> None:
        self._session = self._exchange.open(self._admitted.terminal, self._admitted.opening, self)

    def _work_off(self) -> None:
        """Take messages one after the other, never two of one connection at once."""
        while self._queue and self._session is not None:
            work = self._session.heard(self._queue.popleft())
            if work is not None:
                self._busy = True
                Deferred.fromCoroutine(self._wait_for(work))
                return
        if self._holding and not self._over:
            self._holding = False
            self.transport.resumeProducing()

    async def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            self._fail()
        finally:
            self._busy = False
        self._guarded(self._work_off)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            self._fail()

    def _shut_ears(self, closing: Closing) -> None:
        """Close, and look at nothing any more that the peer goes on sending."""
        self._deaf = True
        self.data = b""
        if self._session is not None:
            self._session.end(closing)

    def _fail(self) -> None:
        self._log.failure("a till's connection failed")
        if self._session is not None:
            self._session.end(_FAILED)
        else:
            self.close(_FAILED)


class TillFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes protocols for admitted connections, with every limit set."""

    def __init__(self, exchange: Exchange, reactor: IReactorTime) -> None:
        super().__init__(server=f"posd/{__version__}", reactor=reactor)
        self._exchange = exchange
        self._clock = reactor
        self._next: Admitted | None = None
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            utf8validateIncoming=True,
            requireMaskedClientFrames=True,
            maskServerFrames=False,
            maxFramePayloadSize=_MESSAGE_BYTES,
            maxMessagePayloadSize=_MESSAGE_BYTES,
            autoFragmentSize=0,
            failByDrop=False,
            echoCloseCodeReason=False,
            openHandshakeTimeout=_HANDSHAKE_SECONDS,
            closeHandshakeTimeout=_CLOSE_SECONDS,
            tcpNoDelay=True,
            # Liveness is the exchange's, judged on whatever is received.
            autoPingInterval=0,
            autoPingTimeout=0,
            perMessageCompressionAccept=lambda offers: None,
            # Only a valid key in a header lets anybody in, and no browser can send one.
            allowedOrigins=["*"],
            allowNullOrigin=True,
            # Counted by admission, which can still answer.
            maxConnections=0,
            serveFlashSocketPolicy=False,
        )

    def buildProtocol(self, addr: object) -> TillProtocol | None:
        if self._next is None:
            return None
        protocol = TillProtocol(self._next, self._exchange, self._clock)
        protocol.factory = self
        return protocol

    def upgrade(self, request: Request, admitted: Admitted) -> object:
        """Turn an admitted request into a WebSocket; the resource's answer to `render`."""
        (key,) = request.requestHeaders.getRawHeaders(b"Sec-WebSocket-Key", [])
        request.requestHeaders = Headers(_HANDSHAKE | {b"Sec-WebSocket-Key": [key]})
        request.uri, request.content = b"/", BytesIO()
        self._next = admitted
        try:
            return WebSocketResource(self).render(request)
        finally:
            self._next = None
