"""A server's end of a till's connection that a test controls, in memory."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.test.iosim import ConnectionCompleter, IOPump
from twisted.trial.unittest import SynchronousTestCase

from posd.client import Outcome, ReceivedEvent, Summary, Till

STREAM = UUID("6f1f2c52-8f2d-4b59-9a1b-0f0d6f3f8a11")
OTHER_STREAM = UUID("0c8a1f7e-3f0f-4d51-8a7e-5d0b9c6e2b42")
KEY = "pos_" + "5e" * 32


class Desk(WebSocketServerProtocol):  # type: ignore[misc]
    """The server's end of one connection, and the data that it has received."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[dict[str, Any]] = []
        self.code: int | None = None
        self.closed = False

    def onConnect(self, request: Any) -> None:
        self.path: str = request.path
        self.params: dict[str, list[str]] = request.params
        self.headers: dict[str, str] = request.headers

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.messages.append(json.loads(payload))

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.closed, self.code = True, code

    def tell(self, message: dict[str, Any]) -> None:
        self.sendMessage(json.dumps(message).encode())

    def greet(
        self,
        head: int,
        resumed: int | None = None,
        *,
        resync: str | None = None,
        device: str | None = "front",
        stream: UUID = STREAM,
    ) -> None:
        self.tell(
            {
                "type": "connected",
                "tenant": "kitchen",
                "streamId": str(stream),
                "deviceId": device,
                "lastEventId": head,
                "resumedFrom": resumed,
                "resync": resync,
                "heartbeatSeconds": 30,
            }
        )

    def push(self, *ids: int, kind: str = "new_order") -> None:
        for seq in ids:
            self.tell(
                {
                    "type": kind,
                    "id": seq,
                    "tenant": "kitchen",
                    "timestamp": "2026-11-22T10:00:00.123Z",
                    "data": {"orderId": f"A-{seq}", "totalAmount": 12.5},
                }
            )

    def hang_up(self, code: int, reason: str = "") -> None:
        """Close with any code, as a server may. `sendClose` permits only codes for applications."""
        self.sendCloseFrame(code=code, reasonUtf8=reason.encode())


class Curt(Protocol):
    """A server that gives one prepared answer to any request."""

    answers: list[list[bytes]]

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        for part in self.answers.pop(0):
            self.transport.write(part)


def refusal(status: str, body: bytes = b"", *headers: bytes) -> list[bytes]:
    """Return an HTTP answer whose header and body arrive separately, as on a network."""
    head = [b"HTTP/1.1 " + status.encode(), b"Content-Length: %d" % len(body), *headers]
    return [b"\r\n".join([*head, b"", b""]), body]


class TillCase(SynchronousTestCase):
    """A till of the tenant `kitchen`, not started, and its environment."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.completer = ConnectionCompleter(self.reactor)
        self.handled: list[int] = []
        self.endings: list[Outcome] = []
        self.summaries: list[Summary] = []
        self.pumps: list[IOPump] = []
        self.serve(WebSocketServerFactory(reactor=self.reactor))

    def serve(self, factory: Any) -> None:
        if isinstance(factory, WebSocketServerFactory):
            factory.protocol = Desk
            factory.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0)
        self.reactor.tcpServers.clear()
        self.reactor.listenTCP(9010, factory)

    def refuse(self, *answers: list[bytes]) -> None:
        """Let the server answer with these from now on, one for each request."""
        queue = list(answers)
        factory = Factory.forProtocol(Curt)
        Curt.answers = queue
        self.serve(factory)

    def till(
        self,
        handle: Callable[[ReceivedEvent], Awaitable[None] | None] | None = None,
        **options: Any,
    ) -> Till:
        till = Till(
            self.reactor,
            "ws://127.0.0.1:9010",
            "kitchen",
            KEY,
            handle=handle or self.store,
            endpoint=TCP4ClientEndpoint(self.reactor, "127.0.0.1", 9010),
            random=lambda: 0.5,
            **{"on_disconnected": self.endings.append, **options},
        )
        till.when_finished().addCallback(self.summaries.append)
        return till

    def started(
        self,
        handle: Callable[[ReceivedEvent], Awaitable[None] | None] | None = None,
        **options: Any,
    ) -> Till:
        till = self.till(handle, **options)
        till.startService()
        return till

    def store(self, event: ReceivedEvent) -> None:
        self.handled.append(event.id)

    def connect(self) -> Desk:
        """Let the current attempt succeed. Return the server's end."""
        pump = self.completer.succeedOnce()
        assert pump is not None, "the till has not tried"
        self.pumps.append(pump)
        self.flush()
        assert isinstance(pump.server, Desk)
        return pump.server

    def flush(self) -> None:
        for pump in self.pumps:
            pump.flush()

    def advance(self, seconds: float) -> None:
        self.reactor.advance(seconds)
        self.flush()

    def is_trying(self) -> bool:
        return bool(self.reactor.tcpClients)

    def wait_for_attempt(self) -> float:
        """Advance the clock until the till tries again. Return the time that this took."""
        waited = 0.0
        while not self.is_trying():
            self.advance(0.125)
            waited += 0.125
            assert waited < 4000, "the till has given up"
        return waited

    def acks(self, desk: Desk) -> list[int]:
        return [m["id"] for m in desk.messages if m["type"] == "ack"]
