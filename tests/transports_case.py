"""A site in memory to which a till can connect by WebSocket, by server-sent events or by polling."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, cast

from attrs import define, evolve, field, frozen

from posd.delivery.long_poll import LongPolling
from posd.errors import Refusal, Unauthorized
from posd.security.auth import Authenticator
from posd.security.connection_limits import ConnectionLimits
from posd.store.credentials import Credential
from posd.values import KeyKind, Principal, Seq, SessionStart
from posd.web.admission import AdmissionCheck, WebSocketAdmission
from posd.web.api.events import EventEndpoints
from posd.web.http.dispatch import Dispatcher
from posd.web.http.http_request import ListenerContext
from posd.web.http.request_turns import RequestTurns
from posd.web.http.router import RootResource, Routes
from tests.delivery_case import KITCHEN, NOON
from tests.hub_case import wake
from tests.server_sent import ServerSent, events_in
from tests.socket_case import Socket, SocketCase


@define(eq=False)
class Keys:
    """The authenticator. One key is valid, of the kind that the test chooses."""

    kind: KeyKind = KeyKind.TENANT
    key_device: str | None = None
    refusal: Refusal | None = None
    asked: list[tuple[str, str | None]] = field(factory=list)

    async def find_credential(
        self, slug: str, key: str | None, device_id: str | None, address: str
    ) -> Credential:
        self.asked.append((slug, device_id))
        if self.refusal is not None:
            raise self.refusal
        if key != "pos_good" or slug != "kitchen":
            raise Unauthorized
        principal = Principal(1, self.kind, KITCHEN, self.key_device)
        return Credential(principal, KITCHEN, None, False, True, ())


@frozen
class Reply:
    """An HTTP response as it arrived. It may consist of its head only."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def reply(data: bytes) -> Reply:
    """Parse the response that a server wrote, and join the chunks of its body (RFC 9112 §7.1)."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        whole = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            if not int(size, 16):
                break
            whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
        body = whole
    return Reply(int(first.split(" ")[1]), headers, body)


class TransportCase(SocketCase):
    """A tenant with ten events, and a site that serves its tills."""

    def setUp(self) -> None:
        super().setUp()
        self.keys = Keys()
        authenticator = cast(Authenticator, self.keys)
        self.connections = ConnectionLimits(total=100, per_tenant=3, per_device=2)
        admission = self.admission = AdmissionCheck(self.hub, self.connections)
        polls = LongPolling(
            self.clock, self.hub, self.connections, self.progress_store.write_pending
        )
        self.serve(
            RootResource(
                ListenerContext(),
                Routes(
                    WebSocketAdmission(authenticator, admission, self.factory),
                    Dispatcher(authenticator, self.clock.seconds, turns=RequestTurns(self.clock)),
                    EventEndpoints(polls, admission, self.clock).operations,
                ),
            )
        )
        self.stands()

    def stands(
        self,
        acked: Seq | None = None,
        *,
        legacy: bool = False,
        pruned: Seq = 0,
        at: datetime = NOON,
    ) -> None:
        """Set the cursor of the terminal in the database, and the time of its lookup."""
        head = evolve(self.log.head, pruned_seq=pruned)
        self.store.session_start = SessionStart(head, acked, legacy, at)

    def commit(self, count: int = 1, size: int = 0) -> None:
        """Commit events and wake the channel."""
        wake(self.hub, KITCHEN.id, self.log.commit(count, size))

    def send(
        self,
        target: str,
        *,
        method: str = "GET",
        version: str = "HTTP/1.1",
        body: bytes = b"",
        **headers: str | None,
    ) -> Socket:
        """Send a request. A header that is None is left out. `_` in a header's name stands for a hyphen."""
        sent: dict[str, str | None] = {"Host": "posd.example", "X-API-Key": "pos_good"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        if body:
            sent["Content-Length"] = str(len(body))
        lines = [f"{name}: {value}" for name, value in sent.items() if value is not None]
        socket = self.dial()
        socket.send("\r\n".join([f"{method} {target} {version}", *lines, "", ""]).encode() + body)
        return socket

    def websocket(self, device: str | None = None) -> Socket:
        """Connect a till by WebSocket."""
        socket = self.send(
            "/ws/pos/kitchen",
            Upgrade="websocket",
            Connection="Upgrade",
            Sec_WebSocket_Version="13",
            Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
            X_Device_ID=device,
        )
        self.assertTrue(socket.upgraded, socket.value())
        return socket

    def ask(self, target: str, **how: Any) -> Reply:
        socket = self.send(target, **how)
        self.assertNotEqual(socket.value(), b"", "there is no response")
        return reply(socket.value())

    def refusal(self, target: str, **how: Any) -> tuple[int, str]:
        answer = self.ask(target, **how)
        self.assertIs(answer.json["success"], False)
        self.assertEqual(self.connections.open, 0)
        return answer.status, answer.json["code"]


def sent_to(socket: Socket) -> list[ServerSent]:
    """Return the server-sent events in a response."""
    return events_in(reply(socket.value()).body)


def positions(socket: Socket) -> list[Seq]:
    """Return the positions of the stream's events in a response."""
    return [int(each.id) for each in sent_to(socket) if each.id is not None]
