"""Autobahn's protocol as it is after the opening handshake, which posd does itself.

posd has read and checked the handshake before it lets a till in (`posd.web.admission`). Autobahn would read
it a second time, and keep some fifty attributes and a dozen objects for each connection.

So when this module is imported, Autobahn opens one connection in memory. The attributes that it has set on it
become attributes of the class `OpenedServerProtocol`, with which every connection begins. All connections
can share a
number, a text or None, and an object that is not changed after the opening (`SHARED_OBJECTS`). Each
connection gets a copy of any other object. `tests.web.test_opened_protocol` fails if there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from types import NoneType
from typing import Any, Final

import txaio
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

MESSAGE_BYTES: Final = 64 * 1024


class AutobahnOptions:
    """All of Autobahn's options. Its own values limit nothing."""

    # Autobahn would copy these options from the factory to each connection, and format them for its log.
    CONFIG_ATTRS = ()

    versions = (13,)
    webStatus = False
    serveFlashSocketPolicy = False
    flashSocketPolicy = ""
    # Only a valid key in a header lets anybody in, and no browser can send one.
    allowedOrigins = ("*",)
    allowedOriginsPatterns = ()
    allowNullOrigin = True
    trustXForwardedFor = 0
    # Admission counts connections before the upgrade, when a refusal can still be an answer.
    maxConnections = 0

    utf8validateIncoming = True
    requireMaskedClientFrames = True
    maxFramePayloadSize = MESSAGE_BYTES
    maxMessagePayloadSize = MESSAGE_BYTES
    maskServerFrames = False
    applyMask = True
    autoFragmentSize = 0
    tcpNoDelay = True

    # The upgrade is done in one turn; for the rest see `TillProtocol.dropConnection` and the roster.
    openHandshakeTimeout = 0
    closeHandshakeTimeout = 0
    autoPingInterval = 0
    autoPingTimeout = 0
    autoPingSize = 12
    autoPingRestartOnAnyTraffic = True
    failByDrop = False
    echoCloseCodeReason = False

    logOctets = False
    logFrames = False
    trackTimings = False
    log = txaio.make_logger("none")

    @staticmethod
    def perMessageCompressionAccept(offers: object) -> None:
        """One event is one uncompressed frame."""


class _NullDeferred:
    """Stands for a Deferred whose result nobody waits for."""

    def callback(self, result: object) -> None:
        """Forget the result."""


class OpenedServerProtocol(AutobahnOptions, WebSocketServerProtocol):  # type: ignore[misc]
    """A server's protocol that is open from the beginning."""

    # Set by Autobahn for its logs, which are off.
    peer = ""
    _transport_details = None
    is_open = is_closed = _NullDeferred()
    utf8validator: Any = None
    """Made when the first frame comes, since most tills say nothing."""

    def __init__(self) -> None:
        # Autobahn's own `__init__` is not called: the class has what it would set.
        for name, value in _COPIED_OBJECTS.items():
            setattr(self, name, copy(value))

    def connectionMade(self) -> None:
        """Do nothing. Autobahn's own method would begin the handshake."""

    # Autobahn's own methods of these two names format arguments for a log that is off, which is most of their
    # work.

    def dataReceived(self, data: bytes) -> None:
        self._dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        WebSocketProtocol._connectionLost(self, reason)

    def onFrameBegin(self) -> None:
        if self.utf8validator is None:
            self.utf8validator = _Validator()
        super().onFrameBegin()


SHARED_OBJECTS: Final = frozenset(
    {
        *("_results", "_valid_events", "http_headers", "http_request_params"),
        *("websocket_extensions", "websocket_extensions_in_use", "websocket_protocols"),
        # Messages that are sent in pieces wait in it; posd sends none.
        "send_queue",
        # Counts for all tills together, and is not read.
        "trafficStats",
    }
)
"""Objects that all connections share."""
SET_ELSEWHERE: Final = frozenset({*vars(OpenedServerProtocol), "connected", "factory", "transport"})
"""Attributes that are not taken from the first connection: the class above sets them, or Twisted does."""
_PLAIN: Final = (NoneType, bool, int, float, str, bytes)
_REQUEST: Final = (
    b"GET / HTTP/1.1\r\nHost: posd\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class _MemoryTransport:
    """The transport of the connection that Autobahn opens."""

    def write(self, data: bytes) -> None:
        """Forget the answer."""

    def getPeer(self) -> None:
        """There is no other end."""

    def getHost(self) -> None:
        """There is no address."""


def after_handshake() -> Mapping[str, Any]:
    """The attributes that Autobahn has set on a connection that it has just opened."""
    protocol: Any = type("_First", (AutobahnOptions, WebSocketServerProtocol), {})()
    protocol.factory = WebSocketServerFactory(reactor=Clock())
    protocol.makeConnection(_MemoryTransport())
    protocol.dataReceived(_REQUEST)
    if protocol.state != WebSocketProtocol.STATE_OPEN:
        raise ImportError("This version of Autobahn does not open a connection as posd expects.")
    return {**vars(protocol)}


_initial_state: Final = after_handshake()
_Validator: Final = type(_initial_state["utf8validator"])
_COPIED_OBJECTS: Final[dict[str, Any]] = {}
for _name in _initial_state.keys() - SET_ELSEWHERE:
    if _name in SHARED_OBJECTS or isinstance(_initial_state[_name], _PLAIN):
        setattr(OpenedServerProtocol, _name, _initial_state[_name])
    else:
        _COPIED_OBJECTS[_name] = _initial_state[_name]
