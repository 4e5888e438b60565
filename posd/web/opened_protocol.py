"""Autobahn's WebSocket protocol in the state after the opening handshake.

posd reads and checks the handshake before it admits a till (`posd.web.admission`). Autobahn would read the
handshake a second time, and keep some fifty attributes and a dozen objects for each connection.

When this module is imported, Autobahn opens one connection in memory. Its attributes become attributes of the
class `OpenedServerProtocol`, so that all connections share them. Shared values are numbers, texts, None, and
objects that do not change after the opening (`SHARED_OBJECTS`). A connection gets its own copy of any other
object; `tests.web.test_opened_protocol` fails if there is one.
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
    """All options of Autobahn. Its defaults have no limits."""

    # Options named here would be copied from the factory to each connection, and formatted for a log.
    CONFIG_ATTRS = ()

    versions = (13,)
    webStatus = False
    serveFlashSocketPolicy = False
    flashSocketPolicy = ""
    # No check of the origin is needed: a till needs a key in a header, which a web page cannot send.
    allowedOrigins = ("*",)
    allowedOriginsPatterns = ()
    allowNullOrigin = True
    trustXForwardedFor = 0
    # Admission counts connections before the upgrade, while it can still answer with an error.
    maxConnections = 0

    utf8validateIncoming = True
    requireMaskedClientFrames = True
    maxFramePayloadSize = MESSAGE_BYTES
    maxMessagePayloadSize = MESSAGE_BYTES
    maskServerFrames = False
    applyMask = True
    autoFragmentSize = 0
    tcpNoDelay = True

    # posd does the upgrade in one turn of the reactor, and has timers of its own: see
    # `TillProtocol._finish` and `posd.delivery.registry`.
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
        """Decline compression: an event is one uncompressed frame for all tills."""


class _NullDeferred:
    """Takes the place of a Deferred without callbacks."""

    def callback(self, result: object) -> None:
        """Discard the result."""


class OpenedServerProtocol(AutobahnOptions, WebSocketServerProtocol):  # type: ignore[misc]
    """The server's side of a WebSocket connection that is open from the beginning."""

    # Autobahn uses these for its logs, which are off.
    peer = ""
    _transport_details = None
    is_open = is_closed = _NullDeferred()
    utf8validator: Any = None
    """Created for the first frame, because most tills send none."""

    def __init__(self) -> None:
        # Autobahn's own `__init__` is not called, because the class has its attributes.
        for name, value in _COPIED_OBJECTS.items():
            setattr(self, name, copy(value))

    def connectionMade(self) -> None:
        """Do nothing. Autobahn's own method would begin the handshake."""

    # The next two methods replace methods of Autobahn that spend most of their time on formatting arguments
    # for a log that is off.

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
        # Holds messages that are sent in pieces. posd sends none.
        "send_queue",
        # Counts bytes of all connections together. posd does not read it.
        "trafficStats",
    }
)
"""Attributes whose objects all connections share."""
SET_ELSEWHERE: Final = frozenset({*vars(OpenedServerProtocol), "connected", "factory", "transport"})
"""Attributes that are not taken from the first connection, because the class above or Twisted sets them."""
_PLAIN: Final = (NoneType, bool, int, float, str, bytes)
_REQUEST: Final = (
    b"GET / HTTP/1.1\r\nHost: posd\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class _MemoryTransport:
    """The transport of the connection that Autobahn opens when this module is imported."""

    def write(self, data: bytes) -> None:
        """Discard the answer."""

    def getPeer(self) -> None:
        """Return None, because there is no client."""

    def getHost(self) -> None:
        """Return None, because there is no local address."""


def after_handshake() -> Mapping[str, Any]:
    """Open a connection with Autobahn, and return its attributes. Raises `ImportError` if that fails."""
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
