"""Autobahn without changes: a WebSocket server on Twisted that sends events with `sendPreparedMessage`.

    python bench/peers/autobahn_tills.py PORT CERTIFICATE KEY

It has tills and publishing, without keys and database, like `shop.js alone`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor as installed_reactor
from twisted.internet import ssl
from twisted.web.resource import Resource
from twisted.web.server import Site


class Till(WebSocketServerProtocol):  # type: ignore[misc]
    """One connected till."""

    def onOpen(self) -> None:
        # Autobahn's own attempt to set TCP_NODELAY fails silently on Twisted.
        self.transport.setTcpNoDelay(True)
        self.factory.tills.add(self)
        greeting = {"type": "connected", "lastEventId": self.factory.last, "resumedFrom": None}
        self.sendMessage(json.dumps(greeting, separators=(",", ":")).encode())

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.factory.tills.discard(self)


class Tills(WebSocketServerFactory):  # type: ignore[misc]
    """The tills of all paths, and the number of the last event."""

    protocol = Till

    def __init__(self) -> None:
        super().__init__()
        self.tills: set[Any] = set()
        self.last = 0

    def publish(self, event: dict[str, Any]) -> None:
        self.last += 1
        message = {"type": event["type"], "id": self.last, "data": event["data"]}
        text = json.dumps(message, separators=(",", ":")).encode()
        prepared = self.prepareMessage(text)
        for till in self.tills:
            till.sendPreparedMessage(prepared)


class Publishing(Resource):
    """POST publishes an event, or those of `events`."""

    isLeaf = True

    def __init__(self, tills: Tills) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tills = tills

    def render_GET(self, request: Any) -> bytes:
        return b'{"success":true}'

    def render_POST(self, request: Any) -> bytes:
        body = json.loads(request.content.read())
        for event in body.get("events", [body]):
            self._tills.publish(event)
        request.setResponseCode(201)
        return b'{"success":true}'


class AnyPath(Resource):
    """The same resource for whatever comes below."""

    def __init__(self, resource: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._resource = resource

    def getChild(self, path: bytes, request: Any) -> Any:
        while request.postpath:
            request.prepath.append(request.postpath.pop(0))
        return self._resource


def main() -> None:
    port, certificate, private_key = sys.argv[1:]
    pem = Path(private_key).read_bytes() + Path(certificate).read_bytes()
    options = ssl.PrivateCertificate.loadPEM(pem).options()
    tills = Tills()
    root = Resource()
    root.putChild(b"ws", AnyPath(WebSocketResource(tills)))
    root.putChild(b"api", Publishing(tills))
    reactor: Any = installed_reactor
    reactor.listenSSL(int(port), Site(root), options, backlog=4096, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
